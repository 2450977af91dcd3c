//! Texts into syntax: sqlparser's tree, as [`super::dialect`] lets it be, into ours.

use super::{
    ast::{CompareOp, Expr, Operand, Path},
    dialect::{self, ConditionDialect, IS_MISSING},
};
use crate::{
    collation::{EncodeError, ExactNumber, read_number},
    definition::KeyPart,
    error::{ApiError, ErrorCode},
    language::Language,
};
use serde_json::Value as Json;
use sqlparser::{
    ast::{BinaryOperator as Op, Expr as Sql, Ident, Spanned, UnaryOperator, Value as SqlValue},
    keywords::Keyword,
    parser::{Parser, ParserError},
    tokenizer::{Location, Token, Tokenizer, Whitespace},
};

/// The longest expression, bytes.
pub const MAX_TEXT: usize = 8 * 1024;
/// The most segments of a path.
pub const MAX_SEGMENTS: usize = 32;
/// How deep parentheses and NOTs may nest; bounds the stack.
const MAX_NESTING: usize = 50;

/// What is wrong with an expression, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} at column {column}{}", if *line > 1 { format!(" of line {line}") } else { String::new() })]
pub struct ExprError {
    pub message: String,
    /// From 1.
    pub line: u64,
    /// In characters, from 1.
    pub column: u64,
}

impl ExprError {
    /// The error of a request in whose `field` the expression stands.
    #[must_use]
    pub fn in_field(self, field: &str) -> ApiError {
        ApiError::new(ErrorCode::BadExpression, format!("{field}: {self}"))
    }

    fn at(message: impl Into<String>, location: Location) -> Self {
        Self { message: message.into(), line: location.line, column: location.column }
    }
}

/// Reads a key: a path, ascending unless `DESC` follows.
pub fn parse_key(text: &str) -> Result<KeyPart, ExprError> {
    read(text, Language::NEWEST, |parser, _| {
        let segments = dialect::path(parser)?;
        let descending = match parser.parse_one_of_keywords(&[Keyword::ASC, Keyword::DESC]) {
            Some(keyword) => keyword == Keyword::DESC,
            None => false,
        };
        Ok(path_of(segments).map(|path| KeyPart { path, descending }))
    })
}

/// Reads a path.
pub fn parse_path(text: &str) -> Result<Path, ExprError> {
    read(text, Language::NEWEST, |parser, _| Ok(path_of(dialect::path(parser)?)))
}

/// Reads a condition; numbers by the rules of a version of the language.
pub fn parse_condition(text: &str, language: Language) -> Result<Expr, ExprError> {
    read(text, language, |parser, _| Ok(Reader { language }.condition(&parser.parse_expr()?)))
}

/// Tokenizes, lets `rule` read, and sees to it that nothing is left and that every error has its place.
fn read<T>(
    text: &str,
    language: Language,
    rule: impl FnOnce(&mut Parser, Location) -> Result<Result<T, ExprError>, ParserError>,
) -> Result<T, ExprError> {
    if text.len() > MAX_TEXT {
        let message = format!("the expression has {} bytes; at most {MAX_TEXT} are taken", text.len());
        return Err(ExprError::at(message, Location { line: 1, column: 1 }));
    }
    let end = end_of(text);
    let dialect = ConditionDialect { language };
    let tokens = Tokenizer::new(&dialect, text)
        .tokenize_with_location()
        .map_err(|e| ExprError::at(e.message, known(e.location, end)))?;
    let comment = |t: &Token| {
        matches!(t, Token::Whitespace(Whitespace::SingleLineComment { .. } | Whitespace::MultiLineComment(_)))
    };
    if let Some(found) = tokens.iter().find(|t| comment(&t.token)) {
        return Err(ExprError::at("comments are not supported", found.span.start));
    }
    let mut parser = Parser::new(&dialect).with_recursion_limit(MAX_NESTING).with_tokens_with_locations(tokens);
    let value = match rule(&mut parser, end) {
        Ok(value) => value?,
        Err(e) => return Err(located(e, known(parser.get_current_token().span.start, end), end)),
    };
    let rest = parser.peek_token();
    if rest.token == Token::EOF {
        Ok(value)
    } else {
        Err(ExprError::at(format!("unexpected {}", rest.token), known(rest.span.start, end)))
    }
}

/// Where the text ends: the place of what is expected but not there.
fn end_of(text: &str) -> Location {
    let last = text.rsplit('\n').next().unwrap_or_default();
    Location { line: 1 + text.matches('\n').count() as u64, column: 1 + last.chars().count() as u64 }
}

/// sqlparser gives the end of input, and some of its nodes, the place 0:0.
fn known(location: Location, otherwise: Location) -> Location {
    if location.line == 0 || location.column == 0 { otherwise } else { location }
}

/// Takes the place out of a message of sqlparser.
fn located(error: ParserError, current: Location, end: Location) -> ExprError {
    let message = match error {
        ParserError::RecursionLimitExceeded => {
            return ExprError::at(format!("nested deeper than {MAX_NESTING}"), current);
        }
        ParserError::ParserError(message) | ParserError::TokenizerError(message) => message,
    };
    let place = message.rsplit_once(" at Line: ").and_then(|(said, place)| {
        let (line, column) = place.split_once(", Column: ")?;
        let location = Location { line: line.parse().ok()?, column: column.parse().ok()? };
        Some((said.to_string(), location))
    });
    // Our own errors at the end of input carry no place, and sqlparser calls that end EOF.
    let (said, location) = place.unwrap_or_else(|| {
        let at_end = message.ends_with("the end") || message.ends_with("EOF");
        (message, if at_end { end } else { current })
    });
    ExprError::at(said.replace("found: EOF", "found: the end"), known(location, end))
}

fn path_of(segments: Vec<Ident>) -> Result<Path, ExprError> {
    match segments.get(MAX_SEGMENTS) {
        Some(over) => Err(ExprError::at(format!("a path has at most {MAX_SEGMENTS} segments"), over.span.start)),
        None => Ok(Path(segments.into_iter().map(|s| s.value).collect())),
    }
}

fn refuse<T>(what: &str, node: &Sql) -> Result<T, ExprError> {
    let start = known(node.span().start, Location { line: 1, column: 1 });
    Err(ExprError::at(format!("{what} not supported in this version"), start))
}

/// Turns sqlparser's tree into ours.
#[derive(Clone, Copy)]
struct Reader {
    language: Language,
}

impl Reader {
    /// Recursion is bounded by the parser's; chains of AND and OR, which it does not bound, are walked in a loop.
    fn condition(self, sql: &Sql) -> Result<Expr, ExprError> {
        Ok(match sql {
            Sql::Nested(inner) => self.condition(inner)?,
            Sql::UnaryOp { op: UnaryOperator::Not, expr } => Expr::Not(Box::new(self.condition(expr)?)),
            Sql::BinaryOp { op: op @ (Op::And | Op::Or), .. } => {
                let parts = self.chain(sql, op)?;
                if *op == Op::And { Expr::And(parts) } else { Expr::Or(parts) }
            }
            Sql::BinaryOp { left, op: Op::Custom(name), right } if name == IS_MISSING => {
                let negated = matches!(self.operand(right)?, Operand::Literal(Json::Bool(true)));
                Expr::IsMissing { operand: self.operand(left)?, negated }
            }
            Sql::BinaryOp { left, op, right } => {
                let Some(op) = compare_op(op) else { return refuse(&format!("the operator {op} is"), sql) };
                Expr::Compare { op, left: self.operand(left)?, right: self.operand(right)? }
            }
            Sql::IsNull(inner) => Expr::IsNull { operand: self.operand(inner)?, negated: false },
            Sql::IsNotNull(inner) => Expr::IsNull { operand: self.operand(inner)?, negated: true },
            Sql::Between { expr, negated, low, high } => {
                let value = self.operand(expr)?;
                negate(
                    *negated,
                    Expr::And(vec![
                        Expr::Compare { op: CompareOp::GreaterOrEqual, left: value.clone(), right: self.operand(low)? },
                        Expr::Compare { op: CompareOp::LessOrEqual, left: value, right: self.operand(high)? },
                    ]),
                )
            }
            Sql::InList { expr, list, negated } => {
                let value = self.operand(expr)?;
                let equal =
                    |item| Ok(Expr::Compare { op: CompareOp::Equal, left: value.clone(), right: self.operand(item)? });
                let mut any = list.iter().map(equal).collect::<Result<Vec<_>, _>>()?;
                negate(*negated, if any.len() == 1 { any.remove(0) } else { Expr::Or(any) })
            }
            Sql::CompoundIdentifier(_) | Sql::Value(_) => Expr::Truth(self.operand(sql)?),
            other => return refuse(&name_of(other), other),
        })
    }

    /// The parts of `a AND b AND c`, which sqlparser nests to the left.
    fn chain(self, sql: &Sql, chained: &Op) -> Result<Vec<Expr>, ExprError> {
        let mut parts = Vec::new();
        let mut rest = sql;
        while let Sql::BinaryOp { left, op, right } = rest
            && op == chained
        {
            parts.push(self.condition(right)?);
            rest = left;
        }
        parts.push(self.condition(rest)?);
        parts.reverse();
        Ok(parts)
    }

    fn operand(self, sql: &Sql) -> Result<Operand, ExprError> {
        match sql {
            Sql::Nested(inner) => self.operand(inner),
            Sql::CompoundIdentifier(segments) => Ok(Operand::Path(path_of(segments.clone())?)),
            Sql::Value(value) => Ok(Operand::Literal(match &value.value {
                SqlValue::Null => Json::Null,
                SqlValue::Boolean(b) => Json::Bool(*b),
                SqlValue::SingleQuotedString(text) => Json::String(text.clone()),
                SqlValue::Number(digits, _) => {
                    self.number(digits).map_err(|message| ExprError::at(message, value.span.start))?
                }
                _ => return refuse(&format!("the literal {} is", value.value), sql),
            })),
            Sql::BinaryOp { op: Op::And | Op::Or, .. } | Sql::UnaryOp { .. } | Sql::IsNull(_) | Sql::IsNotNull(_) => {
                refuse("a condition as a value to compare is", sql)
            }
            Sql::BinaryOp { op, .. } if compare_op(op).is_some() => {
                refuse("a comparison as a value to compare is", sql)
            }
            Sql::BinaryOp { op, .. } => refuse(&format!("the operator {op} is"), sql),
            other => refuse(&name_of(other), other),
        }
    }

    /// A literal number, or why it is none.
    fn number(self, digits: &str) -> Result<Json, String> {
        let beyond = || format!("{digits} is beyond the range of numbers");
        let float = |float: f64| serde_json::Number::from_f64(float).map(Json::Number).ok_or_else(beyond);
        let integer = || {
            let unsigned = digits.parse::<u64>().ok().map(Json::from);
            unsigned.or_else(|| digits.parse::<i64>().ok().map(Json::from))
        };
        if self.language == Language::V0 {
            return integer().map_or_else(|| float(digits.parse().map_err(|_| beyond())?), Ok);
        }
        match read_number(as_json(digits).as_bytes()) {
            Ok(ExactNumber::Float(number)) => float(number),
            Ok(ExactNumber::Integer { negative: false, magnitude }) => Ok(magnitude.into()),
            Ok(ExactNumber::Integer { negative: true, magnitude }) => {
                0i64.checked_sub_unsigned(magnitude).map(Json::from).ok_or_else(beyond)
            }
            Err(EncodeError::Inexact) => Err(format!(
                "{digits} is inexact: it has more than 17 significant digits, and neither a 64-bit integer nor a 64-bit float holds it"
            )),
            Err(_) => Err(beyond()),
        }
    }
}

/// What SQL writes as a number and JSON does not: `.5`, `5.`, leading zeros.
fn as_json(digits: &str) -> String {
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits), |digits| ("-", digits));
    let (mantissa, exponent) = digits.split_at(digits.find(['e', 'E']).unwrap_or(digits.len()));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let whole = whole.trim_start_matches('0');
    let whole = if whole.is_empty() { "0" } else { whole };
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{sign}{whole}{point}{fraction}{exponent}")
}

fn negate(negated: bool, expr: Expr) -> Expr {
    if negated { Expr::Not(Box::new(expr)) } else { expr }
}

fn compare_op(op: &Op) -> Option<CompareOp> {
    Some(match op {
        Op::Eq => CompareOp::Equal,
        Op::NotEq => CompareOp::NotEqual,
        Op::Lt => CompareOp::Less,
        Op::LtEq => CompareOp::LessOrEqual,
        Op::Gt => CompareOp::Greater,
        Op::GtEq => CompareOp::GreaterOrEqual,
        _ => return None,
    })
}

/// What users call a node of sqlparser's tree that we do not take.
fn name_of(sql: &Sql) -> String {
    match sql {
        Sql::Like { .. } | Sql::ILike { .. } | Sql::RLike { .. } | Sql::SimilarTo { .. } => "LIKE is".into(),
        Sql::InSubquery { .. } | Sql::Subquery(_) | Sql::Exists { .. } => "subqueries are".into(),
        Sql::InUnnest { .. } => "UNNEST is".into(),
        Sql::AnyOp { .. } | Sql::AllOp { .. } => "ANY and ALL are".into(),
        Sql::Cast { .. } => "casts are".into(),
        Sql::Collate { .. } => "COLLATE is".into(),
        Sql::AtTimeZone { .. } => "AT TIME ZONE is".into(),
        Sql::Between { .. } | Sql::InList { .. } => "a condition as a value to compare is".into(),
        other => {
            let text: String = other.to_string().chars().take(40).collect();
            format!("{text:?} is")
        }
    }
}
