//! What became of the requests of a checker.

use super::{
    KINDS, Kind, Proof,
    made::{Made, Phase},
};
use crate::client::Refused;
use anyhow::{Result, ensure};
use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

/// What became of the requests.
#[derive(Debug, Default)]
pub struct Report {
    pub proof: Proof,
    /// Succeeded and made, by consistency and phase.
    counts: BTreeMap<(Kind, Phase), (u64, u64)>,
    /// By code.
    failed: BTreeMap<String, u64>,
    /// By consistency, the longest time without a success of the index that did worst.
    unavailable: BTreeMap<Kind, Duration>,
}

impl Report {
    /// Of all that was made from the first time on to the second one. Fails where something was not refused as it must be.
    pub(super) fn of(made: &[Made], fault: (Instant, Instant), (began, ended): (Instant, Instant)) -> Result<Self> {
        let mut report = Self::default();
        let mut last = BTreeMap::new();
        for one in made {
            let phase = one.phase(fault);
            report.count(one.kind, phase, one.failed.as_ref());
            if let Some(refused) = &one.failed {
                ensure!(one.is_proper(refused, fault, made), "{:?} {phase:?} a fault: {refused:?}", one.kind);
                continue;
            }
            for index in &one.indexes {
                let last = last.entry((one.kind, *index)).or_insert(began);
                report.pause(one.kind, one.ended.saturating_duration_since(*last));
                *last = one.ended;
            }
        }
        for ((kind, _), last) in last {
            report.pause(kind, ended.saturating_duration_since(last));
        }
        Ok(report)
    }

    fn count(&mut self, kind: Kind, phase: Phase, failed: Option<&Refused>) {
        let (good, all) = self.counts.entry((kind, phase)).or_default();
        *all += 1;
        match failed {
            Some(refused) => *self.failed.entry(refused.code.clone()).or_default() += 1,
            None => *good += 1,
        }
    }

    fn pause(&mut self, kind: Kind, pause: Duration) {
        let longest = self.unavailable.entry(kind).or_default();
        *longest = pause.max(*longest);
    }

    /// Succeeded and made.
    fn sum(&self, of: impl Fn(Kind, Phase) -> bool) -> (u64, u64) {
        let all = self.counts.iter().filter(|((kind, phase), _)| of(*kind, *phase));
        all.fold((0, 0), |sum, (_, counts)| (sum.0 + counts.0, sum.1 + counts.1))
    }

    pub(super) fn check(&self) -> Result<()> {
        for kind in KINDS {
            for phase in [Phase::Before, Phase::During, Phase::After] {
                let (good, all) = self.sum(|k, p| (k, p) == (kind, phase));
                ensure!(all > 0, "{kind:?}: none was made {phase:?} the fault");
                ensure!(good > 0 || phase == Phase::During, "{kind:?}: none succeeded {phase:?} the fault");
            }
        }
        Ok(())
    }

    /// The longest time without a success, of the consistency that did worst.
    pub fn unavailable(&self) -> Duration {
        self.unavailable.values().copied().max().unwrap_or_default()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  scans")?;
        for phase in [Phase::Before, Phase::During, Phase::After] {
            let (good, all) = self.sum(|_, p| p == phase);
            write!(f, ", {good} of {all} {phase:?}")?;
        }
        let Proof { timestamps, exact, shared, branches, .. } = self.proof;
        write!(f, "; {timestamps} timestamps, {exact} exact, {shared} of several indexes, {branches} branches")?;
        write!(f, "; longest without")?;
        for (kind, pause) in &self.unavailable {
            write!(f, " {kind:?} {pause:.1?}")?;
        }
        if !self.failed.is_empty() {
            write!(f, "; failed: {:?}", self.failed)?;
        }
        Ok(())
    }
}
