//! The streams behind the topics.

use crate::core::Wanted;
use highwater_bus::{Bus, BusError, StreamSpec};
use highwater_schemas::subjects;

/// Makes the topics of a bucket where they are missing.
pub(crate) async fn ensure(bus: &Bus, bucket: &str, replicas: usize) -> Result<(), BusError> {
    let (mutation, catchup) = (StreamSpec::mutation(bucket, replicas), StreamSpec::catchup(bucket, replicas));
    tokio::try_join!(bus.ensure_stream(&mutation), bus.ensure_stream(&catchup)).map(|_| ())
}

/// Brings the topics to what the state says: those of declared buckets exist, those of others do not, and what closed sessions
/// left behind is gone. `first`: also what a crash may have left.
pub(crate) async fn check(bus: &Bus, buckets: &[Wanted], replicas: usize, first: bool) -> Result<(), String> {
    let said = |bucket: &str, e: BusError| format!("topics of bucket {bucket}: {e}");
    for Wanted { bucket, topics, .. } in buckets {
        ensure(bus, bucket, replicas).await.map_err(|e| said(bucket, e))?;
        for topic in topics {
            bus.ensure_stream(&StreamSpec::topic(bucket, topic, replicas)).await.map_err(|e| said(bucket, e))?;
        }
    }
    if !first {
        return Ok(());
    }
    for Wanted { bucket, sessions, .. } in buckets {
        let stream = subjects::catchup_stream(bucket);
        for subject in bus.stream_subjects(&stream).await.map_err(|e| said(bucket, e))? {
            let session = subject.rsplit('.').next().and_then(|s| s.parse::<u64>().ok());
            if !session.is_some_and(|s| sessions.contains(&s)) {
                bus.purge(&stream, &subject, None).await.map_err(|e| said(bucket, e))?;
            }
        }
    }
    for stream in bus.stream_names().await.map_err(|e| e.to_string())? {
        let ours = ["HW_MUTATION_", "HW_CATCHUP_", "HW_TOPIC_"].iter().any(|prefix| stream.starts_with(prefix));
        let wanted = |w: &Wanted| {
            stream == subjects::mutation_stream(&w.bucket)
                || stream == subjects::catchup_stream(&w.bucket)
                || w.topics.iter().any(|topic| stream == subjects::topic_stream(&w.bucket, topic))
        };
        if ours && !buckets.iter().any(wanted) {
            tracing::info!(stream, "deleting a topic that is not declared");
            bus.delete_stream(&stream).await.map_err(|e| e.to_string())?;
        }
    }
    Ok(())
}
