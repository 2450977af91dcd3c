//! Round trips and order of single components and of composite keys.

mod bounds;
mod ranges;

use super::{encode_raw as encode_raw_of, *};
use crate::language::Language;
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use std::cmp::Ordering;

fn encode_raw(raw: Option<&str>, descending: bool, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    encode_raw_of(raw, descending, Language::NEWEST, out)
}

/// Numbers around everything that the encoding treats specially.
fn any_number() -> impl Strategy<Value = Value> {
    let edges = vec![
        json!(0),
        json!(-0.0),
        json!(1),
        json!(-1),
        json!(0.1),
        json!(i64::MAX),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(u64::MAX - 1),
        json!(5e-324),
        json!(-5e-324),
        json!(2.225e-308),
        json!(f64::MAX),
        json!(f64::MIN),
        json!(1e19),
        json!(-1e19),
        json!(TWO_POW_64),
        json!(-TWO_POW_64),
        json!(9.223_372_036_854_776e18),
        json!(-9.223_372_036_854_776e18),
        json!(18_446_744_073_709_550_000u64),
    ];
    prop_oneof![
        2 => prop::sample::select(edges),
        2 => (-3i64..3, prop::sample::select(vec![53u32, 54, 55, 60, 62])).prop_map(|(d, bits)| json!((1i64 << bits) + d)),
        2 => (-3i64..3, prop::sample::select(vec![53u32, 54, 55, 60, 62])).prop_map(|(d, bits)| json!(d - (1i64 << bits))),
        1 => (-9i64..9).prop_map(|n| json!(n)),
        1 => (-9i64..9).prop_map(|n| json!(n as f64 / 4.0)),
        1 => (0u32..70, any::<bool>()).prop_map(|(e, n)| json!(2f64.powi(e as i32) * if n { -1.0 } else { 1.0 })),
        1 => any::<i64>().prop_map(|n| json!(n)),
        1 => any::<u64>().prop_map(|n| json!(n)),
        1 => any::<f64>().prop_filter("JSON has finite numbers only", |f| f.is_finite()).prop_map(|f| json!(f)),
    ]
}

/// Strings that share prefixes and hold the bytes that are escaped somewhere.
fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => prop::collection::vec(prop::sample::select(vec!['\0', '\u{1}', '\u{2}', 'a', 'b', '"', '\\', '\n', 'é', '\u{10ffff}']), 0..5)
            .prop_map(String::from_iter),
        1 => (0usize..40, any_char()).prop_map(|(n, c)| "long common prefix ".repeat(2) + &"x".repeat(n % 3) + &c),
        1 => any::<String>(),
    ]
}

fn any_char() -> impl Strategy<Value = String> {
    any::<Option<char>>().prop_map(|c| c.map(String::from).unwrap_or_default())
}

pub(super) fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        1 => prop::sample::select(vec![json!(null), json!(false), json!(true)]),
        3 => any_number(),
        3 => any_text().prop_map(Value::String),
    ];
    leaf.prop_recursive(3, 16, 3, |inner| {
        let name = prop_oneof![
            any_text(),
            prop::sample::select(vec!["a".to_string(), "b".into(), "$missing".into(), "$a".into(), "$$".into()])
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::vec((name, inner), 0..4).prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

fn any_component() -> impl Strategy<Value = Option<Value>> {
    prop_oneof![1 => Just(None), 9 => any_value().prop_map(Some)]
}

fn encoded(value: Option<&Value>, descending: bool) -> Vec<u8> {
    let mut out = Vec::new();
    encode_value(value, descending, &mut out);
    out
}

fn decoded(bytes: &[u8], descending: bool) -> Option<Value> {
    let (mut rest, mut out) = (bytes, Vec::new());
    let present = decode_component(&mut rest, descending, &mut out).unwrap();
    assert!(rest.is_empty());
    present.then(|| unescaped(&serde_json::from_slice(&out).unwrap()))
}

/// With each float as what its text says: `9.2e18` is an integer, and another one than the float that is written so.
fn as_written(value: &Value) -> Value {
    match value {
        Value::Array(elements) => elements.iter().map(as_written).collect(),
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), as_written(value))).collect(),
        Value::Number(number) if number.is_f64() => match read_number(number.to_string().as_bytes()) {
            Ok(ExactNumber::Integer { negative: false, magnitude }) => json!(magnitude),
            Ok(ExactNumber::Integer { negative: true, magnitude }) => json!(0i64.checked_sub_unsigned(magnitude)),
            _ => value.clone(),
        },
        other => other.clone(),
    }
}

/// What a shown value means: without the `$` that decoding puts before the only name of an object.
fn unescaped(shown: &Value) -> Value {
    match shown {
        Value::Array(elements) => elements.iter().map(unescaped).collect(),
        Value::Object(fields) => {
            let only = fields.len() == 1;
            let name = |name: &String| if only && name.starts_with("$$") { name[1..].to_owned() } else { name.clone() };
            fields.iter().map(|(n, value)| (name(n), unescaped(value))).collect()
        }
        scalar => scalar.clone(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bytes_sort_like_values(a in any_component(), b in any_component()) {
        let order = compare_values(a.as_ref(), b.as_ref());
        prop_assert_eq!(encoded(a.as_ref(), false).cmp(&encoded(b.as_ref(), false)), order);
        prop_assert_eq!(encoded(a.as_ref(), true).cmp(&encoded(b.as_ref(), true)), order.reverse());
    }

    #[test]
    fn numbers_sort_by_exact_value(a in any_number(), b in any_number()) {
        prop_assert_eq!(encoded(Some(&a), false).cmp(&encoded(Some(&b), false)), compare_values(Some(&a), Some(&b)));
    }

    #[test]
    fn values_come_back(value in any_component(), descending in any::<bool>()) {
        let bytes = encoded(value.as_ref(), descending);
        let back = decoded(&bytes, descending);
        prop_assert_eq!(compare_values(value.as_ref(), back.as_ref()), Ordering::Equal, "{:?}", back);
        prop_assert_eq!(encoded(back.as_ref(), descending), bytes);
    }

    #[test]
    fn text_and_value_encode_alike(value in any_value(), descending in any::<bool>(), pretty in any::<bool>()) {
        let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
        for (language, meant) in [(Language::V0, value.clone()), (Language::V1, as_written(&value))] {
            let mut bytes = b"before".to_vec();
            encode_raw_of(Some(&text), descending, language, &mut bytes).unwrap();
            prop_assert_eq!(&bytes[6..], &encoded(Some(&meant), descending)[..]);
        }
    }

    #[test]
    fn number_texts_encode_like_the_number_they_are(text in "-?(0|[1-9][0-9]{0,22})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?") {
        let value: Value = serde_json::from_str(&text).unwrap();
        let mut bytes = Vec::new();
        encode_raw_of(Some(&text), false, Language::V0, &mut bytes).unwrap();
        prop_assert_eq!(&bytes, &encoded(Some(&value), false));
        bytes.clear();
        match (read_number(text.as_bytes()), encode_raw(Some(&text), false, &mut bytes)) {
            (Ok(ExactNumber::Integer { negative: false, magnitude }), Ok(())) => {
                prop_assert_eq!(bytes, encoded(Some(&json!(magnitude)), false));
            }
            (Ok(ExactNumber::Integer { negative: true, magnitude }), Ok(())) => {
                prop_assert_eq!(bytes, encoded(Some(&json!(0i64.checked_sub_unsigned(magnitude).unwrap())), false));
            }
            (Ok(ExactNumber::Float(float)), Ok(())) => prop_assert_eq!(bytes, encoded(Some(&json!(float)), false)),
            (Err(known), Err(found)) => prop_assert_eq!(known, found),
            (known, found) => prop_assert!(false, "{:?} {:?}", known, found),
        }
    }

    #[test]
    fn what_is_not_json_is_refused(text in "[-+0-9.eE]{0,6}|[-ntf\"\\[{]?[a-z0-9\"\\\\,:\\]} .]{0,6}") {
        let mut bytes = b"before".to_vec();
        let known: Result<Value, _> = serde_json::from_str(&text);
        for language in [Language::V0, Language::V1] {
            bytes.truncate(6);
            prop_assert_eq!(encode_raw_of(Some(&text), false, language, &mut bytes).is_ok(), known.is_ok());
            prop_assert!(known.is_ok() || bytes == b"before");
        }
    }

    #[test]
    fn keys_sort_by_component_and_come_back(
        rows in prop::collection::vec(prop::collection::vec(any_component(), 3), 2),
        directions in prop::collection::vec(any::<bool>(), 3),
        docids in prop::collection::vec(any_text(), 2),
        vbs in prop::collection::vec(0u16..3, 2),
    ) {
        let keys: Vec<Vec<u8>> = (0..2).map(|i| entry_key(&rows[i], &directions, &docids[i], vbs[i])).collect();
        let mut order = Ordering::Equal;
        for (i, &descending) in directions.iter().enumerate() {
            let component = compare_values(rows[0][i].as_ref(), rows[1][i].as_ref());
            order = order.then(if descending { component.reverse() } else { component });
        }
        order = order.then(docids[0].as_bytes().cmp(docids[1].as_bytes())).then(vbs[0].cmp(&vbs[1]));
        prop_assert_eq!(keys[0].cmp(&keys[1]), order);

        let mut out = Vec::new();
        let used = decode_key(&keys[0], &directions, &mut out).unwrap();
        let back: Vec<Value> = serde_json::from_slice(&out).unwrap();
        let present = rows[0].iter().rposition(Option::is_some).map_or(0, |i| i + 1);
        prop_assert_eq!(back.len(), present);
        for (read, meant) in back.iter().zip(&rows[0]) {
            if let Some(meant) = meant {
                prop_assert_eq!(compare_values(Some(&unescaped(read)), Some(meant)), Ordering::Equal);
            } else {
                prop_assert_eq!(read, &json!({"$missing": true}));
            }
        }
        let (docid, vb) = split_entry_suffix(&keys[0][used..]).unwrap();
        prop_assert_eq!((docid.as_ref(), vb), (docids[0].as_str(), vbs[0]));
        prop_assert_eq!(keys[0].len() - used, entry_suffix_len(&docids[0]));
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(prop_oneof![0u8..14, 0xf0u8..=0xff, any::<u8>()], 0..40), descending in any::<bool>()) {
        let mut out = b"before".to_vec();
        let mut rest = &bytes[..];
        if decode_component(&mut rest, descending, &mut out) == Ok(true) {
            // What is accepted is exactly what the encoder writes.
            let value = unescaped(&serde_json::from_slice(&out[6..]).unwrap());
            prop_assert_eq!(encoded(Some(&value), descending), &bytes[..bytes.len() - rest.len()]);
        } else {
            prop_assert_eq!(&out, b"before");
        }
        let _ = split_entry_suffix(&bytes);
        let _ = decode_key(&bytes, &[descending, !descending], &mut out);
    }

    #[test]
    fn damaged_keys_never_panic(value in any_value(), at in any::<prop::sample::Index>(), with in any::<u8>()) {
        let mut bytes = encoded(Some(&value), false);
        let at = at.index(bytes.len());
        bytes[at] ^= with;
        let (mut rest, mut out) = (&bytes[..], Vec::new());
        if decode_component(&mut rest, false, &mut out) == Ok(true) {
            let value = unescaped(&serde_json::from_slice(&out).unwrap());
            prop_assert_eq!(encoded(Some(&value), false), &bytes[..bytes.len() - rest.len()]);
        }
    }
}

pub(super) fn entry_key(components: &[Option<Value>], directions: &[bool], docid: &str, vb: u16) -> Vec<u8> {
    let mut key = Vec::new();
    for (component, &descending) in components.iter().zip(directions) {
        encode_value(component.as_ref(), descending, &mut key);
    }
    encode_entry_suffix(docid, vb, &mut key);
    key
}

#[test]
fn types_sort_as_documented() {
    let values = [
        None,
        Some(json!(null)),
        Some(json!(false)),
        Some(json!(true)),
        Some(json!(-1e300)),
        Some(json!(0)),
        Some(json!(1e300)),
        Some(json!("")),
        Some(json!("\0")),
        Some(json!("a")),
        Some(json!([])),
        Some(json!([null])),
        Some(json!([null, 1])),
        Some(json!([1])),
        Some(json!({})),
        Some(json!({"b": 1})),
        Some(json!({"c": 0})),
        Some(json!({"a": 0, "b": 0})),
    ];
    for pair in values.windows(2) {
        assert_eq!(compare_values(pair[0].as_ref(), pair[1].as_ref()), Ordering::Less, "{pair:?}");
        assert!(encoded(pair[0].as_ref(), false) < encoded(pair[1].as_ref(), false), "{pair:?}");
    }
}

#[test]
fn the_documented_example_holds() {
    let mut key = encoded(Some(&json!(33)), false);
    key.extend(encoded(Some(&json!("Oslo")), false));
    encode_entry_suffix("u17", 0, &mut key);
    let documented = b"\x06\xc0\x40\x80\0\0\0\0\0\x08Oslo\0u17\0\0\0";
    assert_eq!(key, documented);
}

#[test]
fn numbers_read_as_integers_where_they_are() {
    for (text, read) in [
        ("-0.0", "0"),
        ("1.0", "1"),
        ("1e3", "1000"),
        ("9007199254740993", "9007199254740993"),
        ("-9223372036854775808", "-9223372036854775808"),
        ("18446744073709551615", "18446744073709551615"),
        ("18446744073709551616", "1.8446744073709552e19"),
        ("0.1", "0.1"),
        ("-1e19", "-1e19"),
        ("9007199254740993.0", "9007199254740993"),
        ("1e19", "10000000000000000000"),
    ] {
        let (mut bytes, mut out) = (Vec::new(), Vec::new());
        encode_raw(Some(text), false, &mut bytes).unwrap();
        decode_component(&mut &bytes[..], false, &mut out).unwrap();
        let (out, read): (Value, Value) = (serde_json::from_slice(&out).unwrap(), serde_json::from_str(read).unwrap());
        assert_eq!(out, read, "{text}");
    }
}

#[test]
fn equal_names_and_refused_texts() {
    use EncodeError::{HalfPair, Inexact, NotJson, NumberRange, ReservedName};
    let mut bytes = Vec::new();
    encode_raw(Some(r#"{"a":1,"b":2,"a":3}"#), false, &mut bytes).unwrap();
    assert_eq!(bytes, encoded(Some(&json!({"a": 3, "b": 2})), false));
    for (text, newest, v0) in [
        ("1e400", NumberRange, Some(NumberRange)),
        ("-1e400", NumberRange, Some(NumberRange)),
        ("[1e400]", NumberRange, Some(NumberRange)),
        ("18446744073709551617", Inexact, None),
        ("[0.1000000000000000055511151231257827]", Inexact, None),
        (r#"{"a":36893488147419103233}"#, Inexact, None),
        (r#""\ud800""#, HalfPair, Some(HalfPair)),
        (r#"{"$serde_json::private::RawValue":"1,2]","a":1}"#, ReservedName, None),
        (r#"{"\udfff":1}"#, HalfPair, Some(HalfPair)),
        (r#"["a\ud800b"]"#, HalfPair, Some(HalfPair)),
        ("", NotJson, Some(NotJson)),
        ("nul", NotJson, Some(NotJson)),
        ("\"a\u{1}\"", NotJson, Some(NotJson)),
        ("01", NotJson, Some(NotJson)),
        ("-", NotJson, Some(NotJson)),
        ("\"", NotJson, Some(NotJson)),
        ("[1,]", NotJson, Some(NotJson)),
        (&"[".repeat(500), NotJson, Some(NotJson)),
    ] {
        let found = |language| encode_raw_of(Some(text), false, language, &mut Vec::new()).err();
        assert_eq!((found(Language::V1), found(Language::V0)), (Some(newest), v0), "{text}");
    }
}

#[test]
fn nesting_is_bounded() {
    let nested = |n: usize| [vec![tag::ARRAY; n], vec![END; n]].concat();
    assert_eq!(decode_component(&mut &nested(MAX_DEPTH - 1)[..], false, &mut Vec::new()), Ok(true));
    let deep = nested(MAX_DEPTH);
    assert_eq!(decode_component(&mut &deep[..], false, &mut Vec::new()), Err(DecodeError::TooDeep));
    let text = |n: usize| ["[".repeat(n), "]".repeat(n)].concat();
    for (language, deepest, error) in
        [(Language::V0, MAX_DEPTH - 1, EncodeError::NotJson), (Language::V1, MAX_SHOWN_DEPTH, EncodeError::TooDeep)]
    {
        assert!(encode_raw_of(Some(&text(deepest)), false, language, &mut Vec::new()).is_ok());
        assert_eq!(encode_raw_of(Some(&text(deepest + 1)), false, language, &mut Vec::new()), Err(error));
        assert_eq!(encode_bound(&text(deepest + 1), language, &mut Vec::new()), Err(error));
    }
    assert_eq!(encode_raw(Some(&text(100_000)), false, &mut Vec::new()), Err(EncodeError::TooDeep));
    assert_eq!(decode_component(&mut &nested(100_000)[..], false, &mut Vec::new()), Err(DecodeError::TooDeep));
    let mut many_fields = vec![tag::OBJECT];
    many_fields.extend(u32::MAX.to_be_bytes());
    many_fields.extend([0; 1000]);
    assert_eq!(decode_component(&mut &many_fields[..], false, &mut Vec::new()), Err(DecodeError::Names));
}

#[test]
fn an_empty_object_is_not_missing() {
    let mut out = Vec::new();
    let key = entry_key(&[None, Some(Value::Object(Map::new()))], &[false, true], "d", 7);
    decode_key(&key, &[false, true], &mut out).unwrap();
    assert_eq!(String::from_utf8(out).unwrap(), r#"[{"$missing":true},{}]"#);
}

#[test]
fn no_name_of_a_field_means_anything() {
    for name in ["$serde_json::private::RawValue", "$serde_json::private::Number"] {
        for value in ["\"[1,2]\"", "7", "\"7\""] {
            let text = format!("[{{\"{name}\":{value}}}]");
            let (mut bytes, mut out) = (Vec::new(), Vec::new());
            encode_raw(Some(&text), false, &mut bytes).unwrap();
            decode_component(&mut &bytes[..], false, &mut out).unwrap();
            let shown = String::from_utf8(out).unwrap();
            assert_eq!(shown, text.replace("$serde", "$$serde"));
            let span: Span = serde_json::from_str(&format!("{{\"equal\":[{shown}]}}")).unwrap();
            let range = spans_to_ranges(&[false], Language::NEWEST, &[span]).unwrap().remove(0);
            assert_eq!(range.low, bytes);
        }
    }
}
