//! What clients read, and the numbers that they wrote, by models that share nothing with the code.

use highwater_schemas::{
    collation::{EncodeError, MAX_SHOWN_DEPTH, encode_raw},
    language::Language,
    readable::write_readable,
};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::{Value, value::RawValue};
use std::{collections::HashSet, fmt};

/// Digits and power of ten of the last one, without zeros at either end: the number itself.
type Decimal = (bool, String, i64);

/// What serde_json calls its own fields.
const RESERVED: &str = "$serde_json::private::";
/// Exponents that the model writes out.
const SMALL: i64 = 400;

/// Any text: if it is JSON, what is written of it is JSON in the strictest sense, or it holds what some reader refuses; and as
/// keys of the newest version numbers are what they say, or refused.
pub fn json_text(text: &str) {
    let text = text.trim_matches([' ', '\t', '\n', '\r']);
    if serde_json::from_str::<IgnoredAny>(text).is_err() {
        assert!(encode_raw(Some(text), false, Language::V1, &mut Vec::new()).is_err());
        return;
    }
    let mut written = b"before".to_vec();
    if write_readable(text, &mut written).is_ok() {
        let written = std::str::from_utf8(&written[6..]).expect("written text is UTF-8");
        assert!(is_strict(written), "{written}");
    } else {
        assert_eq!(written, b"before");
        assert!(!is_strict(text), "{text}");
    }
    let elements: Vec<&RawValue> = serde_json::from_str(text).unwrap_or_default();
    let mut numbers: Vec<(Decimal, Vec<u8>)> =
        elements.iter().map(|e| e.get()).chain([text]).filter_map(|t| Some((decimal(t)?, key(t)?))).collect();
    numbers.sort_by(|(a, _), (b, _)| below_or_above(a, b));
    for pair in numbers.windows(2) {
        assert!(pair[0].1 <= pair[1].1, "{pair:?} are in no order");
    }
}

/// Whether every reader takes it: serde_json does under any of its features, no name is there twice, and it nests as rows may.
pub fn is_strict(text: &str) -> bool {
    serde_json::from_str::<Value>(text).is_ok() && has_own_names(text, MAX_SHOWN_DEPTH)
}

fn has_own_names(text: &str, depth: usize) -> bool {
    match (text.as_bytes().first(), depth.checked_sub(1)) {
        (Some(b'[' | b'{'), None) => false,
        (Some(b'['), Some(depth)) => serde_json::from_str::<Vec<&RawValue>>(text)
            .is_ok_and(|elements| elements.iter().all(|e| has_own_names(e.get(), depth))),
        (Some(b'{'), Some(depth)) => serde_json::from_str::<Pairs<'_>>(text).is_ok_and(|Pairs(pairs)| {
            let names: HashSet<&String> = pairs.iter().map(|(name, _)| name).collect();
            names.len() == pairs.len()
                && !names.iter().any(|name| name.starts_with(RESERVED))
                && pairs.iter().all(|(_, value)| has_own_names(value.get(), depth))
        }),
        _ => true,
    }
}

/// The key that a number makes, checked against its decimal; none where it is refused.
fn key(text: &str) -> Option<Vec<u8>> {
    let number = decimal(text)?;
    let mut bytes = Vec::new();
    let taken = encode_raw(Some(text), false, Language::V1, &mut bytes);
    let nearest: f64 = text.parse().ok()?;
    let exact = |float: f64| decimal(&format!("{float:.1100}")).as_ref() == Some(&number);
    if integer(&number).is_some() || (nearest.is_finite() && (number.1.len() <= 17 || exact(nearest))) {
        assert_eq!(taken, Ok(()), "{text}");
    } else if nearest.is_finite() {
        assert_eq!(taken, Err(EncodeError::Inexact), "{text}");
    } else {
        assert_eq!(taken, Err(EncodeError::NumberRange), "{text}");
    }
    taken.ok().map(|()| bytes)
}

/// None for what is no number, or one that the model does not write out.
fn decimal(text: &str) -> Option<Decimal> {
    let (negative, unsigned) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    if !unsigned.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let exponent: i64 = exponent.parse().ok().filter(|e: &i64| e.abs() <= SMALL)?;
    let all = format!("{whole}{fraction}");
    let kept = all.trim_end_matches('0');
    let scale = exponent - fraction.len() as i64 + (all.len() - kept.len()) as i64;
    let digits = kept.trim_start_matches('0');
    Some(if digits.is_empty() { (false, String::new(), 0) } else { (negative, digits.into(), scale) })
}

fn integer((negative, digits, scale): &Decimal) -> Option<i128> {
    let zeros = usize::try_from(*scale).ok().filter(|zeros| digits.len() + zeros <= 20)?;
    let magnitude: i128 = format!("0{digits}{}", "0".repeat(zeros)).parse().ok()?;
    let number = if *negative { -magnitude } else { magnitude };
    (i128::from(i64::MIN)..=i128::from(u64::MAX)).contains(&number).then_some(number)
}

fn below_or_above(a: &Decimal, b: &Decimal) -> std::cmp::Ordering {
    let size = |(_, digits, scale): &Decimal| (!digits.is_empty()).then_some(digits.len() as i64 + scale);
    let by_size = size(a).cmp(&size(b)).then_with(|| a.1.cmp(&b.1));
    match (a.0, b.0) {
        (false, false) => by_size,
        (true, true) => by_size.reverse(),
        (a, b) => b.cmp(&a),
    }
}

/// The fields of an object, repeated ones too.
struct Pairs<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Pairs<'a> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Pairs<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<'de>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        json.deserialize_map(Object)
    }
}
