//! What the shell asks: the bucket of the lease, and index managers.

use crate::core::Seen;
use highwater_bus::{Bus, BusError, ClusterBucket, Reply};
use highwater_schemas::{
    ApiError, ErrorCode,
    api::{self, Bootstrap, BootstrapReply, ClusterStatus, ManagerStatus, ManagerStatusRequest},
    subjects,
};
use serde::de::DeserializeOwned;
use std::time::Duration;

pub(crate) const BOOTSTRAP_TIMEOUT: Duration = Duration::from_secs(1);
/// A master that does not answer in this time is not waited for.
const STATUS_TIMEOUT: Duration = Duration::from_millis(500);

pub(crate) async fn look(bucket: &ClusterBucket) -> Seen {
    match bucket.read().await {
        Ok(None) => Seen::Missing,
        Ok(Some((revision, lease))) => Seen::Held { revision, lease },
        Err(BusError::NoStream(_)) => Seen::NoBucket,
        Err(error) => {
            tracing::debug!(%error, "cannot look at the lease");
            Seen::Failed
        }
    }
}

pub(crate) async fn nominate(bus: &Bus, to: &str, bootstrap: &Bootstrap) -> Option<BootstrapReply> {
    let payload = serde_json::to_vec(bootstrap).ok()?;
    let reply = bus.request(&subjects::node(to, "bootstrap"), payload, BOOTSTRAP_TIMEOUT).await;
    match reply {
        Ok(reply) => read(&reply),
        Err(error) => {
            tracing::debug!(to, %error, "no answer to the bootstrap");
            None
        }
    }
}

/// What is known though the master does not answer. Not where the answer would be a list's next page: it would end the list.
pub(crate) fn without_master(status: ClusterStatus, after: Option<&String>) -> Result<ClusterStatus, ApiError> {
    match after {
        Some(_) => Err(ApiError::new(ErrorCode::NoCoordinator, "the coordinator does not answer at the moment")),
        None => Ok(status),
    }
}

/// What only the master knows, when it answers in time: of buckets those after this one.
pub(crate) async fn with_master(
    bus: &Bus,
    mut status: ClusterStatus,
    after: Option<String>,
) -> Result<ClusterStatus, ApiError> {
    let subject = subjects::node(&status.coordinator, "status");
    let asked = serde_json::to_vec(&ManagerStatusRequest { buckets_after: after.clone() }).unwrap_or_default();
    let reply = bus.request(&subject, asked, STATUS_TIMEOUT).await.ok();
    let Some(master) = reply.and_then(|reply| read::<ManagerStatus>(&reply)) else {
        return without_master(status, after.as_ref());
    };
    status.version = status.version.max(master.report.version);
    status.bootstrap = master.bootstrap;
    (status.buckets, status.more_buckets) = (master.buckets, master.more_buckets);
    Ok(status)
}

/// A reply, unless it is an error or damaged.
fn read<T: DeserializeOwned>(reply: &Reply) -> Option<T> {
    let value = api::reply(&reply.payload).ok()?;
    serde_json::from_value(value).ok()
}
