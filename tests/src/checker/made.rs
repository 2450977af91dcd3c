//! A request, when it was made, and whether it may fail as it did.

use super::{Kind, proof::Answer};
use crate::client::Refused;
use serde_json::Value;
use std::time::Instant;

/// When a request was under way, as seen from the fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Before,
    During,
    After,
}

/// A request, or two at one `st`.
pub(super) struct Made {
    pub(super) kind: Kind,
    /// That were asked.
    pub(super) indexes: Vec<usize>,
    /// The timestamp that `at_plus` names as a whole.
    pub(super) named: Option<Seen>,
    pub(super) began: Instant,
    pub(super) ended: Instant,
    pub(super) answers: Vec<Answer>,
    pub(super) failed: Option<Refused>,
}

/// A timestamp that was answered.
#[derive(Clone)]
pub(super) struct Seen {
    pub(super) timestamp: Value,
    pub(super) branches: Vec<String>,
    pub(super) seqnos: Vec<u64>,
    pub(super) at: Instant,
}

impl Made {
    pub(super) fn phase(&self, (from, to): (Instant, Instant)) -> Phase {
        if self.began >= to {
            Phase::After
        } else if self.ended >= from {
            Phase::During
        } else {
            Phase::Before
        }
    }

    /// Whether a refusal is as it must be, among all that was made.
    pub(super) fn is_proper(&self, refused: &Refused, fault: (Instant, Instant), all: &[Self]) -> bool {
        let phase = self.phase(fault);
        let coded = refused.headers.0.as_deref() == Some(&refused.code);
        match refused.code.as_str() {
            // Whoever was asked was killed, or nobody is there.
            "no_reply" | "no_responders" => phase == Phase::During,
            "internal" => false,
            "branch_lost" => coded && !refused.retry && phase != Phase::Before && self.names_what_is_lost(fault, all),
            // A machine may be slow at any time.
            "timeout" | "cover_timeout" | "snapshot_expired" | "node_unavailable" | "too_many_requests" => {
                refused.retry && coded
            }
            _ => phase != Phase::Before && refused.retry && coded,
        }
    }

    /// It is from before the end of the fault, and nobody who asked later was answered of the same branches.
    fn names_what_is_lost(&self, fault: (Instant, Instant), all: &[Self]) -> bool {
        let later = |answer: &&Answer| answer.began >= self.ended;
        let mut later = all.iter().flat_map(|made| &made.answers).filter(later);
        self.named.as_ref().is_some_and(|seen| seen.at < fault.1 && later.all(|a| a.branches != seen.branches))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::proof::{Found, Need};
    use std::time::Duration;

    fn answer(branch: &str, time: Instant) -> Answer {
        Answer {
            index: 0,
            st: 1,
            timestamp: Value::Null,
            branches: vec![branch.into()],
            seqnos: vec![1],
            need: Need::Nothing,
            began: time,
            ended: time,
            exact: true,
            unindexed: 0,
            spans: Vec::new(),
            found: Found::Count(0),
        }
    }

    fn made(time: Instant, named: Option<Instant>, answers: Vec<Answer>) -> Made {
        let seen = |at| Seen { timestamp: Value::Null, branches: vec!["a".into()], seqnos: vec![1], at };
        let named = named.map(seen);
        Made { kind: Kind::AtPlus, indexes: vec![0], named, began: time, ended: time, answers, failed: None }
    }

    #[test]
    fn a_refusal_is_coded_and_may_be_tried_again_or_names_what_is_lost() {
        let now = Instant::now();
        let second = |n| now + Duration::from_secs(n);
        let fault = (second(10), second(20));
        let refused = |code: &str, retry| Refused {
            headers: (Some(code.into()), None),
            ..Refused::without_reply(code, "", retry)
        };
        let proper = |made: &Made, refused: &Refused, later: &[Made]| made.is_proper(refused, fault, later);
        let (before, during, after) = (made(second(1), None, vec![]), made(second(11), None, vec![]), second(21));
        assert!(proper(&before, &refused("timeout", true), &[]));
        assert!(!proper(&before, &refused("in_rollback", true), &[]), "nothing was lost yet");
        assert!(proper(&during, &refused("in_rollback", true), &[]));
        assert!(!proper(&during, &refused("timeout", false), &[]), "that does not help");
        assert!(!proper(&during, &refused("internal", true), &[]));
        assert!(!proper(&during, &Refused::without_reply("timeout", "", true), &[]), "without headers");
        assert!(proper(&during, &Refused::without_reply("no_reply", "", false), &[]));
        assert!(!proper(&before, &Refused::without_reply("no_reply", "", false), &[]));
        let lost = refused("branch_lost", false);
        let named = made(after, Some(second(5)), vec![]);
        assert!(proper(&named, &lost, &[made(second(22), None, vec![answer("b", second(22))])]));
        assert!(!proper(&named, &lost, &[made(second(22), None, vec![answer("a", second(22))])]), "it is not lost");
        assert!(!proper(&made(after, Some(after), vec![]), &lost, &[]), "it is of after the fault");
        assert!(!proper(&made(after, None, vec![]), &lost, &[]), "no branch was named");
        assert!(!proper(&made(second(1), Some(now), vec![]), &lost, &[]), "nothing was lost yet");
    }
}
