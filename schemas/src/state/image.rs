//! How the StateContext is written: maps whose values name their keys are lists.

use super::{
    bucket::{Index, IndexState, Session},
    context::NodeEntry,
    record::PlacedIndex,
};
use crate::{api::NodeKind, timestamp::Position};
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
        let compiled = image.placed.definition.compile().map_err(|e| format!("index {name}: {e}"))?;
        Ok(Self { placed: image.placed, compiled, state: image.state, topology: image.topology })
    }
}

pub mod indexes {
    use super::{BTreeMap, Deserialize, Deserializer, Index, Serializer};

    pub fn serialize<S: Serializer>(map: &BTreeMap<u32, Index>, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(map.values())
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<u32, Index>, D::Error> {
        Ok(Vec::<Index>::deserialize(d)?.into_iter().map(|i| (i.placed.number, i)).collect())
    }
}

pub mod sessions {
    use super::{BTreeMap, Deserialize, Deserializer, Serializer, Session};

    pub fn serialize<S: Serializer>(map: &BTreeMap<u64, Session>, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(map.values())
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<u64, Session>, D::Error> {
        Ok(Vec::<Session>::deserialize(d)?.into_iter().map(|s| (s.id, s)).collect())
    }
}

pub mod starts {
    use super::{BTreeMap, Deserialize, Deserializer, Position, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Start {
        generation: u64,
        vbuuid: u64,
        x: Position,
    }

    pub fn serialize<S: Serializer>(map: &BTreeMap<u64, (u64, Position)>, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(map.iter().map(|(generation, (vbuuid, x))| Start {
            generation: *generation,
            vbuuid: *vbuuid,
            x: *x,
        }))
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<u64, (u64, Position)>, D::Error> {
        Ok(Vec::<Start>::deserialize(d)?.into_iter().map(|s| (s.generation, (s.vbuuid, s.x))).collect())
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
