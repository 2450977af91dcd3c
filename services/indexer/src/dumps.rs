//! Slices as people read them: what the store says, in the words of the JSON messages.

use crate::store::{BackIndex, Document, KeptSnapshot, RunInfo, SliceIdentity, SliceMark, StoreError, StoreStats};
use crate::store::{FORMAT_VERSION, Verified};
use highwater_schemas::{
    ApiError, ErrorCode,
    api::{DocumentDump, EntryDump, IncludedFields, KeptDump, MarkDump, MarkVbDump, RunDump, SliceCheck, SliceDump},
    collation::{decode_component, decode_key},
    readable::write_readable_fields,
};
use serde_json::value::RawValue;
use std::{fmt::Write as _, ops::ControlFlow};

/// The first byte of a descending component: each is the inverse of an ascending one, and those are all below this.
const DESCENDING: u8 = 0x80;

/// What went wrong with a slice, as a coded error.
pub(crate) fn coded(error: &StoreError) -> ApiError {
    let code = match error {
        StoreError::GivenUp | StoreError::Late => ErrorCode::Timeout,
        StoreError::Busy => ErrorCode::TooManyRequests,
        StoreError::Unfinished(_) => ErrorCode::Internal,
        _ => ErrorCode::StorageFailed,
    };
    ApiError::new(code, error.to_string())
}

/// Enters what a check counted.
pub(crate) fn enter(check: &mut SliceCheck, found: &Verified) {
    check.documents = found.documents;
    check.entries = found.entries;
    check.unindexed = found.unindexed;
    check.snapshots = found.snapshots;
    check.undo = found.undo;
}

/// The head of a dump: everything but the rows.
pub(crate) fn slice(
    identity: &SliceIdentity,
    marks: (&SliceMark, Option<&SliceMark>),
    kept: &[KeptSnapshot],
    stats: &StoreStats,
) -> SliceDump {
    SliceDump {
        bucket: identity.bucket.clone(),
        declared: identity.declared,
        index: identity.index_id.clone(),
        index_id: identity.index_id.clone(),
        number: identity.index,
        partition: identity.partition,
        format_version: FORMAT_VERSION,
        mark: mark(marks.0),
        newer_mark: marks.1.map(mark),
        kept: kept
            .iter()
            .map(|k| KeptDump {
                at: k.at,
                entries: k.items,
                unindexed: k.unindexed,
                undo_bytes: k.undo_bytes(),
                mark: mark(&k.mark),
            })
            .collect(),
        entries: stats.items,
        unindexed: stats.unindexed,
        live_bytes: stats.live_bytes,
        undo_bytes: stats.undo_bytes,
        file_bytes: stats.file_bytes,
        memory_bytes: stats.memory,
        layers: stats.layers,
        error: stats.poisoned.as_ref().map(|why| ApiError::new(ErrorCode::StorageFailed, why.clone())),
        ..SliceDump::default()
    }
}

pub(crate) fn mark(mark: &SliceMark) -> MarkDump {
    let vb = |vb: &crate::store::SliceVb| MarkVbDump {
        vbuuid: format!("{:016x}", vb.vbuuid),
        seqno: vb.position.seqno,
        round: vb.position.round,
        covered: vb.covered,
        content: vb.content,
        server_time: vb.server_time,
        hash: format!("{:016x}", vb.hash),
    };
    MarkDump {
        st: mark.st,
        term: mark.term,
        building: mark.building,
        vbs: mark.vbs.iter().map(vb).collect(),
        topic: mark.topic,
        topic_created: mark.topic_created,
        docs_done: mark.docs_done,
    }
}

pub(crate) fn run(run: &RunInfo) -> RunDump {
    let file = run.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    RunDump { file, records: run.records, bytes: run.bytes, mark: mark(&run.mark) }
}

/// Reads documents into a dump, as many as are wanted and fit; the whole dump stays below `most` bytes of JSON.
pub(crate) fn read_rows(
    dump: &mut SliceDump,
    back: &BackIndex,
    from: (u16, &str),
    rows: u64,
    most: usize,
) -> Result<(), ApiError> {
    if size(dump) > most {
        // Many vbuckets: those of the slice's own mark say enough.
        for mark in dump.kept.iter_mut().map(|k| &mut k.mark).chain(dump.runs.iter_mut().map(|r| &mut r.mark)) {
            mark.vbs.clear();
        }
    }
    let mut left = most.saturating_sub(size(dump));
    let mut large = None;
    if rows > 0 {
        let read = back.visit(from, |found| {
            if dump.rows.len() as u64 == rows {
                dump.more = true;
                return ControlFlow::Break(());
            }
            let row = document(&found);
            let size = serde_json::to_vec(&row).map_or(0, |text| text.len()) + 1;
            if size > left {
                dump.more = true;
                large = dump.rows.is_empty().then_some(row.id);
                return ControlFlow::Break(());
            }
            left -= size;
            dump.rows.push(row);
            ControlFlow::Continue(())
        });
        read.map_err(|e| coded(&e))?;
    }
    match large {
        Some(id) => {
            Err(ApiError::new(ErrorCode::RowTooLarge, format!("the row of document {id:?} does not fit one message")))
        }
        None => Ok(()),
    }
}

fn size(dump: &SliceDump) -> usize {
    serde_json::to_vec(dump).map_or(0, |text| text.len())
}

fn document(found: &Document) -> DocumentDump {
    DocumentDump {
        vb: found.vb,
        id: found.docid.clone(),
        seqno: found.seqno,
        reason: found.reason.map(|r| r.as_str().to_owned()),
        entries: found.entries.iter().map(|(key, include)| entry(key, include)).collect(),
    }
}

fn entry(bytes: &[u8], include: &[u8]) -> EntryDump {
    let key = key(bytes);
    EntryDump { bytes: key.is_none().then(|| hex(bytes)), key, include: included(include) }
}

/// The included fields as a scan's reply has them. Those of an index of the newest language have been made readable before they
/// were stored, and come out as they are.
fn included(stored: &[u8]) -> Option<IncludedFields> {
    if stored.is_empty() {
        return None;
    }
    let mut text = Vec::with_capacity(stored.len());
    write_readable_fields(&String::from_utf8_lossy(stored), &mut text);
    String::from_utf8(text).ok().and_then(|text| RawValue::from_string(text).ok()).map(IncludedFields)
}

/// A key's components as JSON. Their directions need not be known: the first byte of each tells its own.
fn key(bytes: &[u8]) -> Option<Vec<serde_json::Value>> {
    let (mut rest, mut directions, mut text) = (bytes, Vec::new(), Vec::new());
    while let Some(first) = rest.first() {
        let descending = *first >= DESCENDING;
        decode_component(&mut rest, descending, &mut text).ok()?;
        directions.push(descending);
    }
    text.clear();
    decode_key(bytes, &directions, &mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use highwater_schemas::collation::encode_value;
    use serde_json::{Value, json};

    #[test]
    fn included_fields_are_shown_as_scans_show_them() {
        for (stored, shown) in [
            (r#"{"a":18446744073709551617,"b":1.0,"c":0.1000000000000000055,"d":1E+2}"#, None),
            (r#"{"z":1,"a":{"y":[],"b":"\u00e9"}}"#, None),
            ("{}", None),
            // As version 0 of the language stored what some readers refuse.
            (r#"{"a":1,"b":1e400,"c":"\ud800","d":2}"#, Some(r#"{"a":1,"d":2}"#)),
            (r#"{"a":{"x":1,"x":2},"b":{"$serde_json::private::RawValue":"[1]"}}"#, Some(r#"{"a":{"x":2}}"#)),
        ] {
            let found = entry(&[], stored.as_bytes()).include.unwrap();
            assert_eq!(found.0.get(), shown.unwrap_or(stored));
            let sent = serde_json::to_string(&found).unwrap();
            assert_eq!(sent, found.0.get());
            assert_eq!(serde_json::from_str::<IncludedFields>(&sent).unwrap(), found);
        }
        assert_eq!(entry(&[], b"").include, None);
    }

    #[test]
    fn keys_are_read_in_both_directions_without_knowing_them() {
        let values = [json!(null), json!(false), json!(-7.5), json!("Oslo\u{0}"), json!([1, "x"]), json!({"a": {}})];
        for (i, value) in values.iter().enumerate() {
            for directions in [[false, true], [true, false], [true, true], [false, false]] {
                let other = &values[(i + 3) % values.len()];
                let mut bytes = Vec::new();
                for (value, descending) in [value, other].into_iter().zip(directions) {
                    encode_value(Some(value), descending, &mut bytes);
                }
                let found = entry(&bytes, br#"{"n":1}"#);
                assert_eq!(found.key, Some(vec![value.clone(), other.clone()]), "{directions:?}");
                assert_eq!(found.include.unwrap().0.get(), r#"{"n":1}"#);
            }
        }
        let mut missing = Vec::new();
        encode_value(None, true, &mut missing);
        encode_value(Some(&json!(1)), false, &mut missing);
        assert_eq!(key(&missing), Some(vec![json!({"$missing": true}), json!(1)]));
        assert_eq!(key(b""), Some(Vec::<Value>::new()));
        assert_eq!(entry(&[1, 0x7f], b""), EntryDump { bytes: Some("017f".into()), ..EntryDump::default() });
    }
}
