//! Partial indexes over the values of `tests/data/values.json`: what is true of a value, or false, or unknown, is computed from the
//! key that the value is, by the words of `docs/indexes.md`, and compared with what is indexed, built and changed live.

use crate::values::{Case, cases, id, rows};
use highwater_tests::{order::compare, prelude::*};
use serde_json::Number;
use std::{cmp::Ordering, collections::BTreeSet};

const BUCKET: &str = "docs";
const WITHIN: Duration = Duration::from_secs(60);

/// What a condition sees of a value.
enum Seen {
    /// There is none, or one that counts as none.
    Missing,
    /// A number of too many digits, alone or inside of something.
    Inexact,
    Value(Value),
}

impl Seen {
    fn of(case: &Case) -> Result<Self> {
        Ok(match (&case.key, case.reason.as_deref()) {
            (Some(key), _) => Self::Value(literal(&key[1..key.len() - 1])?),
            (None, Some("inexact_number")) => Self::Inexact,
            (None, Some("bad_value" | "too_deep")) => Self::Missing,
            (None, other) => bail!("{other:?} is no reason"),
        })
    }
}

/// The value of a literal, in JSON or as conditions write it; of a number the very one that it is.
fn literal(text: &str) -> Result<Value> {
    if let Some(quoted) = text.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')) {
        return Ok(quoted.into());
    }
    if !text.starts_with(|first: char| first.is_ascii_digit() || first == '-') {
        let text = if ["TRUE", "FALSE", "NULL"].contains(&text) { &text.to_lowercase() } else { text };
        return serde_json::from_str(text).with_context(|| text.to_owned());
    }
    if let Ok(number) = text.parse::<u64>() {
        return Ok(number.into());
    }
    if let Ok(number) = text.parse::<i64>() {
        return Ok(number.into());
    }
    Ok(Value::Number(Number::from_f64(text.parse()?).with_context(|| text.to_owned())?))
}

fn kind(value: &Value) -> u8 {
    match value {
        Value::Null => 0,
        Value::Bool(_) => 1,
        Value::Number(_) => 2,
        Value::String(_) => 3,
        Value::Array(_) => 4,
        Value::Object(_) => 5,
    }
}

/// A comparison; None is unknown.
fn compared(seen: &Seen, operator: &str, other: &str) -> Result<Option<bool>> {
    let other = literal(other)?;
    let Seen::Value(value) = seen else { return Ok(None) };
    if value.is_null() || other.is_null() {
        return Ok(None);
    }
    let order = compare(Some(value), Some(&other));
    let alike = kind(value) == kind(&other);
    let ordered = |holds: fn(Ordering) -> bool| alike.then(|| holds(order));
    Ok(match operator {
        "=" => Some(alike && order.is_eq()),
        "!=" => Some(!alike || order.is_ne()),
        "<" => ordered(Ordering::is_lt),
        "<=" => ordered(Ordering::is_le),
        ">" => ordered(Ordering::is_gt),
        ">=" => ordered(Ordering::is_ge),
        _ => bail!("{operator} is no operator"),
    })
}

/// What a condition over `v` is for a value; None is unknown.
fn holds(condition: &str, seen: &Seen) -> Result<Option<bool>> {
    let rest = condition.strip_prefix('v').with_context(|| condition.to_owned())?.trim_start();
    let is_null = matches!(seen, Seen::Value(Value::Null));
    Ok(match rest {
        "" => match seen {
            Seen::Value(Value::Null) | Seen::Missing | Seen::Inexact => None,
            Seen::Value(value) => Some(value == &Value::Bool(true)),
        },
        "IS NULL" => Some(is_null),
        "IS NOT NULL" => Some(!is_null),
        "IS MISSING" => Some(matches!(seen, Seen::Missing)),
        "IS NOT MISSING" => Some(!matches!(seen, Seen::Missing)),
        _ => {
            if let Some((low, high)) = rest.strip_prefix("BETWEEN ").and_then(|bounds| bounds.split_once(" AND ")) {
                let (above, below) = (compared(seen, ">=", low)?, compared(seen, "<=", high)?);
                return Ok(if above == Some(false) || below == Some(false) { Some(false) } else { above.and(below) });
            }
            if let Some(list) = rest.strip_prefix("IN (").and_then(|list| list.strip_suffix(')')) {
                let equal: Vec<_> = list.split(", ").map(|one| compared(seen, "=", one)).collect::<Result<_>>()?;
                let unknown = equal.contains(&None);
                return Ok(if equal.contains(&Some(true)) { Some(true) } else { (!unknown).then_some(false) });
            }
            let (operator, other) = rest.split_once(' ').with_context(|| condition.to_owned())?;
            compared(seen, operator, other)?
        }
    })
}

/// The documents for which a condition is true, and those for which it is false, each in order.
fn split(condition: &str, documents: &[(String, Seen)]) -> Result<[Vec<String>; 2]> {
    let mut all = [Vec::new(), Vec::new()];
    for (id, seen) in documents {
        match holds(condition, seen)? {
            Some(true) => all[0].push(id.clone()),
            Some(false) => all[1].push(id.clone()),
            None => {}
        }
    }
    Ok(all)
}

fn name(number: usize, negated: bool) -> String {
    format!("{}_{number:02}", if negated { "is_not" } else { "is" })
}

/// Every partial index has the documents for which its condition is true, and the negation of it those for which it is false.
async fn are_right(client: &Client, conditions: &[&str], documents: &[(String, Seen)]) -> Result<(usize, usize)> {
    let (mut shown, mut unknown) = (0, 0);
    for (number, condition) in conditions.iter().enumerate() {
        let expected = split(condition, documents)?;
        unknown += documents.len() - expected[0].len() - expected[1].len();
        for (negated, expected) in [false, true].into_iter().zip(&expected) {
            let (rows, unindexed) = rows(client, &name(number, negated), "{}").await?;
            let found: Vec<&String> = rows.iter().map(|row| &row.0).collect();
            ensure!(
                unindexed == 0 && found == expected.iter().collect::<Vec<_>>(),
                "{condition}, negated: {negated}: {found:?} and {unindexed}, not {expected:?}"
            );
            shown += found.len();
        }
    }
    Ok((shown, unknown))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_condition_over_any_value_is_true_false_or_unknown_as_it_should_be() -> Result<()> {
    let cases = cases()?;
    let conditions: BTreeSet<&str> = cases.iter().map(|case| case.condition.as_str()).collect();
    let conditions: Vec<&str> = conditions.into_iter().collect();
    let mut documents = vec![("none".to_owned(), Seen::Missing)];
    for (number, case) in cases.iter().enumerate() {
        documents.push((id(number), Seen::of(case)?));
    }
    let write = |number: usize, case: &Case| Write {
        vb: 0,
        id: id(number),
        op: Op::Put(format!(r#"{{"n":{number},"v":{}}}"#, case.text()).into()),
    };
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value(&client, BUCKET).await?;
            source.write([Write::put(0, "none", &json!({"n": -1}))]).await?;
            source.write(cases.iter().enumerate().map(|(number, case)| write(number, case))).await?;
            let mut names = Vec::new();
            for (number, condition) in conditions.iter().enumerate() {
                for negated in [false, true] {
                    let condition = if negated { format!("NOT ({condition})") } else { (*condition).to_owned() };
                    let name = name(number, negated);
                    let keys = json!({"bucket": BUCKET, "name": name, "keys": ["n"]});
                    let mut definition = keys;
                    definition["where"] = condition.into();
                    definition["defer_build"] = true.into();
                    client.create_index(&definition).await?;
                    names.push(name);
                }
            }
            let build = json!({"bucket": BUCKET, "names": names});
            client.insist("hw.admin.index.build", &build, WITHIN).await?;
            for name in &names {
                client.wait_active(BUCKET, name, WITHIN).await?;
            }
            let (built, unknown) = are_right(&client, &conditions, &documents).await.context("built")?;
            println!("{} conditions: {built} rows of values, {unknown} unknown", conditions.len());
            ensure!(built > documents.len() && unknown > documents.len(), "{built} rows, {unknown} unknown");

            // Without the field, and with it again: changed live.
            source.write((0..cases.len()).map(|n| Write::put(0, id(n), &json!({"n": n})))).await?;
            let without: Vec<_> = documents.iter().map(|(id, _)| (id.clone(), Seen::Missing)).collect();
            are_right(&client, &conditions, &without).await.context("without the field")?;
            source.write(cases.iter().enumerate().map(|(number, case)| write(number, case))).await?;
            let (live, _) = are_right(&client, &conditions, &documents).await.context("live")?;
            ensure!(live == built, "{live} rows live, {built} built");
            Ok(())
        })
        .await
}
