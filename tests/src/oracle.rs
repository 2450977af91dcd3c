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
        self.row_of(name, &serde_json::from_slice(payload).ok()?)
    }

    /// The row of one document, if the index has one.
    pub(crate) fn row_of(&self, name: &Name, document: &Value) -> Option<Row> {
        if let Some((_, holds)) = self.condition
            && holds(document) != Some(true)
        {
            return None;
        }
        let key: Vec<Option<Value>> = self.keys.iter().map(|(path, _)| at(document, path).cloned()).collect();
        if key.first().is_some_and(Option::is_none) {
            return None;
        }
        let field = |path: &&str| Some(((*path).to_owned(), at(document, path)?.clone()));
        let include = (!self.include.is_empty()).then(|| self.include.iter().filter_map(field).collect());
        Some(Row { document: name.clone(), key, include })
    }

    pub(crate) fn order(&self, a: &Row, b: &Row) -> Ordering {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Write;

    fn documents(all: &[(&str, Value)]) -> Documents {
        all.iter().map(|(id, value)| ((0, (*id).to_owned()), value.to_string().into())).collect()
    }

    #[test]
    fn rows_are_chosen_and_ordered_as_the_definition_says() {
        let index = Index {
            keys: vec![("age", true), ("at.city", false)],
            condition: Some(("on = true", |d| Some(d["on"] == true))),
            include: vec!["name"],
            ..Index::default()
        };
        let documents = documents(&[
            ("young", json!({"age": 1, "at": {"city": "A"}, "on": true, "name": "n"})),
            ("b", json!({"age": 7, "at": {"city": "B"}, "on": true})),
            ("a", json!({"age": 7.0, "at": {"city": "B"}, "on": true})),
            ("nowhere", json!({"age": 7, "on": true})),
            ("off", json!({"age": 7, "on": false})),
            ("ageless", json!({"on": true})),
            ("text", json!("no object")),
        ]);
        let rows = index.rows(&documents);
        let ids: Vec<&str> = rows.iter().map(|row| row.document.1.as_str()).collect();
        assert_eq!(ids, ["nowhere", "a", "b", "young"]);
        let streams = [("KV_x".to_owned(), String::new())];
        let row = json!({"id": "young", "key": [1, "A"], "include": {"name": "n"}});
        assert!(same(&read_row(&row, &streams, 2).unwrap(), &rows[3]));
        let row = json!({"id": "nowhere", "key": [7.0], "include": {}});
        assert!(same(&read_row(&row, &streams, 2).unwrap(), &rows[0]));
    }

    #[test]
    fn answers_that_differ_are_told_apart() {
        let index = Index { keys: vec![("n", false)], ..Index::default() };
        let rows = index.rows(&documents(&[("a", json!({"n": 1})), ("b", json!({"n": 2}))]));
        assert_eq!(difference(&rows, &rows), None);
        assert!(difference(&rows[..1], &rows).unwrap().contains("1 rows instead of 2; row 1"));
        assert!(difference(&[rows[1].clone(), rows[0].clone()], &rows).unwrap().contains("row 0"));
    }

    #[test]
    fn a_log_knows_the_documents_at_each_seqno() {
        let write = |id: &str, op| Write { vb: 0, id: id.to_owned(), op };
        let mut log = crate::source::Log::for_streams(1);
        log.add(write("a", crate::source::Op::Put("1".into())), 1);
        log.add(write("a", crate::source::Op::Delete), 4);
        assert_eq!(log.complete(), [1]);
        log.add(write("b", crate::source::Op::Put("2".into())), 2);
        log.add(write("a", crate::source::Op::Put("3".into())), 3);
        assert_eq!(log.complete(), [4]);
        let ids = |log: Documents| {
            log.into_iter().map(|((_, id), payload)| format!("{id}{}", payload[0] - b'0')).collect::<Vec<_>>()
        };
        assert_eq!(ids(log.at(&[0])), [""; 0]);
        assert_eq!(ids(log.at(&[2])), ["a1", "b2"]);
        assert_eq!(ids(log.at(&[3])), ["a3", "b2"]);
        assert_eq!(ids(log.now()), ["b2"]);
    }
}
