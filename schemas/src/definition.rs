//! Buckets and indexes as users declare them, and their compiled form.

use crate::{
    error::{ApiError, ErrorCode},
    expr::{self, Expr, Path},
    language::Language,
    names,
    prefix::Prefix,
    readable::RESERVED,
    subjects,
};
use serde::{Deserialize, Serialize};

/// The most keys one index may have.
pub const MAX_KEYS: usize = 16;
/// The most included fields one index may have.
pub const MAX_INCLUDE: usize = 32;
/// The most hash partitions one index may have.
pub const MAX_PARTITIONS: u32 = 64;
/// The most streams one bucket may have.
pub const MAX_VBUCKETS: usize = 64;

/// One source stream of a bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SourceStream {
    pub name: String,
    /// Subjects begin with this; the docid is the rest. A token `*` stands for any token, which is kept at the beginning of the
    /// docid.
    #[serde(default)]
    pub strip_prefix: String,
}

impl SourceStream {
    pub fn prefix(&self) -> Prefix {
        Prefix::new(&self.strip_prefix)
    }
}

/// How clients encode docids in subjects, as the codecs for keys of NATS key-value buckets do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DocidCodec {
    /// Each token is base64 with the alphabet of URLs, without padding.
    Base64,
    /// `/a/b` is written `_root_.a.b`, and `a/b` is written `a.b`.
    Path,
}

impl DocidCodec {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Base64 => "base64",
            Self::Path => "path",
        }
    }
}

/// Where a bucket's documents come from: exactly one of `kv` and `streams`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// A NATS key-value bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv: Option<String>,
    /// Keyed JetStream streams, one vbucket each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streams: Option<Vec<SourceStream>>,
    /// What the subjects in the stream of the key-value bucket begin with, where that is not `$KV.<bucket>.`: a mirror holds those
    /// of its origin. Highwater looks when the bucket is declared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_prefix: Option<String>,
    /// How docids are encoded in subjects; None: they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub docid_codec: Option<DocidCodec>,
}

/// A declared bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BucketDefinition {
    pub name: String,
    pub source: Source,
}

impl BucketDefinition {
    /// The declaration of a NATS key-value bucket under its own name.
    pub fn kv(name: &str) -> Self {
        Self { name: name.into(), source: Source { kv: Some(name.into()), ..Source::default() } }
    }

    pub fn check(&self) -> Result<(), ApiError> {
        names::check_bucket("bucket", &self.name)?;
        let refuse = |m: &str| Err(ApiError::new(ErrorCode::BadDefinition, m));
        match (&self.source.kv, &self.source.streams) {
            (Some(kv), None) => {
                names::check_bucket("key-value bucket", kv)?;
                let prefix = self.source.kv_prefix.as_deref().unwrap_or_default();
                if !names::is_subject_part(prefix) || prefix.split('.').any(|token| matches!(token, "*" | ">")) {
                    return refuse(&format!(
                        "source.kv_prefix {:?} is not the beginning of a subject",
                        beginning(prefix)
                    ));
                }
                Ok(())
            }
            (None, Some(_)) if self.source.kv_prefix.is_some() => refuse("source.kv_prefix goes with source.kv"),
            (None, Some(streams)) => {
                if streams.is_empty() || streams.len() > MAX_VBUCKETS {
                    return refuse(&format!("source.streams must name 1 to {MAX_VBUCKETS} streams"));
                }
                for (i, s) in streams.iter().enumerate() {
                    if !names::is_stream(&s.name) {
                        let name = beginning(&s.name);
                        return refuse(&format!("source.streams[{i}].name {name:?} is not a stream name"));
                    }
                    if !names::is_subject_part(&s.strip_prefix) {
                        let prefix = beginning(&s.strip_prefix);
                        let most = names::MAX_STREAM_NAME;
                        return refuse(&format!(
                            "source.streams[{i}].strip_prefix {prefix:?} is not the beginning of a subject: at most {most} bytes, without blanks and control characters"
                        ));
                    }
                    if s.strip_prefix.split('.').any(|token| token == ">") {
                        let prefix = beginning(&s.strip_prefix);
                        return refuse(&format!(
                            "source.streams[{i}].strip_prefix {prefix:?}: > is no beginning of a subject; * stands for a token"
                        ));
                    }
                    if s.name.starts_with("HW_") {
                        return refuse(&format!(
                            "source.streams[{i}].name {:?}: streams that begin with HW_ are Highwater's own",
                            s.name
                        ));
                    }
                    if streams[..i].iter().any(|o| o.name == s.name) {
                        return refuse(&format!("source.streams[{i}].name {:?} is named twice", s.name));
                    }
                }
                Ok(())
            }
            _ => refuse("source must have either kv or streams"),
        }
    }

    /// Whether somebody who declares `wanted` means this bucket: what Highwater has found out need not be said.
    pub fn is_meant_by(&self, wanted: &Self) -> bool {
        let mut wanted = wanted.clone();
        wanted.source.kv_prefix = wanted.source.kv_prefix.or_else(|| self.source.kv_prefix.clone());
        *self == wanted
    }

    /// True for a NATS key-value bucket, whose operations travel in a header.
    pub fn is_kv(&self) -> bool {
        self.source.kv.is_some()
    }

    /// Stream name and subject prefix of each vbucket, in order.
    pub fn vbuckets(&self) -> Vec<SourceStream> {
        match (&self.source.kv, &self.source.streams) {
            (Some(kv), _) => {
                let prefix = self.source.kv_prefix.clone().unwrap_or_else(|| subjects::kv_prefix(kv));
                vec![SourceStream { name: subjects::kv_stream(kv), strip_prefix: prefix }]
            }
            (None, Some(streams)) => streams.clone(),
            (None, None) => Vec::new(),
        }
    }
}

/// An index as users define it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IndexDefinition {
    pub bucket: String,
    pub name: String,
    /// Path expressions, each with an optional `ASC` or `DESC`; none: a primary index, ordered by docid.
    #[serde(default)]
    pub keys: Vec<String>,
    /// Only documents for which this is true are in the index.
    #[serde(default, rename = "where", skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// Fields stored beside the key and returned with each row.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<String>,
    /// Hash partitions by docid.
    #[serde(default = "one")]
    pub num_partition: u32,
    /// Further copies of each partition on other nodes.
    #[serde(default)]
    pub num_replica: u32,
    /// Also index documents whose leading key is missing.
    #[serde(default)]
    pub include_missing: bool,
    /// Wait for `index build` instead of building at once.
    #[serde(default)]
    pub defer_build: bool,
}

fn one() -> u32 {
    1
}

/// One key of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPart {
    pub path: Path,
    pub descending: bool,
}

/// An index definition after parsing.
#[derive(Debug, Clone, PartialEq)]
pub struct CompiledIndex {
    pub keys: Vec<KeyPart>,
    pub condition: Option<Expr>,
    pub include: Vec<Path>,
    pub include_missing: bool,
    pub language: Language,
}

impl CompiledIndex {
    /// True for an index without keys, which is ordered by docid.
    pub fn primary(&self) -> bool {
        self.keys.is_empty()
    }
    /// The field of each key, named as included fields are.
    pub fn key_names(&self) -> Vec<String> {
        self.keys.iter().map(|k| k.path.label()).collect()
    }
    /// For each key whether it is descending.
    pub fn directions(&self) -> Vec<bool> {
        self.keys.iter().map(|k| k.descending).collect()
    }
}

/// Refuses what no row may hold: a name that some reader takes for something else. Earlier versions of the language took it.
fn check_path(path: &Path, language: Language, field: impl Fn() -> String) -> Result<(), ApiError> {
    if language < Language::V2 || !path.0.iter().any(|segment| segment.starts_with(RESERVED)) {
        return Ok(());
    }
    let why = format!("{}: names that begin with {RESERVED} mean something else to some readers of JSON", field());
    Err(ApiError::new(ErrorCode::BadDefinition, why))
}

/// What of a name is shown in a message.
fn beginning(name: &str) -> String {
    name.chars().take(names::MAX_NAME + 1).collect()
}

impl IndexDefinition {
    /// Checks every field and parses the expressions, by the rules of a version of the language.
    pub fn compile(&self, language: Language) -> Result<CompiledIndex, ApiError> {
        names::check_bucket("bucket", &self.bucket)?;
        names::check("index", &self.name)?;
        let refuse = |m: String| Err(ApiError::new(ErrorCode::BadDefinition, m));
        if self.keys.len() > MAX_KEYS {
            return refuse(format!("keys: at most {MAX_KEYS}, not {}", self.keys.len()));
        }
        if self.include.len() > MAX_INCLUDE {
            return refuse(format!("include: at most {MAX_INCLUDE}, not {}", self.include.len()));
        }
        if self.num_partition == 0 || self.num_partition > MAX_PARTITIONS {
            return refuse(format!("num_partition: 1 to {MAX_PARTITIONS}, not {}", self.num_partition));
        }
        if self.num_replica > 0 {
            return Err(ApiError::new(
                ErrorCode::NotSupported,
                "num_replica: this version keeps one copy of each partition; leave it at 0",
            ));
        }
        let mut keys = Vec::with_capacity(self.keys.len());
        for (i, text) in self.keys.iter().enumerate() {
            let key = expr::parse_key(text).map_err(|e| e.in_field(&format!("keys[{i}]")))?;
            check_path(&key.path, language, || format!("keys[{i}]"))?;
            keys.push(key);
        }
        let condition = match &self.condition {
            Some(text) => Some(expr::parse_condition(text, language).map_err(|e| e.in_field("where"))?),
            None => None,
        };
        let mut include = Vec::with_capacity(self.include.len());
        for (i, text) in self.include.iter().enumerate() {
            let path = expr::parse_path(text).map_err(|e| e.in_field(&format!("include[{i}]")))?;
            check_path(&path, language, || format!("include[{i}]"))?;
            // A row names each field once.
            if language == Language::V0 || !include.contains(&path) {
                include.push(path);
            }
        }
        Ok(CompiledIndex { keys, condition, include, include_missing: self.include_missing, language })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_and_prefixes_that_nats_cannot_have_are_refused() {
        let check = |name: &str, prefix: &str| {
            let streams = Some(vec![SourceStream { name: name.into(), strip_prefix: prefix.into() }]);
            BucketDefinition { name: "b".into(), source: Source { streams, ..Source::default() } }.check()
        };
        assert_eq!(check(&"s".repeat(255), &"p".repeat(255)), Ok(()));
        for (name, prefix, says) in [
            (&*"s".repeat(256), "", "streams[0].name"),
            (&"s".repeat(200_000), "", "streams[0].name"),
            ("", "", "streams[0].name"),
            ("a b", "", "streams[0].name"),
            ("a\tb", "", "streams[0].name"),
            ("a\0", "", "streams[0].name"),
            ("a.b", "", "streams[0].name"),
            ("S", &"p".repeat(256), "streams[0].strip_prefix"),
            ("S", "a b.", "streams[0].strip_prefix"),
            ("S", "a.\r\nb", "streams[0].strip_prefix"),
            ("S", "a.>", "streams[0].strip_prefix"),
        ] {
            let error = check(name, prefix).unwrap_err();
            assert_eq!(error.code, ErrorCode::BadDefinition, "{error}");
            assert!(error.message.contains(says) && error.message.len() < 300, "{error}");
        }
    }

    #[test]
    fn a_declaration_means_the_bucket_whose_prefix_was_found_out() {
        let declared = BucketDefinition::kv("copy");
        let mut known = declared.clone();
        known.source.kv_prefix = Some("$KV.origin.".into());
        assert!(known.is_meant_by(&declared) && known.is_meant_by(&known) && !declared.is_meant_by(&known));
        assert_eq!(known.vbuckets()[0].strip_prefix, "$KV.origin.");
        let mut encoded = declared.clone();
        encoded.source.docid_codec = Some(DocidCodec::Path);
        assert!(!known.is_meant_by(&encoded));
        known.source.kv_prefix = Some("$KV.*.".into());
        assert_eq!(known.check().unwrap_err().code, ErrorCode::BadDefinition);
        let text =
            r#"{"name":"o","source":{"streams":[{"name":"O","strip_prefix":"o.*.items."}],"docid_codec":"base64"}}"#;
        let definition: BucketDefinition = serde_json::from_str(text).unwrap();
        assert_eq!((definition.check(), definition.source.docid_codec), (Ok(()), Some(DocidCodec::Base64)));
        assert_eq!(serde_json::to_string(&definition).unwrap(), text);
    }

    #[test]
    fn names_that_readers_keep_for_themselves_are_no_paths_of_new_indexes() {
        let definition = |keys: &[&str], include: &[&str]| -> IndexDefinition {
            serde_json::from_value(serde_json::json!({"bucket": "b", "name": "i", "keys": keys, "include": include}))
                .unwrap()
        };
        let reserved = r#""$serde_json::private::RawValue""#;
        let inside = format!("a.{reserved}.b");
        for (index, says) in [
            (definition(&["a", reserved], &[]), "keys[1]: "),
            (definition(&[&format!("{inside} DESC")], &[]), "keys[0]: "),
            (definition(&["a"], &["a", "b", reserved]), "include[2]: "),
            (definition(&[], &[&inside]), "include[0]: "),
        ] {
            let error = index.compile(Language::NEWEST).unwrap_err();
            assert_eq!(error.code, ErrorCode::BadDefinition, "{error}");
            assert!(error.message.starts_with(says), "{error}");
            for earlier in [Language::V0, Language::V1] {
                assert!(index.compile(earlier).is_ok(), "what was taken before is taken still");
            }
        }
        assert!(definition(&["\"$serde\""], &["\"x$serde_json::private::y\""]).compile(Language::NEWEST).is_ok());
    }
}
