//! The key encoding: what goes in comes out, sorts like the values, and nothing else is accepted.

use crate::{
    readers,
    values::{Source, unescaped},
};
use highwater_schemas::{
    collation::{
        compare_values, decode_component, decode_key, encode_bound, encode_entry_suffix, encode_raw, encode_value,
        entry_suffix_len, split_entry_suffix,
    },
    language::Language,
};
use serde_json::Value;
use std::cmp::Ordering;

const KEYS: usize = 3;
const MISSING: &str = r#"{"$missing":true}"#;
/// serde_json's own values take objects that begin with this name for something else; the encoding must not.
const RAW_VALUE: &str = "private::RawValue";

/// Takes the bytes as an encoded key, as directions and a JSON text, and as directions and what two rows are made of.
pub fn key_encoding(data: &[u8]) {
    for descending in [false, true] {
        garbage_component(data, descending);
    }
    garbage_suffix(data);
    let Some((first, rest)) = data.split_first() else { return };
    let directions: [bool; KEYS] = std::array::from_fn(|i| first >> i & 1 == 1);
    garbage_key(rest, &directions);
    if let Ok(text) = std::str::from_utf8(rest) {
        json_text(text, &directions);
        readers::json_text(text);
    }
    let mut source = Source(rest);
    let rows: [Vec<Option<Value>>; 2] = std::array::from_fn(|_| (0..KEYS).map(|_| source.component()).collect());
    two_rows(&rows[0], &rows[1], &directions);
}

/// What is accepted is exactly what the encoder writes.
fn garbage_component(bytes: &[u8], descending: bool) {
    let (mut rest, mut out) = (bytes, b"before".to_vec());
    let Ok(present) = decode_component(&mut rest, descending, &mut out) else {
        assert_eq!(out, b"before", "a refused component leaves nothing behind");
        assert_eq!(rest, bytes, "a refused component is not passed over");
        return;
    };
    let text = std::str::from_utf8(&out[6..]).expect("decoded text is UTF-8");
    let taken: Vec<u8> = bytes[..bytes.len() - rest.len()].iter().map(|b| if descending { !b } else { *b }).collect();
    let shown = if present { text } else { MISSING };
    for language in [Language::V0, Language::V1] {
        let mut again = Vec::new();
        match encode_bound(shown, language, &mut again) {
            Ok(()) => assert_eq!(again, taken, "{text}"),
            // A store may hold what the newest version would not put there.
            Err(error) => assert!(language == Language::V1 && !readers::is_strict(shown), "{text}: {error}"),
        }
    }
}

fn garbage_suffix(bytes: &[u8]) {
    if let Ok((docid, vb)) = split_entry_suffix(bytes) {
        let mut again = Vec::new();
        encode_entry_suffix(&docid, vb, &mut again);
        assert_eq!(again, bytes);
        assert_eq!(again.len(), entry_suffix_len(&docid));
    }
}

fn garbage_key(bytes: &[u8], directions: &[bool]) {
    let mut out = b"before".to_vec();
    match decode_key(bytes, directions, &mut out) {
        Ok(used) => {
            assert!(used <= bytes.len());
            let components: Vec<Box<serde_json::value::RawValue>> =
                serde_json::from_slice(&out[6..]).expect("a key reads as a JSON array");
            assert!(components.len() <= directions.len());
        }
        Err(_) => assert_eq!(out, b"before", "a refused key leaves nothing behind"),
    }
}

/// Any text, by the rules that serde_json has too: taken exactly if it is JSON, and encoded like the value that it is.
fn json_text(text: &str, directions: &[bool]) {
    let parsed: Result<Value, _> = serde_json::from_str(text);
    let mut bytes = b"before".to_vec();
    let taken = encode_raw(Some(text), false, Language::V0, &mut bytes);
    if text.contains(RAW_VALUE) {
        return;
    }
    assert_eq!(taken.is_ok(), parsed.is_ok(), "{taken:?} {parsed:?}");
    let Ok(value) = parsed else {
        assert_eq!(bytes, b"before", "a refused text leaves nothing behind");
        return;
    };
    assert_eq!(bytes[6..], encoded(Some(&value), false));
    round_trip(Some(&value), false);
    round_trip(Some(&value), true);
    if let Value::Array(elements) = value {
        // Elements of a list serve as the components of two rows.
        let row = |from: usize| (from..from + KEYS).map(|i| elements.get(i).cloned()).collect::<Vec<_>>();
        two_rows(&row(0), &row(KEYS), directions);
    }
}

fn encoded(value: Option<&Value>, descending: bool) -> Vec<u8> {
    let mut out = Vec::new();
    encode_value(value, descending, &mut out);
    out
}

fn round_trip(value: Option<&Value>, descending: bool) {
    let bytes = encoded(value, descending);
    let (mut rest, mut out) = (&bytes[..], Vec::new());
    let present = decode_component(&mut rest, descending, &mut out).expect("own encoding is decoded");
    assert!(rest.is_empty());
    let back: Option<Value> = present.then(|| unescaped(serde_json::from_slice(&out).expect("decoded text is JSON")));
    assert_eq!(compare_values(value, back.as_ref()), Ordering::Equal, "{value:?} came back as {back:?}");
}

/// Two keys of one index: they sort like their components, and the components come back.
fn two_rows(a: &[Option<Value>], b: &[Option<Value>], directions: &[bool]) {
    let mut order = Ordering::Equal;
    let mut keys = [Vec::new(), Vec::new()];
    for ((a, b), &descending) in a.iter().zip(b).zip(directions) {
        let component = compare_values(a.as_ref(), b.as_ref());
        order = order.then(if descending { component.reverse() } else { component });
        for (key, value) in keys.iter_mut().zip([a, b]) {
            encode_value(value.as_ref(), descending, key);
            round_trip(value.as_ref(), descending);
        }
    }
    assert_eq!(keys[0].cmp(&keys[1]), order, "{a:?} and {b:?} by {directions:?}");
    for (mut key, row) in keys.into_iter().zip([a, b]) {
        let end = key.len();
        encode_entry_suffix("u1", 7, &mut key);
        let mut out = Vec::new();
        let used = decode_key(&key, directions, &mut out).expect("own key is decoded");
        assert_eq!(used, end);
        assert_eq!(split_entry_suffix(&key[used..]).expect("own suffix"), ("u1".into(), 7));
        let components: Vec<Value> = serde_json::from_slice(&out).expect("a key reads as a JSON array");
        assert_eq!(components.len(), row.iter().rposition(Option::is_some).map_or(0, |last| last + 1));
    }
}
