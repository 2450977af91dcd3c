//! Who answers which request of the node. What reads a slice or the disk does so on a thread that may block.

use super::{Shell, reports, view::hosted_slices};
use crate::{
    dumps,
    files::SliceFiles,
    read_threads::Size,
    store::{Snapshot, StoreError},
};
use highwater_bus::{ServiceRequest, fault, supervise};
use highwater_schemas::{
    ApiError, ErrorCode,
    api::{self, NodeKind, NodeStatus, UnindexedDoc, page},
    state::SliceName,
    wire::{self, ScanReply, ScanRequest, Unindexable},
};
use std::{
    io,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};
use tokio::runtime::Handle;

/// Unindexable documents listed per slice.
const LISTED: usize = 100;
/// Answers that may be under way beside those of scans; who asks for more hears nothing.
const MOST_ERRANDS: usize = 4_096;
/// Who asks for them waits no longer.
const LIST_TIMEOUT: Duration = Duration::from_secs(5);

impl Shell {
    pub(super) async fn request(&mut self, request: ServiceRequest) {
        match request.subject.rsplit('.').next() {
            Some("scan") => self.scan(request),
            Some(verb @ ("verify" | "dump")) => {
                let verb = verb.to_owned();
                self.diagnose(&verb, request).await;
            }
            Some("report") => self.asked_for_report(),
            Some("assign") => self.assign(request),
            Some("status") => self.status(request).await,
            _ => request.respond(Ok(api::ok(&api::Empty {}))).await,
        }
    }

    fn scan(&mut self, request: ServiceRequest) {
        let Some(place) = self.scans.threads.place() else {
            return self.refuse(request, ErrorCode::TooManyRequests, "too many scans wait on this node".into());
        };
        match wire::decode::<ScanRequest>(&request.payload) {
            Ok(scan) => {
                if let Some(later) = self.scans.serve(scan, place, request) {
                    self.errands.spawn("a scan", later);
                }
            }
            Err(error) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                self.refuse(request, ErrorCode::MalformedRequest, error.to_string());
            }
        }
    }

    /// Says so to a catalog, unless as many have yet to be told.
    fn refuse(&mut self, request: ServiceRequest, code: ErrorCode, why: String) {
        if self.errands.under_way() < MOST_ERRANDS {
            self.errands.spawn("refusing a scan", async move {
                request.respond(Ok(wire::encode(&ScanReply::refused(code, why)))).await;
            });
        }
    }

    /// Slices, or those of the bucket that the request names, as many as fit. If it names one, that one, with documents that it could
    /// not take.
    async fn status(&mut self, request: ServiceRequest) {
        let made = supervise::caught_now(&self.bus.incidents(), "a request for the status", || {
            fault("status", "");
            self.status_of(&request.payload)
        });
        match made.answer() {
            Ok((status, Some(snapshot))) => self.on_thread(request, move || {
                let unindexed = unindexed(snapshot).map_err(|e| dumps::coded(&e))?;
                Ok(api::ok(&NodeStatus { unindexed, ..status }))
            }),
            Ok((status, None)) => request.respond(Ok(api::ok(&status))).await,
            Err(error) => request.respond(Err(error)).await,
        }
    }

    /// What is known without reading a slice, and the snapshot whose list is to be added.
    fn status_of(&self, payload: &[u8]) -> Result<(NodeStatus, Option<Snapshot>), ApiError> {
        let asked: api::NodeStatusRequest = api::parse(payload)?;
        let wanted = self.buckets.iter().filter(|(name, _)| asked.bucket.as_ref().is_none_or(|b| b == *name));
        let reports = wanted.clone().map(|(_, running)| &running.report);
        let only = asked.index.zip(asked.partition);
        let (slices, more) = reports::fitting(reports, only, asked.after.as_ref(), self.bus.max_payload() / 2);
        let status = NodeStatus {
            node: self.config.node.clone(),
            kind: NodeKind::Indexer,
            void_batches: wanted.clone().map(|(_, r)| r.report.borrow().void).sum(),
            slices,
            more,
            refused_messages: self.refused.load(Ordering::Relaxed),
            unindexed: Vec::new(),
        };
        let held = match (&asked.bucket, asked.index, asked.partition) {
            (Some(bucket), Some(index), Some(partition)) => self.scans.held.get(bucket, SliceName { index, partition }),
            _ => None,
        };
        Ok((status, held.and_then(|held| held.newest()).map(|(_, snapshot)| snapshot)))
    }

    /// Whether there is room for further partitions: the disk can be written, and files can be opened.
    fn assign(&mut self, request: ServiceRequest) {
        let hosted = hosted_slices(&self.config.node, self.state.context()) as u64;
        let (files, payload) = (self.files.clone(), request.payload.clone());
        self.on_thread(request, move || {
            fault("assign", "");
            let wanted: api::Assign = api::parse(&payload)?;
            room(&files, hosted + u64::from(wanted.partitions)).map(|()| api::ok(&api::Empty {}))
        });
    }

    /// Answers from a thread that may block, if there is a place.
    fn on_thread(
        &mut self,
        request: ServiceRequest,
        work: impl FnOnce() -> Result<Vec<u8>, ApiError> + Send + 'static,
    ) {
        let runtime = Handle::current();
        let Some(place) = self.scans.threads.place() else {
            let error = ApiError::new(ErrorCode::TooManyRequests, "too many scans wait on this node");
            if self.errands.under_way() < MOST_ERRANDS {
                self.errands.spawn("refusing a request", request.respond(Err(error)));
            }
            return;
        };
        let incidents = self.bus.incidents();
        self.scans.threads.run(place, Size::Small, move || {
            let answer = supervise::caught_now(&incidents, &format_args!("a request to {}", request.subject), work);
            runtime.block_on(request.respond(answer.answer()));
        });
    }
}

/// The first documents that a slice could not take.
fn unindexed(snapshot: Snapshot) -> Result<Vec<UnindexedDoc>, StoreError> {
    let listed = snapshot.until(Instant::now() + LIST_TIMEOUT).unindexed_docs(LISTED)?;
    let doc = |(vb, id, seqno, reason): (u16, String, u64, Unindexable)| UnindexedDoc {
        id,
        vb,
        seqno,
        reason: reason.as_str().into(),
    };
    Ok(page(listed.into_iter().map(doc)).0)
}

/// Whether the disk can be written, and the files of so many partitions can be opened.
fn room(files: &SliceFiles, partitions: u64) -> Result<(), ApiError> {
    /// Files that a slice keeps open.
    const FILES: u64 = 3;
    let storage = |e: io::Error| ApiError::new(ErrorCode::StorageFailed, e.to_string());
    files.probe().map_err(storage)?;
    let (limit, _) = rlimit::Resource::NOFILE.get().map_err(storage)?;
    if partitions.saturating_mul(FILES) > limit {
        return Err(ApiError::new(
            ErrorCode::StorageFailed,
            format!("{partitions} partitions need more than the {limit} files that this process may open"),
        ));
    }
    Ok(())
}
