//! Checks whether the server and the account allow Highwater to work.

use crate::{
    connect::Bus,
    error::BusError,
    reader::{ReadFrom, StreamReader},
};
use highwater_schemas::{
    lane::LEAST_PAYLOAD,
    subjects::{CLUSTER_STREAM, STATE_STREAM},
};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Streams that there are before the first bucket is declared, and those of a bucket.
const STREAMS: i64 = 2;
const OF_A_BUCKET: i64 = 2;

/// The account, as JetStream describes it.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Account {
    streams: i64,
    limits: Limits,
    /// Limits by the number of copies, such as `R3`, of accounts that have tiers, as those of hosted NATS do.
    tiers: BTreeMap<String, Tier>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Tier {
    streams: i64,
    limits: Limits,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Limits {
    /// Not above 0: no limit.
    max_streams: i64,
}

impl Account {
    /// Whether there is no room for the streams of a deployment that is begun here.
    ///
    /// `there`: how many of these are.
    fn has_no_room(&self, there: i64) -> Option<String> {
        let mut all: Vec<(i64, i64)> =
            self.tiers.values().map(|tier| (tier.streams, tier.limits.max_streams)).collect();
        if all.is_empty() {
            all.push((self.streams, self.limits.max_streams));
        }
        let needed = STREAMS + OF_A_BUCKET - there;
        let full = |(streams, most): &(i64, i64)| *most > 0 && streams.saturating_add(needed) > *most;
        // Replicas are chosen later, and with them the tier: one with room is enough.
        let (streams, max_streams) = all.first().filter(|_| all.iter().all(full))?;
        Some(format!(
            "the account has {streams} streams of {max_streams} that it may have (max_streams), and Highwater needs {needed} with the first bucket"
        ))
    }
}

impl Bus {
    /// Looks whether JetStream answers, takes messages that are large enough, has room for a deployment that is begun, and lets
    /// the state log of one that is there be read.
    ///
    /// # Errors
    /// Says in one line what is wrong.
    pub async fn check_nats(&self) -> Result<(), BusError> {
        let wrong = |why: String| Err(BusError::Settings(why));
        let Some(info) = self.jetstream_info().await? else {
            return wrong("NATS takes connections, but JetStream does not answer".into());
        };
        if self.max_payload() < LEAST_PAYLOAD {
            let most = self.max_payload();
            return wrong(format!(
                "nats-server takes {most} bytes in a message (max_payload); at least {LEAST_PAYLOAD} are needed"
            ));
        }
        let state = match self.stream_state(STATE_STREAM).await {
            Ok(state) => state,
            Err(BusError::NoStream(_)) => {
                let account: Account = serde_json::from_value(info).unwrap_or_default();
                let there = i64::from(self.stream_state(CLUSTER_STREAM).await.is_ok());
                return account.has_no_room(there).map_or(Ok(()), wrong);
            }
            Err(error) => return Err(error),
        };
        if state.messages == 0 {
            return Ok(());
        }
        let mut reader = StreamReader::open(self, STATE_STREAM, ReadFrom::default()).await?;
        let read = reader.next_ready(1, &mut Vec::new()).await;
        reader.close().await;
        read
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_has_room_for_the_streams_of_a_deployment_or_says_why_not() {
        let read = |text: &str| serde_json::from_str::<Account>(text).unwrap().has_no_room(0);
        assert_eq!(read(r#"{"streams":3,"limits":{"max_streams":-1}}"#), None);
        assert_eq!(read(r#"{"streams":3,"limits":{"max_streams":7}}"#), None);
        assert_eq!(read("{}"), None);
        let tiers = r#"{"tiers":{"R1":{"streams":3,"limits":{"max_streams":6}},"R3":{"streams":0,"limits":{"max_streams":9}}}}"#;
        assert_eq!(read(tiers), None);
        assert!(read(&tiers.replace(":9", ":2")).unwrap().contains("3 streams of 6"));
        let full = r#"{"streams":3,"limits":{"max_streams":6}}"#;
        assert!(read(full).unwrap().contains("3 streams of 6"));
        assert_eq!(serde_json::from_str::<Account>(full).unwrap().has_no_room(1), None, "one of them is there");
    }
}
