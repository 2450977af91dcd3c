//! Whether the source streams of a bucket that is to be declared can be followed, and what their subjects begin with.

use crate::core::{Probe, Probed};
use highwater_bus::{Bus, BusError, StreamConfig, Transform, Upstream};
use highwater_schemas::{
    ApiError, ErrorCode,
    definition::{BucketDefinition, SourceStream},
    pattern, subjects,
};

/// Mirrors of mirrors that are followed to where their messages come from.
const MOST_HOPS: usize = 8;
/// Any subject.
const ALL: &str = ">";

/// Looks at the source streams.
pub(crate) async fn probe(bus: &Bus, definition: &BucketDefinition) -> Probe {
    definition.check()?;
    let mut definition = definition.clone();
    let mut starts = Vec::new();
    for (vb, stream) in definition.vbuckets().into_iter().enumerate() {
        let state = match bus.stream_state(&stream.name).await {
            Ok(state) => state,
            Err(BusError::NoStream(name)) => {
                return Err(ApiError::new(ErrorCode::SourceNotFound, format!("there is no stream {name}")));
            }
            Err(error @ BusError::Timeout { .. }) => {
                let message = format!("stream {} cannot be looked at: {error}", stream.name);
                return Err(ApiError::new(ErrorCode::Timeout, message));
            }
            Err(error @ BusError::NotPermitted { .. }) => {
                return Err(bad(format!("stream {} cannot be looked at: {error}", stream.name)));
            }
            Err(error) => return Err(ApiError::new(ErrorCode::Internal, error.to_string())),
        };
        can_be_followed(&stream.name, &state.config)?;
        let origins = origins(bus, &state.config).await;
        for (mirror, origin) in std::iter::once(&state.config).chain(&origins).zip(&origins) {
            // A mirror has the messages of its origin, and not its settings.
            let name = mirror.mirror.as_ref().map_or(&stream.name, |upstream| &upstream.name);
            has_no_counters(name, origin)?;
        }
        if definition.is_kv() && definition.source.kv_prefix.is_none() {
            let prefix = kv_prefix(&stream, &state.config, &origins)?;
            definition.source.kv_prefix = (prefix != stream.strip_prefix).then_some(prefix);
        }
        let stream = definition.vbuckets().swap_remove(vb);
        has_documents(&stream, &state.config, &origins)?;
        starts.push(state.last_seq);
    }
    Ok(Probed { starts, kv_prefix: definition.source.kv_prefix })
}

fn bad(message: String) -> ApiError {
    ApiError::new(ErrorCode::BadSource, message)
}

/// Whether what is published stays in the stream, as a document.
fn can_be_followed(name: &str, config: &StreamConfig) -> Result<(), ApiError> {
    match config.retention.as_str() {
        "workqueue" => {
            return Err(bad(format!(
                "stream {name} is a work queue (retention workqueue): its messages go when they are consumed, and so would the documents"
            )));
        }
        "interest" => {
            return Err(bad(format!(
                "stream {name} keeps messages only until its consumers have them (retention interest), and so would the documents go"
            )));
        }
        _ => {}
    }
    if name.starts_with("OBJ_") {
        return Err(bad(format!(
            "stream {name} is an object store: its messages are parts of objects, and no documents"
        )));
    }
    has_no_counters(name, config)
}

fn has_no_counters(name: &str, config: &StreamConfig) -> Result<(), ApiError> {
    if config.allow_msg_counter {
        return Err(bad(format!(
            "stream {name} has counters (allow_msg_counter): its messages are numbers that are added up, and no documents"
        )));
    }
    Ok(())
}

/// The streams that a mirror takes its messages from, the nearest first, as far as they are of this account and can be seen.
async fn origins(bus: &Bus, config: &StreamConfig) -> Vec<StreamConfig> {
    let mut all: Vec<StreamConfig> = Vec::new();
    while all.len() < MOST_HOPS {
        let Some(mirror) = all.last().unwrap_or(config).mirror.as_ref() else { break };
        if mirror.external.is_some() {
            break;
        }
        match bus.stream_state(&mirror.name).await {
            Ok(origin) => all.push(origin.config),
            Err(_) => break,
        }
    }
    all
}

/// What the subjects in the stream of a key-value bucket begin with: a mirror holds those of its origin, and a stream may store
/// messages under other subjects than they are published under.
fn kv_prefix(stream: &SourceStream, config: &StreamConfig, origins: &[StreamConfig]) -> Result<String, ApiError> {
    let mut prefix = stream.strip_prefix.clone();
    // One without a destination is a filter.
    let changes = |transform: &&Transform| !transform.dest.is_empty();
    let mut transforms: Vec<&Transform> = config.subject_transform.iter().filter(changes).collect();
    let streams = std::iter::once(config).chain(origins);
    for mirror in streams.map_while(|config| config.mirror.as_ref()) {
        transforms = mirror.subject_transforms.iter().filter(changes).collect();
        if let Some(bucket) = mirror.name.strip_prefix("KV_") {
            prefix = subjects::kv_prefix(bucket);
        }
        if !transforms.is_empty() {
            break;
        }
    }
    match transforms[..] {
        [] => Ok(prefix),
        [transform] => {
            let literal =
                |token: &&str| !matches!(*token, "*" | ">") && !token.contains(['{', '$']) || token.starts_with("$KV");
            let tokens: Vec<&str> = transform.dest.split('.').take_while(literal).collect();
            Ok(if tokens.is_empty() { String::new() } else { tokens.join(".") + "." })
        }
        _ => Err(bad(format!(
            "stream {} stores messages under several subjects (subject_transforms): declare it with source.streams and a strip_prefix",
            stream.name
        ))),
    }
}

/// Whether the stream may hold a document of the bucket. It may be empty, so only its configuration tells.
fn has_documents(stream: &SourceStream, config: &StreamConfig, origins: &[StreamConfig]) -> Result<(), ApiError> {
    let prefix = stream.prefix();
    let stored = stored(config, origins);
    if stored.iter().any(|pattern| prefix.may_begin(pattern)) {
        return Ok(());
    }
    Err(bad(format!(
        "no subject in stream {} begins with {:?}: it stores {}",
        stream.name,
        stream.strip_prefix,
        stored.join(", ")
    )))
}

/// The subjects under which a stream stores messages.
fn stored(config: &StreamConfig, origins: &[StreamConfig]) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for subject in &config.subjects {
        match &config.subject_transform {
            Some(transform) if pattern::collide(source(transform), subject) => {
                all.push(transformed(transform));
                if !pattern::covers(source(transform), subject) {
                    all.push(subject.clone());
                }
            }
            _ => all.push(subject.clone()),
        }
    }
    if let Some(mirror) = &config.mirror {
        all.extend(taken(mirror, || match origins.split_first() {
            Some((origin, further)) => stored(origin, further),
            None => vec![ALL.into()],
        }));
    }
    all.extend(config.sources.iter().flat_map(|source| taken(source, || vec![ALL.into()])));
    all
}

/// The subjects of what is taken over from another stream; `unchanged`: those under which that stores them.
fn taken(from: &Upstream, unchanged: impl FnOnce() -> Vec<String>) -> Vec<String> {
    if !from.subject_transforms.is_empty() {
        return from.subject_transforms.iter().map(transformed).collect();
    }
    if !from.filter_subject.is_empty() {
        return vec![from.filter_subject.clone()];
    }
    unchanged()
}

fn source(transform: &Transform) -> &str {
    if transform.src.is_empty() { ALL } else { &transform.src }
}

/// The subjects that a transform makes. What its functions make of a token may be anything.
fn transformed(transform: &Transform) -> String {
    if transform.dest.is_empty() {
        return source(transform).to_owned();
    }
    let mut tokens: Vec<&str> = Vec::new();
    for token in transform.dest.split('.') {
        let function = token.to_ascii_lowercase();
        if function.starts_with("{{") && !function.contains("wildcard") && !function.contains("partition") {
            tokens.push(ALL);
            break;
        }
        let number = token.strip_prefix('$').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
        tokens.push(if number || function.contains("{{") { "*" } else { token });
    }
    tokens.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> StreamConfig {
        serde_json::from_str(text).unwrap()
    }

    fn stream(name: &str, prefix: &str) -> SourceStream {
        SourceStream { name: name.into(), strip_prefix: prefix.into() }
    }

    #[test]
    fn streams_whose_messages_are_no_documents_are_refused_with_the_reason() {
        for (text, says) in [
            (r#"{"retention":"workqueue"}"#, "work queue"),
            (r#"{"retention":"interest"}"#, "retention interest"),
            (r#"{"allow_msg_counter":true}"#, "counters"),
        ] {
            let error = can_be_followed("S", &config(text)).unwrap_err();
            assert!(error.code == ErrorCode::BadSource && error.message.contains(says), "{error}");
        }
        assert_eq!(can_be_followed("S", &config(r#"{"retention":"limits"}"#)), Ok(()));
        assert!(can_be_followed("OBJ_files", &config("{}")).unwrap_err().message.contains("object store"));
    }

    #[test]
    fn what_is_stored_counts_and_not_what_is_published() {
        for (text, patterns) in [
            (r#"{"subjects":["a.>","b.*"]}"#, &["a.>", "b.*"][..]),
            (
                r#"{"subjects":["in.*"],"subject_transform":{"src":"in.*","dest":"out.{{wildcard(1)}}.x"}}"#,
                &["out.*.x"],
            ),
            (r#"{"subjects":["a.>"],"subject_transform":{"src":"a.b.*","dest":"c.$1"}}"#, &["c.*", "a.>"]),
            (r#"{"subjects":["a.*"],"subject_transform":{"src":"","dest":"c.{{splitfromleft(1,2)}}.d"}}"#, &["c.>"]),
            (r#"{"mirror":{"name":"O","filter_subject":"a.b.>"}}"#, &["a.b.>"]),
            (r#"{"mirror":{"name":"O"}}"#, &[">"]),
            (
                r#"{"sources":[{"name":"A","subject_transforms":[{"src":"a.>","dest":"c.>"}]},{"name":"B"}]}"#,
                &["c.>", ">"],
            ),
        ] {
            assert_eq!(stored(&config(text), &[]), patterns, "{text}");
        }
        let origin = config(r#"{"subjects":["orders.>"]}"#);
        assert_eq!(stored(&config(r#"{"mirror":{"name":"O"}}"#), &[origin]), ["orders.>"]);
    }

    #[test]
    fn a_stream_without_documents_says_what_it_stores() {
        let orders = config(r#"{"subjects":["orders.>"]}"#);
        for prefix in ["", "orders.", "orders.eu.", "orders.*.items."] {
            assert_eq!(has_documents(&stream("S", prefix), &orders, &[]), Ok(()), "{prefix}");
        }
        let error = has_documents(&stream("S", "people."), &orders, &[]).unwrap_err();
        assert!(error.code == ErrorCode::BadSource && error.message.contains("it stores orders.>"), "{error}");
    }

    #[test]
    fn a_mirror_of_a_bucket_has_the_subjects_of_its_origin() {
        let copy = stream("KV_copy", "$KV.copy.");
        let prefix = |text: &str, origins: &[StreamConfig]| kv_prefix(&copy, &config(text), origins).unwrap();
        assert_eq!(prefix(r#"{"subjects":["$KV.copy.>"]}"#, &[]), "$KV.copy.");
        assert_eq!(prefix(r#"{"mirror":{"name":"KV_people"}}"#, &[config("{}")]), "$KV.people.");
        assert_eq!(prefix(r#"{"mirror":{"name":"KV_people","external":{"api":"x"}}}"#, &[]), "$KV.people.");
        let middle = config(r#"{"mirror":{"name":"KV_first"}}"#);
        assert_eq!(prefix(r#"{"mirror":{"name":"KV_people"}}"#, &[middle, config("{}")]), "$KV.first.");
        let renamed =
            r#"{"mirror":{"name":"KV_people","subject_transforms":[{"src":"$KV.people.>","dest":"$KV.copy.>"}]}}"#;
        assert_eq!(prefix(renamed, &[]), "$KV.copy.");
        let moved = r#"{"subjects":["$KV.copy.>"],"subject_transform":{"src":"$KV.copy.>","dest":"kept.x.>"}}"#;
        assert_eq!(prefix(moved, &[]), "kept.x.");
        let several =
            r#"{"mirror":{"name":"KV_a","subject_transforms":[{"src":"a","dest":"b"},{"src":"c","dest":"d"}]}}"#;
        assert!(kv_prefix(&copy, &config(several), &[]).unwrap_err().message.contains("strip_prefix"));
    }
}
