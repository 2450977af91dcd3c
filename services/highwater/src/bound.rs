//! A bound of a scan as it is given on the command line.

use highwater_schemas::collation::Component;
use serde_json::Value;
use std::str::FromStr;

/// The components of a bound.
///
/// A JSON array has them all, any other JSON is the only one, and what is not JSON is a text, unless it looks like something
/// else that was misspelt.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Bound(pub(crate) Vec<Component>);

impl FromStr for Bound {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let trimmed = text.trim();
        match serde_json::from_str::<Component>(trimmed) {
            Ok(_) if trimmed.starts_with('[') => {
                serde_json::from_str(trimmed).map(Self).map_err(|e| format!("not a JSON array: {e}"))
            }
            Ok(component) => Ok(Self(vec![component])),
            Err(error) => match likeness(trimmed) {
                Some(what) => {
                    let quoted = Value::from(text).to_string().replace('\'', "'\\''");
                    Err(format!("it looks like {what}, and is none ({error}); a text is given as JSON, '{quoted}'"))
                }
                None => Ok(Self(vec![Component::from(&Value::from(text))])),
            },
        }
    }
}

/// What a text that is not JSON may have been meant to be.
fn likeness(text: &str) -> Option<&'static str> {
    match text.chars().next()? {
        '[' => Some("a JSON array"),
        '{' => Some("a JSON object"),
        '"' => Some("a JSON string"),
        _ if ["true", "false", "null"].iter().any(|word| text.eq_ignore_ascii_case(word)) => {
            Some("true, false or null, which are written in small letters")
        }
        '-' if text[1..].starts_with('-') && text[2..].starts_with(char::is_alphabetic) => Some("an option"),
        '-' if text.len() == 2 && text[1..].starts_with(char::is_alphabetic) => Some("an option"),
        _ if is_like_a_number(text) => Some("a number"),
        _ => None,
    }
}

/// Whether a text begins as numbers do, in JSON or elsewhere. Dates, times and UUIDs have a mark inside that numbers have not.
fn is_like_a_number(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-', '\u{2212}']);
    let rest = unsigned.unwrap_or(text);
    let mut chars = rest.chars();
    match chars.next() {
        None => true,
        Some('.') => chars.next().is_some_and(char::is_numeric),
        Some(first) if first.is_numeric() => unsigned.is_some() || !has_mark_inside(rest),
        Some(_) => ["nan", "inf", "infinity"].iter().any(|word| rest.eq_ignore_ascii_case(word)),
    }
}

/// Whether `-`, `:` or `/` stands between letters or digits; the `-` of an exponent does not count.
fn has_mark_inside(text: &str) -> bool {
    let chars: Vec<char> = text.chars().collect();
    chars.windows(3).any(|near| match *near {
        [before, '-', after] => before.is_alphanumeric() && !matches!(before, 'e' | 'E') && after.is_alphanumeric(),
        [before, ':' | '/', after] => before.is_alphanumeric() && after.is_alphanumeric(),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Args, Command, Count};
    use clap::Parser;

    /// The components' JSON texts.
    fn read(text: &str) -> Result<Vec<String>, String> {
        text.parse::<Bound>().map(|Bound(components)| components.iter().map(|c| c.text().to_owned()).collect())
    }

    #[test]
    fn json_is_taken_at_its_word() {
        for (text, components) in [
            ("[]", &[][..]),
            (r#"["NO",100000]"#, &[r#""NO""#, "100000"]),
            (" [ 1 , [2] ] ", &["1", "[2]"]),
            ("5", &["5"]),
            ("-5", &["-5"]),
            ("1.0", &["1.0"]),
            ("1E+2", &["1E+2"]),
            // Whether a key can have it is for the index to say, which is told every digit.
            ("18446744073709551617", &["18446744073709551617"]),
            ("1e400", &["1e400"]),
            (r#""\ud800""#, &[r#""\ud800""#]),
            ("true", &["true"]),
            ("null", &["null"]),
            (r#"{"$missing":true}"#, &[r#"{"$missing":true}"#]),
            (r#""12ab""#, &[r#""12ab""#]),
            (r#""2024-01-01""#, &[r#""2024-01-01""#]),
        ] {
            assert_eq!(read(text).unwrap(), components, "{text}");
        }
    }

    #[test]
    fn other_words_are_texts() {
        for text in [
            "Oslo",
            "room-07",
            "",
            " ",
            "tru",
            "none",
            "e5",
            "-abc",
            "+abc",
            "--",
            ".",
            "..5",
            ".a",
            "-.",
            "$5",
            "(5)",
            "x1",
            "été",
            "2024-01-01",
            "2024-01-01T10:00:00Z",
            "2024-01",
            "10:30",
            "1/2/2024",
            "550e8400-e29b-41d4-a716-446655440000",
            "1234567e-89ab-4def-8123-456789abcdef",
            "12-ab",
            "nano",
            "infinite",
            "'5'",
            "a[1",
            "a{",
            "it's",
        ] {
            assert_eq!(read(text).unwrap(), [Value::from(text).to_string()], "{text}");
        }
    }

    #[test]
    fn what_looks_like_something_else_is_refused() {
        for (text, what) in [
            ("+5", "a number"),
            ("1_000", "a number"),
            ("1,000", "a number"),
            ("1 000", "a number"),
            ("1'000", "a number"),
            ("0x10", "a number"),
            ("0b1", "a number"),
            ("0o7", "a number"),
            (".5", "a number"),
            ("-.5", "a number"),
            ("+.5", "a number"),
            ("5.", "a number"),
            ("01", "a number"),
            ("-01", "a number"),
            ("00", "a number"),
            ("1e", "a number"),
            ("1e-", "a number"),
            ("12e-5x", "a number"),
            ("1e+", "a number"),
            ("1.2.3", "a number"),
            ("5-", "a number"),
            ("-5-3", "a number"),
            ("12ab", "a number"),
            ("5kg", "a number"),
            ("5%", "a number"),
            ("1f", "a number"),
            ("10n", "a number"),
            ("NaN", "a number"),
            ("nan", "a number"),
            ("-NaN", "a number"),
            ("Infinity", "a number"),
            ("-Infinity", "a number"),
            ("+inf", "a number"),
            ("-", "a number"),
            ("+", "a number"),
            ("\u{2212}5", "a number"),
            ("５", "a number"),
            ("½", "a number"),
            ("[1,", "a JSON array"),
            ("[1,]", "a JSON array"),
            ("[01]", "a JSON array"),
            ("['a']", "a JSON array"),
            ("[1] 2", "a JSON array"),
            ("[1][2]", "a JSON array"),
            ("[", "a JSON array"),
            ("{", "a JSON object"),
            ("{a:1}", "a JSON object"),
            ("{'a':1}", "a JSON object"),
            ("\"Oslo", "a JSON string"),
            ("\"a\"b\"", "a JSON string"),
            ("True", "true, false or null"),
            ("--high", "an option"),
            ("--nats-url=x", "an option"),
            ("FALSE", "true, false or null"),
            ("NULL", "true, false or null"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(&format!("it looks like {what}")), "{text}: {error}");
            // What the message says to write instead is taken as this text.
            let quoted = Value::from(text).to_string();
            assert!(error.contains(&quoted.replace('\'', "'\\''")), "{text}: {error}");
            assert_eq!(read(&quoted).unwrap(), std::slice::from_ref(&quoted), "{text}");
        }
    }

    /// The bounds that a command line with this option has.
    fn bounds(option: &str, bound: &str) -> Result<Vec<String>, String> {
        let args = ["highwater", "count", "docs", "by_n", option, bound, "--json"];
        let args = Args::try_parse_from(args).map_err(|error| error.to_string())?;
        let Command::Count(Count { range }) = args.command else { return Err("another command".into()) };
        assert!(range.client.json, "{option} {bound}");
        let bounds = [range.equal, range.low, range.high].into_iter().flatten();
        Ok(bounds.flat_map(|bound| bound.0).map(|component| component.text().to_owned()).collect())
    }

    #[test]
    fn bounds_may_begin_with_a_sign() {
        for option in ["--equal", "--low", "--high"] {
            for bound in ["-1", "-1.5", "-1e-5", "-1.5E+3", "-1e+2", "-0", "-9223372036854775808"] {
                assert_eq!(bounds(option, bound).unwrap(), [bound]);
            }
            assert_eq!(bounds(option, "-abc").unwrap(), [r#""-abc""#]);
            for bound in ["-.5", "-0x10", "-NaN", "-1_000", "-", "-01", "+5"] {
                let error = bounds(option, bound).unwrap_err();
                assert!(error.contains(option) && error.contains("looks like a number, and is none"), "{error}");
            }
            // The value was forgotten.
            for next in ["--high", "--json", "--no-such-option", "-h"] {
                let error = bounds(option, next).unwrap_err();
                assert!(error.contains(option) && error.contains("looks like an option, and is none"), "{error}");
            }
        }
    }
}
