//! Which stability timestamp is new enough for which request (design sections 4 and 10).

use highwater_schemas::{
    ApiError, ErrorCode,
    state::{Bucket, Failover, Vbucket},
    timestamp::{StVb, StabilityTimestamp},
};

/// How the branches of a timestamp stand to those in force. The worst vbucket decides, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    InForce,
    /// The log does not know one of them: it has not arrived here yet, or they are of another bucket of the name.
    Unknown,
    /// The source has left one of them: a node that has not heard of that yet answers with what may be gone.
    Abandoned,
}

impl Standing {
    pub fn of(st: &StabilityTimestamp, vbuckets: &[Vbucket]) -> Self {
        if st.vbs.len() != vbuckets.len() {
            return Self::Unknown;
        }
        let of = |(state, vbucket): (&StVb, &Vbucket)| {
            if state.vbuuid == vbucket.vbuuid() {
                Self::InForce
            } else if vbucket.failover.iter().any(|branch| branch.vbuuid == state.vbuuid) {
                Self::Abandoned
            } else {
                Self::Unknown
            }
        };
        st.vbs.iter().zip(vbuckets).map(of).max().unwrap_or(Self::InForce)
    }
}

/// A source stream as it was after the request had arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceNow {
    /// Nanoseconds since the epoch.
    pub created: i64,
    pub last_seq: u64,
    /// Server time of the last message, nanoseconds since the epoch.
    pub last_time: i64,
    /// The first want that was sent after this run of the server had been seen.
    pub run_since: u64,
}

/// What `at_plus` asks of one vbucket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Floor {
    /// The branch on which the caller saw the seqno, if it said so.
    pub vbuuid: Option<u64>,
    pub seqno: u64,
}

impl Floor {
    /// Whether the seqno is still part of the history: its branch is the present one, or an ancestor that every later branch
    /// left at or after the seqno. A bare seqno always counts as part of it.
    pub fn survives(&self, failover: &[Failover]) -> bool {
        let Some(vbuuid) = self.vbuuid else { return true };
        let Some(branch) = failover.iter().position(|f| f.vbuuid == vbuuid) else { return false };
        failover[..branch].iter().all(|later| later.start >= self.seqno)
    }
}

/// The error that says which of these, one per vbucket, the source has taken back.
pub fn branch_lost(floors: &[Floor], bucket: &Bucket) -> Option<ApiError> {
    let lost = |(floor, vbucket): (&Floor, &Vbucket)| !floor.survives(&vbucket.failover);
    let vb = floors.iter().zip(&bucket.vbuckets).position(lost)?;
    let streams = bucket.definition.vbuckets();
    let stream = streams.get(vb).map_or("", |stream| stream.name.as_str());
    let (seqno, branch) = (floors[vb].seqno, floors[vb].vbuuid.unwrap_or(0));
    let message = format!("at_plus: {stream} has taken back seqno {seqno} of branch {branch:016x}");
    Some(ApiError::new(ErrorCode::BranchLost, message))
}

/// What a stability timestamp must fulfil, with one item per vbucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Need {
    /// Everything acknowledged in the source before the request.
    RequestPlus {
        sources: Vec<SourceNow>,
        /// Our own instance, as routers name it in `asked`.
        instance: u64,
        /// Wants from this one on were sent after the request had arrived.
        since: u64,
    },
    /// The caller's own writes.
    AtPlus(Vec<Floor>),
}

/// What a stability timestamp is worth to a need. The worst vbucket decides, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Serves,
    /// Its position is far enough, but what it covers is not: a revision may still be hidden.
    Uncovered,
    Behind,
    /// It looks new enough by number, but nothing shows yet that it is of the same history: a router's comparison will.
    Unproven,
    /// It and the source cannot both be right.
    Contradicts,
}

/// Judges `st`; without a need every one on the branches in force serves. `vbuuids` are those.
pub fn judge(need: Option<&Need>, vbuuids: &[u64], st: &StabilityTimestamp) -> Verdict {
    if st.vbs.len() != vbuuids.len() {
        return Verdict::Contradicts;
    }
    let judged = st.vbs.iter().zip(vbuuids).enumerate().map(|(vb, (state, vbuuid))| {
        if state.vbuuid != *vbuuid {
            return Verdict::Contradicts;
        }
        match need {
            None => Verdict::Serves,
            Some(Need::RequestPlus { sources, instance, since }) => {
                let asked = state.asked.iter().find(|a| a.catalog == *instance).map_or(0, |a| a.seq);
                sources.get(vb).map_or(Verdict::Contradicts, |source| judge_source(state, source, asked, *since))
            }
            Some(Need::AtPlus(floors)) => {
                floors.get(vb).map_or(Verdict::Contradicts, |floor| judge_seqno(state, floor.seqno))
            }
        }
    });
    judged.max().unwrap_or(Verdict::Contradicts)
}

/// A stream that was cut and rewritten looks the same by number, so the number alone proves nothing: either the last message is
/// the same in time too, and the router compared the stream's state in this run of the server, which may have come back without
/// messages below the last; or the router compared it after the request began.
fn judge_source(state: &StVb, source: &SourceNow, asked: u64, since: u64) -> Verdict {
    if state.created != source.created {
        return Verdict::Contradicts;
    }
    let verdict = judge_seqno(state, source.last_seq);
    let seqno = state.position.seqno;
    let same_last = seqno == source.last_seq && (seqno == 0 || state.server_time == source.last_time);
    let proven = asked >= since || same_last && asked >= source.run_since;
    if verdict == Verdict::Serves && !proven { Verdict::Unproven } else { verdict }
}

fn judge_seqno(state: &StVb, seqno: u64) -> Verdict {
    if state.covered >= seqno {
        Verdict::Serves
    } else if state.position.seqno >= seqno {
        Verdict::Uncovered
    } else {
        Verdict::Behind
    }
}

/// What a waiting request has seen, to say at its deadline why it waited in vain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outlook {
    seen: bool,
    uncovered: bool,
    /// Something else than a contradiction was seen.
    agreed: bool,
}

impl Outlook {
    /// Notes what the newest stability timestamp was worth.
    pub fn observe(&mut self, verdict: Verdict) {
        self.seen = true;
        self.uncovered |= verdict == Verdict::Uncovered;
        self.agreed |= verdict != Verdict::Contradicts;
    }

    /// The answer at the deadline.
    pub fn failure(self) -> ApiError {
        if self.uncovered {
            return ApiError::new(
                ErrorCode::CoverTimeout,
                "the source was overwritten faster than it could be followed, so freshness could not be proven in time; \
                 a history above 1 helps",
            );
        }
        if self.seen && !self.agreed {
            return ApiError::new(
                ErrorCode::InRollback,
                "the source's history contradicts what was indexed until the deadline; it is being corrected",
            );
        }
        ApiError::new(ErrorCode::Timeout, "no stability timestamp was new enough in time")
    }

    /// True when nothing better than "in time" can be said.
    pub fn unexplained(self) -> bool {
        self.failure().code == ErrorCode::Timeout
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use highwater_schemas::timestamp::{Asked, Position};

    const BRANCH: u64 = 0xb;
    const CREATED: i64 = 1_000;

    fn vb(seqno: u64, covered: u64, server_time: i64, asked: Option<u64>) -> StVb {
        StVb {
            vbuuid: BRANCH,
            position: Position::new(seqno, 0),
            covered,
            server_time,
            created: CREATED,
            asked: asked.map(|seq| Asked { catalog: 5, seq }).into_iter().collect(),
            ..StVb::default()
        }
    }

    fn st(vbs: Vec<StVb>) -> StabilityTimestamp {
        StabilityTimestamp { number: 1, vbs, ..StabilityTimestamp::default() }
    }

    fn request_plus(sources: Vec<SourceNow>) -> Need {
        Need::RequestPlus { sources, instance: 5, since: 20 }
    }

    #[test]
    fn request_plus_needs_proof_of_the_same_history() {
        let source = |last_seq, last_time| SourceNow { created: CREATED, last_seq, last_time, run_since: 8 };
        let rows = [
            // The last message is the same in number and time, and the router has compared since the server started.
            (source(10, 77), vb(10, 10, 77, Some(8)), Verdict::Serves),
            (source(10, 77), vb(10, 10, 77, Some(7)), Verdict::Unproven),
            (source(10, 77), vb(10, 10, 77, None), Verdict::Unproven),
            // The same number at another time: rewritten to the same length, unless the router has compared since.
            (source(10, 77), vb(10, 10, 78, None), Verdict::Unproven),
            (source(10, 77), vb(10, 10, 78, Some(20)), Verdict::Serves),
            (source(10, 77), vb(10, 10, 78, Some(19)), Verdict::Unproven),
            // Above it only a router's comparison proves anything.
            (source(10, 77), vb(12, 12, 79, None), Verdict::Unproven),
            (source(10, 77), vb(12, 12, 79, Some(20)), Verdict::Serves),
            (source(10, 77), vb(12, 9, 79, Some(21)), Verdict::Uncovered),
            (source(10, 77), vb(12, 10, 79, Some(21)), Verdict::Serves),
            // Below it is behind, whatever was compared.
            (source(10, 77), vb(9, 9, 70, None), Verdict::Behind),
            (source(10, 77), vb(9, 9, 70, Some(20)), Verdict::Behind),
            (source(10, 77), vb(10, 9, 77, None), Verdict::Uncovered),
            (source(10, 77), vb(12, 9, 79, None), Verdict::Uncovered),
            // Never written.
            (source(0, 0), vb(0, 0, 0, Some(8)), Verdict::Serves),
            (source(0, 0), vb(0, 0, 0, None), Verdict::Unproven),
            (source(0, 0), vb(3, 3, 9, None), Verdict::Unproven),
            // Created anew.
            (SourceNow { created: 2_000, ..source(10, 77) }, vb(10, 10, 77, Some(20)), Verdict::Contradicts),
        ];
        for (i, (source, vb, verdict)) in rows.into_iter().enumerate() {
            assert_eq!(judge(Some(&request_plus(vec![source])), &[BRANCH], &st(vec![vb])), verdict, "row {i}");
        }
    }

    #[test]
    fn without_a_need_the_branches_decide() {
        let old = StVb { vbuuid: 0xa, ..vb(10, 10, 0, None) };
        assert_eq!(judge(None, &[BRANCH], &st(vec![vb(10, 10, 0, None)])), Verdict::Serves);
        assert_eq!(judge(None, &[BRANCH], &st(vec![old.clone()])), Verdict::Contradicts);
        assert_eq!(judge(None, &[BRANCH; 2], &st(vec![vb(10, 10, 0, None), old])), Verdict::Contradicts);
        assert_eq!(judge(None, &[BRANCH; 2], &st(vec![vb(10, 10, 0, None)])), Verdict::Contradicts);
    }

    #[test]
    fn a_branch_is_in_force_abandoned_or_not_known() {
        let branch = |vbuuid: &u64| Failover { vbuuid: *vbuuid, ..Failover::default() };
        let vbucket = |vbuuids: &[u64]| Vbucket::new(vbuuids.iter().map(branch).collect(), 0);
        let vbuckets = [vbucket(&[3, 2, 1]), vbucket(&[7])];
        let of = |vbuuids: &[u64]| {
            let vb = |vbuuid: &u64| StVb { vbuuid: *vbuuid, ..StVb::default() };
            Standing::of(&st(vbuuids.iter().map(vb).collect()), &vbuckets)
        };
        assert_eq!(of(&[3, 7]), Standing::InForce);
        assert_eq!(
            (of(&[2, 7]), of(&[1, 7]), of(&[1, 9])),
            (Standing::Abandoned, Standing::Abandoned, Standing::Abandoned)
        );
        assert_eq!((of(&[3, 9]), of(&[4, 7])), (Standing::Unknown, Standing::Unknown));
        assert_eq!((of(&[3]), of(&[3, 7, 1]), of(&[])), (Standing::Unknown, Standing::Unknown, Standing::Unknown));
    }

    #[test]
    fn another_catalogs_want_proves_nothing() {
        let mut state = vb(12, 12, 79, Some(30));
        state.asked[0].catalog = 6;
        let need = request_plus(vec![SourceNow { created: CREATED, last_seq: 10, last_time: 77, run_since: 1 }]);
        assert_eq!(judge(Some(&need), &[BRANCH], &st(vec![state])), Verdict::Unproven);
    }

    #[test]
    fn at_plus_needs_covered_and_the_branch_in_force() {
        let need = Need::AtPlus(vec![Floor { vbuuid: None, seqno: 10 }]);
        for (state, verdict) in [
            (vb(10, 10, 0, None), Verdict::Serves),
            (vb(11, 9, 0, None), Verdict::Uncovered),
            (vb(9, 9, 0, None), Verdict::Behind),
            (StVb { vbuuid: 0xa, ..vb(10, 10, 0, None) }, Verdict::Contradicts),
        ] {
            assert_eq!(judge(Some(&need), &[BRANCH], &st(vec![state])), verdict);
        }
    }

    #[test]
    fn the_worst_vbucket_decides() {
        let need = Need::AtPlus(vec![Floor { vbuuid: None, seqno: 10 }; 3]);
        let vbuuids = [BRANCH; 3];
        let (good, open, behind) = (vb(10, 10, 0, None), vb(10, 8, 0, None), vb(9, 9, 0, None));
        let judged = |vbs: &[&StVb]| judge(Some(&need), &vbuuids, &st(vbs.iter().map(|v| (*v).clone()).collect()));
        assert_eq!(judged(&[&good, &good, &good]), Verdict::Serves);
        assert_eq!(judged(&[&good, &open, &good]), Verdict::Uncovered);
        assert_eq!(judged(&[&behind, &open, &good]), Verdict::Behind);
        assert_eq!(judged(&[&good]), Verdict::Contradicts);
    }

    #[test]
    fn a_seqno_survives_on_a_branch_that_was_left_after_it() {
        let failover =
            [(3, 90), (2, 50), (1, 0)].map(|(vbuuid, start)| Failover { vbuuid, start, ..Failover::default() });
        for (vbuuid, seqno, survives) in [
            (Some(3), 1_000, true),
            (Some(2), 90, true),
            (Some(2), 91, false),
            (Some(1), 50, true),
            (Some(1), 51, false),
            (Some(9), 0, false),
            (None, 1_000, true),
        ] {
            assert_eq!(Floor { vbuuid, seqno }.survives(&failover), survives, "{vbuuid:?} {seqno}");
        }
    }

    #[test]
    fn the_deadline_says_what_was_missing() {
        let failure = |verdicts: &[Verdict]| {
            let mut outlook = Outlook::default();
            for verdict in verdicts {
                outlook.observe(*verdict);
            }
            outlook.failure().code
        };
        assert_eq!(failure(&[]), ErrorCode::Timeout);
        assert_eq!(failure(&[Verdict::Behind]), ErrorCode::Timeout);
        assert_eq!(failure(&[Verdict::Contradicts, Verdict::Contradicts]), ErrorCode::InRollback);
        assert_eq!(failure(&[Verdict::Behind, Verdict::Contradicts]), ErrorCode::Timeout);
        assert_eq!(failure(&[Verdict::Contradicts, Verdict::Uncovered]), ErrorCode::CoverTimeout);
    }
}
