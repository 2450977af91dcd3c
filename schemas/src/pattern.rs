//! Subjects with wildcards: which of them have subjects in common.

/// Whether every subject that matches `inner` matches `outer` too.
pub fn covers(outer: &str, inner: &str) -> bool {
    let (mut outer, mut inner) = (outer.split('.'), inner.split('.'));
    loop {
        match (outer.next(), inner.next()) {
            // `>` stands for at least one token.
            (None, None) | (Some(">"), Some(_)) => return true,
            (Some(outer), Some(inner)) if inner != ">" && (outer == "*" || outer == inner) => {}
            _ => return false,
        }
    }
}

/// Whether some subject matches both.
pub fn collide(a: &str, b: &str) -> bool {
    let (mut a, mut b) = (a.split('.'), b.split('.'));
    loop {
        match (a.next(), b.next()) {
            (None, None) | (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
            (Some(a), Some(b)) if a == b || a == "*" || b == "*" => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_covers_what_has_no_other_subjects() {
        for (outer, inner, is_so) in [
            ("a.b", "a.b", true),
            ("a.*", "a.b", true),
            ("a.*", "a.*", true),
            ("a.>", "a.b.*", true),
            ("a.>", "a.>", true),
            (">", "a", true),
            ("a.b", "a.*", false),
            ("a.*", "a.>", false),
            ("a.>", "a", false),
            ("a", "a.b", false),
            ("a.*", "a", false),
            ("*", "a.b", false),
        ] {
            assert_eq!(covers(outer, inner), is_so, "{outer} {inner}");
            assert!(!is_so || collide(outer, inner) && collide(inner, outer), "{outer} {inner}");
        }
    }

    #[test]
    fn patterns_collide_that_some_subject_matches() {
        for (a, b, is_so) in [
            ("a.*", "*.b", true),
            ("a.>", "*.b.c", true),
            ("a.*.c", "a.b.>", true),
            ("a.b", "a.c", false),
            ("a.*", "a.b.c", false),
            ("a.b.>", "a.b", false),
            ("*.b.>", "a.c.>", false),
        ] {
            assert_eq!((collide(a, b), collide(b, a)), (is_so, is_so), "{a} {b}");
        }
    }
}
