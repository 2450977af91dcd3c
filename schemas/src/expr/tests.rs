//! The language by examples, and its meaning against a naive evaluator.

use super::{parse_condition as parse_condition_of, *};
use crate::{collation::compare_values, language::Language};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::cmp::Ordering;

fn parse_condition(text: &str) -> Result<Expr, ExprError> {
    parse_condition_of(text, Language::NEWEST)
}

fn path(segments: &[&str]) -> Path {
    Path(segments.iter().map(ToString::to_string).collect())
}

#[test]
fn keys_and_paths_read_as_written() {
    for (text, segments, descending) in [
        ("age", &["age"][..], false),
        ("age DESC", &["age"], true),
        (" age  desc ", &["age"], true),
        ("age asc", &["age"], false),
        ("address.city", &["address", "city"], false),
        ("address . city DESC", &["address", "city"], true),
        (r#""first name" DESC"#, &["first name"], true),
        (r#"`a.b`."c""d""#, &["a.b", "c\"d"], false),
        ("größe", &["größe"], false),
        ("desc DESC", &["desc"], true),
        ("date", &["date"], false),
        (r#""AND""#, &["AND"], false),
    ] {
        assert_eq!(parse_key(text), Ok(KeyPart { path: path(segments), descending }), "{text}");
    }
}

#[test]
fn what_keys_cannot_be_is_said_with_its_place() {
    for (text, column, says) in [
        ("", 1, "expected a field"),
        ("tags[*]", 5, "not supported in this version"),
        ("lower(name)", 6, "functions such as lower() are not supported in this version"),
        ("meta().id", 5, "functions such as meta() are not supported in this version"),
        ("a.*", 3, "not supported in this version"),
        ("a.", 3, "expected a field"),
        ("a b", 3, "unexpected b"),
        ("a DESC DESC", 8, "unexpected DESC"),
        ("a.1", 2, "unexpected .1"),
        ("first-name", 6, "unexpected -"),
        ("'a'", 1, "expected a field"),
        ("and", 1, "must be quoted"),
        ("a /* no */", 3, "comments"),
        ("\"a", 1, "Expected close delimiter"),
        (r#""""#, 1, "empty"),
    ] {
        let error = parse_key(text).unwrap_err();
        assert!(error.message.contains(says), "{text}: {}", error.message);
        assert_eq!(error.column, column, "{text}: {}", error.message);
    }
    let error = parse_key("lower(name)").unwrap_err().in_field("keys[0]");
    assert_eq!(
        error.to_string(),
        "bad_expression: keys[0]: functions such as lower() are not supported in this version at column 6"
    );
    assert!(parse_path("a DESC").is_err());
}

#[test]
fn conditions_read_as_written() {
    for (text, read) in [
        ("active = true", "active = true"),
        ("active == TRUE", "active = true"),
        ("a.b<>'it''s'", "a.b != 'it''s'"),
        ("a >= -5 and b < 1.5", "a >= -5 AND b < 1.5"),
        ("a = 1 or b = 2 and not c = 3", "a = 1 OR (b = 2 AND NOT (c = 3))"),
        ("(a = 1 or b = 2) and c", "(a = 1 OR b = 2) AND c"),
        ("a = 1 and b = 2 and c = 3", "a = 1 AND b = 2 AND c = 3"),
        ("a is null", "a IS NULL"),
        ("a is not null", "a IS NOT NULL"),
        ("a is missing", "a IS MISSING"),
        ("a IS NOT MISSING and b", "a IS NOT MISSING AND b"),
        ("a between 1 and 2", "a >= 1 AND a <= 2"),
        ("a not between 1 and 2 or b", "NOT (a >= 1 AND a <= 2) OR b"),
        ("a in (1, 'x', null)", "a = 1 OR a = 'x' OR a = null"),
        ("a not in (1)", "NOT (a = 1)"),
        ("1 < a", "1 < a"),
        ("a = b", "a = b"),
        ("((a)) = (1)", "a = 1"),
        ("true", "true"),
        ("`select` = \"or\".x", "select = \"or\".x"),
        ("a = 18446744073709551615", "a = 18446744073709551615"),
        ("a = -9223372036854775808", "a = -9223372036854775808"),
        ("a = + 1e2", "a = 100"),
        ("missing = 1", "missing = 1"),
        (
            "interval > 1 and date = 'x' and case = 1 and position = 2",
            "interval > 1 AND date = 'x' AND case = 1 AND position = 2",
        ),
        ("a\n= 1", "a = 1"),
    ] {
        let expr = parse_condition(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(expr.to_string(), read, "{text}");
        assert_eq!(parse_condition(&expr.to_string()), Ok(expr), "{text}");
    }
}

#[test]
fn what_conditions_cannot_be_is_said_with_its_place() {
    for (text, line, column, says) in [
        ("", 1, 1, "expected a path or a value"),
        ("a = ", 1, 5, "found the end"),
        ("a = 1 and", 1, 10, "found the end"),
        ("a like 'x%'", 1, 1, "LIKE is not supported in this version"),
        ("b = 1 and a like 'x%'", 1, 11, "LIKE is not supported in this version"),
        ("lower(a) = 'x'", 1, 6, "functions such as lower() are not supported in this version"),
        ("tags[0] = 1", 1, 5, "not supported in this version"),
        ("a + 1 = 2", 1, 1, "the operator + is not supported in this version"),
        ("a = -b", 1, 5, "arithmetic is not supported in this version"),
        ("a = 1 = 2", 1, 1, "a comparison as a value to compare is not supported"),
        ("a is true", 1, 6, "IS true is not supported in this version"),
        ("a is", 1, 5, "expected NULL or MISSING"),
        ("a in (select b from c)", 1, 1, "subqueries are not supported"),
        ("a in ()", 1, 7, "expected a path or a value"),
        ("(a = 1", 1, 7, "Expected: )"),
        ("a = 1)", 1, 6, "unexpected )"),
        ("a = 1\nand b = ;", 2, 9, "found ;"),
        ("a = 1 foo", 1, 7, "unexpected foo"),
        ("a = and", 1, 5, "must be quoted"),
        ("a = 'x", 1, 5, "Unterminated"),
        ("a = 10L", 1, 5, "10L is not a number"),
        ("a = -10L", 1, 5, "-10L is not a number"),
        ("a in (1, 2L)", 1, 10, "2L is not a number"),
        ("a between 1L and 2", 1, 11, "1L is not a number"),
        ("a = 10l", 1, 7, "unexpected l"),
        ("a = X'00'", 1, 5, "expected a path or a value"),
        ("a = 1e999", 1, 5, "beyond the range"),
        ("a = [1]", 1, 5, "arrays are not supported"),
        ("a = {}", 1, 5, "objects are not supported"),
        ("a = $1", 1, 5, "expected a path or a value"),
        ("a = #", 1, 5, ""),
        ("a::int = 1", 1, 1, "casts are not supported"),
        ("(a, b) = 1", 1, 3, "Expected: )"),
        ("a -- no", 1, 3, "comments"),
    ] {
        let error = parse_condition(text).unwrap_err();
        assert!(error.message.contains(says), "{text}: {error}");
        assert_eq!((error.line, error.column), (line, column), "{text}: {error}");
        assert!(error.in_field("where").message.contains(&format!("at column {column}")), "{text}");
    }
}

#[test]
fn what_earlier_versions_took_they_take_still() {
    for (text, language, read) in [
        ("a = 10L", Language::V0, "a = 10"),
        ("a = 10L", Language::V1, "a = 10"),
        ("a = -10L", Language::V1, "a = -10"),
        ("a < 18446744073709551617", Language::V0, "a < 1.8446744073709552e+19"),
    ] {
        assert_eq!(parse_condition_of(text, language).unwrap().to_string(), read, "{text}");
        assert!(parse_condition(text).is_err(), "{text}");
    }
    let condition = CompiledCondition::new(&parse_condition("a = a").unwrap(), Language::V1, &mut |_| 0);
    let reserved = r#"{"$serde_json::private::X":1}"#;
    assert_eq!(condition.eval(&|_| Some(reserved), &mut Scratch::default()), Truth::True);
}

#[test]
fn size_and_depth_are_bounded() {
    let depth = parse_condition(&("(".repeat(2000) + "a" + &")".repeat(2000))).unwrap_err();
    assert!(depth.message.contains("nested deeper"), "{depth}");
    assert!(depth.column > 1);
    assert!(parse_condition(&("not ".repeat(1000) + "a")).unwrap_err().message.contains("nested deeper"));
    assert!(parse_condition(&("(".repeat(20) + "a" + &")".repeat(20))).is_ok());
    assert!(parse_condition(&("a or ".repeat(1500) + "a")).is_ok());
    assert!(parse_condition(&format!("a = '{}'", "x".repeat(MAX_TEXT))).unwrap_err().message.contains("at most"));
    let long = vec!["a"; MAX_SEGMENTS + 1].join(".");
    assert!(parse_path(&long).unwrap_err().message.contains("segments"));
    assert!(parse_path(&long[2..]).is_ok());
}

#[test]
fn labels_quote_only_for_uniqueness() {
    for (segments, label) in [
        (&["name"][..], "name"),
        (&["address", "city"], "address.city"),
        (&["first name"], "first name"),
        (&["a.b", "or"], "\"a.b\".or"),
    ] {
        assert_eq!(path(segments).label(), label);
    }
}

/// Evaluates on values, without slots and without the encoding.
fn naive(expr: &Expr, doc: &Value) -> Truth {
    let value = |operand: &Operand| match operand {
        Operand::Literal(value) => Some(value.clone()),
        Operand::Path(path) => path.0.iter().try_fold(doc, |v, segment| v.as_object()?.get(segment)).cloned(),
    };
    let not = |truth| match truth {
        Truth::True => Truth::False,
        Truth::False => Truth::True,
        Truth::Unknown => Truth::Unknown,
    };
    let and = |parts: Vec<Truth>| {
        if parts.contains(&Truth::False) {
            Truth::False
        } else if parts.contains(&Truth::Unknown) {
            Truth::Unknown
        } else {
            Truth::True
        }
    };
    match expr {
        Expr::And(parts) => and(parts.iter().map(|p| naive(p, doc)).collect()),
        Expr::Or(parts) => not(and(parts.iter().map(|p| not(naive(p, doc))).collect())),
        Expr::Not(inner) => not(naive(inner, doc)),
        Expr::IsNull { operand, negated } => Truth::from((value(operand) == Some(Value::Null)) != *negated),
        Expr::IsMissing { operand, negated } => Truth::from(value(operand).is_none() != *negated),
        Expr::Truth(operand) => match value(operand) {
            None | Some(Value::Null) => Truth::Unknown,
            value => Truth::from(value == Some(Value::Bool(true))),
        },
        Expr::Compare { op, left, right } => match (value(left), value(right)) {
            (None | Some(Value::Null), _) | (_, None | Some(Value::Null)) => Truth::Unknown,
            (Some(a), Some(b)) => {
                let order = compare_values(Some(&a), Some(&b));
                let same = std::mem::discriminant(&a) == std::mem::discriminant(&b);
                match op {
                    CompareOp::Equal => Truth::from(order.is_eq()),
                    CompareOp::NotEqual => Truth::from(order.is_ne()),
                    _ if !same => Truth::Unknown,
                    CompareOp::Less => Truth::from(order == Ordering::Less),
                    CompareOp::LessOrEqual => Truth::from(order != Ordering::Greater),
                    CompareOp::Greater => Truth::from(order == Ordering::Greater),
                    CompareOp::GreaterOrEqual => Truth::from(order != Ordering::Less),
                }
            }
        },
    }
}

fn compiled(expr: &Expr, doc: &Value) -> Truth {
    let mut paths: Vec<Path> = Vec::new();
    let condition = CompiledCondition::new(expr, Language::NEWEST, &mut |path| {
        paths.push(path.clone());
        paths.len() - 1
    });
    let texts: Vec<Option<String>> = paths
        .iter()
        .map(|p| p.0.iter().try_fold(doc, |v, segment| v.as_object()?.get(segment)).map(Value::to_string))
        .collect();
    condition.eval(&|slot: usize| texts[slot].as_deref(), &mut Scratch::default())
}

#[test]
fn three_valued_logic_by_example() {
    use Truth::{False, True, Unknown};
    let doc = json!({"t": true, "f": false, "n": null, "one": 1, "two": 2.0, "s": "x", "l": [1, 2], "o": {"a": 1}, "big": 9_007_199_254_740_993_u64});
    for (text, truth) in [
        ("one = 1", True),
        ("one = 1.0", True),
        ("one = 2", False),
        ("one != 2", True),
        ("two > one", True),
        ("two <= 2", True),
        ("one = '1'", False),
        ("one != '1'", True),
        ("one < '1'", Unknown),
        ("NOT one < '1'", Unknown),
        ("n = 1", Unknown),
        ("n = null", Unknown),
        ("gone = 1", Unknown),
        ("gone != 1", Unknown),
        ("NOT gone = 1", Unknown),
        ("n IS NULL", True),
        ("gone IS NULL", False),
        ("gone IS NOT NULL", True),
        ("n IS MISSING", False),
        ("gone IS MISSING", True),
        ("t", True),
        ("f", False),
        ("n", Unknown),
        ("gone", Unknown),
        ("one", False),
        ("NOT one", True),
        ("t > f", True),
        ("gone = 1 OR t", True),
        ("gone = 1 OR f", Unknown),
        ("gone = 1 AND f", False),
        ("gone = 1 AND t", Unknown),
        ("s BETWEEN 'a' AND 'z'", True),
        ("one IN (3, 1)", True),
        ("one IN (3, null)", Unknown),
        ("one NOT IN (3, null)", Unknown),
        ("l = l", True),
        ("l < o", Unknown),
        ("o.a = one", True),
        ("o.a.b IS MISSING", True),
        ("l.a IS MISSING", True),
        ("big > 9007199254740992", True),
        ("big = 9007199254740993", True),
        ("5 > 3", True),
        ("null IS NULL", True),
        ("s >= ''", True),
    ] {
        let expr = parse_condition(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(compiled(&expr, &doc), truth, "{text}");
        assert_eq!(naive(&expr, &doc), truth, "{text}");
    }
}

#[test]
fn what_some_reader_refuses_counts_as_missing() {
    use Truth::{True, Unknown};
    for text in [
        r#"{"$serde_json::private::X":1}"#,
        r#"[[{"\u0024serde_json::private::RawValue":"1"}]]"#,
        r#"{"$serde_json::private::X":1,"b":2}"#,
        "1e400",
        r#""\ud800""#,
        &["[".repeat(61), "]".repeat(61)].concat(),
    ] {
        for (condition, truth) in [
            ("a IS MISSING", True),
            ("a IS NOT NULL", True),
            ("a = a", Unknown),
            ("a != a", Unknown),
            ("a != 1", Unknown),
            ("a", Unknown),
        ] {
            let expr = parse_condition(condition).unwrap();
            let compiled = CompiledCondition::new(&expr, Language::NEWEST, &mut |_| 0);
            assert_eq!(compiled.eval(&|_| Some(text), &mut Scratch::default()), truth, "{text} {condition}");
        }
    }
}

fn any_operand() -> impl Strategy<Value = Operand> {
    let literals =
        vec![json!(null), json!(true), json!(false), json!(1), json!(1.5), json!(-2), json!("a"), json!("it's")];
    let paths = vec![path(&["a"]), path(&["b"]), path(&["c", "d"]), path(&["not"]), path(&["x y", "\"", ""])];
    // An empty segment cannot be written.
    let paths: Vec<Path> =
        paths.into_iter().map(|p| Path(p.0.into_iter().filter(|s| !s.is_empty()).collect())).collect();
    prop_oneof![
        prop::sample::select(literals).prop_map(Operand::Literal),
        prop::sample::select(paths).prop_map(Operand::Path)
    ]
}

fn any_expr() -> impl Strategy<Value = Expr> {
    use CompareOp::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, NotEqual};
    let ops = prop::sample::select(vec![Equal, NotEqual, Less, LessOrEqual, Greater, GreaterOrEqual]);
    let leaf = prop_oneof![
        4 => (ops, any_operand(), any_operand()).prop_map(|(op, left, right)| Expr::Compare { op, left, right }),
        1 => (any_operand(), any::<bool>()).prop_map(|(operand, negated)| Expr::IsNull { operand, negated }),
        1 => (any_operand(), any::<bool>()).prop_map(|(operand, negated)| Expr::IsMissing { operand, negated }),
        1 => any_operand().prop_map(Expr::Truth),
    ];
    leaf.prop_recursive(4, 16, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 2..4).prop_map(Expr::And),
            prop::collection::vec(inner.clone(), 2..4).prop_map(Expr::Or),
            inner.prop_map(|e| Expr::Not(Box::new(e))),
        ]
    })
}

fn any_doc() -> impl Strategy<Value = Value> {
    let values = vec![
        json!(null),
        json!(true),
        json!(1),
        json!(1.5),
        json!("a"),
        json!([1]),
        json!({"d": 1}),
        json!({"d": "a"}),
    ];
    prop::collection::btree_map(prop::sample::select(vec!["a", "b", "c", "not"]), prop::sample::select(values), 0..4)
        .prop_map(|fields| json!(fields))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn written_conditions_read_back(expr in any_expr()) {
        let text = expr.to_string();
        let read = parse_condition(&text);
        // `a AND b` written inside of another AND is kept apart by parentheses.
        prop_assert_eq!(read.as_ref(), Ok(&expr), "{}", text);
    }

    #[test]
    fn compiled_conditions_mean_what_the_naive_ones_mean(expr in any_expr(), doc in any_doc()) {
        prop_assert_eq!(compiled(&expr, &doc), naive(&expr, &doc), "{}", expr);
    }

    #[test]
    fn written_paths_read_back(segments in prop::collection::vec("[a-z]{1,3}|[ -~]{1,4}|\\PC{1,3}|and|NULL", 1..4)) {
        let path = Path(segments);
        prop_assert_eq!(parse_path(&path.to_string()), Ok(path.clone()), "{}", path);
        let condition = parse_condition(&format!("{path} = 1")).map(|c| c.to_string());
        prop_assert_eq!(condition, Ok(format!("{path} = 1")));
    }

    #[test]
    fn any_text_is_read_or_refused_with_a_place(text in "\\PC{0,30}|[ab.()\"'`=<>!0-9\n -]{0,30}|((not|a|and|or|is|null|missing|in|between|like|1|'x'|=|<|\\(|\\)|,) ?){0,12}") {
        for error in [parse_key(&text).err(), parse_path(&text).err(), parse_condition(&text).err()].into_iter().flatten() {
            prop_assert!(error.line >= 1 && error.column >= 1, "{}", error);
            prop_assert!(!error.message.contains("Column"), "{}", error);
        }
    }
}

#[test]
fn every_word_of_sql_is_a_field_or_asks_for_quotes() {
    for word in sqlparser::keywords::ALL_KEYWORDS {
        let path = path(&[word]);
        let text = format!("{path} = 1 AND {path} IS NOT MISSING");
        let read = parse_condition(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(read.to_string(), text);
        assert_eq!(parse_key(&format!("{path} DESC")).map(|k| (k.path, k.descending)), Ok((path, true)));
    }
}
