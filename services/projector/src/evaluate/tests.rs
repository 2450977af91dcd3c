//! Documents by example, and against an evaluator over whole values.

mod values;

use super::*;
use highwater_schemas::{
    collation::{compare_values, encode_value},
    definition::{IndexDefinition, KeyPart},
    expr::{CompareOp, Expr, Operand, Path, parse_condition},
    language::Language,
};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

fn index(definition: Value) -> CompiledIndex {
    index_of(Language::NEWEST, definition)
}

fn index_of(language: Language, mut definition: Value) -> CompiledIndex {
    definition["bucket"] = json!("b");
    definition["name"] = json!("i");
    serde_json::from_value::<IndexDefinition>(definition).unwrap().compile(language).unwrap()
}

/// What the document became: its operation, and per entry number, key or reason, and included fields.
type Outcome = (DocOp, Vec<(u32, Result<Vec<u8>, Unindexable>, String)>);

fn run_raw(evaluator: &mut Evaluator, docid: &str, payload: &[u8]) -> Outcome {
    let mut versions = KeyVersions::default();
    evaluator.evaluate(7, docid, payload, &mut versions);
    let doc = versions.view().docs().next().unwrap();
    assert_eq!((doc.seqno, doc.docid), (7, docid));
    let entries = doc.keys().map(|k| {
        let key = k.reason.map_or_else(|| Ok(k.key.to_vec()), Err);
        (k.index, key, String::from_utf8(k.include.to_vec()).unwrap())
    });
    (doc.op, entries.collect())
}

fn run(definition: Value, payload: &str) -> Outcome {
    run_raw(&mut Evaluator::new(&[(5, index(definition))]), "d", payload.as_bytes())
}

fn key(components: &[(Option<Value>, bool)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (value, descending) in components {
        encode_value(value.as_ref(), *descending, &mut bytes);
    }
    bytes
}

/// The document's only entry.
fn entry(definition: Value, payload: &str) -> Option<(Result<Vec<u8>, Unindexable>, String)> {
    let (op, mut entries) = run(definition, payload);
    assert_eq!(op, DocOp::Put, "{payload}");
    entries.pop().map(|(number, key, include)| {
        assert_eq!(number, 5);
        (key, include)
    })
}

#[test]
fn entries_by_example() {
    let simple = json!({"keys": ["age DESC", "address.city"]});
    let both = key(&[(Some(json!(33)), true), (Some(json!("Oslo")), false)]);
    let lone = key(&[(Some(json!(33)), true), (None, false)]);
    for (payload, expected) in [
        (r#"{"age":33,"address":{"city":"Oslo"}}"#, Some(&both)),
        (" {\"address\" : { \"x\":[1,{}], \"city\" : \"Oslo\" } , \"age\" : 33.0 } ", Some(&both)),
        (r#"{"\u0061ge":33,"address":{"\u0063ity":"\u004fslo"}}"#, Some(&both)),
        (r#"{"age":1,"age":33,"address":{"city":"no"},"address":{"city":"Oslo"}}"#, Some(&both)),
        (r#"{"age":33,"address":{"city":"gone"},"address":5}"#, Some(&lone)),
        (r#"{"age":33,"address":{"city":"gone"},"address":{}}"#, Some(&lone)),
        (r#"{"age":33,"address":["city"]}"#, Some(&lone)),
        (r#"{"age":33,"address":null}"#, Some(&lone)),
        (r#"{"age":33,"\ud800":1,"x":1e999}"#, Some(&lone)),
        (r#"{"address":{"city":"Oslo"}}"#, None),
        ("{}", None),
        ("[1]", None),
        ("5", None),
        ("\"age\"", None),
        ("1e999", None),
    ] {
        let found = entry(simple.clone(), payload);
        assert_eq!(found, expected.map(|k| (Ok(k.clone()), String::new())), "{payload}");
    }
}

#[test]
fn a_path_and_one_through_it() {
    let definition = json!({"keys": ["a", "a.b", "a.b.c"]});
    let expected =
        key(&[(Some(json!({"b": {"c": 1}})), false), (Some(json!({"c": 1})), false), (Some(json!(1)), false)]);
    assert_eq!(entry(definition, r#"{"a":{"b":{"c":1}}}"#), Some((Ok(expected), String::new())));
}

#[test]
fn missing_leading_keys_are_left_out_unless_wanted() {
    assert_eq!(entry(json!({"keys": ["a", "b"]}), r#"{"b":1}"#), None);
    let expected = key(&[(None, false), (Some(json!(1)), false)]);
    assert_eq!(
        entry(json!({"keys": ["a", "b"], "include_missing": true}), r#"{"b":1}"#),
        Some((Ok(expected), String::new()))
    );
    let null = key(&[(Some(Value::Null), false)]);
    assert_eq!(entry(json!({"keys": ["a"]}), r#"{"a":null}"#), Some((Ok(null), String::new())));
}

#[test]
fn a_primary_index_takes_everything_that_its_condition_takes() {
    for payload in ["{}", "[1]", "null", r#"{"a":1}"#] {
        assert_eq!(entry(json!({}), payload), Some((Ok(vec![]), String::new())), "{payload}");
    }
    assert_eq!(entry(json!({"where": "a = 1"}), "{}"), None);
    assert_eq!(entry(json!({"where": "a = 1"}), r#"{"a":1.0}"#), Some((Ok(vec![]), String::new())));
}

#[test]
fn included_fields_are_copied_compactly_under_their_paths() {
    let definition = json!({"include": ["name", "address.city", "\"first-name\""]});
    for (payload, expected) in [
        (r#"{"name" : "Ada" , "address":{"city":"Oslo"}}"#, r#"{"name":"Ada","address.city":"Oslo"}"#),
        ("{\"name\":{ \"a \\\" b\" : [ 1 ,\n2 ] , \"c\":\"\\\\\" }}", r#"{"name":{"a \" b":[1,2],"c":"\\"}}"#),
        (r#"{"name":null,"first-name":1}"#, r#"{"name":null,"first-name":1}"#),
        ("{}", "{}"),
    ] {
        let (key, include) = entry(definition.clone(), payload).unwrap();
        assert_eq!((key, include.as_str()), (Ok(vec![]), expected), "{payload}");
        assert!(serde_json::from_str::<Value>(&include).is_ok());
    }
}

#[test]
fn what_cannot_be_indexed_says_why() {
    let deep = |n: usize| format!("{}1{}", "[".repeat(n), "]".repeat(n));
    let brackets_in_text = format!(r#"{{"s":"{}\"{}"}}"#, "[".repeat(500), "{".repeat(500));
    for (payload, expected) in [
        ("", DocOp::Unindexable(Unindexable::NotJson)),
        ("{", DocOp::Unindexable(Unindexable::NotJson)),
        ("{} x", DocOp::Unindexable(Unindexable::NotJson)),
        ("{}{}", DocOp::Unindexable(Unindexable::NotJson)),
        (r#"{"a":01}"#, DocOp::Unindexable(Unindexable::NotJson)),
        (r#"{"a":1,}"#, DocOp::Unindexable(Unindexable::NotJson)),
        (r#"{"x":tru}"#, DocOp::Unindexable(Unindexable::NotJson)),
        ("{a:1}", DocOp::Unindexable(Unindexable::NotJson)),
        ("\u{feff}{}", DocOp::Unindexable(Unindexable::NotJson)),
        (&"[".repeat(200), DocOp::Unindexable(Unindexable::NotJson)),
        (&deep(128), DocOp::Put),
        (&deep(129), DocOp::Unindexable(Unindexable::TooDeep)),
        (&deep(100_000), DocOp::Unindexable(Unindexable::TooDeep)),
        (&format!(r#"{{"x":{}}}"#, deep(128)), DocOp::Unindexable(Unindexable::TooDeep)),
        (&brackets_in_text, DocOp::Put),
        (&format!("[{}]", vec!["[]"; 500].join(",")), DocOp::Put),
        (&format!("\"{}\"", "x".repeat(MAX_DOCUMENT)), DocOp::Unindexable(Unindexable::TooLarge)),
    ] {
        for definition in [json!({}), json!({"keys": ["a"]})] {
            assert_eq!(run(definition, payload).0, expected, "{payload:.60}");
        }
        assert_eq!(run_raw(&mut Evaluator::new(&[]), "d", payload.as_bytes()), (expected, vec![]), "{payload:.60}");
    }
    let mut evaluator = Evaluator::new(&[]);
    assert_eq!(run_raw(&mut evaluator, "d", b"\"\xff\"").0, DocOp::Unindexable(Unindexable::NotJson));
    assert_eq!(
        run_raw(&mut evaluator, &"i".repeat(MAX_DOCID + 1), b"{}").0,
        DocOp::Unindexable(Unindexable::IdTooLong)
    );
    assert_eq!(run_raw(&mut evaluator, &"i".repeat(MAX_DOCID), b"{}").0, DocOp::Put);
    let mut small = Evaluator::with_max_document(&[], 4);
    assert_eq!(run_raw(&mut small, "d", b"[12]").0, DocOp::Put);
    assert_eq!(run_raw(&mut small, "d", b"[123]").0, DocOp::Unindexable(Unindexable::TooLarge));
}

#[test]
fn keys_are_bounded_with_their_suffix() {
    // Tag and terminator, and the suffix of docid "d": 1 + 1 + 2.
    let longest = MAX_ENTRY_KEY - 2 - 4;
    let doc = |n: usize| format!(r#"{{"a":"{}"}}"#, "x".repeat(n));
    assert!(entry(json!({"keys": ["a"]}), &doc(longest)).unwrap().0.is_ok());
    assert_eq!(entry(json!({"keys": ["a"]}), &doc(longest + 1)), Some((Err(Unindexable::KeyTooLong), String::new())));
}

#[test]
fn removals_have_no_entries() {
    let mut versions = KeyVersions::default();
    Evaluator::new(&[]).delete(9, "d", &mut versions);
    let doc = versions.view().docs().next().unwrap();
    assert_eq!((doc.seqno, doc.docid, doc.op, doc.keys().count()), (9, "d", DocOp::Delete, 0));
}

#[test]
fn many_fields_are_found_by_bisection() {
    let paths: Vec<String> = (0..30).map(|i| format!("f{i}.x")).collect();
    let indexes: Vec<_> = (0..30).map(|i| (i, index(json!({"keys": [paths[i as usize]]})))).collect();
    let doc: Map<String, Value> = (0..30).map(|i| (format!("f{i}"), json!({"x": i}))).collect();
    let (_, entries) = run_raw(&mut Evaluator::new(&indexes), "d", json!(doc).to_string().as_bytes());
    let expected: Vec<_> = (0..30).map(|i| (i, Ok(key(&[(Some(json!(i)), false)])), String::new())).collect();
    assert_eq!(entries, expected);
}

/// The value at a path, in the whole document.
fn at<'v>(doc: &'v Value, path: &Path) -> Option<&'v Value> {
    path.0.iter().try_fold(doc, |value, segment| value.as_object()?.get(segment))
}

/// For the two forms of condition that the random indexes have.
fn holds(condition: &Expr, doc: &Value) -> bool {
    match condition {
        Expr::IsMissing { operand: Operand::Path(path), .. } => at(doc, path).is_some(),
        Expr::Compare { op: CompareOp::GreaterOrEqual, left: Operand::Path(path), right: Operand::Literal(one) } => {
            at(doc, path).is_some_and(|v| v.is_number() && compare_values(Some(v), Some(one)).is_ge())
        }
        other => panic!("{other}"),
    }
}

fn naive(indexes: &[(u32, CompiledIndex)], docid: &str, payload: &[u8]) -> Outcome {
    let Ok(doc) = serde_json::from_slice::<Value>(payload) else {
        return (DocOp::Unindexable(Unindexable::NotJson), vec![]);
    };
    let mut entries = Vec::new();
    for (number, index) in indexes {
        let leading = index.keys.first().is_none_or(|k| index.include_missing || at(&doc, &k.path).is_some());
        if !leading || !index.condition.as_ref().is_none_or(|c| holds(c, &doc)) {
            continue;
        }
        let components: Vec<_> = index.keys.iter().map(|k| (at(&doc, &k.path).cloned(), k.descending)).collect();
        let bytes = key(&components);
        if bytes.len() + docid.len() + 3 > MAX_ENTRY_KEY {
            entries.push((*number, Err(Unindexable::KeyTooLong), String::new()));
            continue;
        }
        let fields: Vec<String> =
            index.include.iter().filter_map(|p| Some(format!("{}:{}", json!(p.label()), at(&doc, p)?))).collect();
        let include = if index.include.is_empty() { String::new() } else { format!("{{{}}}", fields.join(",")) };
        entries.push((*number, Ok(bytes), include));
    }
    (DocOp::Put, entries)
}

fn any_name() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "c", "é", "x y", "q\""]).prop_map(String::from)
}

fn any_doc() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        prop::sample::select(vec![
            json!(null),
            json!(true),
            json!(1),
            json!(-7.5),
            json!("Oslo"),
            json!("\n\"\\é"),
            json!(u64::MAX)
        ]),
        (1900usize..2000).prop_map(|n| json!("k".repeat(n))),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            1 => prop::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
            5 => prop::collection::btree_map(any_name(), inner, 0..5).prop_map(|fields| json!(fields)),
        ]
    })
}

fn any_index() -> impl Strategy<Value = CompiledIndex> {
    let path = || prop::collection::vec(any_name(), 1..4).prop_map(Path);
    let part = (path(), any::<bool>()).prop_map(|(path, descending)| KeyPart { path, descending });
    let condition = (path(), any::<bool>()).prop_map(|(path, missing)| {
        let text = if missing { format!("{path} IS NOT MISSING") } else { format!("{path} >= 0") };
        parse_condition(&text, Language::NEWEST).unwrap()
    });
    (prop::collection::vec(part, 0..4), prop::option::of(condition), prop::collection::vec(path(), 0..3), any::<bool>())
        .prop_map(|(keys, condition, include, include_missing)| CompiledIndex {
            keys,
            condition,
            include: include.into_iter().fold(Vec::new(), |mut all, path| {
                if !all.contains(&path) {
                    all.push(path);
                }
                all
            }),
            include_missing,
            language: Language::NEWEST,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn documents_become_what_the_naive_evaluator_says(
        indexes in prop::collection::vec(any_index(), 0..4),
        docs in prop::collection::vec((any_doc(), any::<bool>()), 1..4),
    ) {
        let indexes: Vec<_> = (0..).zip(indexes).collect();
        let mut evaluator = Evaluator::new(&indexes);
        for (doc, pretty) in docs {
            let text = if pretty { serde_json::to_string_pretty(&doc) } else { serde_json::to_string(&doc) }.unwrap();
            prop_assert_eq!(run_raw(&mut evaluator, "d", text.as_bytes()), naive(&indexes, "d", text.as_bytes()));
        }
    }

    #[test]
    fn damaged_documents_are_refused_as_serde_refuses_them(
        index in any_index(), doc in any_doc(), at in any::<prop::sample::Index>(), with in "[ \\[\\]{}\",:0-9a-z.-]",
    ) {
        let mut text = doc.to_string().into_bytes();
        let at = at.index(text.len());
        text[at] = with.as_bytes()[0];
        let indexes = [(0, index)];
        let found = run_raw(&mut Evaluator::new(&indexes), "d", &text);
        let says = std::str::from_utf8(&text).ok().and_then(|t| serde_json::from_str::<&serde_json::value::RawValue>(t.trim()).ok());
        prop_assert_eq!(found.0 == DocOp::Put, says.is_some());
    }
}
