//! What Highwater reads of a stream's configuration. Settings that it does not know do not matter.

use serde::{Deserialize, Deserializer};
use std::{collections::BTreeMap, time::Duration};

/// A stream's configuration, as the server tells it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct StreamConfig {
    /// Under which messages are published to it; not always those under which they are stored.
    #[serde(deserialize_with = "or_default")]
    pub subjects: Vec<String>,
    /// `limits`, `interest` or `workqueue`.
    pub retention: String,
    /// `old` or `new`: what goes when a limit is reached.
    pub discard: String,
    /// -1: no limit. The same holds for the next three.
    pub max_msgs_per_subject: i64,
    pub max_msgs: i64,
    pub max_bytes: i64,
    pub max_msg_size: i64,
    /// Nanoseconds; 0: no limit.
    pub max_age: i64,
    pub num_replicas: usize,
    pub no_ack: bool,
    pub sealed: bool,
    pub deny_purge: bool,
    pub deny_delete: bool,
    /// A subject with its most messages takes no further ones.
    pub discard_new_per_subject: bool,
    #[serde(rename = "allow_rollup_hdrs")]
    pub allow_rollup: bool,
    pub allow_msg_ttl: bool,
    pub allow_msg_counter: bool,
    /// `async`: messages may be lost that were acknowledged.
    pub persist_mode: String,
    /// How long a delete marker that the server writes stays, nanoseconds; 0: it writes none.
    pub subject_delete_marker_ttl: i64,
    pub mirror: Option<Upstream>,
    #[serde(deserialize_with = "or_default")]
    pub sources: Vec<Upstream>,
    pub subject_transform: Option<Transform>,
    #[serde(deserialize_with = "or_default")]
    pub consumer_limits: ConsumerLimits,
    #[serde(deserialize_with = "or_default")]
    pub metadata: BTreeMap<String, String>,
}

/// A stream whose messages another one takes over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Upstream {
    pub name: String,
    pub filter_subject: String,
    #[serde(deserialize_with = "or_default")]
    pub subject_transforms: Vec<Transform>,
    /// Where it is, if it is of another account or domain.
    pub external: Option<serde_json::Value>,
}

/// Messages that come under one subject are stored under another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Transform {
    pub src: String,
    pub dest: String,
}

/// What the consumers of a stream may ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ConsumerLimits {
    /// Nanoseconds; 0: no limit.
    pub inactive_threshold: i64,
}

impl Default for StreamConfig {
    fn default() -> Self {
        Self {
            subjects: Vec::new(),
            retention: "limits".into(),
            discard: "old".into(),
            max_msgs_per_subject: -1,
            max_msgs: -1,
            max_bytes: -1,
            max_msg_size: -1,
            max_age: 0,
            num_replicas: 1,
            no_ack: false,
            sealed: false,
            deny_purge: false,
            deny_delete: false,
            discard_new_per_subject: false,
            allow_rollup: false,
            allow_msg_ttl: false,
            allow_msg_counter: false,
            persist_mode: String::new(),
            subject_delete_marker_ttl: 0,
            mirror: None,
            sources: Vec::new(),
            subject_transform: None,
            consumer_limits: ConsumerLimits::default(),
            metadata: BTreeMap::new(),
        }
    }
}

/// Go writes `null` for what is empty.
fn or_default<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

impl StreamConfig {
    /// Its limits remove messages by age, bytes or number.
    pub fn expires(&self) -> bool {
        self.max_age > 0 || self.is_bounded()
    }

    /// It holds so many bytes or messages at most.
    pub fn is_bounded(&self) -> bool {
        self.max_bytes > 0 || self.max_msgs > 0
    }

    /// How long a consumer of the stream may ask to be kept while nobody uses it, if it would like so long.
    pub fn inactive(&self, wanted: Duration) -> Duration {
        match u64::try_from(self.consumer_limits.inactive_threshold) {
            Ok(most) if most > 0 => wanted.min(Duration::from_nanos(most)),
            _ => wanted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> StreamConfig {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn what_is_left_out_or_null_or_not_known_does_not_matter() {
        let config = read(
            r#"{"name":"S","subjects":null,"retention":"later","sources":null,"consumer_limits":{},"metadata":null,"x":[1]}"#,
        );
        assert_eq!(config, StreamConfig { retention: "later".into(), ..StreamConfig::default() });
        let text = r#"{"mirror":{"name":"O","external":{"api":"$JS.x.API"},"subject_transforms":[{"src":"a.>","dest":"b.>"}]},
            "max_bytes":5,"subject_transform":{"src":"a.*","dest":"b.{{wildcard(1)}}"}}"#;
        let config = read(text);
        let mirror = config.mirror.clone().unwrap();
        assert_eq!((mirror.name.as_str(), mirror.subject_transforms.len(), mirror.external.is_some()), ("O", 1, true));
        assert!(config.expires() && config.subject_transform.is_some_and(|t| t.src == "a.*"));
    }

    #[test]
    fn consumers_live_as_long_as_the_stream_allows() {
        let wanted = Duration::from_secs(30);
        assert_eq!(StreamConfig::default().inactive(wanted), wanted);
        for (limit, given) in [(1_000_000_000_u64, Duration::from_secs(1)), (60_000_000_000, wanted)] {
            assert_eq!(
                read(&format!(r#"{{"consumer_limits":{{"inactive_threshold":{limit}}}}}"#)).inactive(wanted),
                given
            );
        }
    }
}
