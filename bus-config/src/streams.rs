//! Highwater's streams on the server: made where they are missing, taken as they are where they can serve; and what is asked of
//! any stream.

use crate::{
    connect::Bus,
    error::BusError,
    jetstream::{NO_STREAM, ServerError},
    stream_config::StreamConfig,
    stream_spec::{StreamSpec, is_ours, made},
};
use futures_util::{StreamExt, stream::FuturesOrdered};
use serde::Deserialize;
use serde_json::{Map, Value};

/// Requests for messages that are under way together.
const LOOKED_UP_AT_ONCE: usize = 64;
/// Bytes of messages that their answers bring together, about.
const LOOKED_UP_BYTES: usize = 8 * 1024 * 1024;
/// The server takes no such configuration; what it says is the reason.
const INVALID: u64 = 10_052;
/// There is a stream of this name, with another configuration.
const EXISTS: u64 = 10_058;
/// The account demands a limit of bytes.
const BYTES_REQUIRED: u64 = 10_113;
/// Neither the account nor the server has room for what a stream reserves, or the stream is larger than the account allows.
const NO_ROOM: [u64; 4] = [10_002, 10_023, 10_047, 10_122];
/// No servers of the cluster are suitable; what it says is why.
const NO_PEERS: u64 = 10_005;
const TOO_MANY: u64 = 10_027;

/// A stream of Highwater's that is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ensured {
    pub made: bool,
    /// Bytes that its messages take.
    pub bytes: u64,
    /// Bytes that it holds at most; 0: no limit.
    pub max_bytes: u64,
}

#[derive(Deserialize)]
struct RawInfo {
    config: Map<String, Value>,
    #[serde(default)]
    state: RawState,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawState {
    bytes: u64,
}

/// A stream as it was found, with all that its configuration says.
struct Found {
    raw: Map<String, Value>,
    config: StreamConfig,
    bytes: u64,
}

impl Found {
    fn of(name: &str, info: RawInfo) -> Result<Self, BusError> {
        let config = serde_json::from_value(Value::Object(info.config.clone()))
            .map_err(|e| BusError::other("stream info", format!("{name}: {e}")))?;
        Ok(Self { raw: info.config, config, bytes: info.state.bytes })
    }

    fn ensured(&self, made: bool) -> Ensured {
        Ensured { made, bytes: self.bytes, max_bytes: u64::try_from(self.config.max_bytes).unwrap_or(0) }
    }
}

/// What the server said, and what to do about it.
fn refused(what: &'static str, spec: &StreamSpec, bytes: Option<u64>, error: &ServerError) -> BusError {
    let StreamSpec { name, setting, .. } = spec;
    let ServerError { err_code, description } = error;
    // A cluster says so of the servers that it looked at.
    let no_room = NO_ROOM.contains(err_code) || *err_code == NO_PEERS && description.contains("storage");
    let hint = match (*err_code, bytes) {
        (_, Some(bytes)) if no_room => {
            format!(": it reserves {bytes} bytes; set {setting} lower, or give JetStream more room")
        }
        (BYTES_REQUIRED, _) => format!(": set {setting}"),
        (TOO_MANY, _) => ": Highwater needs HW_STATE, KV_hw_cluster, two for each bucket and one for each topic".into(),
        _ => String::new(),
    };
    BusError::other(what, format!("{name}: {description} ({err_code}){hint}"))
}

impl Bus {
    /// Makes the stream where it is missing. One that is there is taken as it is if it can serve; only what the operator has set is
    /// changed.
    ///
    /// # Errors
    /// [`BusError::StreamDiffers`] names the settings with which it cannot serve. Also a stream of which nothing can be learned
    /// is an error: it may be there.
    pub async fn ensure_stream(&self, spec: &StreamSpec) -> Result<Ensured, BusError> {
        match self.found(&spec.name).await? {
            Some(found) => self.taken(spec, found).await,
            None => self.make(spec).await,
        }
    }

    async fn found(&self, name: &str) -> Result<Option<Found>, BusError> {
        match self.ask::<RawInfo>(name, "STREAM.INFO", &Value::Null).await? {
            Ok(info) => Found::of(name, info).map(Some),
            Err(error) if error.err_code == NO_STREAM => Ok(None),
            Err(error) => {
                Err(BusError::other("stream info", format!("{name}: {} ({})", error.description, error.err_code)))
            }
        }
    }

    async fn taken(&self, spec: &StreamSpec, found: Found) -> Result<Ensured, BusError> {
        let unfit = spec.unfit(&found.config);
        let mut changes = spec.changes(&found.config);
        let noted = is_ours(&found.config);
        let ours = noted || spec.is_of_an_earlier_version(&found.config);
        if unfit.is_empty() && ours && !noted {
            return self.adopt(spec, found).await;
        }
        if !unfit.is_empty() {
            // One that an earlier version made may be its operator's own as well.
            if !noted {
                return Err(BusError::StreamDiffers { stream: spec.name.clone(), why: unfit.join("; ") });
            }
            // Somebody has changed what we made.
            tracing::warn!(stream = spec.name, ?unfit, "the stream cannot serve as it is");
            changes.extend(spec.needed());
        }
        if changes.is_empty() {
            return Ok(found.ensured(false));
        }
        self.update(spec, found, changes).await
    }

    /// Notes of a stream that an earlier version made that it is ours. It serves also where that is refused.
    async fn adopt(&self, spec: &StreamSpec, found: Found) -> Result<Ensured, BusError> {
        let (mut changes, there) = (spec.changes(&found.config), found.ensured(false));
        let explicit = !changes.is_empty();
        changes.push(("metadata", made(&found.config)));
        match self.update(spec, found, changes).await {
            Err(error) if !explicit => {
                tracing::debug!(stream = spec.name, %error, "it cannot be noted that the stream is ours");
                Ok(there)
            }
            updated => updated,
        }
    }

    /// Changes these fields of a stream's configuration and no others, also not those that we do not know.
    async fn update(
        &self,
        spec: &StreamSpec,
        found: Found,
        changes: Vec<(&'static str, Value)>,
    ) -> Result<Ensured, BusError> {
        let Found { mut raw, .. } = found;
        tracing::info!(stream = spec.name, ?changes, "changing the stream");
        let bytes = changes.iter().find(|(field, _)| *field == "max_bytes").and_then(|(_, bytes)| bytes.as_u64());
        raw.extend(changes.into_iter().map(|(field, value)| (field.to_owned(), value)));
        match self.ask::<RawInfo>(&spec.name, "STREAM.UPDATE", &Value::Object(raw)).await? {
            Ok(info) => {
                let found = Found::of(&spec.name, info)?;
                let left = spec.unfit(&found.config);
                if left.is_empty() {
                    Ok(found.ensured(false))
                } else {
                    Err(BusError::StreamDiffers { stream: spec.name.clone(), why: left.join("; ") })
                }
            }
            Err(error) => Err(refused("update stream", spec, bytes, &error)),
        }
    }

    async fn make(&self, spec: &StreamSpec) -> Result<Ensured, BusError> {
        let (mut bytes, mut window) = (spec.initial(), Some(spec.duplicate_window));
        loop {
            let config = spec.config(bytes, window);
            match self.ask::<RawInfo>(&spec.name, "STREAM.CREATE", &config).await? {
                Ok(info) => return Ok(Found::of(&spec.name, info)?.ensured(true)),
                Err(error) => match error.err_code {
                    // The server's own window is within its limits. What is sent twice is applied once all the same.
                    INVALID if window.is_some() && error.description.contains("duplicates window") => window = None,
                    BYTES_REQUIRED if bytes.is_none() => bytes = Some(spec.required),
                    // Somebody else has made it meanwhile.
                    EXISTS => match self.found(&spec.name).await? {
                        Some(found) => return self.taken(spec, found).await,
                        None => return Err(refused("create stream", spec, bytes, &error)),
                    },
                    _ => return Err(refused("create stream", spec, bytes, &error)),
                },
            }
        }
    }

    /// Gives a stream of ours twice the bytes that it has, or as many as it may grow to; None: it is as large as that, or somebody
    /// else has said how large it is.
    pub async fn grow_stream(&self, spec: &StreamSpec) -> Result<Option<Ensured>, BusError> {
        let found = self.found(&spec.name).await?.filter(|found| is_ours(&found.config));
        let Some(found) = found else { return Ok(None) };
        let Some(grown) = spec.grown(found.ensured(false).max_bytes) else { return Ok(None) };
        self.update(spec, found, vec![("max_bytes", grown.into())]).await.map(Some)
    }

    /// Whether Highwater has made this stream; false also where there is none.
    pub async fn is_our_stream(&self, name: &str) -> Result<bool, BusError> {
        Ok(self.found(name).await?.is_some_and(|found| is_ours(&found.config)))
    }

    /// Deletes a stream that Highwater has made, and empties one that was made beforehand; one that does not exist is fine.
    pub async fn delete_stream(&self, name: &str) -> Result<(), BusError> {
        match self.found(name).await? {
            None => Ok(()),
            Some(found) if !is_ours(&found.config) => {
                tracing::info!(stream = name, "the stream was made beforehand: it is emptied, and stays");
                // It may hold messages of its owner, too.
                self.purge(name, "hw.>", None).await
            }
            Some(_) => {
                let js = self.js();
                match self.permitted_about(name, js.delete_stream(name)).await? {
                    Ok(_) => Ok(()),
                    Err(_) if matches!(self.stream_state(name).await, Err(BusError::NoStream(_))) => Ok(()),
                    Err(e) => Err(BusError::other("delete stream", e)),
                }
            }
        }
    }

    /// Removes messages of a subject, up to and excluding `below` when given.
    pub async fn purge(&self, stream: &str, subject: &str, below: Option<u64>) -> Result<(), BusError> {
        let handle = self.js().get_stream_no_info(stream).await.map_err(|e| BusError::other("purge", e))?;
        let purge = handle.purge().filter(subject);
        let done = async {
            match below {
                Some(seq) => purge.sequence(seq).await,
                None => purge.await,
            }
        };
        self.permitted_about(stream, done).await?.map(|_| ()).map_err(|e| BusError::other("purge", e))
    }

    /// The last sequences of these subjects, several asked for at once; of one that has no message None.
    pub async fn last_seqs_of(&self, name: &str, subjects: &[String]) -> Result<Vec<Option<u64>>, BusError> {
        let (mut asked, mut found) = (FuturesOrdered::new(), Vec::with_capacity(subjects.len()));
        // Each answer has the whole message: until the first one is there, they may be as large as the server takes.
        let (mut guessed, mut largest) = (self.max_payload(), 0);
        for subject in subjects {
            let at_once = (LOOKED_UP_BYTES / guessed.max(1)).clamp(1, LOOKED_UP_AT_ONCE);
            while asked.len() >= at_once
                && let Some(last) = asked.next().await
            {
                let (seq, size) = last?;
                found.push(seq);
                largest = largest.max(size);
                guessed = largest;
            }
            asked.push_back(async move {
                let last = self.last_of(name, subject).await?;
                let size = last.as_ref().map_or(0, |last| last.payload.len());
                Ok::<_, BusError>((last.map(|last| last.seq), size))
            });
        }
        while let Some(last) = asked.next().await {
            found.push(last?.0);
        }
        Ok(found)
    }

    /// The subjects that a stream holds messages of.
    pub async fn stream_subjects(&self, name: &str) -> Result<Vec<String>, BusError> {
        let other = |e: String| BusError::other("stream subjects", format!("{name}: {e}"));
        let stream = self.js().get_stream_no_info(name).await.map_err(|e| other(e.to_string()))?;
        let listed = self.permitted_about(name, stream.info_with_subjects(">")).await?;
        let mut subjects = listed.map_err(|e| other(e.to_string()))?;
        let mut found = Vec::new();
        while let Some(subject) = subjects.next().await {
            found.push(subject.map_err(|e| other(e.to_string()))?.0);
        }
        Ok(found)
    }

    /// Every stream of the account.
    pub async fn stream_names(&self) -> Result<Vec<String>, BusError> {
        let mut names = self.js().stream_names();
        let mut found = Vec::new();
        let subject = self.api().of("STREAM.NAMES");
        while let Some(name) = self.permitted(|refused| refused == subject, names.next()).await? {
            found.push(name.map_err(|e| BusError::other("stream names", e))?);
        }
        Ok(found)
    }
}
