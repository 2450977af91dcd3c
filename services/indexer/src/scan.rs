//! Serves scans of one slice at one stability snapshot.

use crate::{
    held::{At, Held, HeldSlice},
    read_threads::{Place, ReadThreads, Size},
    store::{Snapshot, StoreError},
};
use highwater_bus::{Incidents, ServiceRequest, fault, supervise};
use highwater_schemas::{
    ErrorCode, collation,
    state::SliceName,
    wire::{self, Rows, ScanMode, ScanPage, ScanReply, ScanRequest},
};
use std::{
    fmt::Display,
    ops::ControlFlow,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::runtime::Handle;

/// A scan that visits so many rows at most is small.
const SMALL: u64 = 128;
/// Room for the ST and the headers of a reply, bytes.
const HEADROOM: usize = 8 * 1024;

/// Where scans read, and on which threads.
#[derive(Clone)]
pub(crate) struct Scans {
    pub(crate) held: Held,
    pub(crate) threads: Arc<ReadThreads>,
    /// Bytes that fit one message.
    pub(crate) max_payload: usize,
    pub(crate) incidents: Incidents,
}

/// What is left to do of a scan by a task.
pub(crate) type Later = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A scan that was taken up.
struct Scan {
    request: ScanRequest,
    held: Arc<HeldSlice>,
    deadline: Instant,
    place: Place,
    requester: ServiceRequest,
}

impl Scans {
    /// Has a page or a count read and answered on one of the threads: at once if its ST is there, else when it has come. Never
    /// fails otherwise than by a coded refusal.
    ///
    /// What is answered is left to do for whoever asked, and so is waiting.
    pub(crate) fn serve(&self, mut request: ScanRequest, place: Place, requester: ServiceRequest) -> Option<Later> {
        let deadline = Instant::now() + Duration::from_millis(u64::from(request.timeout_ms));
        // More than that cannot be sent in any case.
        request.page_bytes = request.page_bytes.min(u32::try_from(self.max_payload).unwrap_or(u32::MAX));
        let slice = SliceName { index: request.index, partition: request.partition };
        let Some(held) = self.held.get(&request.bucket, slice) else {
            let refusal = ScanReply::refused(ErrorCode::TopologyStale, "this node does not host the slice");
            return Some(Box::pin(answer(requester, refusal)));
        };
        let lease = Duration::from_millis(u64::from(request.lease_ms));
        let scan = Scan { request, held, deadline, place, requester };
        // A task between the service's loop and the thread would take longer than a short scan.
        match scan.held.find(scan.request.at, lease) {
            Ok(Some(at)) => {
                self.read(scan, at);
                None
            }
            Ok(None) => {
                let scans = self.clone();
                Some(Box::pin(async move {
                    // Waiting for an ST takes no thread, reading does.
                    let waited = async {
                        fault("wait", &scan.request.bucket);
                        scan.held.wait(scan.request.at, lease, deadline).await
                    };
                    match supervise::caught(&scans.incidents, "a scan that waits", waited).await.done() {
                        Ok(Ok(at)) => scans.read(scan, at),
                        Ok(Err((code, message))) => answer(scan.requester, ScanReply::refused(code, message)).await,
                        Err(error) => answer(scan.requester, failed(&error)).await,
                    }
                }))
            }
            Err((code, message)) => Some(Box::pin(answer(scan.requester, ScanReply::refused(code, message)))),
        }
    }

    fn read(&self, scan: Scan, at: At) {
        let Scan { request, held, deadline, place, requester } = scan;
        let (runtime, max_payload, incidents) = (Handle::current(), self.max_payload, self.incidents.clone());
        self.threads.run(place, size(&request), move || {
            let read = || read(at, &request, deadline, max_payload, held.directions());
            let reply = supervise::caught_now(&incidents, "a scan", read).done();
            let reply = reply.unwrap_or_else(|error| failed(&error));
            // Answered from here: waking a task for that would take longer than a short scan.
            runtime.block_on(answer(requester, reply));
        });
    }
}

fn failed(error: &dyn Display) -> ScanReply {
    ScanReply::refused(ErrorCode::Internal, format!("the scan failed: {error}"))
}

async fn answer(requester: ServiceRequest, reply: ScanReply) {
    requester.respond(Ok(wire::encode(&reply))).await;
}

fn size(request: &ScanRequest) -> Size {
    let small = request.mode == ScanMode::Rows && request.limit <= SMALL && request.skip <= SMALL;
    if small { Size::Small } else { Size::Large }
}

fn read(
    (st, snapshot): At,
    request: &ScanRequest,
    deadline: Instant,
    max_payload: usize,
    directions: &[bool],
) -> ScanReply {
    fault("scan", &request.bucket);
    let snapshot = snapshot.until(deadline);
    let mut page = ScanPage {
        st: (*st).clone(),
        unindexed: snapshot.unindexed(),
        rows: Rows::default(),
        count: 0,
        skipped: 0,
        more: false,
    };
    let outcome = match request.mode {
        ScanMode::Count => snapshot.count(&request.ranges).map(|count| page.count = count),
        ScanMode::Rows => rows(request, &snapshot, &mut page),
    };
    match outcome {
        // A page holds one row at least, however large: only then can it be more than a message takes.
        Ok(()) if page.rows.size() + HEADROOM > max_payload => {
            let id = page.rows.get(0).map(|row| docid(row.key, directions)).unwrap_or_default();
            ScanReply::refused(
                ErrorCode::RowTooLarge,
                format!("the row of document {id:?} does not fit one NATS message"),
            )
        }
        Ok(()) => ScanReply::Page(page),
        Err(StoreError::Late) => ScanReply::refused(ErrorCode::Timeout, "the scan took longer than its deadline"),
        Err(error) => {
            tracing::error!(bucket = request.bucket, index = request.index, %error, "scan failed");
            ScanReply::refused(ErrorCode::StorageFailed, error.to_string())
        }
    }
}

/// Fills the page.
fn rows(request: &ScanRequest, snapshot: &Snapshot, page: &mut ScanPage) -> Result<(), StoreError> {
    let page_bytes = request.page_bytes as usize;
    snapshot.scan(&request.ranges, request.reverse, request.after.as_deref(), &mut |key, include| {
        if page.skipped < request.skip {
            page.skipped += 1;
            return ControlFlow::Continue(());
        }
        let full = page.rows.size() + key.len() + include.len() + 8 > page_bytes;
        if page.rows.len() as u64 >= request.limit || (full && !page.rows.is_empty()) {
            page.more = true;
            return ControlFlow::Break(());
        }
        page.rows.push(key, include);
        ControlFlow::Continue(())
    })
}

/// The docid of an entry key, for a message.
fn docid(key: &[u8], directions: &[bool]) -> String {
    let rest = collation::decode_key(key, directions, &mut Vec::new()).ok().and_then(|used| key.get(used..));
    rest.and_then(|rest| collation::split_entry_suffix(rest).ok()).map(|(id, _)| id.into_owned()).unwrap_or_default()
}
