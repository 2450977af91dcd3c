//! The catalog's state: the StateContext, the stability timestamps of the last moments, and which node holds which.
//!
//! Limits: per bucket at most [`MAX_STS`] timestamps and per host at most [`MAX_HELD`] numbers, the oldest go first; of nodes that
//! host nothing [`MOST_MEMBERS`] at most. Only declared buckets are remembered. Time is a duration since an origin that the shell chose.

use crate::freshness::{Need, Outlook, Standing, Verdict, branch_lost, judge};
use highwater_schemas::{
    ApiError, ErrorCode, StabilityTimestamp,
    api::MOST_MEMBERS,
    state::{Following, StateContext, StateError},
    wire::{HighWatermark, StChoice, Stability, Want},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

/// Stability timestamps stay readable at the nodes for this long, so older ones are of no use.
const ST_KEPT: Duration = Duration::from_secs(2);
/// Above what a coordinator issues in that time.
const MAX_STS: usize = 4_096;
const MAX_HELD: usize = 4_096;
/// A want may be lost, so a waiting scan repeats it this often.
const WANT_INTERVAL: Duration = Duration::from_millis(20);
/// A want that was answered by a timestamp that does not serve is followed by the next one this soon, later and later the
/// longer the scan waits: what is slow to come is not made faster by asking.
const WANT_AGAIN: Duration = Duration::from_millis(2);
/// Scans that begin within this time share a want.
const WANT_SPACING: Duration = Duration::from_millis(1);

/// What is known of the cluster.
#[derive(Debug)]
pub struct Core {
    following: Following,
    /// Names this catalog in wants.
    instance: u64,
    want_seq: u64,
    seen: HashMap<String, Seen>,
}

/// What was heard about one bucket.
#[derive(Debug, Default)]
struct Seen {
    /// Which bucket of the name it was.
    declared: u64,
    term: u64,
    /// By number, with the time of arrival.
    sts: BTreeMap<u64, (StabilityTimestamp, Duration)>,
    hosts: HashMap<String, Held>,
    /// The newest want that was sent, and when.
    want: Option<(u64, Duration)>,
    /// By source stream, the run of the server that serves it, and the first want that was sent after it had been seen.
    runs: HashMap<String, (String, u64)>,
}

/// The stability timestamps that a node holds. It may skip numbers that nobody wants, so only those it named are sure.
#[derive(Debug, Default)]
struct Held {
    incarnation: u64,
    oldest: u64,
    named: BTreeSet<u64>,
}

impl Held {
    fn holds(&self, st: &StabilityTimestamp) -> bool {
        let newest = self.named.last().copied().unwrap_or(0);
        st.number >= self.oldest && (self.named.contains(&st.number) || (st.wanted && st.number <= newest))
    }
}

/// A scan that needs a stability timestamp.
#[derive(Debug)]
pub struct Waiting {
    pub bucket: String,
    /// Partition → host.
    pub hosts: Vec<String>,
    /// None: any will do.
    pub need: Option<Need>,
    /// Wants from this one on were sent after the request had arrived.
    pub since: u64,
    pub began: Duration,
    pub deadline: Duration,
    /// Lower numbers are not held any more.
    pub lowest: u64,
    pub outlook: Outlook,
}

/// The timestamp to scan at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub at: StChoice,
    /// What makes the answer new enough: it must be at or above this.
    pub basis: Option<StabilityTimestamp>,
}

/// What a waiting scan does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    Use(Choice),
    /// Publish this and step again.
    Send(Want),
    /// Step again when something changed, at the latest at this time.
    Sleep(Duration),
    /// The deadline has passed.
    Fail(ApiError),
}

impl Core {
    pub fn new(instance: u64) -> Self {
        Self { following: Following::default(), instance, want_seq: 0, seen: HashMap::new() }
    }

    pub fn context(&self) -> &StateContext {
        self.following.context()
    }

    pub fn instance(&self) -> u64 {
        self.instance
    }

    /// The first want that will be sent after now.
    pub fn next_want(&self) -> u64 {
        self.want_seq + 1
    }

    /// The log is read from its beginning. `all`: there is nothing to read.
    pub fn opened(&mut self, all: bool) {
        self.following.opened(all);
        self.forget();
    }

    /// A record of the log. `all`: nothing more of what it held when it was opened is to come.
    pub fn record(&mut self, json: &[u8], all: bool) -> Result<(), StateError> {
        self.following.record(json, all)?;
        self.forget();
        Ok(())
    }

    fn forget(&mut self) {
        let buckets = &self.following.context().buckets;
        self.seen.retain(|name, seen| buckets.get(name).is_some_and(|b| b.declared == seen.declared));
    }

    /// A broadcast of the coordinator.
    pub fn stability(&mut self, now: Duration, message: Stability) {
        let term = self.following.context().term;
        let bucket = self.following.context().buckets.get(&message.bucket);
        let (width, below) = bucket.map_or((0, 0), |b| (b.vbuckets.len(), b.numbers_below));
        let Some(seen) = self.seen(&message.bucket) else { return };
        // What the log does not know cannot be judged; it is repeated when the log has arrived.
        let known = |st: &StabilityTimestamp| st.vbs.len() == width && st.term <= term && st.number < below;
        if message.st.term < seen.term || !known(&message.st) {
            return;
        }
        seen.term = message.st.term;
        // A wanted one that was missed is not asked for: the next serves too. A repeated broadcast does not make one younger.
        let st = message.st;
        let arrived = seen.sts.get(&st.number).map_or(now, |(_, at)| *at);
        seen.sts.insert(st.number, (st, arrived));
        let newest = seen.sts.last_key_value().map_or(0, |(number, _)| *number);
        seen.sts.retain(|number, (_, at)| *number == newest || now.saturating_sub(*at) <= ST_KEPT);
        while seen.sts.len() > MAX_STS {
            seen.sts.pop_first();
        }
    }

    /// A node's report.
    pub fn high_watermark(&mut self, message: HighWatermark) {
        let Some(bucket) = self.following.context().buckets.get(&message.bucket) else { return };
        if let Some(Seen { hosts, .. }) = self.seen.get_mut(&message.bucket)
            && hosts.len() >= MOST_MEMBERS
            && !hosts.contains_key(&message.node)
        {
            let placed = bucket.hosts();
            hosts.retain(|node, _| placed.contains(node.as_str()));
            if !placed.contains(message.node.as_str()) {
                return;
            }
        }
        let Some(seen) = self.seen(&message.bucket) else { return };
        let held = seen.hosts.entry(message.node).or_default();
        if held.incarnation != message.incarnation {
            *held = Held { incarnation: message.incarnation, ..Held::default() };
        }
        let (oldest, newest) = message.held;
        held.oldest = oldest;
        if newest > 0 {
            held.named.insert(newest);
        }
        held.named = held.named.split_off(&oldest);
        while held.named.len() > MAX_HELD {
            held.named.pop_first();
        }
    }

    /// A source stream is served by this run of a server. Answers the first want that is sent after it was seen.
    pub fn run_since(&mut self, bucket: &str, stream: &str, run: String) -> u64 {
        let next_want = self.next_want();
        let Some(seen) = self.seen(bucket) else { return next_want };
        match seen.runs.get(stream) {
            Some((known, since)) if *known == run => *since,
            _ => {
                seen.runs.insert(stream.to_owned(), (run, next_want));
                next_want
            }
        }
    }

    /// What a waiting scan does next.
    pub fn step(&mut self, waiting: &mut Waiting, now: Duration) -> Step {
        let Some(bucket) = self.following.context().buckets.get(&waiting.bucket) else {
            return Step::Fail(ApiError::new(
                ErrorCode::BucketNotFound,
                format!("there is no bucket {}", waiting.bucket),
            ));
        };
        // What was there when the request came may have been taken back while it waited.
        if let Some(Need::AtPlus(floors)) = &waiting.need
            && let Some(lost) = branch_lost(floors, bucket)
        {
            return Step::Fail(lost);
        }
        if waiting.need.is_none() && waiting.hosts.len() == 1 {
            return Step::Use(Choice { at: StChoice::AtLeast(waiting.lowest), basis: None });
        }
        let vbuuids: Vec<u64> = bucket.vbuckets.iter().map(highwater_schemas::state::Vbucket::vbuuid).collect();
        let instance = self.instance;
        let next_want = self.want_seq + 1;
        let Some(seen) = self.seen(&waiting.bucket) else { return Step::Sleep(waiting.deadline) };
        if let Some(choice) = seen.choose(waiting, &vbuuids) {
            return Step::Use(choice);
        }
        if now >= waiting.deadline {
            return Step::Fail(waiting.outlook.failure());
        }
        let due = seen.want_due(waiting, instance);
        if due > now {
            return Step::Sleep(due.min(waiting.deadline));
        }
        seen.want = Some((next_want, now));
        self.want_seq = next_want;
        Step::Send(Want { bucket: waiting.bucket.clone(), catalog: instance, seq: next_want })
    }

    /// How a timestamp that a node answered with stands to the branches of the bucket, by the newest that the log says.
    pub fn standing(&self, bucket: &str, st: &StabilityTimestamp) -> Standing {
        let bucket = self.following.context().buckets.get(bucket);
        bucket.map_or(Standing::Unknown, |bucket| Standing::of(st, &bucket.vbuckets))
    }

    fn seen(&mut self, bucket: &str) -> Option<&mut Seen> {
        let declared = self.following.context().buckets.get(bucket)?.declared;
        Some(self.seen.entry(bucket.to_owned()).or_insert_with(|| Seen { declared, ..Seen::default() }))
    }
}

impl Seen {
    fn choose(&self, waiting: &mut Waiting, vbuuids: &[u64]) -> Option<Choice> {
        let serves = |st: &StabilityTimestamp| judge(waiting.need.as_ref(), vbuuids, st);
        if let Some((st, _)) = self.sts.last_key_value().map(|(_, seen)| seen) {
            let verdict = serves(st);
            waiting.outlook.observe(verdict);
        }
        let candidates = self.sts.range(waiting.lowest..).rev().map(|(_, (st, _))| st);
        if waiting.hosts.len() == 1 {
            // What follows a serving timestamp serves too, so the oldest of them is waited for the shortest.
            let oldest = candidates.take_while(|st| serves(st) == Verdict::Serves).last()?;
            return Some(Choice { at: StChoice::AtLeast(oldest.number), basis: Some(oldest.clone()) });
        }
        // All partitions must scan at one timestamp: best one that every host holds now, else one that none may skip.
        let mut wanted = None;
        for st in candidates.filter(|st| serves(st) == Verdict::Serves) {
            if waiting.hosts.iter().all(|host| self.hosts.get(host).is_some_and(|held| held.holds(st))) {
                wanted = Some(st);
                break;
            }
            if wanted.is_none() && st.wanted {
                wanted = Some(st);
            }
        }
        wanted.map(|st| Choice { at: StChoice::Exactly(st.number), basis: Some(st.clone()) })
    }

    /// When the next want is to be sent. Scans that wait for the same bucket share their wants.
    fn want_due(&self, waiting: &Waiting, instance: u64) -> Duration {
        let Some((seq, sent)) = self.want else { return Duration::ZERO };
        if seq < waiting.since {
            return sent + WANT_SPACING;
        }
        let answered = self.sts.last_key_value().is_some_and(|(_, (st, _))| {
            st.vbs.iter().all(|vb| vb.asked.iter().any(|a| a.catalog == instance && a.seq >= seq))
        });
        let waited = sent.saturating_sub(waiting.began);
        sent + if answered { (waited / 4).clamp(WANT_AGAIN, WANT_INTERVAL) } else { WANT_INTERVAL }
    }
}

#[cfg(test)]
mod tests;
