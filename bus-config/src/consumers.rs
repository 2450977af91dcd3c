//! The consumers that readers pull from.

use crate::{connect::Bus, error::BusError, jetstream::StreamState};
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, Info, pull};
use std::time::Duration;

/// The server keeps a consumer for so long that nobody uses, if the stream allows that.
const INACTIVE: Duration = Duration::from_secs(30);
/// A consumer that lists is made again so often to have it placed on the stream's leader: of five servers nearly always.
const MOST_PLACED: usize = 64;

/// How long a consumer of this stream is kept that nobody uses.
pub(crate) fn kept_for(state: &StreamState) -> Duration {
    state.config.inactive(INACTIVE)
}

/// The configuration of a consumer of all messages from here on, which is kept for so long when nobody uses it.
pub(crate) fn starting_at(start_sequence: u64, inactive_threshold: Duration) -> pull::Config {
    pull::Config {
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence },
        ack_policy: AckPolicy::None,
        inactive_threshold,
        memory_storage: true,
        num_replicas: 1,
        ..pull::Config::default()
    }
}

/// Makes a consumer, on the server `leader` if one is named.
pub(crate) async fn consumer(
    bus: &Bus,
    stream: &str,
    config: &pull::Config,
    leader: Option<&str>,
) -> Result<Info, BusError> {
    let refused = |why: &dyn std::fmt::Display| BusError::other("consumer", format!("{stream}: {why}"));
    let js = bus.js();
    for _ in 0..MOST_PLACED {
        let made = js.create_consumer_on_stream(config.clone(), stream);
        let consumer = match bus.permitted_about(stream, bus.unless_lost(made)).await? {
            Some(made) => made.map_err(|e| refused(&e))?,
            None => return Err(refused(&"the connection was lost")),
        };
        let info = consumer.cached_info().clone();
        let server = info.cluster.as_ref().and_then(|cluster| cluster.leader.as_deref());
        // A server without a cluster does not say where a consumer is.
        if leader.is_none() || server.is_none_or(|server| Some(server) == leader) {
            return Ok(info);
        }
        remove_consumer(bus, stream, &info.name).await;
    }
    Err(refused(&"no consumer was placed on the stream's leader"))
}

/// Asks the server to remove a consumer, and waits for nothing: where that gets lost the server removes it once it is inactive.
pub(crate) fn forget_consumer(bus: &Bus, stream: &str, name: &str) {
    let request = bus.api().of(&format!("CONSUMER.DELETE.{stream}.{name}"));
    let _ = bus.link().publish(&request, "", b"");
}

/// Best effort: the server also removes one that is inactive.
pub(crate) async fn remove_consumer(bus: &Bus, stream: &str, name: &str) {
    let js = bus.js();
    let _ = bus.permitted_about(stream, bus.unless_lost(js.delete_consumer_from_stream(name, stream))).await;
}
