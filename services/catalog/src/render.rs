//! Writes rows as JSON text straight from their encoded form: no value is built and nothing is allocated per row.

use crate::token::PageToken;
use highwater_schemas::{
    ApiError, ErrorCode, StabilityTimestamp,
    api::VbPosition,
    collation::{decode_key, split_entry_suffix},
    language::Language,
    readable::write_readable_fields,
    state::vbuuid_text,
    wire::Row,
};
use std::{collections::BTreeMap, io::Write as _};

/// `],"page_token":"` and `"}`.
const TAIL: usize = 20;
/// One, in the unit of [`PageToken::expansion`].
pub const EXPANSION_ONE: u64 = 256;

/// What stands before the rows.
#[derive(Debug)]
pub struct Head<'a> {
    pub st: &'a StabilityTimestamp,
    pub unindexed: u64,
    /// The source streams, in the order of the vbuckets.
    pub streams: &'a [String],
    /// The field of each key of the index.
    pub key_names: &'a [String],
    /// For each key of the index whether it is descending.
    pub directions: &'a [bool],
    /// What the index was made with.
    pub language: Language,
}

impl Head<'_> {
    /// The timestamp by stream name.
    pub fn timestamp(&self) -> BTreeMap<String, VbPosition> {
        let position =
            |vb: &highwater_schemas::StVb| VbPosition { vbuuid: vbuuid_text(vb.vbuuid), seqno: vb.position.seqno };
        self.streams.iter().zip(&self.st.vbs).map(|(stream, vb)| (stream.clone(), position(vb))).collect()
    }
}

/// A scan's reply in the making. Whenever it is finished it fits into `limit` bytes.
#[derive(Debug)]
pub struct Renderer<'a> {
    head: &'a Head<'a>,
    out: Vec<u8>,
    limit: usize,
    /// What the reply may have when its first row is larger than `limit`.
    most: usize,
    /// The key's JSON stands behind the docid, which comes behind the key's bytes: so it waits here.
    key: Vec<u8>,
    rows: u64,
    rows_begin: usize,
    /// Encoded bytes of the rows written.
    encoded: u64,
}

impl<'a> Renderer<'a> {
    pub fn new(head: &'a Head<'a>, limit: usize) -> Self {
        let mut out = Vec::with_capacity(4096);
        // Writing into a Vec cannot fail, here and below.
        let _ = write!(
            out,
            r#"{{"ok":true,"st":{},"exact":{},"unindexed":{},"timestamp":"#,
            head.st.number,
            head.st.exact(),
            head.unindexed
        );
        let _ = serde_json::to_writer(&mut out, &head.timestamp());
        out.extend_from_slice(br#","key_names":"#);
        let _ = serde_json::to_writer(&mut out, head.key_names);
        out.extend_from_slice(br#","rows":["#);
        let rows_begin = out.len();
        Self { head, out, limit, most: limit, key: Vec::new(), rows: 0, rows_begin, encoded: 0 }
    }

    /// A reply of a single row may have so many bytes.
    pub fn first_row(self, most: usize) -> Self {
        Self { most: most.max(self.limit), ..self }
    }

    /// Rows written so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// How many times larger the rows written are in JSON, in 1/256; none without rows.
    pub fn expansion(&self) -> Option<u16> {
        let json = (self.out.len() - self.rows_begin) as u64;
        let expansion = (json * EXPANSION_ONE).checked_div(self.encoded)?;
        Some(u16::try_from(expansion).unwrap_or(u16::MAX))
    }

    /// Writes a row, or answers false when it no longer fits.
    ///
    /// # Errors
    /// A row that would not even fit alone, or whose bytes are damaged.
    pub fn push(&mut self, row: Row<'_>) -> Result<bool, ApiError> {
        let damaged = |why| ApiError::new(ErrorCode::Internal, format!("an entry key cannot be read: {why}"));
        self.key.clear();
        let consumed = decode_key(row.key, self.head.directions, &mut self.key).map_err(damaged)?;
        let (id, vb) = split_entry_suffix(&row.key[consumed..]).map_err(damaged)?;
        let before = self.out.len();
        if self.rows > 0 {
            self.out.push(b',');
        }
        self.out.extend_from_slice(br#"{"id":"#);
        let _ = serde_json::to_writer(&mut self.out, &*id);
        if self.head.streams.len() > 1 {
            self.out.extend_from_slice(br#","vb":"#);
            let _ =
                serde_json::to_writer(&mut self.out, self.head.streams.get(usize::from(vb)).map_or("", String::as_str));
        }
        self.out.extend_from_slice(br#","key":"#);
        self.out.extend_from_slice(&self.key);
        if !row.include.is_empty() {
            self.out.extend_from_slice(br#","include":"#);
            match self.head.language {
                // Copied from documents as they were.
                Language::V0 => write_readable_fields(&String::from_utf8_lossy(row.include), &mut self.out),
                Language::V1 | Language::V2 => self.out.extend_from_slice(row.include),
            }
        }
        self.out.push(b'}');
        // The reply may have to end here, with a token that holds this row's key.
        let limit = if self.rows == 0 { self.most } else { self.limit };
        if self.out.len() + TAIL + PageToken::text_len(row.key.len()) > limit {
            if self.rows == 0 {
                return Err(row_too_large(&id, self.out.len() - before, limit));
            }
            self.out.truncate(before);
            return Ok(false);
        }
        self.rows += 1;
        self.encoded += (row.key.len() + row.include.len() + ROW_OVERHEAD) as u64;
        Ok(true)
    }

    /// The whole reply.
    pub fn finish(mut self, page_token: Option<&str>) -> Vec<u8> {
        self.out.extend_from_slice(br#"],"page_token":"#);
        match page_token {
            Some(token) => {
                self.out.push(b'"');
                self.out.extend_from_slice(token.as_bytes());
                self.out.push(b'"');
            }
            None => self.out.extend_from_slice(b"null"),
        }
        self.out.push(b'}');
        self.out
    }
}

/// What [`highwater_schemas::wire::Rows`] adds to a row.
const ROW_OVERHEAD: usize = 8;

fn row_too_large(id: &str, bytes: usize, limit: usize) -> ApiError {
    ApiError::new(
        ErrorCode::RowTooLarge,
        format!(
            "the row of document {id:?} has {bytes} bytes; a reply holds at most {limit}: include less, or raise max_payload of nats-server"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use highwater_schemas::{
        StVb,
        api::ScanResult,
        collation::{encode_entry_suffix, encode_value},
        timestamp::Position,
        wire::Rows,
    };
    use serde_json::{Value, json};

    fn key(values: &[Value], directions: &[bool], id: &str, vb: u16) -> Vec<u8> {
        let mut key = Vec::new();
        values.iter().zip(directions).for_each(|(v, d)| encode_value(Some(v), *d, &mut key));
        encode_entry_suffix(id, vb, &mut key);
        key
    }

    fn st(vbs: usize) -> StabilityTimestamp {
        let vb = StVb { vbuuid: 0xabc, position: Position::new(34_006, 0), covered: 34_006, ..StVb::default() };
        StabilityTimestamp { number: 812, vbs: vec![vb; vbs], ..StabilityTimestamp::default() }
    }

    fn render(streams: &[&str], rows: &[(Vec<u8>, &[u8])], token: Option<&str>) -> String {
        let streams: Vec<String> = streams.iter().map(ToString::to_string).collect();
        let (st, names) = (st(streams.len()), names());
        let head = head(&st, &streams, &names);
        let mut renderer = Renderer::new(&head, 1 << 20);
        for (key, include) in rows {
            assert!(renderer.push(Row { key, include }).unwrap());
        }
        String::from_utf8(renderer.finish(token)).unwrap()
    }

    const DIRECTIONS: &[bool] = &[true, false];

    fn names() -> [String; 2] {
        ["age", "city"].map(str::to_owned)
    }

    fn head<'a>(st: &'a StabilityTimestamp, streams: &'a [String], key_names: &'a [String]) -> Head<'a> {
        Head { st, unindexed: 0, streams, key_names, directions: DIRECTIONS, language: Language::NEWEST }
    }

    #[test]
    fn the_documented_reply() {
        let rows = [(key(&[json!(40), json!("Oslo")], DIRECTIONS, "u17", 0), &br#"{"name":"Ada"}"#[..])];
        assert_eq!(
            render(&["KV_users"], &rows, None),
            r#"{"ok":true,"st":812,"exact":true,"unindexed":0,"timestamp":{"KV_users":{"vbuuid":"0000000000000abc","seqno":34006}},"key_names":["age","city"],"rows":[{"id":"u17","key":[40,"Oslo"],"include":{"name":"Ada"}}],"page_token":null}"#
        );
    }

    #[test]
    fn rows_of_several_streams_name_theirs_and_texts_are_escaped() {
        let rows = [
            (key(&[json!(1), json!("a\"\n\u{0}é")], DIRECTIONS, "x\"\\y", 1), &b""[..]),
            (key(&[json!(null), json!([1, {"a": true}])], DIRECTIONS, "z", 0), &b"{}"[..]),
        ];
        let text = render(&["ORDERS_0", "ORDERS_1"], &rows, Some("ab12"));
        let reply: ScanResult = serde_json::from_str(&text).unwrap();
        assert_eq!(reply.page_token.as_deref(), Some("ab12"));
        assert_eq!((reply.rows[0].id.as_str(), reply.rows[0].vb.as_deref()), ("x\"\\y", Some("ORDERS_1")));
        assert_eq!(reply.rows[0].key, [json!(1), json!("a\"\n\u{0}é")]);
        assert_eq!(reply.rows[0].include, None);
        assert_eq!(reply.rows[1].key, [json!(null), json!([1, {"a": true}])]);
        assert_eq!(reply.rows[1].include, Some(serde_json::Map::new()));
        assert_eq!(reply.timestamp.len(), 2);
    }

    #[test]
    fn what_an_earlier_version_copied_is_made_readable() {
        let (st, streams, names) = (st(1), ["KV_users".to_string()], names());
        for (include, shown) in [
            (r#"{"a":1,"b":1e400,"c":"\ud800","d":{"x":1,"x":[1e999],"y":"\udc00"}}"#, r#"{"a":1}"#),
            (r#"{"a":{"x":1,"x":2},"a":{"x":3}}"#, r#"{"a":{"x":3}}"#),
            (r#"{"a":18446744073709551617}"#, r#"{"a":18446744073709551617}"#),
        ] {
            let key = key(&[json!(1), json!("x")], DIRECTIONS, "id", 0);
            let render = |language| {
                let head = Head { language, ..head(&st, &streams, &names) };
                let mut renderer = Renderer::new(&head, 1 << 20);
                assert!(renderer.push(Row { key: &key, include: include.as_bytes() }).unwrap());
                String::from_utf8(renderer.finish(None)).unwrap()
            };
            assert!(render(Language::V0).contains(&format!(r#""include":{shown}}}"#)), "{}", render(Language::V0));
            // What this version stores has been made readable before, and is copied.
            assert!(render(Language::V1).contains(include));
        }
    }

    #[test]
    fn a_finished_reply_never_passes_its_limit() {
        let (st, streams, names) = (st(1), ["KV_users".to_string()], names());
        let head = head(&st, &streams, &names);
        let mut rows = Rows::default();
        (0..200u32)
            .for_each(|i| rows.push(&key(&[json!(i), json!("city")], DIRECTIONS, &format!("u{i}"), 0), br#"{"a":1}"#));
        for limit in (500..4000).step_by(7) {
            let mut renderer = Renderer::new(&head, limit);
            let mut last = Vec::new();
            for row in rows.iter() {
                if !renderer.push(row).unwrap() {
                    break;
                }
                last = row.key.to_vec();
            }
            assert!(renderer.rows() > 0 && renderer.expansion().unwrap() > 256);
            let token = PageToken { st: 812, left: None, fingerprint: 1, expansion: 256, after: last };
            assert!(renderer.finish(Some(&token.write())).len() <= limit, "{limit}");
        }
    }

    #[test]
    fn a_row_that_cannot_fit_is_named() {
        let (st, streams, names) = (st(1), ["KV_users".to_string()], names());
        let head = head(&st, &streams, &names);
        let mut renderer = Renderer::new(&head, 2000);
        let include = format!(r#"{{"a":"{}"}}"#, "x".repeat(2000));
        let key = key(&[json!(1), json!(2)], DIRECTIONS, "big", 0);
        let error = renderer.push(Row { key: &key, include: include.as_bytes() }).unwrap_err();
        assert_eq!(error.code, ErrorCode::RowTooLarge);
        assert!(error.message.contains("\"big\""), "{error}");
    }

    #[test]
    fn a_single_row_may_have_more_than_a_page() {
        let (st, streams, names) = (st(1), ["KV_users".to_string()], names());
        let head = head(&st, &streams, &names);
        let include = format!(r#"{{"a":"{}"}}"#, "x".repeat(2000));
        let key = key(&[json!(1), json!(2)], DIRECTIONS, "big", 0);
        let row = Row { key: &key, include: include.as_bytes() };
        let mut renderer = Renderer::new(&head, 2000).first_row(3000);
        assert!(renderer.push(row).unwrap());
        assert!(!renderer.push(Row { key: &key, include: b"" }).unwrap());
        assert!(renderer.finish(None).len() <= 3000);
        assert!(Renderer::new(&head, 2000).first_row(2100).push(row).is_err());
    }

    #[test]
    fn damaged_keys_are_an_error() {
        let (st, streams, names) = (st(1), ["KV_users".to_string()], names());
        let head = head(&st, &streams, &names);
        let good = key(&[json!(1), json!("x")], DIRECTIONS, "id", 0);
        for cut in 0..good.len() {
            let error = Renderer::new(&head, 2000).push(Row { key: &good[..cut], include: b"" }).unwrap_err();
            assert_eq!(error.code, ErrorCode::Internal);
        }
    }
}
