//! Several instances, one lease, and a network that delays, loses and reorders, from one seed: never two are active.

use super::*;
use std::collections::BTreeMap;

const INSTANCES: usize = 3;
const FAULTS_UNTIL: u64 = 120_000;
const END: u64 = FAULTS_UNTIL + 20_000;
/// What is on its way for at most this long, milliseconds.
const DELAY: u64 = 1_500;
/// The shell's patience with a write.
const PATIENCE: u64 = 1_000;

#[allow(clippy::large_enum_variant)]
enum Step {
    Happens(usize, Event),
    Read(usize),
    Written { by: usize, sent_at: u64, lease: Lease, expected: u64 },
    Released { revision: u64 },
}

struct Races {
    seed: u64,
    now: u64,
    cores: Vec<Core>,
    /// How far each clock is ahead.
    ahead: Vec<u64>,
    /// Each sleeps until then.
    asleep: Vec<u64>,
    /// Revision, value, and when the server removes it.
    lease: Option<(u64, Lease, u64)>,
    revision: u64,
    steps: BTreeMap<(u64, u64), Step>,
    planned: u64,
    taken: usize,
}

impl Races {
    fn random(&mut self, below: u64) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) % below
    }

    fn faulty(&self) -> bool {
        self.now < FAULTS_UNTIL
    }

    /// Mostly quick.
    fn delay(&mut self) -> u64 {
        let most = if self.faulty() && self.random(4) == 0 { DELAY } else { 5 };
        self.random(most)
    }

    fn plan(&mut self, after: u64, step: Step) {
        self.planned += 1;
        self.steps.insert((self.now + after, self.planned), step);
    }

    fn act(&mut self, i: usize, event: Event) {
        let before = self.cores[i].is_active(self.now + self.ahead[i]);
        let actions = self.cores[i].handle(self.now + self.ahead[i], event);
        self.taken += usize::from(!before && self.cores[i].is_active(self.now + self.ahead[i]));
        for action in actions {
            let delay = self.delay();
            match action {
                Action::Beat(join) => self.plan(delay, Step::Happens(i, Event::Join(*join))),
                Action::ReadLease => self.plan(delay, Step::Read(i)),
                Action::WriteLease { lease, expected } => {
                    let sent_at = self.now + self.ahead[i];
                    self.plan(delay, Step::Written { by: i, sent_at, lease, expected });
                }
                Action::ReleaseLease { revision } => self.plan(delay, Step::Released { revision }),
                _ => {}
            }
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Happens(i, event) if self.asleep[i] > self.now => {
                let after = self.asleep[i] - self.now;
                self.plan(after, Step::Happens(i, event));
            }
            Step::Happens(i, event) => self.act(i, event),
            Step::Read(i) => {
                let lost = self.faulty() && self.random(10) == 0;
                let seen = match &self.lease {
                    _ if lost => Seen::Failed,
                    Some((revision, lease, _)) => Seen::Held { revision: *revision, lease: Some(lease.clone()) },
                    None => Seen::Missing,
                };
                let delay = self.delay();
                self.plan(delay, Step::Happens(i, Event::LeaseSeen(seen)));
            }
            Step::Written { by, sent_at, lease, expected } => {
                let there = self.lease.as_ref().map_or(0, |(revision, ..)| *revision);
                let lost = self.faulty() && self.random(10) == 0;
                let mut outcome = LeaseWritten::Conflict;
                if there == expected {
                    self.revision += 1;
                    let removed = self.now + lease.lease_ms;
                    self.lease = Some((self.revision, lease, removed));
                    outcome = LeaseWritten::Done { revision: self.revision };
                }
                let under_way = self.now + self.ahead[by] - sent_at;
                let mut delay = self.delay();
                if lost || under_way + delay >= PATIENCE {
                    delay = PATIENCE.saturating_sub(under_way);
                    outcome = LeaseWritten::Unknown;
                }
                self.plan(delay, Step::Happens(by, Event::LeaseWritten { sent_at, outcome }));
            }
            Step::Released { revision } => self.lease = self.lease.take().filter(|(r, ..)| *r != revision),
        }
    }

    fn active(&self) -> usize {
        let active = |i: &usize| self.cores[*i].is_active(self.now + self.ahead[*i]);
        (0..self.cores.len()).filter(active).count()
    }

    fn run(seed: u64) -> usize {
        let mut races = Self {
            seed,
            now: 0,
            cores: Vec::new(),
            ahead: Vec::new(),
            asleep: vec![0; INSTANCES],
            lease: None,
            revision: 0,
            steps: BTreeMap::new(),
            planned: 0,
            taken: 0,
        };
        for i in 0..INSTANCES {
            let ahead = races.random(1_000_000);
            races.cores.push(Core::new(config(&format!("cm-{i}")), ahead));
            races.ahead.push(ahead);
        }
        while races.now < END {
            if races.faulty() && races.random(8_000) == 0 {
                let (i, length) = (races.random(INSTANCES as u64) as usize, races.random(3 * LEASE));
                races.asleep[i] = races.now + length;
            }
            let expired = races.lease.as_ref().is_some_and(|(.., removed)| races.now >= *removed);
            // An expired lease may still be readable.
            if expired && (!races.faulty() || races.random(500) == 0) {
                races.lease = None;
            }
            for i in 0..INSTANCES {
                let local = races.now + races.ahead[i];
                if races.asleep[i] <= races.now && races.cores[i].next_tick(local) <= local {
                    races.act(i, Event::Tick);
                }
            }
            while races.steps.first_key_value().is_some_and(|((at, _), _)| *at <= races.now) {
                if let Some((_, step)) = races.steps.pop_first() {
                    races.step(step);
                }
            }
            assert!(races.active() <= 1, "seed {seed}: two are active at {}", races.now);
            races.now += 1;
        }
        assert_eq!(races.active(), 1, "seed {seed}: nobody is active without faults");
        races.taken
    }
}

#[test]
fn never_two_are_active_and_one_is_when_nothing_is_in_the_way() {
    let taken: usize = (0..60).map(Races::run).sum();
    assert!(taken > 300, "the lease moved only {taken} times");
}
