//! `hw.node.<id>.verify` and `.dump`: looking into the slices of this node while they go on.

use super::{Shell, view::hosted};
use crate::{
    dumps,
    store::{self, StoreError},
    worker::Event,
};
use highwater_bus::{Incidents, ServiceRequest, fault, supervise};
use highwater_schemas::{
    ApiError, ErrorCode,
    api::{
        self, MOST_DUMPED, MOST_VERIFY_TIMEOUT_MS, NodeDump, NodeDumpRequest, NodeVerify, NodeVerifyRequest,
        SliceCheck, VERIFY_TIMEOUT_MS,
    },
    names,
    state::SliceName,
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};

/// Requests that are worked on at once; one more is refused. Their checks wait for one another anyway.
pub(super) const AT_ONCE: usize = 16;
/// A worker that is busy with a large batch answers this late at most.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);
/// Room for headers and the reply's frame in a message, bytes.
const RESERVED: usize = 8 * 1024;

/// A slice that is asked about.
struct Target {
    slice: SliceName,
    index: String,
    state: String,
    error: Option<String>,
    events: mpsc::Sender<Event>,
}

impl Shell {
    pub(super) async fn diagnose(&mut self, verb: &str, request: ServiceRequest) {
        let Ok(place) = Arc::clone(&self.diagnoses).try_acquire_owned() else {
            let message = format!("{AT_ONCE} requests look into slices already");
            request.respond(Err(ApiError::new(ErrorCode::TooManyRequests, message))).await;
            return;
        };
        let (node, most) = (self.config.node.clone(), self.bus.max_payload().saturating_sub(RESERVED));
        let planned = if verb == "verify" {
            self.plan_verify(&request.payload).map(Plan::Verify)
        } else {
            self.plan_dump(&request.payload).map(Plan::Dump)
        };
        let incidents = self.bus.incidents();
        self.errands.spawn("a look into slices", async move {
            let look = async {
                fault("look", "");
                match planned {
                    Ok(Plan::Verify((targets, asked))) => Ok(api::ok(&verify(&node, targets, &asked).await)),
                    Ok(Plan::Dump((target, asked))) => {
                        dump(&incidents, &node, target, asked, most).await.map(|d| api::ok(&d))
                    }
                    Err(error) => Err(error),
                }
            };
            let answer = supervise::caught(&incidents, "a look into slices", look).await.answer();
            request.respond(answer).await;
            drop(place);
        });
    }

    fn plan_verify(&self, payload: &[u8]) -> Result<(Vec<Target>, NodeVerifyRequest), ApiError> {
        let mut asked: NodeVerifyRequest = api::parse(payload)?;
        let timeout = asked.timeout_ms.unwrap_or(VERIFY_TIMEOUT_MS);
        if !(1..=MOST_VERIFY_TIMEOUT_MS).contains(&timeout) {
            let message = format!("timeout_ms must be 1 to {MOST_VERIFY_TIMEOUT_MS}, not {timeout}");
            return Err(ApiError::new(ErrorCode::MalformedRequest, message));
        }
        asked.timeout_ms = Some(timeout);
        let targets = self.targets(&asked.bucket, asked.index.as_deref(), asked.partition)?;
        Ok((targets, asked))
    }

    fn plan_dump(&self, payload: &[u8]) -> Result<(Target, NodeDumpRequest), ApiError> {
        let asked: NodeDumpRequest = api::parse(payload)?;
        if asked.rows > MOST_DUMPED {
            let message = format!("rows must be at most {MOST_DUMPED}, not {}", asked.rows);
            return Err(ApiError::new(ErrorCode::MalformedRequest, message));
        }
        let mut targets = self.targets(&asked.bucket, Some(&asked.index), asked.partition)?;
        if targets.len() > 1 {
            let partitions: Vec<String> = targets.iter().map(|t| t.slice.partition.to_string()).collect();
            let message = format!("partition: this node hosts several of them, {}; name one", partitions.join(", "));
            return Err(ApiError::new(ErrorCode::MalformedRequest, message));
        }
        match targets.pop() {
            Some(target) => Ok((target, asked)),
            None => Err(ApiError::new(ErrorCode::TopologyStale, "this node hosts no partition of the index")),
        }
    }

    /// The slices of this node that a request is about.
    fn targets(&self, bucket: &str, index: Option<&str>, partition: Option<u32>) -> Result<Vec<Target>, ApiError> {
        names::check_bucket("bucket", bucket)?;
        let unknown = || ApiError::new(ErrorCode::BucketNotFound, format!("there is no bucket {bucket}"));
        let known = self.state.context().buckets.get(bucket).ok_or_else(unknown)?;
        if let Some(index) = index {
            names::check("index", index)?;
            if !known.indexes.values().any(|i| i.placed.definition.name == index) {
                let message = format!("bucket {bucket} has no index {index}");
                return Err(ApiError::new(ErrorCode::IndexNotFound, message));
            }
        }
        let Some(running) = self.buckets.get(bucket) else { return Ok(Vec::new()) };
        let report = running.report.borrow();
        let target = |slice: SliceName| {
            let reported = report.slices.iter().find(|s| (s.index, s.partition) == (slice.index, slice.partition));
            Target {
                slice,
                index: known.indexes.get(&slice.index).map(|i| i.placed.definition.name.clone()).unwrap_or_default(),
                state: reported.map_or("opening", |s| s.state.as_str()).to_owned(),
                error: reported.and_then(|s| s.error.clone()),
                events: running.events.clone(),
            }
        };
        let targets: Vec<Target> = hosted(&self.config.node, known)
            .map(|(slice, ..)| target(slice))
            .filter(|t| index.is_none_or(|index| t.index == index))
            .filter(|t| partition.is_none_or(|partition| t.slice.partition == partition))
            .collect();
        if targets.is_empty() && partition.is_some() {
            return Err(ApiError::new(ErrorCode::TopologyStale, "this node does not host the partition"));
        }
        Ok(targets)
    }
}

enum Plan {
    Verify((Vec<Target>, NodeVerifyRequest)),
    Dump((Target, NodeDumpRequest)),
}

/// Has one slice after the other checked; what the deadline leaves out says so.
async fn verify(node: &str, targets: Vec<Target>, asked: &NodeVerifyRequest) -> NodeVerify {
    let timeout = asked.timeout_ms.unwrap_or(VERIFY_TIMEOUT_MS);
    let deadline = Instant::now() + Duration::from_millis(timeout);
    let mut slices = Vec::with_capacity(targets.len());
    for target in targets {
        let mut check = SliceCheck {
            at: node.to_owned(),
            bucket: asked.bucket.clone(),
            index: target.index.clone(),
            partition: target.slice.partition,
            state: target.state.clone(),
            ..SliceCheck::default()
        };
        let (answer, answered) = oneshot::channel();
        let asked = timeout_at(deadline, async {
            let asked = target.events.send(Event::Verify { slice: target.slice, answer }).await;
            if asked.is_err() { Err(ended()) } else { answered.await.map_err(|_| unfinished()) }
        });
        match asked.await {
            Ok(Ok(Ok(Some(found)))) => dumps::enter(&mut check, &found),
            // Its files hold nothing yet.
            Ok(Ok(Ok(None))) => {}
            Ok(Ok(Err(error @ StoreError::Damaged(_)))) => {
                let error = dumps::coded(&error);
                check.error =
                    Some(ApiError { message: format!("{}; it is being built again", error.message), ..error });
            }
            Ok(Ok(Err(error))) => check.error = Some(dumps::coded(&error)),
            Ok(Err(error)) => check.error = Some(error),
            Err(_) => {
                let message = format!("not checked within {timeout} ms");
                check.error = Some(ApiError::new(ErrorCode::Timeout, message));
            }
        }
        if let (None, Some(why)) = (&check.error, target.error) {
            check.error = Some(ApiError::new(ErrorCode::StorageFailed, why));
        }
        slices.push(check);
    }
    NodeVerify { slices }
}

async fn dump(
    incidents: &Incidents,
    node: &str,
    target: Target,
    asked: NodeDumpRequest,
    most: usize,
) -> Result<NodeDump, ApiError> {
    let (answer, answered) = oneshot::channel();
    let look = timeout_at(Instant::now() + LOOK_TIMEOUT, async {
        let sent = target.events.send(Event::Look { slice: target.slice, answer }).await;
        if sent.is_err() { Err(ended()) } else { answered.await.map_err(|_| ended()) }
    });
    let look =
        look.await.map_err(|_| ApiError::new(ErrorCode::Timeout, "the bucket's worker did not answer in time"))?;
    let look = look?.map_err(|e| dumps::coded(&e))?;
    let mut dump = dumps::slice(&look.identity, (&look.mark, look.newer.as_ref()), &look.kept, &look.stats);
    (dump.at, dump.index, dump.state) = (node.to_owned(), target.index, target.state);
    if let (None, Some(why)) = (&dump.error, target.error) {
        dump.error = Some(ApiError::new(ErrorCode::StorageFailed, why));
    }
    let read = supervise::job(incidents, "reading a slice", move || {
        fault("dump", "");
        // A build may end meanwhile and remove its runs.
        for path in store::runs(look.back.directory()).unwrap_or_default() {
            dump.runs.extend(store::run_info(&path).ok().as_ref().map(dumps::run));
        }
        let from = (asked.vb, asked.from.as_deref().unwrap_or_default());
        dumps::read_rows(&mut dump, &look.back, from, asked.rows, most).map(|()| dump)
    });
    let dump = read.await.answer()?;
    Ok(NodeDump { slices: vec![dump] })
}

fn ended() -> ApiError {
    ApiError::new(ErrorCode::NodeUnavailable, "the bucket's worker has ended")
}

/// The answer's sender was dropped.
fn unfinished() -> ApiError {
    ApiError::new(ErrorCode::Internal, "the check, or the bucket's worker, ended before there was an answer")
}
