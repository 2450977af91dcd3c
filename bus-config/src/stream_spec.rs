//! Highwater's own streams as data: what is asked for when one is made, and what one that is there already must be able to do.
//!
//! A stream that was made beforehand is taken as it is if it *can serve*: everything that is published to it for us gets in, and
//! nothing of it goes that we still need. How many bytes it holds, for how long and on how many servers is its owner's to say;
//! only what the operator has set explicitly is changed.

use crate::stream_config::StreamConfig;
use highwater_schemas::{lane::LEAST_PAYLOAD, pattern, subjects};
use serde_json::{Value, json};
use std::time::Duration;

const MIB: u64 = 1024 * 1024;
/// What topics have room for when they are made. JetStream reserves it.
const TOPIC_BYTES: u64 = 64 * MIB;
/// A mutation topic that drops what an indexer has not read grows up to here: what is older is caught up from the source.
const MUTATION_MOST: u64 = 1024 * MIB;
/// A catchup topic that is full grows up to here: the router waits until the indexer has made room.
const CATCHUP_MOST: u64 = 256 * MIB;
const MUTATION_MAX_AGE: Duration = Duration::from_secs(15 * 60);
/// A topic whose messages go sooner loses them before an indexer has read them.
const LEAST_MAX_AGE: Duration = Duration::from_secs(10);
/// For accounts in which every stream must have a limit: the log is compacted to some KiB for each index.
const STATE_REQUIRED: u64 = 64 * MIB;
/// The same for the cluster managers' bucket, which holds some hundred bytes for each index manager.
const CLUSTER_REQUIRED: u64 = MIB;
/// Longer than any retry of a publish.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(30);
/// Whoever makes a stream for Highwater leaves this out: it is emptied then, and never deleted.
const MADE: &str = "highwater.made";

/// What the settings may be, bytes.
pub mod allowed {
    use std::ops::RangeInclusive;

    /// A snapshot of the log takes the place of all records once it is written.
    pub const STATE_BYTES: RangeInclusive<u64> = 1 << 20..=1 << 44;
    pub const CLUSTER_BYTES: RangeInclusive<u64> = 1 << 16..=1 << 40;
    /// Some of the largest batches fit.
    pub const TOPIC_BYTES: RangeInclusive<u64> = 4 << 20..=1 << 44;
}

/// What the operator has set of Highwater's streams; None: nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StreamSettings {
    /// Copies of each stream: 1, 3 or 5.
    pub replicas: Option<usize>,
    /// Bytes of each stream.
    pub state: Option<u64>,
    pub cluster: Option<u64>,
    pub mutation: Option<u64>,
    pub catchup: Option<u64>,
    pub topic: Option<u64>,
    /// Bytes up to which mutation and catchup topics grow.
    pub mutation_most: Option<u64>,
    pub catchup_most: Option<u64>,
}

/// One of Highwater's own streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamSpec {
    pub name: String,
    pub subject: String,
    /// The flag that sets its bytes.
    pub setting: &'static str,
    /// What the operator has set; None: nothing.
    pub bytes: Option<u64>,
    pub replicas: Option<usize>,
    /// Bytes below which it cannot serve.
    pub least: u64,
    /// Bytes that it gets if nothing was set; None: as many as come.
    pub usual: Option<u64>,
    /// Bytes that it gets where the account demands a limit.
    pub required: u64,
    /// It grows up to here; 0: not at all.
    pub most: u64,
    pub max_age: Duration,
    /// What does not fit is refused: nothing of it may get lost.
    pub keeps_all: bool,
    pub rollup: bool,
    /// Of each subject; -1: no limit.
    pub max_messages_per_subject: i64,
    /// Messages may say how long they live.
    pub message_ttl: bool,
    pub duplicate_window: Duration,
}

impl StreamSpec {
    /// Live key versions: bounded in age and bytes, the oldest go first.
    pub fn mutation(bucket: &str, settings: &StreamSettings) -> Self {
        Self {
            name: subjects::mutation_stream(bucket),
            subject: format!("hw.mutation.{bucket}.*"),
            setting: "--mutation-bytes",
            bytes: settings.mutation,
            replicas: settings.replicas,
            least: *allowed::TOPIC_BYTES.start(),
            usual: Some(TOPIC_BYTES.min(settings.mutation_most.unwrap_or(u64::MAX))),
            required: TOPIC_BYTES,
            most: settings.mutation_most.unwrap_or(MUTATION_MOST),
            max_age: MUTATION_MAX_AGE,
            keeps_all: false,
            rollup: false,
            max_messages_per_subject: -1,
            message_ttl: false,
            duplicate_window: DUPLICATE_WINDOW,
        }
    }
    /// A topic that people made: as the mutation topic, but it does not grow: how far its subscribers are is not known.
    pub fn topic(bucket: &str, topic: &str, settings: &StreamSettings) -> Self {
        Self {
            name: subjects::topic_stream(bucket, topic),
            subject: format!("hw.topic.{bucket}.{topic}.*"),
            setting: "--topic-bytes",
            bytes: settings.topic,
            usual: Some(TOPIC_BYTES),
            most: 0,
            ..Self::mutation(bucket, settings)
        }
    }
    /// Catchup sessions: bounded in bytes, refuses when full.
    pub fn catchup(bucket: &str, settings: &StreamSettings) -> Self {
        Self {
            name: subjects::catchup_stream(bucket),
            subject: format!("hw.catchup.{bucket}.*"),
            setting: "--catchup-bytes",
            bytes: settings.catchup,
            usual: Some(TOPIC_BYTES.min(settings.catchup_most.unwrap_or(u64::MAX))),
            most: settings.catchup_most.unwrap_or(CATCHUP_MOST),
            max_age: Duration::ZERO,
            keeps_all: true,
            ..Self::mutation(bucket, settings)
        }
    }
    /// The replicated log: no limits, rollup allowed.
    pub fn state(settings: &StreamSettings) -> Self {
        Self {
            name: subjects::STATE_STREAM.into(),
            subject: subjects::STATE_SUBJECT.into(),
            setting: "--state-bytes",
            bytes: settings.state,
            replicas: settings.replicas,
            least: *allowed::STATE_BYTES.start(),
            usual: None,
            required: STATE_REQUIRED,
            most: 0,
            max_age: Duration::ZERO,
            keeps_all: true,
            rollup: true,
            max_messages_per_subject: -1,
            message_ttl: false,
            duplicate_window: DUPLICATE_WINDOW,
        }
    }
    /// The cluster managers' bucket, a key-value bucket by its layout: the newest value of each key, and keys that end.
    pub fn cluster(settings: &StreamSettings) -> Self {
        Self {
            name: subjects::CLUSTER_STREAM.into(),
            subject: subjects::kv_prefix("hw_cluster") + ">",
            setting: "--cluster-bytes",
            bytes: settings.cluster,
            least: *allowed::CLUSTER_BYTES.start(),
            required: CLUSTER_REQUIRED,
            max_messages_per_subject: 1,
            message_ttl: true,
            ..Self::state(settings)
        }
    }

    /// What is asked for when it is made, with so many bytes, and with the server's own window for duplicates if that is None.
    pub(crate) fn config(&self, bytes: Option<u64>, duplicate_window: Option<Duration>) -> Value {
        json!({
            "name": self.name,
            "subjects": [self.subject],
            "retention": "limits",
            "storage": "file",
            "max_consumers": -1,
            "max_msgs": -1,
            "max_msg_size": -1,
            "max_bytes": bytes.map_or(-1, signed),
            "max_age": self.max_age.as_nanos() as u64,
            "max_msgs_per_subject": self.max_messages_per_subject,
            // A log without limits never discards anything, and accounts may put limits on it later.
            "discard_new_per_subject": false,
            "discard": if self.keeps_all { "new" } else { "old" },
            "num_replicas": self.replicas.unwrap_or(1),
            "allow_rollup_hdrs": self.rollup,
            "allow_msg_ttl": self.message_ttl,
            "allow_direct": true,
            "duplicate_window": duplicate_window.map_or(0, |window| window.as_nanos() as u64),
            "metadata": { MADE: "true" },
        })
    }

    /// Settings of a stream that is there with which it cannot serve, each with the value that it needs; none: it can.
    pub(crate) fn unfit(&self, found: &StreamConfig) -> Vec<String> {
        let mut all = Vec::new();
        let mut needs = |is_so: bool, what: String| {
            if !is_so {
                all.push(what);
            }
        };
        let takes = found.subjects.iter().any(|subject| pattern::covers(subject, &self.subject));
        needs(takes, format!("subjects must cover {:?}, and are {:?}", self.subject, found.subjects));
        needs(found.retention == "limits", format!("retention must be \"limits\", not {:?}", found.retention));
        needs(found.mirror.is_none() && found.sources.is_empty(), "it must have neither mirror nor sources".into());
        let transformed = found
            .subject_transform
            .as_ref()
            .is_some_and(|transform| transform.src.is_empty() || pattern::collide(&transform.src, &self.subject));
        needs(!transformed, format!("subject_transform must leave {:?} as it is", self.subject));
        needs(!found.sealed, "sealed must be false".into());
        needs(!found.no_ack, "no_ack must be false".into());
        needs(!found.allow_msg_counter, "allow_msg_counter must be false".into());
        needs(found.persist_mode != "async", "persist_mode must not be \"async\"".into());
        if self.max_messages_per_subject < 0 {
            let per = found.max_msgs_per_subject;
            needs(per <= 0, format!("max_msgs_per_subject must be -1 (no limit), not {per}"));
        }
        let largest = found.max_msg_size;
        needs(
            self.message_ttl || largest <= 0 || largest >= LEAST_PAYLOAD as i64,
            format!("max_msg_size must be -1 (no limit) or at least {LEAST_PAYLOAD}, not {largest}"),
        );
        if self.keeps_all {
            let discards = found.is_bounded() && found.discard != "new";
            needs(!discards, "discard must be \"new\" where max_bytes or max_msgs is set".into());
        } else {
            let refuses = found.is_bounded() && found.discard == "new";
            needs(!refuses, "discard must be \"old\" where max_bytes or max_msgs is set".into());
        }
        needs(!self.rollup || found.allow_rollup, "allow_rollup_hdrs must be true".into());
        needs(!found.deny_purge, "deny_purge must be false".into());
        needs(!self.message_ttl || found.allow_msg_ttl, "allow_msg_ttl must be true".into());
        // Who gives up the lease deletes it.
        needs(!self.message_ttl || !found.deny_delete, "deny_delete must be false".into());
        needs(!found.discard_new_per_subject, "discard_new_per_subject must be false".into());
        let least = self.least as i64;
        let bytes = found.max_bytes;
        needs(
            bytes <= 0 || bytes >= least,
            format!("max_bytes must be -1 (no limit) or at least {least}, not {bytes}"),
        );
        let (age, least) = (found.max_age, LEAST_MAX_AGE.as_nanos() as i64);
        needs(!self.rollup || age == 0, format!("max_age must be 0 (no limit), not {age} ns"));
        needs(
            self.rollup || age <= 0 || age >= least,
            format!("max_age must be 0 (no limit) or at least {least} ns, not {age}"),
        );
        all
    }

    /// What of a stream that is there must be changed for what the operator has set: fields and values.
    pub(crate) fn changes(&self, found: &StreamConfig) -> Vec<(&'static str, Value)> {
        let bytes = self.bytes.map(signed).filter(|bytes| {
            // A topic that has grown stays so.
            found.max_bytes != *bytes && !(found.max_bytes > *bytes && found.max_bytes <= signed(self.most))
        });
        let mut changes = Vec::new();
        if let Some(bytes) = bytes {
            changes.push(("max_bytes", bytes.into()));
            if self.keeps_all && found.discard != "new" {
                changes.push(("discard", "new".into()));
            }
        }
        if let Some(replicas) = self.replicas.filter(|replicas| found.num_replicas != *replicas) {
            changes.push(("num_replicas", replicas.into()));
        }
        changes
    }

    /// The settings without which it cannot serve, as it is made with them.
    pub(crate) fn needed(&self) -> Vec<(&'static str, Value)> {
        let fields = [
            "subjects",
            "discard",
            "discard_new_per_subject",
            "max_msgs_per_subject",
            "max_msg_size",
            "max_age",
            "allow_rollup_hdrs",
        ];
        // The server does not take it back.
        let ttl = self.message_ttl.then_some("allow_msg_ttl");
        let config = self.config(None, None);
        fields.into_iter().chain(ttl).map(|field| (field, config[field].clone())).collect()
    }

    /// Whether a version of Highwater made it that did not note so: it looks as these made it.
    pub(crate) fn is_of_an_earlier_version(&self, found: &StreamConfig) -> bool {
        let bytes = match self.setting {
            "--mutation-bytes" | "--topic-bytes" => signed(MUTATION_MOST),
            "--catchup-bytes" => signed(CATCHUP_MOST),
            _ => -1,
        };
        let age = i64::try_from(self.max_age.as_nanos()).unwrap_or(i64::MAX);
        found.subjects == [self.subject.as_str()] && (found.max_bytes, found.max_age) == (bytes, age)
    }

    /// How many bytes it gets when it is made.
    pub(crate) fn initial(&self) -> Option<u64> {
        self.bytes.or(self.usual)
    }

    /// How many bytes a stream of this size gets when it is too small; None: it has grown as far as it may.
    pub(crate) fn grown(&self, max_bytes: u64) -> Option<u64> {
        let grown = max_bytes.saturating_mul(2).min(self.most);
        (grown > max_bytes).then_some(grown)
    }
}

/// Whether Highwater made a stream, and so may delete it.
pub(crate) fn is_ours(found: &StreamConfig) -> bool {
    found.metadata.contains_key(MADE)
}

/// The metadata of a stream with the note that it is ours.
pub(crate) fn made(found: &StreamConfig) -> Value {
    let mut metadata = found.metadata.clone();
    metadata.insert(MADE.into(), "true".into());
    json!(metadata)
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: StreamSettings = StreamSettings {
        replicas: None,
        state: None,
        cluster: None,
        mutation: None,
        catchup: None,
        topic: None,
        mutation_most: None,
        catchup_most: None,
    };

    fn specs(settings: &StreamSettings) -> [StreamSpec; 5] {
        [
            StreamSpec::state(settings),
            StreamSpec::cluster(settings),
            StreamSpec::mutation("b", settings),
            StreamSpec::catchup("b", settings),
            StreamSpec::topic("b", "t", settings),
        ]
    }

    #[test]
    fn what_an_earlier_version_made_becomes_ours() {
        for (spec, bytes) in specs(&NONE).into_iter().zip([-1, -1, 1 << 30, 256 << 20, 1 << 30]) {
            let owner = [("owner".to_owned(), "me".to_owned())];
            let earlier = StreamConfig { max_bytes: bytes, metadata: owner.into(), ..as_made(&spec) };
            assert!(spec.is_of_an_earlier_version(&earlier) && !is_ours(&earlier), "{}", spec.name);
            let noted = StreamConfig { metadata: serde_json::from_value(made(&earlier)).unwrap(), ..earlier.clone() };
            assert!(is_ours(&noted) && noted.metadata["owner"] == "me", "{}", spec.name);
            let other = StreamConfig { max_bytes: 4_096, ..earlier };
            assert!(!spec.is_of_an_earlier_version(&other), "{}", spec.name);
        }
    }

    fn as_made(spec: &StreamSpec) -> StreamConfig {
        serde_json::from_value(spec.config(spec.initial(), Some(spec.duplicate_window))).unwrap()
    }

    #[test]
    fn what_is_made_can_serve_and_is_ours() {
        for spec in specs(&NONE) {
            let config = as_made(&spec);
            assert_eq!(spec.unfit(&config), Vec::<String>::new(), "{}", spec.name);
            assert!(is_ours(&config) && spec.changes(&config).is_empty(), "{}", spec.name);
            assert!(!is_ours(&StreamConfig { metadata: [("x".into(), "y".into())].into(), ..config }));
        }
    }

    #[test]
    fn what_is_made_beforehand_is_taken_with_other_sizes_and_refused_with_the_field() {
        let [state, cluster, mutation, catchup, _] = specs(&NONE);
        let taken = StreamConfig {
            max_bytes: 4 << 20,
            max_age: 10_000_000_000,
            max_msgs: 7,
            num_replicas: 3,
            subjects: vec!["x".into(), "hw.mutation.>".into()],
            ..as_made(&mutation)
        };
        assert_eq!((mutation.unfit(&taken), mutation.changes(&taken)), (Vec::new(), Vec::new()));
        let with = |spec: &StreamSpec, change: &dyn Fn(&mut StreamConfig)| {
            let mut config = as_made(spec);
            change(&mut config);
            spec.unfit(&config).join("; ")
        };
        for (spec, change, says) in [
            (
                &mutation,
                &(|c: &mut StreamConfig| c.subjects = vec!["hw.mutation.b.x".into()]) as &dyn Fn(&mut StreamConfig),
                "subjects",
            ),
            (&mutation, &|c| c.retention = "workqueue".into(), "retention must be \"limits\""),
            (&mutation, &|c| c.discard = "new".into(), "discard must be \"old\""),
            (&mutation, &|c| c.max_msgs_per_subject = 1, "max_msgs_per_subject must be -1"),
            (&mutation, &|c| c.max_msg_size = 1_000, "max_msg_size"),
            (&mutation, &|c| c.no_ack = true, "no_ack"),
            (&mutation, &|c| c.max_bytes = 4_096, "max_bytes must be -1 (no limit) or at least 4194304, not 4096"),
            (&mutation, &|c| c.max_age = 1, "max_age must be 0 (no limit) or at least 10000000000 ns, not 1"),
            (&mutation, &|c| c.deny_purge = true, "deny_purge"),
            (&catchup, &|c| c.discard_new_per_subject = true, "discard_new_per_subject"),
            (&cluster, &|c| c.deny_delete = true, "deny_delete must be false"),
            (&catchup, &|c| c.discard = "old".into(), "discard must be \"new\""),
            (&catchup, &|c| c.deny_purge = true, "deny_purge"),
            (&state, &|c| c.allow_rollup = false, "allow_rollup_hdrs must be true"),
            (&state, &|c| c.max_age = 5, "max_age must be 0"),
            (&state, &|c| c.persist_mode = "async".into(), "persist_mode"),
            (&state, &|c| c.subject_transform = Some(crate::stream_config::Transform::default()), "subject_transform"),
            (&state, &|c| c.sealed = true, "sealed"),
            (&cluster, &|c| c.allow_msg_ttl = false, "allow_msg_ttl must be true"),
        ] {
            let why = with(spec, change);
            assert!(why.contains(says) && !why.contains("; "), "{}: {why}", spec.name);
        }
        assert_eq!(with(&cluster, &|c| c.max_msgs_per_subject = 5), "");
        assert_eq!(with(&state, &|c| c.discard = "old".into()), "", "without limits nothing is discarded");
    }

    #[test]
    fn only_what_the_operator_set_changes_what_is_there() {
        let set = StreamSettings { replicas: Some(3), mutation: Some(5_000_000), ..NONE };
        let [state, _, mutation, ..] = specs(&set);
        let there = as_made(&StreamSpec::mutation("b", &NONE));
        assert_eq!(mutation.changes(&there), [("num_replicas", 3.into())], "it may have grown to its size");
        let small = StreamConfig { max_bytes: 1_000, ..there.clone() };
        assert_eq!(mutation.changes(&small), [("max_bytes", 5_000_000.into()), ("num_replicas", 3.into())]);
        let huge = StreamConfig { max_bytes: i64::MAX, ..there };
        assert_eq!(mutation.changes(&huge).len(), 2);
        let unbounded = StreamConfig { discard: "old".into(), ..as_made(&StreamSpec::state(&NONE)) };
        assert_eq!(state.changes(&unbounded), [("num_replicas", 3.into())]);
        let bounded = StreamSpec::state(&StreamSettings { state: Some(9), ..NONE });
        assert_eq!(bounded.changes(&unbounded), [("max_bytes", 9.into()), ("discard", "new".into())]);
    }

    #[test]
    fn what_somebody_changed_of_ours_can_be_mended() {
        for spec in specs(&NONE) {
            let mut raw = spec.config(None, None);
            raw["discard"] = if spec.keeps_all { "old" } else { "new" }.into();
            raw["max_bytes"] = (8 << 20).into();
            raw["max_msg_size"] = 7.into();
            raw["subjects"] = json!(["x"]);
            for (field, value) in spec.needed() {
                raw[field] = value;
            }
            let mended: StreamConfig = serde_json::from_value(raw).unwrap();
            assert_eq!((spec.unfit(&mended), mended.max_bytes), (Vec::new(), 8 << 20), "{}", spec.name);
        }
    }

    #[test]
    fn topics_grow_to_their_limit() {
        let [state, _, mutation, catchup, topic] = specs(&NONE);
        assert_eq!((mutation.initial(), catchup.initial()), (Some(64 * MIB), Some(64 * MIB)));
        assert_eq!(
            [64, 600, 1_024, 2_048].map(|n| mutation.grown(n * MIB).map(|b| b / MIB)),
            [Some(128), Some(1_024), None, None]
        );
        assert_eq!((catchup.grown(256 * MIB), topic.grown(64 * MIB), state.grown(64 * MIB)), (None, None, None));
        let small = StreamSettings { mutation_most: Some(MIB), ..NONE };
        let mutation = StreamSpec::mutation("b", &small);
        assert_eq!((mutation.initial(), mutation.grown(MIB)), (Some(MIB), None));
    }
}
