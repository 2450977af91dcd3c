//! From a document to its key versions.
//!
//! A document is read once and selectively: a trie of the paths that the indexes use decides which values are looked at, the rest
//! is only checked for being JSON. What is looked at is remembered as a range of the payload, so a document costs no allocation.
//!
//! [`Evaluator`] holds a [`Plan`] per index, the [`Trie`] and the [`Slots`] that it fills.
//!
//! # Invariants
//! - What an index gets depends on the document and on this index alone, never on which other indexes are built at the time:
//!   a catchup session and the mutation path must agree. Hence values are captured as raw text, and text that is JSON by its
//!   grammar but no value (`1e400`, half a surrogate pair) only concerns the indexes that use it: as a key it is a reason not to
//!   index the document, as an included field it is left out.
//! - What a text means is a matter of the version of the language that the index was made with.
//! - Of equal names in one object the last wins, as a whole: what earlier ones held is gone.

#[cfg(test)]
mod tests;

use highwater_schemas::{
    collation::{EncodeError, MAX_DEPTH, MAX_ENTRY_KEY, encode_raw, entry_suffix_len},
    definition::CompiledIndex,
    expr::{CompiledCondition, Path, Scratch, Truth},
    language::Language,
    readable::write_readable,
    wire::{DocOp, KeyVersions, Unindexable},
};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;

/// The longest document that is looked at unless the constructor says otherwise, bytes.
pub const MAX_DOCUMENT: usize = 1024 * 1024;
/// The longest docid, bytes: it must fit a key of the back index.
pub const MAX_DOCID: usize = 1024;
/// From here on the names of a trie's node are searched by bisection.
const LINEAR: usize = 8;

/// One index with its paths bound to slots.
struct Plan {
    number: u32,
    /// Slot and direction of each key.
    keys: Vec<(usize, bool)>,
    condition: Option<CompiledCondition>,
    /// Slot of each included field, and its name as a JSON string with a colon.
    include: Vec<(usize, String)>,
    include_missing: bool,
    language: Language,
}

/// Turns documents into key versions for a set of indexes.
pub struct Evaluator {
    max_document: usize,
    trie: Trie,
    plans: Vec<Plan>,
    slots: Slots,
    scratch: Scratch,
}

impl Evaluator {
    /// For these indexes, each with its number; documents above [`MAX_DOCUMENT`] are not indexed.
    pub fn new(indexes: &[(u32, CompiledIndex)]) -> Self {
        Self::with_max_document(indexes, MAX_DOCUMENT)
    }

    /// As [`Self::new`] with another limit for documents, bytes.
    pub fn with_max_document(indexes: &[(u32, CompiledIndex)], max_document: usize) -> Self {
        let mut trie = Trie::default();
        let plans = indexes
            .iter()
            .map(|(number, index)| Plan {
                number: *number,
                keys: index.keys.iter().map(|k| (trie.insert(&k.path), k.descending)).collect(),
                condition: index
                    .condition
                    .as_ref()
                    .map(|c| CompiledCondition::new(c, index.language, &mut |path| trie.insert(path))),
                include: index
                    .include
                    .iter()
                    .map(|path| (trie.insert(path), format!("{}:", serde_json::Value::String(path.label()))))
                    .collect(),
                include_missing: index.include_missing,
                language: index.language,
            })
            .collect();
        Self { max_document, trie, plans, slots: Slots::default(), scratch: Scratch::default() }
    }

    /// Appends the document with one entry for each index that takes it.
    ///
    /// A document that cannot be read at all is appended as [`DocOp::Unindexable`]. An entry carries a reason if only its index
    /// cannot take the document.
    pub fn evaluate(&mut self, seqno: u64, docid: &str, payload: &[u8], out: &mut KeyVersions) {
        let text = match self.read(docid, payload) {
            Ok(text) => text,
            Err(reason) => return out.push_doc(seqno, docid, DocOp::Unindexable(reason)),
        };
        out.push_doc(seqno, docid, DocOp::Put);
        let slots = &self.slots;
        let lookup = |slot: usize| slots.get(slot, text);
        let room = MAX_ENTRY_KEY.saturating_sub(entry_suffix_len(docid));
        for plan in &self.plans {
            if let Some(condition) = &plan.condition
                && condition.eval(&lookup, &mut self.scratch) != Truth::True
            {
                continue;
            }
            if let Some(&(leading, _)) = plan.keys.first()
                && !plan.include_missing
                && lookup(leading).is_none()
            {
                continue;
            }
            out.push_key(
                plan.number,
                |bytes| write_key(plan, &lookup, room, bytes),
                |bytes| write_include(plan, &lookup, bytes),
            );
        }
    }

    /// Appends the removal of a document.
    pub fn delete(&mut self, seqno: u64, docid: &str, out: &mut KeyVersions) {
        out.push_doc(seqno, docid, DocOp::Delete);
    }

    /// Checks the document and fills the slots.
    fn read<'d>(&mut self, docid: &str, payload: &'d [u8]) -> Result<&'d str, Unindexable> {
        if docid.len() > MAX_DOCID {
            return Err(Unindexable::IdTooLong);
        }
        // Slots hold 32-bit ranges.
        if payload.len() > self.max_document.min(u32::MAX as usize) {
            return Err(Unindexable::TooLarge);
        }
        let text = std::str::from_utf8(payload).map_err(|_| Unindexable::NotJson)?;
        let deep = nests_too_deep(payload);
        self.trie.capture(text, &mut self.slots).map_err(|_| Unindexable::NotJson)?;
        if deep { Err(Unindexable::TooDeep) } else { Ok(text) }
    }
}

fn write_key<'d>(
    plan: &Plan,
    lookup: &impl Fn(usize) -> Option<&'d str>,
    room: usize,
    bytes: &mut Vec<u8>,
) -> Result<(), Unindexable> {
    let start = bytes.len();
    for &(slot, descending) in &plan.keys {
        encode_raw(lookup(slot), descending, plan.language, bytes).map_err(|error| reason(plan.language, error))?;
    }
    if bytes.len() - start > room { Err(Unindexable::KeyTooLong) } else { Ok(()) }
}

fn reason(language: Language, error: EncodeError) -> Unindexable {
    match (language, error) {
        (Language::V0, _) | (_, EncodeError::NotJson) => Unindexable::NotJson,
        (_, EncodeError::Inexact) => Unindexable::InexactNumber,
        (_, EncodeError::NumberRange | EncodeError::HalfPair | EncodeError::ReservedName) => Unindexable::BadValue,
        (_, EncodeError::TooDeep) => Unindexable::TooDeep,
    }
}

/// Nothing for an index without included fields, so that its rows need not carry an empty object.
fn write_include<'d>(plan: &Plan, lookup: &impl Fn(usize) -> Option<&'d str>, bytes: &mut Vec<u8>) {
    if plan.include.is_empty() {
        return;
    }
    let start = bytes.len();
    for (slot, name) in &plan.include {
        if let Some(raw) = lookup(*slot) {
            let before = bytes.len();
            bytes.push(if before == start { b'{' } else { b',' });
            bytes.extend_from_slice(name.as_bytes());
            match plan.language {
                Language::V0 => compact_into(raw.as_bytes(), bytes),
                Language::V1 | Language::V2 if write_readable(raw, bytes).is_err() => bytes.truncate(before),
                Language::V1 | Language::V2 => {}
            }
        }
    }
    if bytes.len() == start {
        bytes.push(b'{');
    }
    bytes.push(b'}');
}

/// Whether arrays and objects nest deeper than [`MAX_DEPTH`]. Exact for JSON; for anything else the answer does not matter.
fn nests_too_deep(payload: &[u8]) -> bool {
    // Few documents have that many brackets in all, and counting them is quick.
    let brackets = payload.iter().filter(|&&b| b == b'[' || b == b'{').count();
    if brackets <= MAX_DEPTH {
        return false;
    }
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for &byte in payload {
        if in_string {
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return true;
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// Appends valid JSON text without white space outside of strings.
fn compact_into(raw: &[u8], out: &mut Vec<u8>) {
    // Scalars have none, and most included fields are scalars.
    if !matches!(raw.first(), Some(b'[' | b'{')) || !raw.iter().any(u8::is_ascii_whitespace) {
        out.extend_from_slice(raw);
        return;
    }
    let (mut in_string, mut escaped) = (false, false);
    for &byte in raw {
        if in_string {
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
        } else if byte == b'"' {
            in_string = true;
        } else if matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
            continue;
        }
        out.push(byte);
    }
}

#[derive(Default)]
struct Node {
    /// Sorted by name.
    children: Vec<(String, usize)>,
}

/// The needed paths. A node's number is the slot of its value.
struct Trie {
    /// The first is the root.
    nodes: Vec<Node>,
}

impl Default for Trie {
    fn default() -> Self {
        Self { nodes: vec![Node::default()] }
    }
}

/// Where in the payload the value of each node lies. Kept from document to document for its memory.
#[derive(Default)]
struct Slots {
    ranges: Vec<Option<(u32, u32)>>,
}

impl Slots {
    /// The JSON text of a slot's value; `text` is the document that was captured last.
    fn get<'d>(&self, slot: usize, text: &'d str) -> Option<&'d str> {
        let (start, end) = (*self.ranges.get(slot)?)?;
        text.get(start as usize..end as usize)
    }

    fn reset(&mut self, n: usize) {
        self.ranges.clear();
        self.ranges.resize(n, None);
    }

    fn set(&mut self, slot: usize, raw: &str, base: usize) {
        let start = raw.as_ptr() as usize - base;
        self.ranges[slot] = Some((start as u32, (start + raw.len()) as u32));
    }
}

impl Trie {
    /// Adds a path and answers its slot.
    fn insert(&mut self, path: &Path) -> usize {
        let mut at = 0;
        for segment in &path.0 {
            let next = self.nodes.len();
            let children = &mut self.nodes[at].children;
            at = match children.binary_search_by(|(name, _)| name.as_str().cmp(segment)) {
                Ok(i) => children[i].1,
                Err(i) => {
                    children.insert(i, (segment.clone(), next));
                    self.nodes.push(Node::default());
                    next
                }
            };
        }
        at
    }

    fn child(&self, node: usize, name: &str) -> Option<usize> {
        let children = &self.nodes[node].children;
        if children.len() <= LINEAR {
            return children.iter().find(|(n, _)| n == name).map(|c| c.1);
        }
        children.binary_search_by(|(n, _)| n.as_str().cmp(name)).ok().map(|i| children[i].1)
    }

    /// The child that a name, given as the JSON string of the document, leads to.
    fn child_of_raw(&self, node: usize, raw: &str) -> Option<usize> {
        let plain = raw.strip_prefix('"')?.strip_suffix('"')?;
        if plain.contains('\\') {
            // Half a surrogate pair is no name that a path could have.
            return self.child(node, &serde_json::from_str::<String>(raw).ok()?);
        }
        self.child(node, plain)
    }

    /// Checks that `text` is one JSON value, and fills the slots of the paths that it has.
    fn capture(&self, text: &str, slots: &mut Slots) -> Result<(), serde_json::Error> {
        slots.reset(self.nodes.len());
        let mut json = serde_json::Deserializer::from_str(text);
        let is_object = text.trim_ascii_start().starts_with('{');
        if is_object && !self.nodes[0].children.is_empty() {
            json.deserialize_map(self.object(0, text.as_ptr() as usize, slots))?;
            json.end()?;
            self.descend(0, text, slots)
        } else {
            // What is not an object has no fields.
            json.deserialize_ignored_any(IgnoredAny)?;
            json.end()
        }
    }

    fn object<'a>(&'a self, node: usize, base: usize, slots: &'a mut Slots) -> ObjectVisitor<'a> {
        ObjectVisitor { trie: self, node, base, slots }
    }

    /// Goes into the children's values, after the whole object has been read: of equal names the last has won by then.
    ///
    /// As deep as the paths are, which the parser of expressions bounds.
    fn descend(&self, node: usize, text: &str, slots: &mut Slots) -> Result<(), serde_json::Error> {
        for &(_, child) in &self.nodes[node].children {
            if self.nodes[child].children.is_empty() {
                continue;
            }
            if let Some(raw) = slots.get(child, text)
                && raw.starts_with('{')
            {
                let mut json = serde_json::Deserializer::from_str(raw);
                json.deserialize_map(self.object(child, text.as_ptr() as usize, slots))?;
                self.descend(child, text, slots)?;
            }
        }
        Ok(())
    }
}

struct ObjectVisitor<'a> {
    trie: &'a Trie,
    node: usize,
    /// Address of the document's text.
    base: usize,
    slots: &'a mut Slots,
}

impl<'de> Visitor<'de> for ObjectVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        // Names are captured as they are too: unescaping one that no path has could fail.
        while let Some(name) = map.next_key::<&RawValue>()? {
            match self.trie.child_of_raw(self.node, name.get()) {
                Some(child) => {
                    let value: &RawValue = map.next_value()?;
                    self.slots.set(child, value.get(), self.base);
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}
