//! The abstract syntax of `where`, keys and included fields, and how it is written.

use super::dialect;
use serde_json::Value;
use std::fmt::{self, Write};

/// A path into a document: `address.city` is `["address", "city"]`. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Path(pub Vec<String>);

impl Path {
    /// The name of the field in a row's included fields: the segments with dots between.
    ///
    /// Unlike the written form it quotes only segments that have a dot or a quote themselves, to stay unique.
    pub fn label(&self) -> String {
        let mut label = String::new();
        for (i, segment) in self.0.iter().enumerate() {
            if i > 0 {
                label.push('.');
            }
            if segment.is_empty() || segment.contains(['.', '"']) {
                // Writing into a string cannot fail.
                let _ = write_quoted(&mut label, segment, '"');
            } else {
                label.push_str(segment);
            }
        }
        label
    }
}

/// A value to compare.
#[derive(Debug, Clone, PartialEq)]
pub enum Operand {
    Path(Path),
    /// Null, a boolean, a number or a string.
    Literal(Value),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompareOp {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// A condition over one document, evaluated in three-valued logic.
#[derive(Debug, Clone, PartialEq)]
pub enum Expr {
    Compare {
        op: CompareOp,
        left: Operand,
        right: Operand,
    },
    And(Vec<Expr>),
    Or(Vec<Expr>),
    Not(Box<Expr>),
    /// `IS [NOT] NULL`: a missing value is not null.
    IsNull {
        operand: Operand,
        negated: bool,
    },
    /// `IS [NOT] MISSING`.
    IsMissing {
        operand: Operand,
        negated: bool,
    },
    /// A bare operand: true when it is the boolean true.
    Truth(Operand),
}

fn write_quoted(f: &mut impl Write, text: &str, quote: char) -> fmt::Result {
    f.write_char(quote)?;
    for c in text.chars() {
        if c == quote {
            f.write_char(quote)?;
        }
        f.write_char(c)?;
    }
    f.write_char(quote)
}

/// Parses back to the same path.
impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, segment) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_char('.')?;
            }
            if dialect::is_plain_segment(segment) {
                f.write_str(segment)?;
            } else {
                write_quoted(f, segment, '"')?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.fmt(f),
            Self::Literal(Value::String(text)) => write_quoted(f, text, '\''),
            Self::Literal(value) => value.fmt(f),
        }
    }
}

impl fmt::Display for CompareOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Equal => "=",
            Self::NotEqual => "!=",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
        })
    }
}

/// Parses back to the same condition.
impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = |negated: bool| if negated { "NOT " } else { "" };
        let all = |f: &mut fmt::Formatter<'_>, word: &str, parts: &[Expr]| {
            for (i, part) in parts.iter().enumerate() {
                if i > 0 {
                    write!(f, " {word} ")?;
                }
                match part {
                    Expr::And(_) | Expr::Or(_) => write!(f, "({part})")?,
                    _ => part.fmt(f)?,
                }
            }
            Ok(())
        };
        match self {
            Self::Compare { op, left, right } => write!(f, "{left} {op} {right}"),
            Self::And(parts) => all(f, "AND", parts),
            Self::Or(parts) => all(f, "OR", parts),
            Self::Not(inner) => write!(f, "NOT ({inner})"),
            Self::IsNull { operand, negated } => write!(f, "{operand} IS {}NULL", not(*negated)),
            Self::IsMissing { operand, negated } => write!(f, "{operand} IS {}MISSING", not(*negated)),
            Self::Truth(operand) => operand.fmt(f),
        }
    }
}
