//! Conditions over documents.
//!
//! Values compare by their key encoding, so a condition and a span agree about order, and nothing is allocated per document.

use super::ast::{CompareOp, Expr, Operand, Path};
use crate::collation::{JsonType, encode_raw, encode_value};
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
/// - A value that cannot be encoded (a number beyond f64, half a surrogate pair) is of no type: comparisons with it are unknown.
#[derive(Debug, Clone)]
pub struct CompiledCondition {
    root: Node,
}

impl CompiledCondition {
    /// Binds a condition; `slot_of` numbers the paths.
    pub fn new(expr: &Expr, slot_of: &mut dyn FnMut(&Path) -> usize) -> Self {
        Self { root: bind(expr, slot_of) }
    }

    /// Evaluates over a document: `lookup` answers the JSON text of a slot, without white space around it.
    pub fn eval<'d>(&self, lookup: &impl Fn(usize) -> Option<&'d str>, scratch: &mut Scratch) -> Truth {
        eval(&self.root, lookup, scratch)
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

fn eval<'d>(node: &Node, lookup: &impl Fn(usize) -> Option<&'d str>, scratch: &mut Scratch) -> Truth {
    match node {
        Node::Compare { op, left, right } => compare(*op, left, right, lookup, scratch),
        Node::And(parts) => {
            let mut all = Truth::True;
            for part in parts {
                match eval(part, lookup, scratch) {
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
                match eval(part, lookup, scratch) {
                    Truth::True => return Truth::True,
                    Truth::Unknown => any = Truth::Unknown,
                    Truth::False => {}
                }
            }
            any
        }
        Node::Not(inner) => match eval(inner, lookup, scratch) {
            Truth::True => Truth::False,
            Truth::False => Truth::True,
            Truth::Unknown => Truth::Unknown,
        },
        Node::IsNull { term, negated } => Truth::from((text(term, lookup) == Some("null")) != *negated),
        Node::IsMissing { term, negated } => Truth::from(text(term, lookup).is_none() != *negated),
        Node::Truth(term) => match text(term, lookup) {
            None | Some("null") => Truth::Unknown,
            Some(value) => Truth::from(value == "true"),
        },
    }
}

fn text<'a, 'd: 'a>(term: &'a Term, lookup: &impl Fn(usize) -> Option<&'d str>) -> Option<&'a str> {
    match term {
        Term::Slot(slot) => lookup(*slot),
        Term::Literal(_, text) => Some(text),
    }
}

fn encoded<'a, 'd>(
    term: &'a Term,
    lookup: &impl Fn(usize) -> Option<&'d str>,
    buffer: &'a mut Vec<u8>,
) -> Option<&'a [u8]> {
    match term {
        Term::Literal(bytes, _) => Some(bytes),
        Term::Slot(slot) => {
            buffer.clear();
            encode_raw(Some(lookup(*slot)?), false, buffer).ok()?;
            Some(buffer)
        }
    }
}

fn compare<'d>(
    op: CompareOp,
    left: &Term,
    right: &Term,
    lookup: &impl Fn(usize) -> Option<&'d str>,
    scratch: &mut Scratch,
) -> Truth {
    let (Some(left), Some(right)) =
        (encoded(left, lookup, &mut scratch.left), encoded(right, lookup, &mut scratch.right))
    else {
        return Truth::Unknown;
    };
    let (Some(left_type), Some(right_type)) = (JsonType::of(left), JsonType::of(right)) else { return Truth::Unknown };
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
