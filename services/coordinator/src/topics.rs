//! The streams behind the topics.

use crate::core::{Found, Wanted};
use highwater_bus::{Bus, BusError, StreamSpec};
use highwater_schemas::subjects;

/// Makes the topics of a bucket where they are missing.
pub(crate) async fn ensure(bus: &Bus, bucket: &str, replicas: usize) -> Result<(), BusError> {
    let (mutation, catchup) = (StreamSpec::mutation(bucket, replicas), StreamSpec::catchup(bucket, replicas));
    tokio::try_join!(bus.ensure_stream(&mutation), bus.ensure_stream(&catchup)).map(|_| ())
}

/// Makes the topics that must exist, whatever becomes of the others; what could not be made is named.
pub(crate) async fn check(bus: &Bus, buckets: &[Wanted], replicas: usize) -> Result<(), String> {
    let mut failed = Vec::new();
    for Wanted { bucket, topics, .. } in buckets {
        if let Err(error) = ensure(bus, bucket, replicas).await {
            failed.push(format!("bucket {bucket}: {error}"));
        }
        for topic in topics {
            if let Err(error) = bus.ensure_stream(&StreamSpec::topic(bucket, topic, replicas)).await {
                failed.push(format!("topic {topic} of bucket {bucket}: {error}"));
            }
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
}

/// What there is of topics and sessions: a crash may have left some that nobody needs.
pub(crate) async fn found(bus: &Bus, buckets: &[Wanted]) -> Result<Found, BusError> {
    let mut found = Found::default();
    for Wanted { bucket, .. } in buckets {
        for subject in bus.stream_subjects(&subjects::catchup_stream(bucket)).await? {
            if let Some(session) = subject.rsplit('.').next().and_then(|s| s.parse::<u64>().ok()) {
                found.sessions.push((bucket.clone(), session));
            }
        }
    }
    let ours = |stream: &String| ["HW_MUTATION_", "HW_CATCHUP_", "HW_TOPIC_"].iter().any(|p| stream.starts_with(p));
    found.streams = bus.stream_names().await?.into_iter().filter(ours).collect();
    Ok(found)
}
