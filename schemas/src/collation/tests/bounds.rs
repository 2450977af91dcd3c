//! Components of bounds as clients write them.

use super::*;
use crate::error::ErrorCode;

/// The encoding of a component of a bound.
fn bound(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_bound(text, Language::NEWEST, &mut bytes).unwrap_or_else(|e| panic!("{text}: {e}"));
    bytes
}

#[test]
fn an_object_whose_only_field_begins_with_a_dollar_is_shown_with_one_more() {
    for (held, shown) in [
        (json!({"$missing": true}), json!({"$$missing": true})),
        (json!({"$missing": false}), json!({"$$missing": false})),
        (json!({"$$missing": true}), json!({"$$$missing": true})),
        (json!({"$": 1}), json!({"$$": 1})),
        (json!({"$oid": "66"}), json!({"$$oid": "66"})),
        (json!([{"$missing": true}]), json!([{"$$missing": true}])),
        (json!({"a": {"$a": {"$b": 1}}}), json!({"a": {"$$a": {"$$b": 1}}})),
        (json!({"$a": 1, "$b": 2}), json!({"$a": 1, "$b": 2})),
        (json!({"a$": 1}), json!({"a$": 1})),
        (json!({"$\u{0}\u{1}\"": 1}), json!({"$$\u{0}\u{1}\"": 1})),
        (json!("$missing"), json!("$missing")),
    ] {
        for descending in [false, true] {
            let (bytes, mut out) = (encoded(Some(&held), descending), Vec::new());
            assert_eq!(decode_component(&mut &bytes[..], descending, &mut out), Ok(true));
            assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), shown);
        }
        for language in [Language::V0, Language::V1] {
            let mut bytes = Vec::new();
            encode_bound(&shown.to_string(), language, &mut bytes).unwrap();
            assert_eq!(bytes, encoded(Some(&held), false), "{shown}");
        }
    }
}

#[test]
fn missing_is_told_from_what_looks_like_it() {
    for text in [
        r#"{"$missing":true}"#,
        " { \"$missing\" : true } ",
        r#"{"\u0024missing":true}"#,
        r#"{"$missing":1,"$missing":true}"#,
    ] {
        assert_eq!(bound(text), [tag::MISSING], "{text}");
    }
    // What is not the marker is what it says, with one dollar or two.
    for (text, meant) in [
        (r#"{"$missing":false}"#, json!({"$missing": false})),
        (r#"{"$missing":"true"}"#, json!({"$missing": "true"})),
        (r#"{"$missing":true,"a":1}"#, json!({"$missing": true, "a": 1})),
        (r#"{"$missing":true,"$missing":1}"#, json!({"$missing": 1})),
        (r#"{"$oid":"66"}"#, json!({"$oid": "66"})),
        (r#"{"$$oid":"66"}"#, json!({"$oid": "66"})),
        (r#"[{"$missing":true}]"#, json!([{"$missing": true}])),
        ("{}", json!({})),
    ] {
        assert_eq!(bound(text), encoded(Some(&meant), false), "{text}");
    }
}

#[test]
fn a_component_that_no_key_can_have_is_refused_by_place() {
    let refused = |directions: &[bool], language, span: &str| {
        let span: Span = serde_json::from_str(span).unwrap();
        let error = spans_to_ranges(directions, language, &[Span::default(), span]).err()?;
        assert_eq!(error.code, ErrorCode::BadSpan);
        Some(error.message)
    };
    for (span, place, why, v0_too) in [
        (r#"{"low":[18446744073709551617]}"#, "spans[1]: low[0]: 18446744073709551617", "inexact", false),
        (r#"{"high":[1,0.1000000000000000055511151231257827]}"#, "spans[1]: high[1]:", "inexact", false),
        (r#"{"equal":[[1,-9223372036854775809]]}"#, "spans[1]: equal[0]: [1,-92233", "inexact", false),
        (r#"{"equal":[1e400]}"#, "spans[1]: equal[0]: 1e400", "beyond the range", true),
        (r#"{"low":[{"a":[-1e400]}]}"#, "spans[1]: low[0]:", "beyond the range", true),
        (r#"{"low":["\ud800"]}"#, "spans[1]: low[0]:", "surrogate", true),
        (r#"{"low":[{"\ud800":1}]}"#, "spans[1]: low[0]:", "surrogate", true),
        (&format!(r#"{{"low":[{}1{}]}}"#, "[".repeat(61), "]".repeat(61)), "spans[1]: low[0]:", "nested deeper", false),
    ] {
        let message = refused(&[false, false], Language::V1, span).unwrap();
        assert!(message.starts_with(place) && message.contains(why), "{message}");
        assert_eq!(refused(&[false, false], Language::V0, span).is_some(), v0_too, "{span}");
    }
    let long = format!(r#"{{"low":[{}]}}"#, "9".repeat(100_000));
    assert!(refused(&[false], Language::V1, &long).unwrap().len() < 300);
    // A docid that no subject has.
    assert!(refused(&[], Language::V1, r#"{"low":["\ud800"]}"#).unwrap().contains("surrogate"));
    assert!(refused(&[], Language::V1, r#"{"low":[7]}"#).unwrap().contains("docid"));
}

#[test]
fn a_bound_is_one_number_however_it_is_written() {
    for (a, b) in [("1", "1.0"), ("100", "1E+2"), ("0", "-0.0"), ("9007199254740993", "9007199254740993.0")] {
        assert_eq!(bound(a), bound(b));
    }
    assert_ne!(bound("9007199254740993"), bound("9007199254740992"));
    // An index that was made before holds what it held.
    let mut old = Vec::new();
    encode_bound("9007199254740993.0", Language::V0, &mut old).unwrap();
    assert_eq!(old, bound("9007199254740992"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_shown_key_is_taken_back_as_a_bound(value in any_component(), descending in any::<bool>()) {
        let key = encoded(value.as_ref(), descending);
        let mut shown = Vec::new();
        if !decode_component(&mut &key[..], descending, &mut shown).unwrap() {
            shown.extend_from_slice(MISSING_JSON.as_bytes());
        }
        let shown = String::from_utf8(shown).unwrap();
        for language in [Language::V0, Language::V1] {
            let mut bytes = Vec::new();
            encode_bound(&shown, language, &mut bytes).unwrap();
            prop_assert_eq!(&bytes, &encoded(value.as_ref(), false), "{}", shown);
        }
    }
}
