//! The streams behind the topics.

use crate::core::{Found, Wanted};
use futures_util::{StreamExt, stream};
use highwater_bus::{Bus, BusError, Ensured, StreamSettings, StreamSpec, is_literal};
use highwater_schemas::subjects;
use std::collections::BTreeSet;

/// Streams that are looked at at once.
const AT_ONCE: usize = 16;
/// Subjects of no session whose messages are removed at a time.
const MOST_REMOVED: usize = 256;

/// A stream that must exist.
struct Needed {
    /// Whose it is, for a message.
    what: String,
    spec: StreamSpec,
    /// It is too small if it is full.
    grows: bool,
}

fn specs(bucket: &str, topic: Option<&str>, settings: &StreamSettings) -> Vec<StreamSpec> {
    match topic {
        None => vec![StreamSpec::mutation(bucket, settings), StreamSpec::catchup(bucket, settings)],
        Some(topic) => vec![StreamSpec::topic(bucket, topic, settings)],
    }
}

/// The streams of a new bucket, or that of a topic that people make.
pub(crate) fn names(bucket: &str, topic: Option<&str>) -> Vec<String> {
    specs(bucket, topic, &StreamSettings::default()).into_iter().map(|spec| spec.name).collect()
}

/// Makes them where they are missing: all or none, as one that nobody can use takes room.
pub(crate) async fn ensure(
    bus: &Bus,
    bucket: &str,
    topic: Option<&str>,
    settings: &StreamSettings,
) -> Result<(), String> {
    let mut made = Vec::new();
    // One after the other: a server may let two at once reserve what it has room for once.
    for spec in specs(bucket, topic, settings) {
        match bus.ensure_stream(&spec).await {
            Ok(there) if there.made => made.push(spec.name),
            Ok(_) => {}
            Err(error) => {
                delete(bus, made).await;
                return Err(error.to_string());
            }
        }
    }
    Ok(())
}

async fn make(bus: Bus, Needed { what, spec, grows }: Needed) -> Result<(), String> {
    let there = bus.ensure_stream(&spec).await.map_err(|error| format!("{what}{error}"))?;
    if grows && is_full(there) {
        // It serves as it is, and is looked at again.
        if let Err(error) = bus.grow_stream(&spec).await {
            bus.happened(&format!("growing stream {}", spec.name), &error);
        }
    }
    Ok(())
}

/// The next large batches have no room, or have taken that of others.
fn is_full(Ensured { bytes, max_bytes, .. }: Ensured) -> bool {
    max_bytes > 0 && bytes >= max_bytes / 4 * 3
}

/// Makes the topics that must exist, whatever becomes of the others; what could not be made is named.
pub(crate) async fn check(bus: &Bus, buckets: &[Wanted], settings: &StreamSettings) -> Result<(), String> {
    let all = buckets.iter().flat_map(|Wanted { bucket, topics, sessions, recoveries }| {
        let what = format!("bucket {bucket}: ");
        let grows = [*recoveries, *sessions];
        let builtin = specs(bucket, None, settings).into_iter().zip(grows);
        let builtin = builtin.map(move |(spec, grows)| Needed { what: what.clone(), spec, grows });
        let made = topics.iter().flat_map(move |topic| {
            let what = format!("topic {topic} of bucket {bucket}: ");
            let specs = specs(bucket, Some(topic), settings).into_iter();
            specs.map(move |spec| Needed { what: what.clone(), spec, grows: false })
        });
        builtin.chain(made)
    });
    let all: Vec<Needed> = all.collect();
    let made = each(all.into_iter().map(|needed| make(bus.clone(), needed))).await;
    let mut failed: Vec<String> = made.into_iter().filter_map(Result::err).collect();
    // As people compare it with what it was before.
    failed.sort();
    if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
}

/// What there is of topics and sessions: a crash may have left some that nobody needs. Streams that were made beforehand wait for
/// a bucket.
pub(crate) async fn found(bus: &Bus, buckets: &[Wanted]) -> Result<Found, BusError> {
    let all: Vec<String> = buckets.iter().map(|wanted| wanted.bucket.clone()).collect();
    let sessions = all.into_iter().map(|bucket| {
        let bus = bus.clone();
        async move {
            let (mut sessions, mut foreign) = (Vec::new(), Vec::new());
            for subject in bus.stream_subjects(&subjects::catchup_stream(&bucket)).await? {
                match session(&bucket, &subject) {
                    Some(session) => sessions.push((bucket.clone(), session)),
                    // Others are of whoever made the stream.
                    None if is_literal(&subject) && subject.starts_with("hw.") => foreign.push(subject),
                    None => {}
                }
            }
            remove_foreign(&bus, &bucket, &foreign).await;
            Ok(sessions)
        }
    });
    let sessions: Result<Vec<_>, BusError> = each(sessions).await.into_iter().collect();
    let named = |stream: &String| ["HW_MUTATION_", "HW_CATCHUP_", "HW_TOPIC_"].iter().any(|p| stream.starts_with(p));
    let all = buckets.iter().flat_map(|Wanted { bucket, topics, .. }| {
        names(bucket, None).into_iter().chain(topics.iter().flat_map(|topic| names(bucket, Some(topic))))
    });
    let needed: BTreeSet<String> = all.collect();
    let others = bus.stream_names().await?.into_iter().filter(named).filter(|stream| !needed.contains(stream));
    let ours = others.map(|stream| {
        let bus = bus.clone();
        async move { bus.is_our_stream(&stream).await.unwrap_or(false).then_some(stream) }
    });
    let streams = each(ours).await.into_iter().flatten().collect();
    Ok(Found { streams, sessions: sessions?.concat() })
}

/// The session whose messages have a subject.
fn session(bucket: &str, subject: &str) -> Option<u64> {
    let session = subject.rsplit('.').next()?.parse().ok()?;
    (subject == subjects::catchup(bucket, session)).then_some(session)
}

/// Removes what somebody else wrote into the stream of a bucket's sessions, which takes no more than a certain size: messages that
/// nobody reads must not keep sessions out. Of more than [`MOST_REMOVED`] subjects the rest is removed the next time.
async fn remove_foreign(bus: &Bus, bucket: &str, foreign: &[String]) {
    let Some(first) = foreign.first() else { return };
    tracing::warn!(bucket, first, subjects = foreign.len(), "removing messages that are of no session");
    for subject in foreign.iter().take(MOST_REMOVED) {
        if let Err(error) = bus.purge(&subjects::catchup_stream(bucket), subject, None).await {
            tracing::warn!(bucket, subject, %error, "cannot remove messages that are of no session");
        }
    }
}

/// Deletes what is there of these streams. What cannot be deleted is found again later.
pub(crate) async fn delete(bus: &Bus, streams: Vec<String>) {
    let gone = streams.into_iter().map(|stream| {
        let bus = bus.clone();
        async move {
            tracing::info!(stream, "deleting a topic");
            if let Err(error) = bus.delete_stream(&stream).await {
                tracing::warn!(stream, %error, "cannot delete");
            }
        }
    });
    each(gone).await;
}

/// Does a few at once; what they come to is in no order.
async fn each<F: Future>(all: impl Iterator<Item = F>) -> Vec<F::Output> {
    stream::iter(all).buffer_unordered(AT_ONCE).collect().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    };

    #[test]
    fn only_the_subject_of_a_session_is_one() {
        assert_eq!(session("b", "hw.catchup.b.17"), Some(17));
        for foreign in ["hw.catchup.b.x", "hw.catchup.b.017", "hw.catchup.b.+17", "hw.catchup.c.17", "hw.catchup.b."] {
            assert_eq!(session("b", foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_topic_is_full_at_three_quarters_of_its_limit() {
        let there = |bytes, max_bytes| Ensured { made: false, bytes, max_bytes };
        assert!(is_full(there(75, 100)) && !is_full(there(74, 100)) && !is_full(there(1_000, 0)));
    }

    #[tokio::test]
    async fn a_few_are_looked_at_at_once() {
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let one = |n: usize| {
            let (now, most) = (Arc::clone(&now), Arc::clone(&most));
            async move {
                most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                tokio::task::yield_now().await;
                now.fetch_sub(1, SeqCst);
                n
            }
        };
        let mut done = each((0..100).map(one)).await;
        done.sort_unstable();
        assert_eq!(done, (0..100).collect::<Vec<_>>());
        assert_eq!(most.load(SeqCst), AT_ONCE);
    }
}
