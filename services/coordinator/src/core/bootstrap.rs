//! The steps from a nomination to service, as `highwater status` shows them (design section 11).

use super::Core;
use highwater_schemas::api::{BootstrapStep, NodeKind, SliceState};

const NAMES: [&str; 13] = [
    "nominated",
    "local copy opened",
    "replicas registered",
    "latest state chosen",
    "term opened",
    "replicas acknowledged",
    "projectors and routers joined",
    "list of projectors replicated",
    "projectors acknowledged",
    "indexers joined",
    "slices handed over",
    "topics created with restart timestamps",
    "catchups ordered",
];

/// How far a nominated index manager is.
#[derive(Debug, Clone, Default)]
pub struct Bootstrapping {
    started: u64,
    steps: Vec<BootstrapStep>,
    /// Steps that nobody was told of yet.
    told: usize,
}

impl Bootstrapping {
    /// The first step: a nomination.
    pub fn begin(now: u64, note: String) -> Self {
        let mut boot = Self { started: now, steps: Vec::new(), told: 0 };
        boot.done(now, 1, note);
        boot
    }

    /// Step `step` is done; those before it must be. A step that is done stays as it was.
    pub fn done(&mut self, now: u64, step: usize, note: String) {
        if self.steps.len() + 1 == step
            && let Some(name) = NAMES.get(step - 1)
        {
            let done_ms = Some(now.saturating_sub(self.started));
            self.steps.push(BootstrapStep { step: step as u32, name: (*name).into(), done_ms, note });
        }
    }

    /// How many are done.
    pub fn reached(&self) -> usize {
        self.steps.len()
    }

    /// Every step; `waiting`: what the next one waits for.
    pub fn steps(&self, waiting: Option<String>) -> Vec<BootstrapStep> {
        let mut all = self.steps.clone();
        let mut note = waiting.unwrap_or_default();
        for (at, name) in NAMES.iter().enumerate().skip(all.len()) {
            all.push(BootstrapStep {
                step: at as u32 + 1,
                name: (*name).into(),
                done_ms: None,
                note: std::mem::take(&mut note),
            });
        }
        all
    }

    /// The steps that were done since this was asked last.
    pub fn news(&mut self) -> Vec<BootstrapStep> {
        let news = self.steps[self.told..].to_vec();
        self.told = self.steps.len();
        news
    }
}

impl Core {
    /// Looks whether the next steps are done.
    pub(super) fn step_bootstrap(&mut self, now: u64) {
        while self.boot.reached() < NAMES.len() {
            let step = self.boot.reached() + 1;
            let Ok(note) = self.bootstrap_step(now, step) else { return };
            self.boot.done(now, step, note);
        }
    }

    /// What the next step waits for, for people.
    pub(super) fn bootstrap_waits_for(&self, now: u64) -> Option<String> {
        let step = self.boot.reached() + 1;
        if step > NAMES.len() { None } else { self.bootstrap_step(now, step).err() }
    }

    /// What a step found, or what it waits for.
    fn bootstrap_step(&self, now: u64, step: usize) -> Result<String, String> {
        let term = self.context.term;
        let alive = |kind| self.context.alive(kind).map(|(node, _)| node.to_owned()).collect::<Vec<_>>();
        let listed = |nodes: Vec<String>| if nodes.is_empty() { "none yet".to_owned() } else { nodes.join(", ") };
        let follow = |kind: NodeKind, besides: &str| {
            let late: Vec<String> = self
                .context
                .alive(kind)
                .map(|(node, _)| node)
                .filter(|node| *node != besides && !self.members.follows(kind, node, term))
                .map(str::to_owned)
                .collect();
            if late.is_empty() { Ok(()) } else { Err(format!("waits for {}", late.join(", "))) }
        };
        // Who was there before is waited for as long as it may be alive, who was not for as long as a heartbeat takes.
        let settled = now >= self.started + self.config.heartbeat_ms();
        let any = |kind: NodeKind| settled || self.context.alive(kind).next().is_some();
        let none_yet = || Err("waits for the first heartbeats".to_owned());
        match step {
            6 => follow(NodeKind::Coordinator, &self.config.node).map(|()| {
                listed(alive(NodeKind::Coordinator).into_iter().filter(|n| *n != self.config.node).collect())
            }),
            7 if !any(NodeKind::Projector) => none_yet(),
            7 => Ok(listed(alive(NodeKind::Projector))),
            8 => Ok(format!("state version {}", self.context.version)),
            9 => follow(NodeKind::Projector, "").map(|()| listed(alive(NodeKind::Projector))),
            10 if !any(NodeKind::Indexer) => none_yet(),
            10 => {
                let late: Vec<String> = self.members.waited_for(&self.context, self.started, &self.config).collect();
                if late.is_empty() {
                    Ok(listed(alive(NodeKind::Indexer)))
                } else {
                    Err(format!("waits for {}", late.join(", ")))
                }
            }
            11 => {
                let of = |wanted: &[SliceState]| self.members.slices().filter(|s| wanted.contains(&s.state)).count();
                Ok(format!(
                    "{} slices: {} in step, {} to build, {} to catch up, {} in error",
                    self.members.slices().count(),
                    of(&[SliceState::Active, SliceState::Merged]),
                    of(&[SliceState::Building]),
                    of(&[SliceState::Catchup]),
                    of(&[SliceState::Error])
                ))
            }
            12 if !self.topics_checked => Err("waits for the topics".into()),
            12 if self.topics_failed.is_some() => Err(self.topics_failed.clone().unwrap_or_default()),
            12 => {
                let vbuckets = || self.context.buckets.values().flat_map(|b| &b.vbuckets);
                match vbuckets().filter(|v| !self.owned(v)).count() {
                    0 => Ok(format!("{} buckets, {} vbuckets", self.context.buckets.len(), vbuckets().count())),
                    n => Err(format!("{n} vbuckets wait for a projector")),
                }
            }
            13 => {
                let sessions: usize = self.context.buckets.values().map(|b| b.sessions.len()).sum();
                Ok(format!("{sessions} sessions are open"))
            }
            _ => Err(String::new()),
        }
    }
}
