//! Spans against a naive filter in value order.

use super::*;
use crate::{error::ErrorCode, wire::ByteRange};

/// Few values, so that bounds and rows meet.
fn small_value() -> impl Strategy<Value = Option<Value>> {
    let values = vec![
        None,
        Some(json!(null)),
        Some(json!(1)),
        Some(json!(2)),
        Some(json!("a")),
        Some(json!("ab")),
        Some(json!([1])),
    ];
    prop::sample::select(values)
}

fn bound(keys: usize) -> impl Strategy<Value = Option<Vec<Component>>> {
    let component = small_value().prop_map(|v| Component::from(&v.unwrap_or(json!({"$missing": true}))));
    prop_oneof![1 => Just(None), 4 => prop::collection::vec(component, 1..=keys).prop_map(Some)]
}

fn inclusion() -> impl Strategy<Value = Inclusion> {
    prop::sample::select(vec![Inclusion::Both, Inclusion::Low, Inclusion::High, Inclusion::Neither])
}

fn span(keys: usize) -> impl Strategy<Value = Span> {
    prop_oneof![
        4 => (bound(keys), bound(keys), inclusion()).prop_map(|(low, high, inclusion)| Span { low, high, equal: None, inclusion }),
        // A common prefix makes mixed directions contiguous.
        3 => (bound(keys), bound(1), bound(1), inclusion()).prop_map(move |(prefix, low, high, inclusion)| {
            let mut prefix = prefix.unwrap_or_default();
            prefix.truncate(keys - 1);
            let grown = |end: Option<Vec<Component>>| Some([prefix.clone(), end.unwrap_or_default()].concat());
            Span { low: grown(low), high: grown(high), equal: None, inclusion }
        }),
        1 => bound(keys).prop_map(|equal| Span { equal, ..Span::default() }),
    ]
}

fn meant(component: &Component) -> Option<Value> {
    let value: Value = serde_json::from_str(component.text()).unwrap();
    if value == json!({"$missing": true}) { None } else { Some(value) }
}

/// The row cut to the bound's length, compared in value order.
fn against(row: &[Option<Value>], bound: &[Component]) -> Ordering {
    let pairs = row.iter().zip(bound);
    pairs.map(|(r, b)| compare_values(r.as_ref(), meant(b).as_ref())).find(|o| o.is_ne()).unwrap_or(Ordering::Equal)
}

fn naive(row: &[Option<Value>], span: &Span) -> bool {
    if let Some(equal) = &span.equal {
        return against(row, equal).is_eq();
    }
    let low = span.low.as_ref().filter(|b| !b.is_empty()).is_none_or(|low| match against(row, low) {
        Ordering::Less => false,
        Ordering::Equal => matches!(span.inclusion, Inclusion::Both | Inclusion::Low),
        Ordering::Greater => true,
    });
    let high = span.high.as_ref().filter(|b| !b.is_empty()).is_none_or(|high| match against(row, high) {
        Ordering::Less => true,
        Ordering::Equal => matches!(span.inclusion, Inclusion::Both | Inclusion::High),
        Ordering::Greater => false,
    });
    low && high
}

fn within(key: &[u8], ranges: &[ByteRange]) -> bool {
    ranges.iter().any(|r| r.low[..] <= *key && r.high.as_ref().is_none_or(|h| *key < h[..]))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rows_are_in_the_ranges_as_they_are_in_the_spans(
        directions in prop::collection::vec(any::<bool>(), 3),
        spans in prop::collection::vec(span(3), 1..4),
        rows in prop::collection::vec(prop::collection::vec(small_value(), 3), 20),
    ) {
        match spans_to_ranges(&directions, Language::NEWEST, &spans) {
            Ok(ranges) => {
                for range in &ranges {
                    prop_assert!(range.high.as_ref().is_none_or(|h| range.low < *h));
                }
                for pair in ranges.windows(2) {
                    prop_assert!(pair[0].high.as_ref().is_some_and(|h| *h < pair[1].low), "disjoint, ascending and merged");
                }
                for row in &rows {
                    let key = entry_key(row, &directions, "d", 0);
                    prop_assert_eq!(within(&key, &ranges), spans.iter().any(|s| naive(row, s)), "{:?} {:?}", row, ranges);
                }
            }
            Err(e) => {
                prop_assert!(e.message.starts_with("spans["), "{}", e.message);
                if e.code == ErrorCode::SpanNotContiguous {
                    prop_assert!(directions.iter().any(|d| *d != directions[0]));
                } else {
                    prop_assert_eq!(e.code, ErrorCode::SpanInverted);
                }
            }
        }
    }

    #[test]
    fn docid_ranges_of_a_primary_index(
        docids in prop::collection::vec(any_text(), 10),
        low in prop::option::of(any_text()), high in prop::option::of(any_text()), inclusion in inclusion(),
    ) {
        let bound = |b: &Option<String>| b.clone().map(|b| vec![Component::from(&json!(b))]);
        let span = Span { low: bound(&low), high: bound(&high), equal: None, inclusion };
        let inverted = low.is_some() && high.is_some() && low > high;
        match spans_to_ranges(&[], Language::NEWEST, std::slice::from_ref(&span)) {
            Err(e) => prop_assert!(inverted && e.code == ErrorCode::SpanInverted),
            Ok(ranges) => {
                prop_assert!(!inverted);
                for docid in docids.iter().chain(&low).chain(&high) {
                    let key = entry_key(&[], &[], docid, 9);
                    prop_assert_eq!(within(&key, &ranges), naive(&[Some(json!(docid))], &span), "{:?}", docid);
                }
            }
        }
    }
}

fn code(directions: &[bool], span: Value) -> Result<Vec<ByteRange>, (ErrorCode, String)> {
    let span: Span = serde_json::from_value(span).unwrap();
    spans_to_ranges(directions, Language::NEWEST, &[Span::default(), span]).map_err(|e| (e.code, e.message))
}

#[test]
fn refusals_name_the_span_and_the_reason() {
    for (directions, span, expected, says) in [
        (&[false][..], json!({"low": [1, 2]}), ErrorCode::BadSpan, "low has 2 components"),
        (&[false], json!({"equal": [1], "low": [1]}), ErrorCode::BadSpan, "equal"),
        (&[false], json!({"equal": [1], "inclusion": "neither"}), ErrorCode::BadSpan, "inclusion"),
        (&[false], json!({"low": [2], "high": [1]}), ErrorCode::SpanInverted, "low is above high"),
        (&[true], json!({"low": [2], "high": [1]}), ErrorCode::SpanInverted, "low is above high"),
        (&[false, true], json!({"low": [1, 2], "high": [2, 1]}), ErrorCode::SpanNotContiguous, "keys 1 to 2"),
        (&[], json!({"low": [1]}), ErrorCode::BadSpan, "docid"),
        (&[], json!({"equal": ["a", "b"]}), ErrorCode::BadSpan, "at most 1"),
    ] {
        let (found, message) = code(directions, span.clone()).unwrap_err();
        assert_eq!(found, expected, "{span}");
        assert!(message.starts_with("spans[1]: ") && message.contains(says), "{message}");
    }
}

#[test]
fn mixed_directions_are_contiguous_behind_a_common_prefix() {
    assert!(code(&[false, true], json!({"low": [1, 2], "high": [1, 3]})).is_ok());
    assert!(code(&[false, true], json!({"low": [1], "high": [1, 3]})).is_ok());
    assert!(code(&[false, true], json!({"equal": [1, 3]})).is_ok());
    assert!(code(&[false, true], json!({"low": [1], "high": [3]})).is_ok());
}

#[test]
fn no_spans_are_everything_and_empty_spans_nothing() {
    let everything = vec![ByteRange { low: vec![], high: None }];
    assert_eq!(spans_to_ranges(&[false], Language::NEWEST, &[]).unwrap(), everything);
    assert_eq!(spans_to_ranges(&[true], Language::NEWEST, &[Span::default()]).unwrap(), everything);
    let nothing: Span = serde_json::from_value(json!({"low": [1], "high": [1], "inclusion": "neither"})).unwrap();
    assert_eq!(spans_to_ranges(&[false], Language::NEWEST, &[nothing]).unwrap(), vec![]);
}

#[test]
fn bounds_longer_than_any_key_stay_seekable() {
    let long = "x".repeat(MAX_ENTRY_KEY * 2);
    let span: Span = serde_json::from_value(json!({"low": [long], "high": [long + "y"]})).unwrap();
    for range in spans_to_ranges(&[false], Language::NEWEST, &[span]).unwrap() {
        assert!(range.low.len() <= MAX_ENTRY_KEY && range.high.unwrap().len() <= MAX_ENTRY_KEY);
    }
}

#[test]
fn an_unknown_field_of_a_span_is_refused() {
    assert!(serde_json::from_value::<Span>(json!({"lwo": [1]})).is_err());
    assert_eq!(
        serde_json::to_value(Span { low: Some(vec![Component::from(&json!(1))]), ..Span::default() }).unwrap(),
        json!({"low": [1]})
    );
}
