//! Conditions over documents.
//!
//! Values compare by their key encoding, so a condition and a span agree about order, and nothing is allocated per document.

use super::ast::{CompareOp, Expr, Operand, Path};
use crate::{
    collation::{JsonType, encode_operand, encode_value},
    language::Language,
    readable::is_readable,
};
use std::cmp::Ordering;

/// The outcome of a condition. Only documents for which it is true are in an index.
///
/// `AND` is false if a part is false, else unknown if a part is unknown; `OR` is true if a part is true, else unknown if a part
/// is unknown; `NOT` leaves unknown unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Truth {
    True,
    False,
    Unknown,
}

impl From<bool> for Truth {
    fn from(value: bool) -> Self {
        if value { Self::True } else { Self::False }
    }
}

/// Buffers that [`CompiledCondition::eval`] reuses.
#[derive(Debug, Default)]
pub struct Scratch {
    left: Vec<u8>,
    right: Vec<u8>,
}

#[derive(Debug, Clone)]
enum Term {
    /// Number of a slot.
    Slot(usize),
    /// Encoded, and as JSON text.
    Literal(Vec<u8>, String),
}

#[derive(Debug, Clone)]
enum Node {
    Compare { op: CompareOp, left: Term, right: Term },
    And(Vec<Node>),
    Or(Vec<Node>),
    Not(Box<Node>),
    IsNull { term: Term, negated: bool },
    IsMissing { term: Term, negated: bool },
    Truth(Term),
}

/// A condition whose paths are bound to numbered slots.
///
/// - A comparison with null or missing is unknown.
/// - Values of different types are not equal (`=` false, `!=` true), and which is the lesser is unknown.
/// - Values of one type compare by the collation: false before true, strings by bytes, arrays and objects too.
/// - `IS NULL` and `IS MISSING` are never unknown; a missing value is not null.
/// - A bare path is true if the value is true, unknown if it is null or missing, else false.
/// - An inexact number, alone or in an array or object, is of a type, but comparisons with it, and it as a bare path, are unknown.
/// - A value that not every reader of JSON takes (a number beyond f64, half a surrogate pair, a name that serde_json keeps for
///   itself, nesting beyond [`crate::collation::MAX_SHOWN_DEPTH`]) counts as missing. In [`Language::V0`] only comparisons with it are unknown.
#[derive(Debug, Clone)]
pub struct CompiledCondition {
    root: Node,
    language: Language,
}

impl CompiledCondition {
    /// Binds a condition, which was read by the rules of the same version; `slot_of` numbers the paths.
    pub fn new(expr: &Expr, language: Language, slot_of: &mut dyn FnMut(&Path) -> usize) -> Self {
        Self { root: bind(expr, slot_of), language }
    }

    /// Evaluates over a document: `lookup` answers the JSON text of a slot, without white space around it.
    pub fn eval<'d>(&self, lookup: &impl Fn(usize) -> Option<&'d str>, scratch: &mut Scratch) -> Truth {
        Document { lookup, language: self.language }.eval(&self.root, scratch)
    }
}

fn bind(expr: &Expr, slot_of: &mut dyn FnMut(&Path) -> usize) -> Node {
    let mut term = |operand: &Operand| match operand {
        Operand::Path(path) => Term::Slot(slot_of(path)),
        Operand::Literal(value) => {
            let mut bytes = Vec::new();
            encode_value(Some(value), false, &mut bytes);
            Term::Literal(bytes, value.to_string())
        }
    };
    match expr {
        Expr::Compare { op, left, right } => Node::Compare { op: *op, left: term(left), right: term(right) },
        Expr::IsNull { operand, negated } => Node::IsNull { term: term(operand), negated: *negated },
        Expr::IsMissing { operand, negated } => Node::IsMissing { term: term(operand), negated: *negated },
        Expr::Truth(operand) => Node::Truth(term(operand)),
        Expr::Not(inner) => Node::Not(Box::new(bind(inner, slot_of))),
        Expr::And(parts) => Node::And(parts.iter().map(|p| bind(p, slot_of)).collect()),
        Expr::Or(parts) => Node::Or(parts.iter().map(|p| bind(p, slot_of)).collect()),
    }
}

/// A document to evaluate over.
struct Document<'f, F> {
    lookup: &'f F,
    language: Language,
}

impl<'d, F: Fn(usize) -> Option<&'d str>> Document<'_, F> {
    fn eval(&self, node: &Node, scratch: &mut Scratch) -> Truth {
        match node {
            Node::Compare { op, left, right } => self.compare(*op, left, right, scratch),
            Node::And(parts) => {
                let mut all = Truth::True;
                for part in parts {
                    match self.eval(part, scratch) {
                        Truth::False => return Truth::False,
                        Truth::Unknown => all = Truth::Unknown,
                        Truth::True => {}
                    }
                }
                all
            }
            Node::Or(parts) => {
                let mut any = Truth::False;
                for part in parts {
                    match self.eval(part, scratch) {
                        Truth::True => return Truth::True,
                        Truth::Unknown => any = Truth::Unknown,
                        Truth::False => {}
                    }
                }
                any
            }
            Node::Not(inner) => match self.eval(inner, scratch) {
                Truth::True => Truth::False,
                Truth::False => Truth::True,
                Truth::Unknown => Truth::Unknown,
            },
            Node::IsNull { term, negated } => Truth::from((self.text(term) == Some("null")) != *negated),
            Node::IsMissing { term, negated } => Truth::from(self.is_missing(term, scratch) != *negated),
            Node::Truth(term) => match self.text(term) {
                None | Some("null") => Truth::Unknown,
                Some("true") => Truth::True,
                Some(_) if self.language == Language::V0 => Truth::False,
                Some(_) => self.encoded(term, &mut scratch.left).map_or(Truth::Unknown, |_| Truth::False),
            },
        }
    }

    fn is_missing(&self, term: &Term, scratch: &mut Scratch) -> bool {
        match (self.text(term), self.language) {
            (None, _) => true,
            (Some(_), Language::V0) => false,
            (Some(text), Language::V1 | Language::V2) => !is_readable(text, &mut scratch.left),
        }
    }

    fn text<'a>(&self, term: &'a Term) -> Option<&'a str>
    where
        'd: 'a,
    {
        match term {
            Term::Slot(slot) => (self.lookup)(*slot),
            Term::Literal(_, text) => Some(text),
        }
    }

    fn encoded<'a>(&self, term: &'a Term, buffer: &'a mut Vec<u8>) -> Option<&'a [u8]> {
        match term {
            Term::Literal(bytes, _) => Some(bytes),
            Term::Slot(slot) => {
                buffer.clear();
                encode_operand((self.lookup)(*slot)?, self.language, buffer).ok()?;
                Some(buffer)
            }
        }
    }

    fn compare(&self, op: CompareOp, left: &Term, right: &Term, scratch: &mut Scratch) -> Truth {
        let (Some(left), Some(right)) =
            (self.encoded(left, &mut scratch.left), self.encoded(right, &mut scratch.right))
        else {
            return Truth::Unknown;
        };
        let (Some(left_type), Some(right_type)) = (JsonType::of(left), JsonType::of(right)) else {
            return Truth::Unknown;
        };
        if left_type != right_type {
            return match op {
                CompareOp::Equal => Truth::False,
                CompareOp::NotEqual => Truth::True,
                _ => Truth::Unknown,
            };
        }
        let order = left.cmp(right);
        Truth::from(match op {
            CompareOp::Equal => order == Ordering::Equal,
            CompareOp::NotEqual => order != Ordering::Equal,
            CompareOp::Less => order == Ordering::Less,
            CompareOp::LessOrEqual => order != Ordering::Greater,
            CompareOp::Greater => order == Ordering::Greater,
            CompareOp::GreaterOrEqual => order != Ordering::Less,
        })
    }
}
