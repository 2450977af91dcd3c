//! A follower's state: what the log adds up to, also when it is read from its beginning again.
//!
//! The log is read again when the server restarted, when it lost its tail, or was published anew. What is read then takes the
//! place of what is known once it is not behind it; until then what is known stays, for a log that lost its tail is completed
//! from the copies of the index managers.

use super::{
    context::StateContext,
    offered::{Concerns, StateError},
};

/// The state, and what is read of the log from its beginning.
#[derive(Debug, Default)]
pub struct Following {
    context: StateContext,
    /// Until it takes the place of `context`.
    fresh: Option<StateContext>,
}

impl Following {
    pub fn context(&self) -> &StateContext {
        &self.context
    }

    /// The log is read from its beginning. `all`: there is nothing to read.
    pub fn opened(&mut self, all: bool) -> Concerns {
        self.fresh = Some(StateContext::default());
        self.settle(all)
    }

    /// The next record. `all`: it is the last that the log held when it was opened, or a later one.
    ///
    /// # Errors
    /// The log cannot be followed like this: it is to be read from its beginning again, later.
    pub fn record(&mut self, payload: &[u8], all: bool) -> Result<Concerns, StateError> {
        match &mut self.fresh {
            None => Ok(self.context.offer(payload)?.concerns()),
            Some(fresh) => {
                fresh.offer(payload)?;
                Ok(self.settle(all))
            }
        }
    }

    fn settle(&mut self, all: bool) -> Concerns {
        let old = &self.context;
        let newer = |new: &StateContext| {
            (new.term, new.incarnation) > (old.term, old.incarnation)
                || (new.term == old.term && new.incarnation == old.incarnation && new.version >= old.version)
        };
        match self.fresh.take() {
            Some(fresh) if all && newer(&fresh) => {
                let same = fresh == self.context;
                self.context = fresh;
                if same { Concerns::Nothing } else { Concerns::Everything }
            }
            behind => {
                self.fresh = behind;
                Concerns::Nothing
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Change, Record},
        *,
    };
    use crate::api::NodeKind;

    fn appended(context: &mut StateContext, change: Change, term: u64) -> Vec<u8> {
        let json = context.record(change, term, 0).to_json();
        context.offer(&json).unwrap();
        json
    }

    fn node(n: u64) -> Change {
        Change::NodeJoined { node: "n".into(), kind: NodeKind::Catalog, incarnation: n }
    }

    #[test]
    fn a_log_that_lost_its_tail_does_not_take_the_place_of_what_is_known() {
        let mut context = StateContext::default();
        let records: Vec<_> = (1..=4).map(|n| appended(&mut context, node(n), 1)).collect();
        let mut following = Following::default();
        assert_eq!(following.opened(false), Concerns::Nothing);
        for (at, record) in records.iter().enumerate() {
            following.record(record, at == 3).unwrap();
        }
        assert_eq!(following.context(), &context);
        following.opened(false);
        for (at, record) in records[..2].iter().enumerate() {
            assert_eq!(following.record(record, at == 1), Ok(Concerns::Nothing));
        }
        assert_eq!(following.context(), &context, "two records are missing");
        let whole = Change::Snapshot { context: Box::new(context.clone()), reason: "lost".into() };
        let anew = Record { incarnation: 2, ..context.record(whole, 2, 0) }.to_json();
        assert_eq!(following.record(&anew, true), Ok(Concerns::Everything));
        assert_eq!((following.context().incarnation, following.context().version), (2, 5));
    }

    #[test]
    fn a_log_of_a_later_term_takes_its_place_even_if_it_is_shorter() {
        let (mut old, mut new) = (StateContext::default(), StateContext::default());
        let mut following = Following::default();
        following.opened(true);
        for n in 1..=4 {
            following.record(&appended(&mut old, node(n), 3), true).unwrap();
        }
        let first = appended(&mut new, Change::TermStarted { coordinator: "c".into() }, 4);
        assert!(
            following.record(&first, true).is_ok(),
            "known by its number, until the log is read from its beginning"
        );
        following.opened(false);
        assert_eq!(following.record(&first, true), Ok(Concerns::Everything));
        assert_eq!(following.context(), &new);
        assert!(following.record(&appended(&mut old, node(5), 3), true).is_err());
    }
}
