//! The collation order spelled out on values, without the encoding: what the encoding is tested against.

use super::TWO_POW_64;
use serde_json::{Map, Number, Value};
use std::cmp::Ordering;

/// Compares two values by the collation order; `None` is missing.
pub fn compare_values(a: Option<&Value>, b: Option<&Value>) -> Ordering {
    let (a, b) = match (a, b) {
        (Some(a), Some(b)) => (a, b),
        (a, b) => return a.is_some().cmp(&b.is_some()),
    };
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => compare_numbers(a, b),
        (Value::String(a), Value::String(b)) => a.as_bytes().cmp(b.as_bytes()),
        (Value::Array(a), Value::Array(b)) => compare_elements(a.iter(), b.iter()).then(a.len().cmp(&b.len())),
        (Value::Object(a), Value::Object(b)) => compare_objects(a, b),
        (a, b) => class(a).cmp(&class(b)),
    }
}

fn class(value: &Value) -> u8 {
    match value {
        Value::Null => 0,
        Value::Bool(false) => 1,
        Value::Bool(true) => 2,
        Value::Number(_) => 3,
        Value::String(_) => 4,
        Value::Array(_) => 5,
        Value::Object(_) => 6,
    }
}

fn compare_elements<'a>(a: impl Iterator<Item = &'a Value>, b: impl Iterator<Item = &'a Value>) -> Ordering {
    a.zip(b).map(|(a, b)| compare_values(Some(a), Some(b))).find(|o| o.is_ne()).unwrap_or(Ordering::Equal)
}

fn compare_objects(a: &Map<String, Value>, b: &Map<String, Value>) -> Ordering {
    let sorted = |map: &'_ Map<String, Value>| {
        let mut names: Vec<String> = map.keys().cloned().collect();
        names.sort_unstable();
        names
    };
    let (a_names, b_names) = (sorted(a), sorted(b));
    a.len()
        .cmp(&b.len())
        .then_with(|| a_names.cmp(&b_names))
        .then_with(|| compare_elements(a_names.iter().map(|n| &a[n]), b_names.iter().map(|n| &b[n])))
}

enum Exact {
    Integer(i128),
    Float(f64),
}

fn exact(number: &Number) -> Exact {
    match (number.as_u64(), number.as_i64()) {
        (Some(n), _) => Exact::Integer(i128::from(n)),
        (_, Some(n)) => Exact::Integer(i128::from(n)),
        _ => Exact::Float(number.as_f64().unwrap_or_default()),
    }
}

fn compare_numbers(a: &Number, b: &Number) -> Ordering {
    match (exact(a), exact(b)) {
        (Exact::Integer(a), Exact::Integer(b)) => a.cmp(&b),
        // JSON has no NaN.
        (Exact::Float(a), Exact::Float(b)) => a.partial_cmp(&b).unwrap_or(Ordering::Equal),
        (Exact::Integer(a), Exact::Float(b)) => integer_to_float(a, b),
        (Exact::Float(a), Exact::Integer(b)) => integer_to_float(b, a).reverse(),
    }
}

/// `integer` is an i64 or a u64.
fn integer_to_float(integer: i128, float: f64) -> Ordering {
    if float >= TWO_POW_64 {
        return Ordering::Less;
    }
    if float <= -TWO_POW_64 {
        return Ordering::Greater;
    }
    let fraction = float.fract();
    integer.cmp(&(float.trunc() as i128)).then_with(|| 0.0.partial_cmp(&fraction).unwrap_or(Ordering::Equal))
}
