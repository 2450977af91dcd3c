//! Indexes and what they must answer, computed from the documents in a plain loop.

use crate::client::{Highwater, Refused};
use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};
use std::{
    cmp::Reverse,
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Documents by id.
pub type Documents = BTreeMap<String, Value>;

/// Rows of a page: few enough that a scan takes several.
const PAGE: u64 = 5_000;
const SCAN_TIMEOUT_MS: u64 = 5_000;
const POLL: Duration = Duration::from_millis(200);

/// A component of a key; the order of an index is that of its entries' parts, then of the docids.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Text(String),
    Number(u64),
    Falling(Reverse<u64>),
}

impl Part {
    fn value(&self) -> Value {
        match self {
            Self::Text(text) => json!(text),
            Self::Number(number) | Self::Falling(Reverse(number)) => json!(number),
        }
    }
}

/// An index of the test.
pub struct Index {
    pub bucket: &'static str,
    pub name: &'static str,
    pub keys: &'static [&'static str],
    pub condition: Option<&'static str>,
    pub include: &'static [&'static str],
    pub partitions: u32,
    /// The key of a document's entry; none: it has no entry.
    pub entry: fn(&Value) -> Option<Vec<Part>>,
}

impl Index {
    /// Its definition for `hw.admin.index.create`.
    pub fn definition(&self) -> Value {
        let mut definition = json!({"bucket": self.bucket, "name": self.name, "keys": self.keys,
            "include": self.include, "num_partition": self.partitions});
        if let Some(condition) = self.condition {
            definition["where"] = condition.into();
        }
        definition
    }

    /// Its rows in their order.
    fn expected(&self, documents: &Documents) -> Vec<Value> {
        let mut entries: Vec<(Vec<Part>, &String, &Value)> = documents
            .iter()
            .filter_map(|(id, document)| (self.entry)(document).map(|key| (key, id, document)))
            .collect();
        entries.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| a.1.cmp(b.1)));
        let row = |(key, id, document): &(Vec<Part>, &String, &Value)| {
            let key: Vec<Value> = key.iter().map(Part::value).collect();
            let mut row = json!({"id": id, "key": key});
            if !self.include.is_empty() {
                row["include"] = self.include.iter().map(|name| (*name, document[name].clone())).collect();
            }
            row
        };
        entries.iter().map(row).collect()
    }

    /// Waits until it is active.
    pub async fn wait_active(&self, highwater: &Highwater, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        loop {
            // Nobody may answer for the moment that a master changes.
            let indexes = highwater.indexes(self.bucket).await;
            let found = indexes.iter().flatten().find(|index| index["name"] == self.name);
            match found.and_then(|index| index["state"].as_str()) {
                Some("active") => return Ok(()),
                Some("error") => bail!("index {} failed: {indexes:?}", self.name),
                _ if Instant::now() > deadline => {
                    bail!("index {} was not active within {} s: {indexes:?}", self.name, within.as_secs())
                }
                _ => tokio::time::sleep(POLL).await,
            }
        }
    }

    /// Reads the whole index at `request_plus`: one consistent state with everything that was acknowledged before.
    pub async fn scan(&self, highwater: &Highwater) -> Result<Vec<Value>, Refused> {
        let mut request = json!({"bucket": self.bucket, "index": self.name, "page_size": PAGE,
            "consistency": "request_plus", "timeout_ms": SCAN_TIMEOUT_MS});
        let mut rows = Vec::new();
        loop {
            let mut page = highwater.ask("hw.query.scan", &request).await?;
            if let Value::Array(more) = page["rows"].take() {
                rows.extend(more);
            }
            match page["page_token"].take() {
                Value::Null => return Ok(rows),
                token => request["page_token"] = token,
            }
        }
    }

    /// Compares all of its rows with the documents, trying again while it is refused and that may help. Wrong rows fail at once.
    pub async fn check(&self, highwater: &Highwater, documents: &Documents, within: Duration) -> Result<usize> {
        let deadline = Instant::now() + within;
        let rows = loop {
            match self.scan(highwater).await {
                Ok(rows) => break rows,
                Err(refused) if refused.retry && Instant::now() < deadline => tokio::time::sleep(POLL).await,
                Err(refused) => bail!("index {} answers {}", self.name, refused.text),
            }
        };
        self.compare(&rows, &self.expected(documents))?;
        Ok(rows.len())
    }

    fn compare(&self, rows: &[Value], expected: &[Value]) -> Result<()> {
        for (number, (row, wanted)) in rows.iter().zip(expected).enumerate() {
            let same = row["id"] == wanted["id"] && row["key"] == wanted["key"] && includes(row) == includes(wanted);
            ensure!(same, "index {}: row {number} is {row}, the documents say {wanted}", self.name);
        }
        let (found, wanted) = (rows.len(), expected.len());
        ensure!(found == wanted, "index {} has {found} rows, the documents say {wanted}", self.name);
        Ok(())
    }
}

/// Absent and null are the same to a reader.
fn includes(row: &Value) -> Option<&serde_json::Map<String, Value>> {
    row["include"].as_object().filter(|fields| !fields.is_empty())
}

/// A text of a document.
pub fn text(document: &Value, field: &str) -> Option<Part> {
    document[field].as_str().map(|text| Part::Text(text.to_owned()))
}

/// A number of a document, rising.
pub fn number(document: &Value, field: &str) -> Option<Part> {
    document[field].as_u64().map(Part::Number)
}

/// A number of a document, the largest first.
pub fn falling(document: &Value, field: &str) -> Option<Part> {
    document[field].as_u64().map(|number| Part::Falling(Reverse(number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: Index = Index {
        bucket: "b",
        name: "i",
        keys: &["a", "n DESC"],
        condition: None,
        include: &["x"],
        partitions: 1,
        entry: |d| Some(vec![text(d, "a")?, falling(d, "n")?]),
    };

    #[test]
    fn rows_are_expected_in_the_order_of_the_index() {
        let document = |a: &str, n: u64| json!({"a": a, "n": n, "x": true});
        let documents = Documents::from([
            ("1".into(), document("q", 1)),
            ("2".into(), document("p", 1)),
            ("3".into(), document("p", 2)),
            ("4".into(), document("p", 1)),
            ("5".into(), json!({"n": 3})),
        ]);
        let rows = INDEX.expected(&documents);
        let ids: Vec<&str> = rows.iter().filter_map(|row| row["id"].as_str()).collect();
        assert_eq!(ids, ["3", "2", "4", "1"]);
        assert_eq!(rows[0], json!({"id": "3", "key": ["p", 2], "include": {"x": true}}));
        assert!(INDEX.compare(&rows, &rows).is_ok());
        assert!(INDEX.compare(&rows[1..], &rows).is_err());
        assert!(INDEX.compare(&rows[..3], &rows).is_err());
    }
}
