//! The bucket of the cluster managers: their lease, and the index managers that were ever registered.
//!
//! A key-value bucket by its layout, but made as a stream: the client's own helper ties the lifetime of messages to delete
//! markers, and cannot renew a message that has one.

use crate::{
    codes::wrong_sequence,
    connect::Bus,
    error::BusError,
    stream_spec::{StreamSettings, StreamSpec},
    troubles::Retry,
};
use async_nats::{
    HeaderMap, header,
    jetstream::{context::PublishErrorKind, stream::Stream},
};
use futures_util::StreamExt;
use highwater_schemas::{
    api::{Lease, LeaseWritten},
    names,
    subjects::{self, CLUSTER_LEASE, CLUSTER_STREAM},
};
use std::{
    error::Error,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::timeout;

const API_TIMEOUT: Duration = Duration::from_secs(2);
/// Index managers that are read from the bucket, at most.
const MOST_REGISTERED: usize = 1_024;

/// The bucket `hw_cluster`.
#[derive(Debug, Clone)]
pub struct ClusterBucket {
    bus: Bus,
    settings: StreamSettings,
    /// Writes of the lease, which the holder repeats.
    retry: Arc<Mutex<Retry>>,
}

impl ClusterBucket {
    pub fn new(bus: Bus, settings: StreamSettings) -> Self {
        let retry = Arc::new(Mutex::new(bus.retry("lease of the cluster managers")));
        Self { bus, settings, retry }
    }

    /// Makes the bucket where it is missing. True when it was made.
    pub async fn ensure(&self) -> Result<bool, BusError> {
        Ok(self.bus.ensure_stream(&StreamSpec::cluster(&self.settings)).await?.made)
    }

    async fn stream(&self) -> Result<Stream<()>, BusError> {
        self.bus.js().get_stream_no_info(CLUSTER_STREAM).await.map_err(|e| BusError::other("stream", e))
    }

    /// Revision and value of the lease, as the stream's leader has it; the value is None when it cannot be read.
    ///
    /// # Errors
    /// [`BusError::NoStream`] when there is no bucket.
    pub async fn read(&self) -> Result<Option<(u64, Option<Lease>)>, BusError> {
        // Whoever may write to the bucket may store headers there that the client library refuses.
        let read = self.bus.last_of(CLUSTER_STREAM, CLUSTER_LEASE);
        let found =
            timeout(API_TIMEOUT, read).await.map_err(|_| BusError::Timeout { subject: CLUSTER_LEASE.into() })??;
        Ok(found.map(|message| (message.seq, serde_json::from_slice(&message.payload).ok())))
    }

    /// Writes the lease if its revision is `expected`, 0 standing for none, and waits `patience` for the outcome.
    pub async fn write(&self, lease: &Lease, expected: u64, patience: Duration) -> LeaseWritten {
        let Ok(value) = serde_json::to_vec(lease) else { return LeaseWritten::Unknown };
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, expected.to_string().as_str());
        // Whole seconds, and never less than the holder counts on; with every renewal, else it would last for ever.
        headers.insert(header::NATS_MESSAGE_TTL, format!("{}s", lease.lease_ms.div_ceil(1_000)).as_str());
        let subject = self.bus.api().key_value(CLUSTER_LEASE);
        let refusals = self.bus.refusals().last();
        let write = async {
            match self.bus.js().publish_with_headers(subject.to_string(), headers, value.into()).await {
                Ok(acknowledged) => acknowledged.await,
                Err(e) => Err(e),
            }
        };
        let written = timeout(patience, write).await;
        let failed = match &written {
            Ok(Ok(_)) => None,
            Ok(Err(e)) if wrong_sequence(e) => None,
            Ok(Err(e)) => Some(e.source().map_or_else(|| e.to_string(), ToString::to_string)),
            Err(_) => Some(match self.bus.refused(refusals, |refused| refused == subject) {
                Some(refusal) => BusError::from(refusal).to_string(),
                None => "no acknowledgement in time".into(),
            }),
        };
        let mut retry = self.retry.lock().unwrap_or_else(PoisonError::into_inner);
        match failed {
            Some(why) => _ = retry.failed(&why),
            None => retry.over(),
        }
        drop(retry);
        match written {
            Ok(Ok(ack)) if ack.stream == CLUSTER_STREAM => LeaseWritten::Done { revision: ack.sequence },
            Ok(Ok(_)) => LeaseWritten::NoBucket,
            Ok(Err(e)) if wrong_sequence(&e) => LeaseWritten::Conflict,
            Ok(Err(e)) if e.kind() == PublishErrorKind::StreamNotFound => LeaseWritten::NoBucket,
            Ok(Err(_)) | Err(_) => LeaseWritten::Unknown,
        }
    }

    /// Removes the lease of this revision, so that nobody need wait for its end; one that is gone is fine.
    pub async fn release(&self, revision: u64) -> Result<(), BusError> {
        let stream = self.stream().await?;
        let deleted = timeout(API_TIMEOUT, stream.delete_message(revision));
        let deleted = self.bus.permitted_about(CLUSTER_STREAM, deleted).await?;
        match deleted {
            Ok(done) => done.map(|_| ()).map_err(|e| BusError::other("release the lease", e)),
            Err(_) => Err(BusError::Timeout { subject: CLUSTER_LEASE.into() }),
        }
    }

    /// Remembers an index manager.
    pub async fn register(&self, node: &str) -> Result<(), BusError> {
        let subject = subjects::cluster_registered(node);
        let written = self.bus.api().key_value(&subject).into_owned();
        let write = async { self.bus.js().publish(written.clone(), "{}".into()).await?.await };
        let write = self.bus.permitted(|refused| refused == written, timeout(API_TIMEOUT, write));
        match write.await? {
            Ok(done) => done.map(|_| ()).map_err(|e| BusError::other("register", e)),
            Err(_) => Err(BusError::Timeout { subject }),
        }
    }

    /// The index managers that are remembered.
    pub async fn registered(&self) -> Result<Vec<String>, BusError> {
        let prefix = subjects::cluster_registered("");
        let failed = |e: &dyn std::fmt::Display| BusError::other("registered index managers", e);
        let stream = self.stream().await?;
        let listed = timeout(API_TIMEOUT, stream.info_with_subjects(format!("{prefix}>")));
        let listed = self.bus.permitted_about(CLUSTER_STREAM, listed).await?;
        let mut listed = match listed {
            Ok(listed) => listed.map_err(|e| failed(&e))?,
            Err(_) => return Err(BusError::Timeout { subject: prefix }),
        };
        let mut nodes = Vec::new();
        while let Ok(Some(next)) = timeout(API_TIMEOUT, listed.next()).await {
            let (subject, _) = next.map_err(|e| failed(&e))?;
            let node = subject.strip_prefix(&prefix).unwrap_or_default();
            if names::check("node", node).is_ok() && nodes.len() < MOST_REGISTERED {
                nodes.push(node.to_owned());
            }
        }
        Ok(nodes)
    }
}
