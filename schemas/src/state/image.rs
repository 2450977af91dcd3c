//! How the StateContext is written: maps whose values name their keys are lists; and how a part of it is.

use super::{
    bucket::{Index, IndexState, RangeStart, Session},
    context::{NodeEntry, StateContext},
    record::PlacedIndex,
};
use crate::api::NodeKind;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;

/// An index without what is compiled from its definition.
#[derive(Clone, Serialize, Deserialize)]
pub struct IndexImage {
    placed: PlacedIndex,
    state: IndexState,
    topology: u64,
}

impl From<Index> for IndexImage {
    fn from(index: Index) -> Self {
        Self { placed: index.placed, state: index.state, topology: index.topology }
    }
}

impl TryFrom<IndexImage> for Index {
    type Error = String;

    fn try_from(image: IndexImage) -> Result<Self, String> {
        let name = &image.placed.definition.name;
        let compiled = image.placed.compile().map_err(|e| format!("index {name}: {e}"))?;
        Ok(Self { placed: image.placed, compiled, state: image.state, topology: image.topology })
    }
}

impl StateContext {
    /// The same without what it says of other buckets.
    #[must_use]
    pub fn only(&self, bucket: &str) -> Self {
        let found = self.buckets.get_key_value(bucket);
        Self {
            incarnation: self.incarnation,
            term: self.term,
            version: self.version,
            hash: self.hash.clone(),
            coordinator: self.coordinator.clone(),
            nodes: self.nodes.clone(),
            buckets: found.into_iter().map(|(name, bucket)| (name.clone(), bucket.clone())).collect(),
            next_index: self.next_index,
            next_session: self.next_session,
        }
    }
}

/// What names its own key.
pub trait Named {
    type Key: Ord;
    fn key(&self) -> Self::Key;
}

impl Named for Index {
    type Key = u32;
    fn key(&self) -> u32 {
        self.placed.number
    }
}

impl Named for Session {
    type Key = u64;
    fn key(&self) -> u64 {
        self.id
    }
}

pub mod listed {
    use super::{BTreeMap, Deserialize, Deserializer, Named, Serialize, Serializer};

    pub fn serialize<T, S>(map: &BTreeMap<T::Key, T>, s: S) -> Result<S::Ok, S::Error>
    where
        T: Named + Serialize,
        S: Serializer,
    {
        s.collect_seq(map.values())
    }
    pub fn deserialize<'de, T, D>(d: D) -> Result<BTreeMap<T::Key, T>, D::Error>
    where
        T: Named + Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Ok(Vec::<T>::deserialize(d)?.into_iter().map(|entry| (entry.key(), entry)).collect())
    }
}

pub mod starts {
    use super::{BTreeMap, Deserialize, Deserializer, RangeStart, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Start {
        generation: u64,
        #[serde(flatten)]
        start: RangeStart,
    }

    pub fn serialize<S: Serializer>(map: &BTreeMap<u64, RangeStart>, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(map.iter().map(|(generation, start)| Start { generation: *generation, start: *start }))
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<u64, RangeStart>, D::Error> {
        Ok(Vec::<Start>::deserialize(d)?.into_iter().map(|s| (s.generation, s.start)).collect())
    }
}

pub mod nodes {
    use super::{BTreeMap, Deserialize, Deserializer, NodeEntry, NodeKind, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Registered {
        kind: NodeKind,
        node: String,
        #[serde(flatten)]
        entry: NodeEntry,
    }

    pub fn serialize<S: Serializer>(map: &BTreeMap<(NodeKind, String), NodeEntry>, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(map.iter().map(|((kind, node), entry)| Registered {
            kind: *kind,
            node: node.clone(),
            entry: entry.clone(),
        }))
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<(NodeKind, String), NodeEntry>, D::Error> {
        Ok(Vec::<Registered>::deserialize(d)?.into_iter().map(|n| ((n.kind, n.node), n.entry)).collect())
    }
}
