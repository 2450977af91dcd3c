//! What an index must hold and what a scan must answer, computed from the documents one by one.

use crate::{
    order::compare,
    source::{Documents, Name},
};
use serde_json::{Map, Value, json};
use std::cmp::Ordering;

/// A partial index's condition: as Highwater gets it, and as Rust. Unknown is `None`.
pub type Condition = (&'static str, fn(&Value) -> Option<bool>);

/// An index.
#[derive(Clone, Default)]
pub struct Index {
    pub name: String,
    /// Path, and whether it descends; none: a primary index.
    pub keys: Vec<(&'static str, bool)>,
    pub condition: Option<Condition>,
    pub include: Vec<&'static str>,
    /// 0: not said.
    pub partitions: u32,
}

/// One row that a scan answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub document: Name,
    /// `None` is missing.
    pub key: Vec<Option<Value>>,
    pub include: Option<Map<String, Value>>,
}

impl Index {
    /// The request of `hw.admin.index.create`.
    pub fn definition(&self, bucket: &str) -> Value {
        let key =
            |(path, descending): &(&str, bool)| if *descending { format!("{path} DESC") } else { (*path).to_owned() };
        let keys: Vec<String> = self.keys.iter().map(key).collect();
        let mut definition = json!({"bucket": bucket, "name": self.name, "keys": keys});
        if let Some((condition, _)) = self.condition {
            definition["where"] = condition.into();
        }
        if !self.include.is_empty() {
            definition["include"] = self.include.clone().into();
        }
        if self.partitions > 0 {
            definition["num_partition"] = self.partitions.into();
        }
        definition
    }

    /// Every row, in index order.
    pub fn rows(&self, documents: &Documents) -> Vec<Row> {
        let mut rows: Vec<Row> = documents.iter().filter_map(|(name, payload)| self.row(name, payload)).collect();
        rows.sort_by(|a, b| self.order(a, b));
        rows
    }

    fn row(&self, name: &Name, payload: &[u8]) -> Option<Row> {
        let document: Value = serde_json::from_slice(payload).ok()?;
        if let Some((_, holds)) = self.condition
            && holds(&document) != Some(true)
        {
            return None;
        }
        let key: Vec<Option<Value>> = self.keys.iter().map(|(path, _)| at(&document, path).cloned()).collect();
        if key.first().is_some_and(Option::is_none) {
            return None;
        }
        let field = |path: &&str| Some(((*path).to_owned(), at(&document, path)?.clone()));
        let include = (!self.include.is_empty()).then(|| self.include.iter().filter_map(field).collect());
        Some(Row { document: name.clone(), key, include })
    }

    fn order(&self, a: &Row, b: &Row) -> Ordering {
        for (i, (_, descending)) in self.keys.iter().enumerate() {
            let order = compare(a.key[i].as_ref(), b.key[i].as_ref());
            if order.is_ne() {
                return if *descending { order.reverse() } else { order };
            }
        }
        // Ties by docid, then in the order of the streams.
        (&a.document.1, a.document.0).cmp(&(&b.document.1, b.document.0))
    }

    /// What the bounds of a span compare with.
    pub fn components(&self, row: &Row) -> Vec<Option<Value>> {
        if self.keys.is_empty() { vec![Some(row.document.1.clone().into())] } else { row.key.clone() }
    }
}

/// How many documents no index can take.
pub fn unindexed(documents: &Documents) -> usize {
    documents.values().filter(|payload| serde_json::from_slice::<Value>(payload).is_err()).count()
}

/// The value at a dotted path.
pub fn at<'v>(document: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.').try_fold(document, |value, name| value.as_object()?.get(name))
}

/// A row of a reply as a person reads it back.
pub fn read_row(row: &Value, streams: &[(String, String)], keys: usize) -> Result<Row, String> {
    let odd = || format!("odd row {row}");
    let vb = match row.get("vb") {
        None if streams.len() == 1 => 0,
        Some(vb) if streams.len() > 1 => streams.iter().position(|(name, _)| vb == name).ok_or_else(odd)?,
        _ => return Err(odd()),
    };
    let id = row["id"].as_str().ok_or_else(odd)?.to_owned();
    let mut key: Vec<Option<Value>> = row["key"].as_array().ok_or_else(odd)?.iter().cloned().map(Some).collect();
    if key.len() > keys {
        return Err(odd());
    }
    for part in &mut key {
        part.take_if(|value| *value == json!({"$missing": true}));
    }
    key.resize(keys, None);
    let include = match row.get("include") {
        None => None,
        Some(Value::Object(fields)) => Some(fields.clone()),
        Some(_) => return Err(odd()),
    };
    Ok(Row { document: (vb, id), key, include })
}

/// Whether both are the same row; 1 and 1.0 are the same key.
pub fn same(a: &Row, b: &Row) -> bool {
    let keys =
        a.key.len() == b.key.len() && a.key.iter().zip(&b.key).all(|(a, b)| compare(a.as_ref(), b.as_ref()).is_eq());
    a.document == b.document && keys && a.include == b.include
}

/// Says where two answers begin to differ.
pub fn difference(got: &[Row], wanted: &[Row]) -> Option<String> {
    let at = got.iter().zip(wanted).position(|(a, b)| !same(a, b));
    let at = at.or_else(|| (got.len() != wanted.len()).then(|| got.len().min(wanted.len())))?;
    Some(format!(
        "{} rows instead of {}; row {at} is\n  {:?} and should be\n  {:?}",
        got.len(),
        wanted.len(),
        got.get(at),
        wanted.get(at)
    ))
}
