//! Values that not every reader of JSON takes, and numbers that no key holds exactly.

use super::*;

/// Indexes over the field `a`: as a key, as an included field, in conditions; and one that does not use it.
fn indexes(language: Language) -> Vec<(u32, CompiledIndex)> {
    let index = |definition| index_of(language, definition);
    vec![
        (1, index(json!({"keys": ["a"]}))),
        (2, index(json!({"keys": ["b", "a DESC"], "include": ["b"]}))),
        (3, index(json!({"keys": ["b"], "include": ["a", "b"]}))),
        (4, index(json!({"keys": ["b"]}))),
        (5, index(json!({"where": "a >= 0"}))),
        (6, index(json!({"where": "NOT (a >= 0)"}))),
        (7, index(json!({"where": "a IS MISSING"}))),
        (8, index(json!({"where": "a IS NOT MISSING"}))),
        (9, index(json!({"where": "NOT (a)"}))),
        (10, index(json!({"where": "a IS NULL"}))),
        (11, index(json!({"where": "a IN (0, 18446744073709551616, '', 0.1)"}))),
    ]
}

/// The indexes that take a document whose field `a` has this text, the reason of index 1, and the included fields of 3.
fn outcome(language: Language, a: &str) -> (Vec<u32>, Option<Unindexable>, String) {
    let payload = format!(r#"{{"a":{a},"b":1}}"#);
    let (op, entries) = run_raw(&mut Evaluator::new(&indexes(language)), "d", payload.as_bytes());
    assert_eq!(op, DocOp::Put, "{a:.60}");
    let reason = |number| entries.iter().find(|e| e.0 == number).and_then(|e| e.1.clone().err());
    assert_eq!(reason(1), reason(2), "{a:.60}");
    let include = entries.iter().find(|e| e.0 == 3).unwrap().2.clone();
    let taken = entries.iter().filter(|e| e.1.is_ok()).map(|e| e.0).collect();
    (taken, reason(1), include)
}

#[test]
fn what_is_no_value_concerns_only_the_indexes_that_use_it() {
    use Unindexable::{BadValue, InexactNumber, NotJson, TooDeep};
    let deep = |n: usize| format!("{}1{}", "[".repeat(n), "]".repeat(n));
    let (deepest, too_deep) = (deep(60), deep(61));
    // As if the field were missing, but that a key of no value is no key; and as a value that compares with nothing.
    let (missing, incomparable) = (vec![3, 4, 7], vec![3, 4, 8]);
    let before = vec![3, 4, 8, 9];
    let array = vec![1, 2, 3, 4, 8, 9];
    let listed = vec![1, 2, 3, 4, 5, 8, 9, 11];
    // The field; why it is no key, and which indexes take the document; the same in the language of before.
    for (a, reason, taken, v0_reason, v0_taken) in [
        ("1e400", Some(BadValue), &missing, Some(NotJson), &before),
        ("-1e400", Some(BadValue), &missing, Some(NotJson), &before),
        (r#""\ud800""#, Some(BadValue), &missing, Some(NotJson), &before),
        (r#"{"\udfff":1}"#, Some(BadValue), &missing, Some(NotJson), &before),
        (r#"[1,{"x":[1e999]}]"#, Some(BadValue), &missing, Some(NotJson), &before),
        (&too_deep, Some(TooDeep), &missing, None, &array),
        ("18446744073709551617", Some(InexactNumber), &incomparable, None, &listed),
        ("0.1000000000000000055511151231257827", Some(InexactNumber), &incomparable, None, &listed),
        ("[9223372036854775807,-9223372036854775809]", Some(InexactNumber), &incomparable, None, &array),
        ("18446744073709551616", None, &listed, None, &listed),
        ("1e-400", None, &listed, None, &listed),
        (&deepest, None, &array, None, &array),
        ("null", None, &vec![1, 2, 3, 4, 8, 10], None, &vec![1, 2, 3, 4, 8, 10]),
        ("-1", None, &vec![1, 2, 3, 4, 6, 8, 9], None, &vec![1, 2, 3, 4, 6, 8, 9]),
    ] {
        let found = outcome(Language::V1, a);
        assert_eq!((&found.0, found.1), (taken, reason), "{a:.60}");
        let expected = if *taken == missing { r#"{"b":1}"#.into() } else { format!(r#"{{"a":{a},"b":1}}"#) };
        assert_eq!(found.2, expected, "{a:.60}");
        let found = outcome(Language::V0, a);
        assert_eq!((&found.0, found.1), (v0_taken, v0_reason), "{a:.60}");
        assert_eq!(found.2, format!(r#"{{"a":{a},"b":1}}"#), "as before");
    }
}

#[test]
fn numbers_that_differ_never_make_one_key() {
    let entry_of = |language, a: &str| {
        let index = index_of(language, json!({"keys": ["a"]}));
        let (_, mut entries) = run_raw(&mut Evaluator::new(&[(1, index)]), "d", format!(r#"{{"a":{a}}}"#).as_bytes());
        entries.remove(0).1
    };
    let new = |a: &str| entry_of(Language::V1, a);
    assert_eq!(new("9007199254740993.0"), new("9007199254740993"));
    assert_ne!(new("9007199254740993.0"), new("9007199254740992"));
    assert_eq!(new("18446744073709551617"), Err(Unindexable::InexactNumber));
    assert_eq!(new("1E+2"), Ok(key(&[(Some(json!(100)), false)])));
    // As it was.
    let old = |a: &str| entry_of(Language::V0, a);
    assert_eq!(old("9007199254740993.0"), old("9007199254740992"));
    assert_eq!(old("18446744073709551617"), old("18446744073709551616"));
    assert_eq!(old("18446744073709551616"), new("18446744073709551616"));
}

#[test]
fn a_row_names_each_field_once() {
    let definition = json!({"include": ["a", "a", "\"a\"", "a.b"]});
    let payload = r#"{"a":{"b":1,"c":1,"b":2}}"#;
    let include = |language| {
        let index = index_of(language, definition.clone());
        run_raw(&mut Evaluator::new(&[(1, index)]), "d", payload.as_bytes()).1.remove(0).2
    };
    assert_eq!(include(Language::V1), r#"{"a":{"c":1,"b":2},"a.b":2}"#);
    let whole = r#""a":{"b":1,"c":1,"b":2}"#;
    assert_eq!(include(Language::V0), format!(r#"{{{whole},{whole},{whole},"a.b":2}}"#), "as before");
}

#[test]
fn literals_are_read_by_the_same_rules() {
    for (condition, a, taken) in [
        ("a = 9007199254740993.0", "9007199254740993", true),
        ("a = 9007199254740993.0", "9007199254740992", false),
        ("a = 18446744073709551616", "18446744073709552000", true),
        ("a < 18446744073709551616", "18446744073709551615.0", true),
        ("a = 18446744073709551616", "18446744073709551617", false),
        ("a != 1", "18446744073709551617", false),
        ("a = .5", "0.50", true),
        ("a BETWEEN 1e2 AND 1e3", "1E+2", true),
    ] {
        let found = entry(json!({"where": condition}), &format!(r#"{{"a":{a}}}"#));
        assert_eq!(found.is_some(), taken, "{condition}: {a}");
    }
}
