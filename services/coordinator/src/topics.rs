//! The streams behind the topics.

use highwater_bus::{Bus, BusError, StreamSpec};
use highwater_schemas::subjects;

/// Makes the topics of a bucket where they are missing.
pub(crate) async fn ensure(bus: &Bus, bucket: &str, replicas: usize) -> Result<(), BusError> {
    bus.ensure_stream(&StreamSpec::mutation(bucket, replicas)).await?;
    bus.ensure_stream(&StreamSpec::catchup(bucket, replicas)).await
}

/// Brings the topics to what the state says: those of declared buckets exist, those of others do not, and what closed sessions
/// left behind is gone. `first`: also what a crash may have left.
pub(crate) async fn check(
    bus: &Bus,
    buckets: &[(String, Vec<u64>)],
    replicas: usize,
    first: bool,
) -> Result<(), String> {
    let said = |bucket: &str, e: BusError| format!("topics of bucket {bucket}: {e}");
    for (bucket, _) in buckets {
        ensure(bus, bucket, replicas).await.map_err(|e| said(bucket, e))?;
    }
    if !first {
        return Ok(());
    }
    for (bucket, sessions) in buckets {
        let stream = subjects::catchup_stream(bucket);
        for subject in bus.stream_subjects(&stream).await.map_err(|e| said(bucket, e))? {
            let session = subject.rsplit('.').next().and_then(|s| s.parse::<u64>().ok());
            if !session.is_some_and(|s| sessions.contains(&s)) {
                bus.purge(&stream, &subject, None).await.map_err(|e| said(bucket, e))?;
            }
        }
    }
    for stream in bus.stream_names().await.map_err(|e| e.to_string())? {
        let bucket = stream.strip_prefix("HW_MUTATION_").or_else(|| stream.strip_prefix("HW_CATCHUP_"));
        if bucket.is_some_and(|b| !buckets.iter().any(|(known, _)| known == b)) {
            tracing::info!(stream, "deleting the topic of a bucket that is not declared");
            bus.delete_stream(&stream).await.map_err(|e| e.to_string())?;
        }
    }
    Ok(())
}
