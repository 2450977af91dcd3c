//! The order of JSON values in an index, spelled out on values: missing < null < false < true < numbers < strings < arrays <
//! objects.

use serde_json::{Map, Number, Value};
use std::cmp::Ordering;

/// Compares two components; `None` is missing.
pub fn compare(a: Option<&Value>, b: Option<&Value>) -> Ordering {
    match (a, b) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Less,
        (Some(_), None) => Ordering::Greater,
        (Some(Value::Number(a)), Some(Value::Number(b))) => numbers(a, b),
        (Some(Value::String(a)), Some(Value::String(b))) => a.as_bytes().cmp(b.as_bytes()),
        (Some(Value::Array(a)), Some(Value::Array(b))) => lists(a, b),
        (Some(Value::Object(a)), Some(Value::Object(b))) => objects(a, b),
        (Some(a), Some(b)) => rank(a).cmp(&rank(b)),
    }
}

fn rank(value: &Value) -> u8 {
    match value {
        Value::Null => 1,
        Value::Bool(false) => 2,
        Value::Bool(true) => 3,
        Value::Number(_) => 4,
        Value::String(_) => 5,
        Value::Array(_) => 6,
        Value::Object(_) => 7,
    }
}

fn lists(a: &[Value], b: &[Value]) -> Ordering {
    for (a, b) in a.iter().zip(b) {
        let order = compare(Some(a), Some(b));
        if order.is_ne() {
            return order;
        }
    }
    a.len().cmp(&b.len())
}

fn objects(a: &Map<String, Value>, b: &Map<String, Value>) -> Ordering {
    let sorted = |map: &Map<String, Value>| {
        let mut fields: Vec<(String, Value)> = map.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        fields.sort_by(|a, b| a.0.cmp(&b.0));
        fields.into_iter().unzip::<_, _, Vec<String>, Vec<Value>>()
    };
    let ((a_names, a_values), (b_names, b_values)) = (sorted(a), sorted(b));
    a.len().cmp(&b.len()).then(a_names.cmp(&b_names)).then_with(|| lists(&a_values, &b_values))
}

fn numbers(a: &Number, b: &Number) -> Ordering {
    match (whole(a), whole(b)) {
        (Some(a), Some(b)) => a.cmp(&b),
        (Some(a), None) => whole_to_float(a, float(b)),
        (None, Some(b)) => whole_to_float(b, float(a)).reverse(),
        (None, None) => float(a).total_cmp(&float(b)),
    }
}

/// The number if it has no fraction and is no larger than integers can be.
fn whole(number: &Number) -> Option<i128> {
    if let Some(n) = number.as_i64() {
        return Some(n.into());
    }
    if let Some(n) = number.as_u64() {
        return Some(n.into());
    }
    let float = float(number);
    (float.fract() == 0.0 && float.abs() < 1e20).then_some(float as i128)
}

fn float(number: &Number) -> f64 {
    number.as_f64().unwrap_or_default()
}

/// `float` is not whole, or larger than every integer.
fn whole_to_float(whole: i128, float: f64) -> Ordering {
    if float >= 1e20 {
        return Ordering::Less;
    }
    if float <= -1e20 {
        return Ordering::Greater;
    }
    // Not equal, so the floor is below the float and its successor above.
    if whole <= float.floor() as i128 { Ordering::Less } else { Ordering::Greater }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_in_the_documented_order() {
        let ascending = [
            json!(null),
            json!(false),
            json!(true),
            json!(-1e300),
            json!(i64::MIN),
            json!(-1.5),
            json!(-1),
            json!(0),
            json!(0.5),
            json!(9_007_199_254_740_992u64),
            json!(9_007_199_254_740_993u64),
            json!(u64::MAX),
            json!(1e300),
            json!(""),
            json!("a"),
            json!("a\u{0}"),
            json!("ä"),
            json!([]),
            json!([1]),
            json!([1, 0]),
            json!([2]),
            json!({}),
            json!({"b": 1}),
            json!({"c": 0}),
            json!({"a": 0, "b": 0}),
        ];
        for (i, a) in ascending.iter().enumerate() {
            assert_eq!(compare(None, Some(a)), Ordering::Less);
            for (j, b) in ascending.iter().enumerate() {
                assert_eq!(compare(Some(a), Some(b)), i.cmp(&j), "{a} and {b}");
            }
        }
        assert_eq!(compare(Some(&json!(-0.0)), Some(&json!(0))), Ordering::Equal);
        assert_eq!(compare(Some(&json!(1.0)), Some(&json!(1))), Ordering::Equal);
    }
}
