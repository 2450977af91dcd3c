//! The `where` language, key expressions and included fields.
//!
//! # Language
//! - A path names a field: `age`, `address.city`. Segments that are not plain words are quoted, `"first name"` or `` `first name` ``;
//!   a quote inside is doubled. Case counts. The words AND, OR, NOT, IS, IN, BETWEEN, LIKE, ANY, ALL, SOME, NULL, TRUE and FALSE must be quoted.
//! - A key is a path and perhaps `ASC` or `DESC`.
//! - A condition has comparisons (`=` `==` `!=` `<>` `<` `<=` `>` `>=`) between paths and literals, `AND`, `OR`, `NOT`, parentheses,
//!   `IS [NOT] NULL`, `IS [NOT] MISSING`, `[NOT] BETWEEN … AND …`, `[NOT] IN (…)`, and a bare path as truth. Literals are
//!   `NULL`, `TRUE`, `FALSE`, numbers and `'strings'`.
//!
//! Anything else is refused with the position and what it is that is not supported.
//!
//! # Meaning
//! Three-valued, as in SQL; see [`Truth`] and [`CompiledCondition`]. Values compare by the collation. Which texts are numbers, and
//! which values of documents are no values, is a matter of the version of the [language](crate::language::Language).
//!
//! # Layout
//! - `ast`: the syntax and how it is written; `dialect`: how sqlparser reads our words; `parse`: texts into syntax
//! - `eval`: conditions bound to the slots of an evaluator

mod ast;
mod dialect;
mod eval;
mod parse;
#[cfg(test)]
mod tests;

pub use crate::definition::KeyPart;
pub use ast::{CompareOp, Expr, Operand, Path};
pub use eval::{CompiledCondition, Scratch, Truth};
pub use parse::{ExprError, MAX_SEGMENTS, MAX_TEXT, parse_condition, parse_key, parse_path};
