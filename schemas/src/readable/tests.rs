//! What readers of JSON take, by example and against serde_json.

use super::*;
use proptest::prelude::*;
use serde_json::Value;

fn written(raw: &str) -> Option<String> {
    let mut out = b"before".to_vec();
    let done = write_readable(raw, &mut out);
    assert!(out.starts_with(b"before"));
    assert!(done.is_ok() || out == b"before", "{raw:.80}");
    done.ok().map(|()| String::from_utf8(out.split_off(6)).unwrap())
}

fn nested(depth: usize) -> String {
    ["[".repeat(depth), "]".repeat(depth)].concat()
}

#[test]
fn what_every_reader_takes_is_copied_without_white_space() {
    let long = "1".repeat(300);
    for (raw, expected) in [
        ("null", "null"),
        ("-1.50", "-1.50"),
        ("1E+2", "1E+2"),
        ("1e-400", "1e-400"),
        ("1e-0400", "1e-0400"),
        ("0e9999", "0e9999"),
        ("123456789012345678e-400", "123456789012345678e-400"),
        ("9.9999999999999e307", "9.9999999999999e307"),
        ("18446744073709551617", "18446744073709551617"),
        (long.as_str(), long.as_str()),
        (r#""a b\n\u00e9\"""#, r#""a b\n\u00e9\"""#),
        (r#""\ud83d\ude00""#, r#""\ud83d\ude00""#),
        (r#""\\ud800""#, r#""\\ud800""#),
        ("[ 1 ,\n{ \"a b\" : [ ] } , true ]", r#"[1,{"a b":[]},true]"#),
        (r#"{"a":1,"b":{"a":2},"c":[{"a":3},{"a":4}]}"#, r#"{"a":1,"b":{"a":2},"c":[{"a":3},{"a":4}]}"#),
        (r#"{"$missing":true}"#, r#"{"$missing":true}"#),
        ("{}", "{}"),
    ] {
        assert_eq!(written(raw).as_deref(), Some(expected), "{raw}");
    }
    let deepest = nested(MAX_SHOWN_DEPTH);
    assert_eq!(written(&deepest), Some(deepest));
}

#[test]
fn what_some_reader_refuses_is_of_no_value() {
    for raw in [
        "1e400",
        "-1e400",
        "1e309",
        r#""\ud800""#,
        r#""\udc00""#,
        r#""\ud800\u0041""#,
        r#""\ud800\ud800""#,
        r#""x\uDBFF""#,
        r#""\udc00\ud800""#,
        "[1,[1e999]]",
        r#"{"a":{"b":"\ud800"}}"#,
        r#"{"\ud800":1}"#,
        r#"{"a":1,"a":"\ud800"}"#,
        r#"{"$serde_json::private::RawValue":"1,2]"}"#,
        r#"[{"$serde_json::private::Number":"x"}]"#,
        r#"{"\u0024serde_json::private::RawValue":"1","a":1}"#,
        &"1".repeat(400),
        &nested(MAX_SHOWN_DEPTH + 1),
        &nested(127),
        &format!(r#"{{"a":1,"a":{}}}"#, nested(MAX_SHOWN_DEPTH)),
    ] {
        assert_eq!(written(raw), None, "{raw:.80}");
        assert!(!is_readable(raw, &mut b"x".to_vec()));
    }
    // A field that another of its name replaces is of no account.
    assert_eq!(written(r#"{"a":1e999,"a":1}"#).as_deref(), Some(r#"{"a":1}"#));
}

#[test]
fn of_equal_names_the_last_is_written() {
    let many: Vec<String> = (0..200).map(|i| format!(r#""f{i}":{i}"#)).collect();
    let all = format!("{{{}}}", many.join(","));
    assert_eq!(written(&all).as_ref(), Some(&all));
    let doubled = format!("{{{},{}}}", many.join(","), many.join(","));
    assert_eq!(written(&doubled), Some(all));
    for (raw, expected) in [
        (r#"{"a":1,"a":2}"#, r#"{"a":2}"#),
        (r#"{"a":1,"b":0,"a":2}"#, r#"{"b":0,"a":2}"#),
        (r#"{"a":1,"\u0061":2}"#, r#"{"\u0061":2}"#),
        (r#"[{"b":{"a":1,"a":{"a":2 , "a":3}}}]"#, r#"[{"b":{"a":{"a":3}}}]"#),
        (r#"{"":1,"":2}"#, r#"{"":2}"#),
    ] {
        assert_eq!(written(raw).as_deref(), Some(expected), "{raw}");
    }
}

#[test]
fn numbers_of_very_many_digits_are_written_shortly() {
    let fits = format!("1.{}", "0".repeat(MAX_NUMBER - 2));
    assert_eq!(written(&fits), Some(fits.clone()));
    assert_eq!(written(&format!("{fits}0")).as_deref(), Some("1.0"));
    assert_eq!(written(&format!("[-{fits}5]")).as_deref(), Some("[-1.0]"));
    assert_eq!(written(&format!("1{}e-5000", "0".repeat(5_000))).as_deref(), Some("1.0"));
}

#[test]
fn numbers_that_readers_find_too_large_are_written_as_the_float_they_are() {
    let largest = format!("{}", f64::MAX);
    assert_eq!(largest.len(), 309);
    let shortest = serde_json::to_string(&f64::MAX).unwrap();
    for (raw, expected) in [
        ("1.7976931348623158e308", shortest.as_str()),
        ("1.7976931348623157e308", &shortest),
        ("17976931348623158079e289", &shortest),
        (&largest, &shortest),
        (&format!("{largest}.0"), &shortest),
        ("100e306", &serde_json::to_string(&1e308).unwrap()),
        ("1e-99999999999999999999", "0.0"),
        ("0e99999999999999999999", "0.0"),
        ("-0e-10000", "-0.0"),
        ("1e00005", "100000.0"),
    ] {
        assert_eq!(written(raw).as_deref(), Some(expected), "{raw}");
        assert_eq!(is_finite_by_parts(expected), Some(true), "{expected}");
        let nested = format!("[{{\"a\":[-{raw}]}}]").replace("--", "");
        assert_eq!(written(&nested), Some(format!("[{{\"a\":[-{expected}]}}]").replace("--", "")), "{raw}");
    }
    for raw in ["1.7976931348623158e308", &largest] {
        assert_eq!(is_finite_by_parts(raw), Some(false), "{raw} is no example");
    }
}

/// Whether a number is within f64 for whoever multiplies its digits, as an f64, by its power of ten, as an f64.
fn is_finite_by_parts(text: &str) -> Option<bool> {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (mut digits, mut power, mut behind_point) = (0u64, exponent.parse::<i32>().ok()?, false);
    for byte in mantissa.trim_start_matches('-').bytes() {
        let longer = digits.checked_mul(10).and_then(|n| n.checked_add(u64::from(byte.wrapping_sub(b'0'))));
        match longer {
            _ if byte == b'.' => behind_point = true,
            Some(longer) => {
                digits = longer;
                power -= i32::from(behind_point);
            }
            None => power += i32::from(!behind_point),
        }
    }
    let by: f64 = format!("1e{}", power.max(0)).parse().ok()?;
    Some(digits == 0 || (digits as f64 * by).is_finite())
}

#[test]
fn fields_of_no_value_are_left_out() {
    for (raw, expected) in [
        (r#"{"a":1,"b":1e400,"c":"x"}"#, r#"{"a":1,"c":"x"}"#),
        (r#"{"a":"\ud800","b":2}"#, r#"{"b":2}"#),
        (r#"{"a":1,"a":2}"#, r#"{"a":2}"#),
        (r#"{"a":[1e400]}"#, "{}"),
        ("{}", "{}"),
        ("", "{}"),
        ("[1]", "{}"),
    ] {
        let mut out = Vec::new();
        write_readable_fields(raw, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), expected, "{raw}");
    }
}

/// JSON by its grammar, biased towards what readers refuse.
fn any_json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        "null|true|-?[0-9]{1,3}|1\\.5e-?[0-9]{1,3}|[1-9][0-9]{20}",
        "\"(a|é| |\\\\n|\\\\\\\\|\\\\\"|\\\\u0041|\\\\ud800|\\\\udc00|\\\\ud83d\\\\ude00|\\{|,|:){0,4}\"",
    ];
    leaf.prop_recursive(6, 30, 4, |inner| {
        let name = "\"(a|b|\\\\u0061|\\\\ud800)?\"";
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|all| format!("[{}]", all.join(" ,"))),
            prop::collection::vec((name, inner), 0..5).prop_map(|all| {
                let fields: Vec<String> = all.into_iter().map(|(n, v)| format!("{n} : {v}")).collect();
                format!("{{{}}}", fields.join(", "))
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn numbers_are_within_range_however_they_are_read(
        raw in "-?(0|[1-9][0-9]{0,25})(\\.[0-9]{1,25})?([eE][+-]?[0-9]{1,6})?|1\\.79769313486231[0-9]{0,9}e308|1[0-9]{300,310}(\\.[0-9])?"
    ) {
        match written(&raw) {
            Some(text) => prop_assert_eq!(is_finite_by_parts(&text), Some(true), "{}", text),
            None => prop_assert!(!raw.parse::<f64>().unwrap().is_finite()),
        }
    }

    #[test]
    fn what_serde_json_reads_is_written_and_means_the_same(raw in any_json()) {
        prop_assume!(serde_json::from_str::<serde::de::IgnoredAny>(&raw).is_ok());
        let mut slow = Vec::new();
        let rewritten = rewrite(&raw, MAX_SHOWN_DEPTH, &mut slow).map(|()| String::from_utf8(slow).unwrap());
        prop_assert_eq!(written(&raw), rewritten.ok());
        match (serde_json::from_str::<Value>(&raw), written(&raw)) {
            (Ok(meant), Some(text)) => {
                let pairs = text.matches("\":").count();
                let found: Value = serde_json::from_str(&text).unwrap();
                prop_assert_eq!(&found, &meant);
                // As many names as are left when of equal ones only the last counts.
                prop_assert!(pairs >= names(&found));
                prop_assert_eq!(names(&found), strict_names(&text));
            }
            // What serde_json reads into a value holds no number beyond f64 and no half pair.
            (Ok(_), None) => prop_assert!(false, "refused"),
            // A field that is replaced may be what serde_json stumbles over.
            (Err(_), Some(text)) => prop_assert!(serde_json::from_str::<Value>(&text).is_ok()),
            (Err(_), None) => {}
        }
    }
}

fn names(value: &Value) -> usize {
    match value {
        Value::Array(elements) => elements.iter().map(names).sum(),
        Value::Object(fields) => fields.len() + fields.values().map(names).sum::<usize>(),
        _ => 0,
    }
}

/// How many names a text has, repeated ones too.
fn strict_names(text: &str) -> usize {
    if let Ok(elements) = serde_json::from_str::<Vec<&RawValue>>(text) {
        return elements.iter().map(|element| strict_names(element.get())).sum();
    }
    serde_json::from_str::<Pairs<'_>>(text)
        .map_or(0, |Pairs(pairs)| pairs.len() + pairs.iter().map(|(_, value)| strict_names(value)).sum::<usize>())
}
