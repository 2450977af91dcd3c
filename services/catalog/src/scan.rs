//! `hw.query.scan` and `.count`: chooses a stability timestamp, asks the partitions, puts their answers together.

use crate::{
    core::{Choice, Step, Waiting},
    freshness::{Need, Outlook, SourceNow, Standing},
    list,
    page::{Outcome, Place},
    request::{Consistency, Mode, Plan, Query},
    service::{EXPECTED_KIB, Shared},
};
use futures_util::future::try_join_all;
use highwater_bus::BusError;
use highwater_schemas::{
    ApiError, ErrorCode, api, subjects,
    wire::{self, ScanMode, ScanPage, ScanReply, ScanRequest, StChoice},
};
use std::time::Duration;
use tokio::time::timeout;

/// Room for headers and the subject in a message.
const RESERVED: usize = 8 * 1024;
/// A node that waits until our deadline answers this much later at the latest.
const GRACE: Duration = Duration::from_millis(250);
/// A row weighs this much at most, for all but the largest included fields.
const ROW_BYTES: u64 = 4_096;
/// A node that answers with another branch than the one in force is asked again after this.
const BRANCH_AGAIN: Duration = Duration::from_millis(20);
/// The log may reach us a moment after the reply to a `create` reached the client.
const LOG_GRACE: Duration = Duration::from_millis(100);

pub async fn scan(shared: &Shared, payload: &[u8]) -> Result<Vec<u8>, ApiError> {
    let run = Run::begin(shared, payload, Mode::Scan).await?;
    let message = shared.bus.max_payload().saturating_sub(RESERVED);
    let budget = shared.config.page_bytes.min(message);
    let mut place = Place {
        at: StChoice::AtLeast(0),
        after: run.plan.page.as_ref().map(|page| page.after.clone()),
        skip: run.plan.skip,
    };
    let mut pages = run.first(&place, budget, ScanMode::Rows).await?;
    loop {
        match run.plan.assemble(&pages, &place, (budget, message))? {
            Outcome::Reply { body, token } => {
                if token && run.plan.page.is_none() {
                    run.lease(pages[0].st.number).await;
                }
                return Ok(body);
            }
            Outcome::Skipped(next) => {
                place = next;
                run.check_time()?;
                pages = run.ask(&place, budget, ScanMode::Rows).await?;
            }
        }
    }
}

pub async fn count(shared: &Shared, payload: &[u8]) -> Result<Vec<u8>, ApiError> {
    let run = Run::begin(shared, payload, Mode::Count).await?;
    let place = Place { at: StChoice::AtLeast(0), after: None, skip: 0 };
    let pages = run.first(&place, 0, ScanMode::Count).await?;
    let st = &pages[0].st;
    let unindexed = pages.iter().map(|page| page.unindexed).sum();
    Ok(api::ok(&api::CountReply {
        st: st.number,
        exact: st.exact(),
        unindexed,
        timestamp: run.plan.head(st, unindexed).timestamp(),
        count: pages.iter().map(|page| page.count).sum(),
    }))
}

/// A request that is being worked on.
struct Run<'a> {
    shared: &'a Shared,
    plan: Plan,
    deadline: Duration,
    /// Wants from this one on were sent after the request had arrived.
    since: u64,
}

/// About how much an answer may weigh, KiB: what many scans together may have on the way to this catalog is bounded.
fn expected_kib(request: &ScanRequest) -> u32 {
    let rows = request.limit.saturating_mul(ROW_BYTES).min(u64::from(request.page_bytes));
    match request.mode {
        ScanMode::Count => 1,
        ScanMode::Rows => ((rows / 1_024) as u32 + 1).min(EXPECTED_KIB as u32),
    }
}

impl<'a> Run<'a> {
    async fn begin(shared: &'a Shared, payload: &[u8], mode: Mode) -> Result<Self, ApiError> {
        let since = shared.core().next_want();
        let query = Query::parse(payload, mode, shared.config.deadlines)?;
        let deadline = shared.now() + query.timeout;
        Ok(Self { shared, plan: plan(shared, &query).await?, deadline, since })
    }

    /// Answers of all partitions at a timestamp that serves.
    async fn first(&self, place: &Place, budget: usize, mode: ScanMode) -> Result<Vec<ScanPage>, ApiError> {
        let fixed = match (&self.plan.page, &self.plan.consistency) {
            (Some(page), _) => Some(page.st),
            (None, Consistency::AtSnapshot(number)) => Some(*number),
            _ => None,
        };
        if let Some(number) = fixed {
            return self.ask(&Place { at: StChoice::Exactly(number), ..place.clone() }, budget, mode).await;
        }
        let mut waiting = self.waiting().await?;
        loop {
            let choice = self.choose(&mut waiting).await?;
            match (self.ask(&Place { at: choice.at, ..place.clone() }, budget, mode).await, choice.at) {
                // A host has skipped or given up the timestamp that we chose: a later one will do as well.
                (Err(e), StChoice::Exactly(number))
                    if e.code == ErrorCode::SnapshotExpired && self.left() > Duration::ZERO =>
                {
                    waiting.lowest = number.saturating_add(1);
                    waiting.since = self.shared.core().next_want();
                }
                (Err(e), _) => return Err(e),
                (Ok(pages), _) if new_enough(&choice, &pages) => return Ok(pages),
                (Ok(_), _) => {
                    return Err(ApiError::new(
                        ErrorCode::InRollback,
                        "the answer is of another branch of history than the one that was asked for",
                    ));
                }
            }
        }
    }

    async fn waiting(&self) -> Result<Waiting, ApiError> {
        let need = match &self.plan.consistency {
            Consistency::RequestPlus => {
                let sources = timeout(self.left(), try_join_all(self.plan.streams.iter().map(|s| self.source(s))));
                let sources =
                    sources.await.map_err(|_| late("the source streams' state could not be read in time"))??;
                let instance = self.shared.core().instance();
                Some(Need::RequestPlus { sources, instance, since: self.since })
            }
            Consistency::AtRevision(_) | Consistency::AtStreams(_) => Some(Need::AtPlus(self.plan.floors.clone())),
            Consistency::Any | Consistency::AtSnapshot(_) => None,
        };
        Ok(Waiting {
            bucket: self.plan.bucket.clone(),
            hosts: self.plan.hosts.clone(),
            need,
            since: self.since,
            began: self.shared.now(),
            deadline: self.deadline,
            lowest: 0,
            outlook: Outlook::default(),
        })
    }

    async fn source(&self, stream: &str) -> Result<SourceNow, ApiError> {
        let state = self.shared.bus.stream_state(stream).await.map_err(|e| match e {
            BusError::NoStream(name) => {
                ApiError::new(ErrorCode::SourceMissing, format!("source stream {name} does not exist at present"))
            }
            e => late(&format!("the state of source stream {stream} cannot be read: {e}")),
        })?;
        let run = format!("{} {}", self.shared.bus.server_id(), state.leader);
        let run_since = self.shared.core().run_since(&self.plan.bucket, stream, run);
        Ok(SourceNow { created: state.created, last_seq: state.last_seq, last_time: state.last_time, run_since })
    }

    /// Waits for a timestamp that serves, and wants one as long as there is none.
    async fn choose(&self, waiting: &mut Waiting) -> Result<Choice, ApiError> {
        let mut changes = self.shared.changes();
        loop {
            // Marked as seen before the step looks, so that no change is missed.
            changes.borrow_and_update();
            let now = self.shared.now();
            let step = self.shared.core().step(waiting, now);
            match step {
                Step::Use(choice) => return Ok(choice),
                Step::Send(want) => {
                    if let Err(error) =
                        self.shared.bus.publish(&subjects::want(&waiting.bucket), wire::encode(&want)).await
                    {
                        tracing::debug!(%error, "a want was not sent; it is repeated");
                    }
                }
                Step::Sleep(until) => {
                    // Either way the next step looks again.
                    let _ = timeout(until.saturating_sub(now), changes.changed()).await;
                }
                Step::Fail(error) => {
                    if waiting.outlook.unexplained() && list::coordinator_is_silent(self.shared).await {
                        return Err(ApiError::new(
                            ErrorCode::NoCoordinator,
                            "no coordinator answers, so nothing newer can be read",
                        ));
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Asks every partition, until all their answers are of the branches that the log says are in force: a node that has not
    /// heard of a rollback still shows what the source has taken back, and this catalog may be the one that has not.
    async fn ask(&self, place: &Place, budget: usize, mode: ScanMode) -> Result<Vec<ScanPage>, ApiError> {
        loop {
            let pages = self.ask_once(place, budget, mode).await?;
            // By what is known now: the log may have moved on since the request came.
            let standing = {
                let core = self.shared.core();
                pages.iter().map(|page| core.standing(&self.plan.bucket, &page.st)).max()
            };
            match (standing, place.at) {
                (None | Some(Standing::InForce), _) => return Ok(pages),
                (Some(Standing::Abandoned), StChoice::Exactly(number)) => {
                    return Err(ApiError::new(
                        ErrorCode::SnapshotExpired,
                        format!("stability timestamp {number} is of a history that the source has left since"),
                    ));
                }
                _ if self.left() <= BRANCH_AGAIN => {
                    return Err(ApiError::new(
                        ErrorCode::InRollback,
                        "the answer is of another branch of history than the one in force",
                    ));
                }
                _ => tokio::time::sleep(BRANCH_AGAIN).await,
            }
        }
    }

    async fn ask_once(&self, place: &Place, budget: usize, mode: ScanMode) -> Result<Vec<ScanPage>, ApiError> {
        let timeout_ms = self.timeout_ms();
        let slice = |partition: usize| {
            let request = self.plan.slice_request(partition as u32, place, budget, mode, timeout_ms);
            self.ask_node(&self.plan.hosts[partition], request)
        };
        try_join_all((0..self.plan.hosts.len()).map(slice)).await
    }

    async fn ask_node(&self, host: &str, request: ScanRequest) -> Result<ScanPage, ApiError> {
        let subject = subjects::node(host, "scan");
        let patience = Duration::from_millis(u64::from(request.timeout_ms)) + GRACE;
        let expected = self.shared.expected.acquire_many(expected_kib(&request));
        let Ok(Ok(_share)) = timeout(self.left(), expected).await else {
            return Err(ApiError::new(ErrorCode::TooManyRequests, "too many large scans are under way"));
        };
        let encoded = wire::encode(&request);
        let most = self.shared.bus.max_payload();
        if encoded.len() > most {
            let why = format!("spans: as keys they take {} bytes, and one message {most}", encoded.len());
            return Err(ApiError::new(ErrorCode::MalformedRequest, why));
        }
        let reply = self.shared.bus.request(&subject, encoded, patience).await.map_err(|e| {
            ApiError::new(
                ErrorCode::NodeUnavailable,
                format!("node {host}, which hosts partition {}: {e}", request.partition),
            )
        })?;
        let damaged = |e| ApiError::new(ErrorCode::Internal, format!("the answer of node {host} cannot be read: {e}"));
        match wire::decode::<ScanReply>(&reply.payload).map_err(damaged)? {
            ScanReply::Page(page) => page.rows.check().map_err(damaged).map(|()| page),
            ScanReply::Refused { code, message } => {
                let code =
                    ErrorCode::ALL.iter().copied().find(|known| known.as_str() == code).unwrap_or(ErrorCode::Internal);
                Err(ApiError::new(code, message))
            }
        }
    }

    /// Keeps the timestamp readable for the next page.
    async fn lease(&self, st: u64) {
        let timeout_ms = self.timeout_ms();
        let slice = |partition: usize| {
            let request = self.plan.lease_request(partition as u32, st, timeout_ms);
            self.ask_node(&self.plan.hosts[partition], request)
        };
        if let Err(error) = try_join_all((0..self.plan.hosts.len()).map(slice)).await {
            // The next page says so if it comes too late.
            tracing::debug!(%error, st, "a stability timestamp was not leased");
        }
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_sub(self.shared.now())
    }

    fn timeout_ms(&self) -> u32 {
        // A timestamp that is there already is served whatever is left.
        u32::try_from(self.left().as_millis()).unwrap_or(u32::MAX).max(1)
    }

    fn check_time(&self) -> Result<(), ApiError> {
        if self.left() > Duration::ZERO { Ok(()) } else { Err(late("the offset could not be passed in time")) }
    }
}

/// The answer is at or above what makes it new enough, on the same branch.
fn new_enough(choice: &Choice, pages: &[ScanPage]) -> bool {
    choice.basis.as_ref().is_none_or(|basis| pages.iter().all(|page| basis.le(&page.st)))
}

fn late(message: &str) -> ApiError {
    ApiError::new(ErrorCode::Timeout, message)
}

/// Plans the query; a name or a branch that is unknown gets a moment to appear in the log.
async fn plan(shared: &Shared, query: &Query) -> Result<Plan, ApiError> {
    let mut changes = shared.changes();
    let until = shared.now() + LOG_GRACE.min(query.timeout);
    loop {
        changes.borrow_and_update();
        let (planned, unknown_branch) = {
            let core = shared.core();
            (query.plan(core.context()), query.names_unknown_branch(core.context()))
        };
        let left = until.saturating_sub(shared.now());
        match planned {
            Err(e)
                if (matches!(e.code, ErrorCode::BucketNotFound | ErrorCode::IndexNotFound)
                    || e.code == ErrorCode::BranchLost && unknown_branch)
                    && left > Duration::ZERO =>
            {
                // Either way it is looked up again.
                let _ = timeout(left, changes.changed()).await;
            }
            Err(e) if e.code == ErrorCode::IndexNotActive => {
                let progress = list::progress(shared, &query.bucket, &query.index).await;
                return Err(ApiError { message: format!("{}, {}", e.message, progress.unwrap_or_default()), ..e });
            }
            planned => return planned,
        }
    }
}
