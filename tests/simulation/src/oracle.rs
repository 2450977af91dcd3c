//! What administrators were told, beside what the state says in the end.

use highwater_coordinator::core::Ddl;
use highwater_schemas::{
    ApiError, ErrorCode,
    state::{IndexState, StateContext},
};
use serde_json::Value;
use std::collections::BTreeMap;

/// What is known of something that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Known {
    /// Either way is right.
    Unclear,
    There {
        id: String,
        built: bool,
    },
    Gone,
}

/// What was acknowledged.
#[derive(Debug, Default)]
pub struct Oracle {
    /// (bucket, index): names of indexes are used once.
    indexes: BTreeMap<(String, String), Known>,
    buckets: BTreeMap<String, Known>,
}

impl Oracle {
    /// A request is about to be sent.
    pub fn asked(&mut self, ddl: &Ddl) {
        match ddl {
            Ddl::IndexCreate(d) => {
                self.indexes.insert((d.bucket.clone(), d.name.clone()), Known::Unclear);
                self.buckets.entry(d.bucket.clone()).or_insert(Known::Unclear);
            }
            Ddl::IndexDrop(d) => {
                self.indexes.insert((d.bucket.clone(), d.name.clone()), Known::Unclear);
            }
            Ddl::BucketAdd(d) => {
                let known = self.buckets.entry(d.name.clone()).or_insert(Known::Unclear);
                if *known == Known::Gone {
                    *known = Known::Unclear;
                }
            }
            Ddl::BucketRemove(d) => {
                self.buckets.insert(d.name.clone(), Known::Unclear);
            }
            // Topics have tests of their own.
            Ddl::BucketList(_)
            | Ddl::BucketHistory(_)
            | Ddl::BucketReconcile(_)
            | Ddl::IndexBuild(_)
            | Ddl::TopicCreate(_)
            | Ddl::TopicDelete(_)
            | Ddl::TopicSubscribe(_)
            | Ddl::TopicUnsubscribe(_)
            | Ddl::TopicList(_) => {}
        }
    }

    /// An answer leaves.
    pub fn told(&mut self, ddl: &Ddl, answer: &Result<Value, ApiError>) {
        let there = |id: &str, built| Known::There { id: id.into(), built };
        match (ddl, answer) {
            (_, Err(error)) if error.code == ErrorCode::NoCoordinator => {}
            (Ddl::IndexCreate(d), Ok(value)) => {
                let id = value["index"]["id"].as_str().unwrap_or_default();
                self.indexes.insert((d.bucket.clone(), d.name.clone()), there(id, !d.defer_build));
                self.buckets.insert(d.bucket.clone(), there("", false));
            }
            (Ddl::IndexCreate(d), Err(error)) if error.code != ErrorCode::IndexExists => {
                self.indexes.insert((d.bucket.clone(), d.name.clone()), Known::Gone);
            }
            (Ddl::IndexDrop(d), Ok(_)) => {
                self.indexes.insert((d.bucket.clone(), d.name.clone()), Known::Gone);
            }
            (Ddl::IndexBuild(d), Ok(_)) => {
                for name in &d.names {
                    if let Some(Known::There { built, .. }) = self.indexes.get_mut(&(d.bucket.clone(), name.clone())) {
                        *built = true;
                    }
                }
            }
            (Ddl::BucketAdd(d), Ok(_)) => {
                self.buckets.insert(d.name.clone(), there("", false));
            }
            (Ddl::BucketRemove(d), Ok(_)) => {
                self.buckets.insert(d.name.clone(), Known::Gone);
            }
            _ => {}
        }
    }

    /// Indexes that are there for certain.
    pub fn indexes(&self) -> Vec<(String, String)> {
        self.indexes.iter().filter(|(_, k)| matches!(k, Known::There { .. })).map(|(key, _)| key.clone()).collect()
    }

    /// What the state says against what was acknowledged.
    pub fn contradicted(&self, context: &StateContext) -> Option<String> {
        for ((bucket, name), known) in &self.indexes {
            let index = context.buckets.get(bucket).and_then(|b| b.index_by_name(name));
            match (known, index) {
                (Known::Unclear, _) | (Known::Gone, None) => {}
                (Known::Gone, Some(_)) => return Some(format!("I2: index {name} of {bucket} is there again")),
                (Known::There { .. }, None) => {
                    return Some(format!("I2: index {name} of {bucket} was acknowledged, and is not there"));
                }
                (Known::There { id, built }, Some(index)) => {
                    if index.placed.id != *id {
                        return Some(format!("I2: index {name} of {bucket} is another one"));
                    }
                    if *built && index.state != IndexState::Active {
                        return Some(format!("I2: index {name} of {bucket} was to be built, and is {:?}", index.state));
                    }
                }
            }
        }
        for (name, known) in &self.buckets {
            let there = context.buckets.contains_key(name);
            match known {
                Known::There { .. } if !there => {
                    return Some(format!("I2: bucket {name} was acknowledged and is gone"));
                }
                Known::Gone if there => return Some(format!("I2: bucket {name} is there again")),
                _ => {}
            }
        }
        None
    }
}
