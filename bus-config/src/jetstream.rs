//! Questions for JetStream whose answers hold what other people stored or configured.
//!
//! The client library reads such answers strictly: it refuses header blocks, and settings of streams that it does not know. Here
//! only what we use is read.

use crate::{
    connect::{Bus, sendable},
    error::BusError,
    frames::{
        codec::{MOST_HEADERS, is_oversized},
        headers::Headers,
    },
    message::Meaning,
    stream_config::StreamConfig,
};
use async_nats::{Request, client::RequestErrorKind};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::time::Duration;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

const ANSWERED_WITHIN: Duration = Duration::from_secs(5);
const NO_MESSAGE: u64 = 10_037;
pub(crate) const NO_STREAM: u64 = 10_059;

#[derive(Deserialize)]
struct Answer<T> {
    error: Option<ServerError>,
    #[serde(flatten)]
    answer: Option<T>,
}

/// What the server said instead of an answer.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ServerError {
    #[serde(default)]
    pub(crate) err_code: u64,
    #[serde(default)]
    pub(crate) description: String,
}

/// What a stream holds and how it is set up, as its leader says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StreamState {
    /// Nanoseconds since the epoch.
    pub created: i64,
    pub first_seq: u64,
    pub last_seq: u64,
    /// Time of the last message, nanoseconds since the epoch; 0 when there never was one.
    pub last_time: i64,
    /// The server's clock when it answered, nanoseconds since the epoch; 0: it does not say.
    pub now: i64,
    pub messages: u64,
    /// Bytes that the messages take in the store.
    pub bytes: u64,
    /// The number of subjects that have messages.
    pub subject_count: u64,
    pub max_messages_per_subject: i64,
    /// Which server leads it; empty where there is no cluster.
    pub leader: String,
    /// Other servers keep it too.
    pub replicated: bool,
    /// How long ago its leader last heard of so many of them that they and it are a majority.
    pub majority_heard: Duration,
    /// Its limits remove messages by age, bytes or number.
    pub expires: bool,
    /// How long a delete marker that the server writes stays; None: it writes none.
    pub marker_life: Option<Duration>,
    /// Messages may say how long they live.
    pub message_ttl: bool,
    pub config: StreamConfig,
}

/// A message that was looked up by its sequence or its subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Looked {
    pub seq: u64,
    /// As the server writes it: each byte that is not UTF-8 is U+FFFD.
    pub subject: String,
    /// Server time, nanoseconds since the epoch.
    pub time: i64,
    pub meaning: Meaning,
    /// Readers throw its payload away, so it is not here either.
    pub oversized: bool,
    pub payload: Bytes,
}

#[derive(Deserialize)]
struct InfoAnswer {
    config: StreamConfig,
    created: String,
    state: StateAnswer,
    cluster: Option<ClusterAnswer>,
    ts: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct StateAnswer {
    messages: u64,
    bytes: u64,
    num_subjects: u64,
    first_seq: u64,
    last_seq: u64,
    last_ts: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ClusterAnswer {
    leader: String,
    /// All servers that keep the stream but the one that answers.
    replicas: Vec<ReplicaAnswer>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ReplicaAnswer {
    name: String,
    current: bool,
    offline: bool,
    /// Nanoseconds since it was heard of; 0 also if it never was.
    active: i64,
}

impl ClusterAnswer {
    /// While a stream has no leader every server that keeps it answers, from what it has; then it may lack what was read.
    fn is_led(&self) -> bool {
        self.replicas.is_empty() || !self.leader.is_empty() && self.replicas.iter().all(|r| r.name != self.leader)
    }

    fn majority_heard(&self) -> Duration {
        let heard = |r: &ReplicaAnswer| match u64::try_from(r.active) {
            Ok(0) if !r.current => Duration::MAX,
            Ok(nanos) if !r.offline => Duration::from_nanos(nanos),
            _ => Duration::MAX,
        };
        let mut heard: Vec<Duration> = self.replicas.iter().map(heard).collect();
        heard.sort_unstable();
        // With the leader itself they are more than half.
        match self.replicas.len().div_ceil(2) {
            0 => Duration::ZERO,
            others => heard.get(others - 1).copied().unwrap_or(Duration::MAX),
        }
    }
}

#[derive(Deserialize)]
struct MessageAnswer {
    message: StoredAnswer,
}

#[derive(Deserialize)]
struct StoredAnswer {
    subject: String,
    seq: u64,
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
    time: String,
}

fn nanos(text: &str) -> Option<i64> {
    i64::try_from(OffsetDateTime::parse(text, &Rfc3339).ok()?.unix_timestamp_nanos()).ok()
}

fn damaged(stream: &str) -> BusError {
    BusError::other("JetStream", format!("{stream}: an answer that cannot be read"))
}

impl InfoAnswer {
    fn state(self) -> Option<StreamState> {
        let last_time = if self.state.last_seq == 0 { 0 } else { nanos(&self.state.last_ts).unwrap_or(0).max(0) };
        let cluster = self.cluster.unwrap_or_default();
        let marker = u64::try_from(self.config.subject_delete_marker_ttl).unwrap_or(0);
        Some(StreamState {
            created: nanos(&self.created)?,
            first_seq: self.state.first_seq,
            last_seq: self.state.last_seq,
            last_time,
            now: self.ts.as_deref().and_then(nanos).unwrap_or(0),
            messages: self.state.messages,
            bytes: self.state.bytes,
            subject_count: self.state.num_subjects,
            expires: self.config.expires(),
            max_messages_per_subject: self.config.max_msgs_per_subject,
            replicated: !cluster.replicas.is_empty(),
            majority_heard: cluster.majority_heard(),
            leader: cluster.leader,
            marker_life: (marker > 0).then(|| Duration::from_nanos(marker)),
            message_ttl: self.config.allow_msg_ttl,
            config: self.config,
        })
    }
}

impl Bus {
    /// Asks JetStream; the error of a server that answered has its code.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        stream: &str,
        what: &'static str,
        question: &Value,
    ) -> Result<Result<T, ServerError>, BusError> {
        let subject = self.api().of(&format!("{what}.{stream}"));
        sendable(&subject)?;
        let payload = if question.is_null() { Bytes::new() } else { question.to_string().into() };
        let client = self.client();
        let request = Request::new().payload(payload).timeout(Some(ANSWERED_WITHIN));
        let answer = self.unless_lost(client.send_request(subject.clone(), request));
        let reply = match self.permitted(|refused| refused == subject, answer).await? {
            Some(Ok(reply)) => reply,
            Some(Err(e)) if e.kind() == RequestErrorKind::TimedOut => return Err(BusError::Timeout { subject }),
            Some(Err(e)) => return Err(BusError::other("JetStream", format!("{stream}: {e}"))),
            None => return Err(BusError::other("JetStream", format!("{stream}: the connection was lost"))),
        };
        let answer: Answer<T> = serde_json::from_slice(&reply.payload).map_err(|_| damaged(stream))?;
        match (answer.error, answer.answer) {
            (Some(error), _) => Ok(Err(error)),
            (None, Some(answer)) => Ok(Ok(answer)),
            (None, None) => Err(damaged(stream)),
        }
    }

    /// The stream's state now, as its leader sees it.
    pub async fn stream_state(&self, name: &str) -> Result<StreamState, BusError> {
        match self.ask::<InfoAnswer>(name, "STREAM.INFO", &Value::Null).await? {
            Ok(info) if info.cluster.as_ref().is_some_and(|cluster| !cluster.is_led()) => {
                Err(BusError::other("stream info", format!("{name}: the stream has no leader")))
            }
            Ok(info) => info.state().ok_or_else(|| damaged(name)),
            Err(error) if error.err_code == NO_STREAM => Err(BusError::NoStream(name.into())),
            Err(error) => Err(BusError::other("stream info", format!("{name}: {}", error.description))),
        }
    }

    async fn look_up(&self, stream: &str, question: Value) -> Result<Option<Looked>, BusError> {
        let message = match self.ask::<MessageAnswer>(stream, "STREAM.MSG.GET", &question).await? {
            Ok(answer) => answer.message,
            Err(error) if error.err_code == NO_MESSAGE => return Ok(None),
            Err(error) if error.err_code == NO_STREAM => return Err(BusError::NoStream(stream.into())),
            Err(error) => return Err(BusError::other("message", format!("{stream}: {}", error.description))),
        };
        let decode = |text: &str| STANDARD.decode(text).map_err(|_| damaged(stream));
        let (mut headers, mut payload) = (decode(&message.hdrs)?, decode(&message.data)?);
        let oversized = is_oversized(headers.len(), payload.len());
        if oversized {
            payload.clear();
        }
        if headers.len() >= MOST_HEADERS {
            headers.clear();
        }
        let meaning = Meaning::of(Headers::new(&headers));
        let time = nanos(&message.time).ok_or_else(|| damaged(stream))?;
        let StoredAnswer { seq, subject, .. } = message;
        Ok(Some(Looked { seq, subject, time, meaning, oversized, payload: payload.into() }))
    }

    /// The first message at or above a sequence, asked of the store itself: unlike a consumer's count of pending messages it
    /// is never behind an acknowledged write. None when there is none.
    pub async fn next_message(&self, name: &str, from: u64) -> Result<Option<Looked>, BusError> {
        self.look_up(name, json!({ "seq": from.max(1), "next_by_subj": ">" })).await
    }

    /// The first message at or above a sequence whose subject matches, as [`Self::next_message`] asks for it.
    pub(crate) async fn next_message_of(
        &self,
        name: &str,
        subject: &str,
        from: u64,
    ) -> Result<Option<Looked>, BusError> {
        self.look_up(name, json!({ "seq": from.max(1), "next_by_subj": subject })).await
    }

    /// The message at a sequence, if it is there.
    pub async fn message_at(&self, name: &str, seq: u64) -> Result<Option<Looked>, BusError> {
        if seq == 0 { Ok(None) } else { self.look_up(name, json!({ "seq": seq })).await }
    }

    /// The last message of a subject, if there is one.
    pub async fn last_of(&self, name: &str, subject: &str) -> Result<Option<Looked>, BusError> {
        self.look_up(name, json!({ "last_by_subj": subject })).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_nobody_knows_do_not_matter() {
        let text = r#"{"type":"io.nats.jetstream.api.v1.stream_info_response","config":{"name":"S","retention":"later","subjects":null,
            "max_age":5,"persist_mode":"async","subject_delete_marker_ttl":1000000000},"created":"2026-01-02T03:04:05.000000006Z",
            "state":{"messages":1,"first_seq":2,"last_seq":3,"last_ts":"2026-01-02T03:04:06+00:00","lost":{}},"cluster":{"leader":"n1","x":[]},
            "ts":"2026-01-02T03:04:07Z","mirror":{}}"#;
        let answer: Answer<InfoAnswer> = serde_json::from_str(text).unwrap();
        let state = answer.answer.unwrap().state().unwrap();
        assert_eq!((state.first_seq, state.last_seq, state.messages, state.leader.as_str()), (2, 3, 1, "n1"));
        assert_eq!((state.last_time - state.created, state.now - state.last_time), (999_999_994, 1_000_000_000));
        assert_eq!((state.expires, state.marker_life), (true, Some(Duration::from_secs(1))));
    }

    #[test]
    fn of_a_replicated_stream_its_leader_alone_is_believed() {
        let cluster = |text: &str| serde_json::from_str::<ClusterAnswer>(text).unwrap();
        let two = r#""replicas":[{"name":"b","current":true,"active":300},{"name":"c","offline":true,"active":9}]"#;
        let led = cluster(&format!(r#"{{"leader":"a",{two}}}"#));
        assert_eq!((led.is_led(), led.majority_heard()), (true, Duration::from_nanos(300)));
        assert!(!cluster(&format!(r#"{{"leader":"b",{two}}}"#)).is_led(), "another one answers");
        assert!(!cluster(&format!("{{{two}}}")).is_led());
        assert!(cluster(r#"{"leader":"a"}"#).is_led());
        let never = cluster(r#"{"leader":"a","replicas":[{"name":"b"},{"name":"c","active":5}]}"#);
        assert_eq!(never.majority_heard(), Duration::from_nanos(5));
        let alone = cluster(r#"{"leader":"a","replicas":[{"name":"b"},{"name":"c","offline":true,"active":5}]}"#);
        assert_eq!(alone.majority_heard(), Duration::MAX);
    }

    #[test]
    fn an_error_has_its_code_and_a_message_its_bytes() {
        let error = r#"{"error":{"code":404,"err_code":10037,"description":"no message found"}}"#;
        let answer: Answer<MessageAnswer> = serde_json::from_str(error).unwrap();
        assert_eq!(answer.error.unwrap().err_code, NO_MESSAGE);
        let stored =
            r#"{"message":{"subject":"a.\ufffd","seq":7,"hdrs":"/w==","data":"e30=","time":"2026-01-02T03:04:05Z"}}"#;
        let answer: Answer<MessageAnswer> = serde_json::from_str(stored).unwrap();
        let message = answer.answer.unwrap().message;
        assert_eq!((message.seq, message.subject.as_str()), (7, "a.\u{fffd}"));
        assert_eq!(STANDARD.decode(message.data).unwrap(), b"{}");
    }
}
