//! What the subjects of a bucket's documents begin with.

use crate::pattern;
use std::borrow::Cow;

/// The beginning of subjects: a text, or tokens some of which may be anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prefix {
    Text(String),
    /// `None` stands for `*`. `open`: something must follow.
    Tokens {
        tokens: Vec<Option<String>>,
        open: bool,
    },
}

impl Prefix {
    /// A prefix with a token `*` is made of whole tokens, whether it ends with a dot or not; any other is a text.
    pub fn new(text: &str) -> Self {
        if !text.split('.').any(|token| token == "*") {
            return Self::Text(text.to_owned());
        }
        let open = text.ends_with('.');
        let tokens = text.strip_suffix('.').unwrap_or(text).split('.');
        Self::Tokens { tokens: tokens.map(|token| (token != "*").then(|| token.to_owned())).collect(), open }
    }

    /// What of a subject tells its document from others: the rest behind the prefix, and before it, in their order, the tokens
    /// that `*` stands for. None: the subject does not begin like that.
    pub fn strip<'a>(&self, subject: &'a [u8]) -> Option<Cow<'a, [u8]>> {
        let (expected, open) = match self {
            Self::Text(text) => return subject.strip_prefix(text.as_bytes()).map(Cow::Borrowed),
            Self::Tokens { tokens, open } => (tokens, *open),
        };
        let mut tokens = subject.split(|byte| *byte == b'.');
        let mut kept: Vec<&[u8]> = Vec::new();
        for expected in expected {
            let token = tokens.next()?;
            match expected {
                None => kept.push(token),
                Some(text) if text.as_bytes() == token => {}
                Some(_) => return None,
            }
        }
        let before = kept.len();
        kept.extend(tokens);
        (!open || kept.len() > before).then(|| Cow::Owned(kept.join(&b'.')))
    }

    /// The subject of which [`Self::strip`] leaves this. None: there is no such subject.
    pub fn restore(&self, rest: &str) -> Option<String> {
        let (expected, open) = match self {
            Self::Text(text) => return Some(format!("{text}{rest}")),
            Self::Tokens { tokens, open } => (tokens, *open),
        };
        let mut kept = rest.split('.');
        let mut tokens = Vec::new();
        for expected in expected {
            tokens.push(match expected {
                Some(text) => text,
                None => kept.next()?,
            });
        }
        let before = tokens.len();
        tokens.extend(kept);
        (!open || tokens.len() > before).then(|| tokens.join("."))
    }

    /// Whether a subject that matches this pattern may begin like that.
    pub fn may_begin(&self, pattern: &str) -> bool {
        match self {
            Self::Text(text) => {
                let (head, last) = text.rsplit_once('.').map_or((None, text.as_str()), |(h, l)| (Some(h), l));
                let mut tokens = pattern.split('.');
                for expected in head.into_iter().flat_map(|head| head.split('.')) {
                    match tokens.next() {
                        Some(">") => return true,
                        Some(token) if token == "*" || token == expected => {}
                        _ => return false,
                    }
                }
                match tokens.next() {
                    None => false,
                    Some(token) => token == ">" || token == "*" || token.starts_with(last),
                }
            }
            Self::Tokens { tokens, open } => {
                let text: Vec<&str> = tokens.iter().map(|token| token.as_deref().unwrap_or("*")).collect();
                let text = text.join(".");
                pattern::collide(&format!("{text}.>"), pattern) || !open && pattern::collide(&text, pattern)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strip(prefix: &str, subject: &str) -> Option<String> {
        let rest = Prefix::new(prefix).strip(subject.as_bytes()).map(Cow::into_owned);
        rest.map(|rest| String::from_utf8(rest).unwrap())
    }

    #[test]
    fn what_is_left_tells_a_subject_from_others() {
        for (prefix, subject, rest) in [
            ("orders.", "orders.1.a", Some("1.a")),
            ("orders", "orders.1", Some(".1")),
            ("", "a.b", Some("a.b")),
            ("orders.", "order.1", None),
            ("a*b.", "a*b.c", Some("c")),
            ("orders.*.items.", "orders.7.items.a.b", Some("7.a.b")),
            ("orders.*.items", "orders.7.items.a.b", Some("7.a.b")),
            ("orders.*.items", "orders.7.items", Some("7")),
            ("orders.*.items.", "orders.7.items", None),
            ("orders.*.items", "orders.7.itemsX", None),
            ("orders.*.items", "orders.items", None),
            ("*.*.", "a.b.c", Some("a.b.c")),
            ("*.x.*.", "a.x.b.c", Some("a.b.c")),
            ("*.", "a", None),
        ] {
            assert_eq!(strip(prefix, subject).as_deref(), rest, "{prefix} {subject}");
            let restored = rest.and_then(|rest| Prefix::new(prefix).restore(rest));
            assert_eq!(restored.as_deref(), rest.map(|_| subject), "{prefix} {subject}");
        }
        assert_eq!(Prefix::new("a.*.").restore("b"), None, "something must follow");
        assert_eq!(Prefix::new("*.a.*").restore("b"), None, "one token is missing");
        assert_eq!(Prefix::new("a.*.").strip(b"a.\xff.b").as_deref(), Some(&b"\xff.b"[..]));
    }

    #[test]
    fn a_prefix_may_be_narrower_or_wider_than_what_a_stream_takes() {
        for (prefix, pattern, is_so) in [
            ("orders.eu.", "orders.>", true),
            ("orders.eu.", "orders.*.*", true),
            ("orders.eu.", "orders.*", false),
            ("orders.", "orders.eu.>", true),
            ("orders.", "orders", false),
            ("ord", "orders.*", true),
            ("ord", "or.*", false),
            ("", "x", true),
            ("orders.us.", "orders.eu.>", false),
            ("orders.", ">", true),
            ("orders.*.items.", "orders.>", true),
            ("orders.*.items.", "orders.*.*", false),
            ("orders.*.items", "orders.*.*", true),
            ("orders.*.items", "*.7.items.>", true),
            ("orders.*.items", "orders.7.other.>", false),
        ] {
            assert_eq!(Prefix::new(prefix).may_begin(pattern), is_so, "{prefix} {pattern}");
        }
    }
}
