//! How sqlparser reads our texts: which characters make a word, what may begin an operand, and `IS MISSING`.
//!
//! Operands are read here and not by sqlparser, which knows hundreds of words of SQL: documents have fields called `date`,
//! `interval` or `case`, and to us they are fields like any other.

use crate::language::Language;
use sqlparser::{
    ast::{BinaryOperator, Expr, Ident, UnaryOperator, Value, ValueWithSpan},
    dialect::{Dialect, Precedence},
    keywords::Keyword,
    parser::{Parser, ParserError},
    tokenizer::{Location, Span, Token, TokenWithSpan, Word},
};

/// Words with a meaning of their own, to us or behind an operator to sqlparser: as a field they must be quoted.
const RESERVED: [&str; 13] =
    ["AND", "OR", "NOT", "IS", "IN", "BETWEEN", "LIKE", "NULL", "TRUE", "FALSE", "ANY", "ALL", "SOME"];

/// The operator that stands for `IS MISSING` in sqlparser's tree, which has no place for it. No text can spell it.
pub(super) const IS_MISSING: &str = "IS MISSING";

pub(super) fn is_reserved(word: &str) -> bool {
    RESERVED.iter().any(|r| r.eq_ignore_ascii_case(word))
}

/// Whether a segment of a path can be written without quotes.
pub(super) fn is_plain_segment(segment: &str) -> bool {
    let mut chars = segment.chars();
    chars.next().is_some_and(starts_word) && chars.all(continues_word) && !is_reserved(segment)
}

fn starts_word(c: char) -> bool {
    c.is_alphabetic() || c == '_'
}

fn continues_word(c: char) -> bool {
    starts_word(c) || c.is_ascii_digit() || c == '$'
}

/// An error at a place, in the form of sqlparser's own, from which [`super::parse`] takes the position.
pub(super) fn error<T>(message: &str, at: Location) -> Result<T, ParserError> {
    Err(ParserError::ParserError(format!("{message}{at}")))
}

#[derive(Debug)]
pub(super) struct ConditionDialect {
    pub language: Language,
}

impl Dialect for ConditionDialect {
    fn is_identifier_start(&self, c: char) -> bool {
        starts_word(c)
    }

    fn is_identifier_part(&self, c: char) -> bool {
        continues_word(c)
    }

    fn parse_prefix(&self, parser: &mut Parser) -> Option<Result<Expr, ParserError>> {
        Some(operand(self, parser))
    }

    fn parse_infix(&self, parser: &mut Parser, expr: &Expr, _precedence: u8) -> Option<Result<Expr, ParserError>> {
        parser.parse_keyword(Keyword::IS).then(|| is_null_or_missing(parser, expr))
    }
}

impl ConditionDialect {
    /// `long`: an `L` stands behind the digits, as some dialects of SQL write integers of 64 bits. Earlier versions took it and ignored it.
    fn number(&self, digits: String, long: bool, span: Span) -> Result<Expr, ParserError> {
        if long && self.language >= Language::V2 {
            return error(&format!("{digits}L is not a number"), span.start);
        }
        Ok(Expr::Value(ValueWithSpan { value: Value::Number(digits, false), span }))
    }
}

fn operand(dialect: &ConditionDialect, parser: &mut Parser) -> Result<Expr, ParserError> {
    let TokenWithSpan { token, span } = parser.peek_token();
    match token {
        Token::Word(Word { quote_style: None, value, keyword, .. }) if is_reserved(&value) => {
            let literal = match keyword {
                Keyword::NULL => Value::Null,
                Keyword::TRUE => Value::Boolean(true),
                Keyword::FALSE => Value::Boolean(false),
                Keyword::NOT => {
                    parser.next_token();
                    let inner = parser.parse_subexpr(dialect.prec_value(Precedence::UnaryNot))?;
                    return Ok(Expr::UnaryOp { op: UnaryOperator::Not, expr: Box::new(inner) });
                }
                _ => {
                    return error(
                        &format!("expected a value, found {value} (a field of this name must be quoted)"),
                        span.start,
                    );
                }
            };
            parser.next_token();
            Ok(Expr::Value(literal.with_span(span)))
        }
        Token::Word(_) => Ok(Expr::CompoundIdentifier(path(parser)?)),
        Token::SingleQuotedString(text) => {
            parser.next_token();
            Ok(Expr::Value(Value::SingleQuotedString(text).with_span(span)))
        }
        Token::Number(digits, long) => {
            parser.next_token();
            dialect.number(digits, long, span)
        }
        Token::Minus | Token::Plus => {
            parser.next_token();
            let TokenWithSpan { token: next, span: end } = parser.next_token();
            let Token::Number(digits, long) = next else {
                return error(
                    "arithmetic is not supported in this version; a sign is taken before a number only",
                    span.start,
                );
            };
            let sign = if token == Token::Minus { "-" } else { "" };
            dialect.number(format!("{sign}{digits}"), long, span.union(&end))
        }
        Token::LParen => {
            parser.next_token();
            let inner = parser.parse_expr()?;
            parser.expect_token(&Token::RParen)?;
            Ok(Expr::Nested(Box::new(inner)))
        }
        Token::EOF => error("expected a path or a value, found the end", span.start),
        Token::LBracket => error("arrays are not supported in this version", span.start),
        Token::LBrace => error("objects are not supported in this version", span.start),
        other => error(&format!("expected a path or a value, found {other}"), span.start),
    }
}

fn is_null_or_missing(parser: &mut Parser, expr: &Expr) -> Result<Expr, ParserError> {
    let negated = parser.parse_keyword(Keyword::NOT);
    let TokenWithSpan { token, span } = parser.next_token();
    let expr = Box::new(expr.clone());
    match token {
        Token::Word(Word { quote_style: None, keyword: Keyword::NULL, .. }) if negated => Ok(Expr::IsNotNull(expr)),
        Token::Word(Word { quote_style: None, keyword: Keyword::NULL, .. }) => Ok(Expr::IsNull(expr)),
        Token::Word(Word { quote_style: None, value, .. }) if value.eq_ignore_ascii_case("MISSING") => {
            Ok(Expr::BinaryOp {
                left: expr,
                op: BinaryOperator::Custom(IS_MISSING.into()),
                right: Box::new(Expr::Value(Value::Boolean(negated).with_span(span))),
            })
        }
        Token::EOF => error("expected NULL or MISSING after IS, found the end", span.start),
        other => error(
            &format!("IS {other} is not supported in this version, only IS [NOT] NULL and IS [NOT] MISSING"),
            span.start,
        ),
    }
}

/// Reads a path, and refuses what else may begin with a word.
pub(super) fn path(parser: &mut Parser) -> Result<Vec<Ident>, ParserError> {
    let mut segments = Vec::new();
    loop {
        let TokenWithSpan { token, span } = parser.next_token();
        match token {
            Token::Word(Word { quote_style: None, value, .. }) if is_reserved(&value) => {
                return error(&format!("{value} must be quoted to be a field"), span.start);
            }
            Token::Word(word) if word.value.is_empty() => return error("a field's name cannot be empty", span.start),
            Token::Word(word) => segments.push(word.into_ident(span)),
            Token::Mul => return error("* is not supported in this version", span.start),
            Token::EOF => return error("expected a field, found the end", span.start),
            other => {
                return error(
                    &format!("expected a field, found {other}; names that are not plain words are quoted"),
                    span.start,
                );
            }
        }
        let TokenWithSpan { token, span } = parser.peek_token();
        match token {
            Token::Period => parser.advance_token(),
            Token::LParen => {
                let name = segments.last().map_or("", |s| s.value.as_str());
                return error(&format!("functions such as {name}() are not supported in this version"), span.start);
            }
            Token::LBracket => {
                return error("array elements such as tags[*] are not supported in this version", span.start);
            }
            _ => return Ok(segments),
        }
    }
}
