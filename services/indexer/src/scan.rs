//! Serves scans of one slice at one stability snapshot.

use crate::{
    held::{At, Held},
    store::{Snapshot, StoreError},
};
use highwater_bus::{Incidents, fault, supervise};
use highwater_schemas::{
    ErrorCode, collation,
    state::SliceName,
    wire::{Rows, ScanMode, ScanPage, ScanReply, ScanRequest},
};
use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};
use tokio::sync::Semaphore;

/// A scan of so many rows at most runs where its request arrived.
const SMALL: u64 = 128;
/// The deadline is looked at every so many rows.
const LOOK: u64 = 4_096;
/// Room for the ST and the headers of a reply, bytes.
const HEADROOM: usize = 8 * 1024;

/// Waits for the ST and answers a page or a count; never fails otherwise than by a coded refusal.
pub(crate) async fn serve(
    incidents: &Incidents,
    held: &Held,
    mut request: ScanRequest,
    turns: &Semaphore,
    max_payload: usize,
) -> ScanReply {
    let deadline = Instant::now() + Duration::from_millis(u64::from(request.timeout_ms));
    // More than that cannot be sent in any case.
    request.page_bytes = request.page_bytes.min(u32::try_from(max_payload).unwrap_or(u32::MAX));
    let slice = SliceName { index: request.index, partition: request.partition };
    let Some(held) = held.get(&request.bucket, slice) else {
        return ScanReply::refused(ErrorCode::TopologyStale, "this node does not host the slice");
    };
    let lease = Duration::from_millis(u64::from(request.lease_ms));
    let at = match held.wait(request.at, lease, deadline).await {
        Ok(at) => at,
        Err((code, message)) => return ScanReply::refused(code, message),
    };
    // Waiting for an ST takes no turn, reading does.
    let Ok(turn) = turns.acquire().await else {
        return ScanReply::refused(ErrorCode::NodeUnavailable, "the node is ending");
    };
    if request.mode == ScanMode::Rows && request.limit <= SMALL && request.skip <= SMALL {
        // Handing it to another thread would take longer than the scan.
        return read(&at, &request, deadline, max_payload, held.directions());
    }
    let reading = move || read(&at, &request, deadline, max_payload, held.directions());
    let reply = supervise::job(incidents, "a scan", reading).await.done();
    drop(turn);
    reply.unwrap_or_else(|error| ScanReply::refused(ErrorCode::Internal, format!("the scan failed: {error}")))
}

fn read(
    (st, snapshot): &At,
    request: &ScanRequest,
    deadline: Instant,
    max_payload: usize,
    directions: &[bool],
) -> ScanReply {
    fault("scan", &request.bucket);
    let mut page = ScanPage {
        st: (**st).clone(),
        unindexed: snapshot.unindexed(),
        rows: Rows::default(),
        count: 0,
        skipped: 0,
        more: false,
    };
    let outcome = match request.mode {
        ScanMode::Count => snapshot.count(&request.ranges).map(|count| {
            page.count = count;
            false
        }),
        ScanMode::Rows => rows(request, snapshot, &mut page, deadline),
    };
    match outcome {
        // A page holds one row at least, however large: only then can it be more than a message takes.
        Ok(false) if page.rows.size() + HEADROOM > max_payload => {
            let id = page.rows.get(0).map(|row| docid(row.key, directions)).unwrap_or_default();
            ScanReply::refused(
                ErrorCode::RowTooLarge,
                format!("the row of document {id:?} does not fit one NATS message"),
            )
        }
        Ok(false) => ScanReply::Page(page),
        Ok(true) => ScanReply::refused(ErrorCode::Timeout, "the scan took longer than its deadline"),
        Err(error) => {
            tracing::error!(bucket = request.bucket, index = request.index, %error, "scan failed");
            ScanReply::refused(ErrorCode::StorageFailed, error.to_string())
        }
    }
}

/// Fills the page; true when the deadline passed.
fn rows(
    request: &ScanRequest,
    snapshot: &Snapshot,
    page: &mut ScanPage,
    deadline: Instant,
) -> Result<bool, StoreError> {
    let (mut looked, mut late) = (0u64, false);
    let page_bytes = request.page_bytes as usize;
    snapshot.scan(&request.ranges, request.reverse, request.after.as_deref(), &mut |key, include| {
        looked += 1;
        if looked.is_multiple_of(LOOK) && Instant::now() >= deadline {
            late = true;
            return ControlFlow::Break(());
        }
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
    })?;
    Ok(late)
}

/// The docid of an entry key, for a message.
fn docid(key: &[u8], directions: &[bool]) -> String {
    let rest = collation::decode_key(key, directions, &mut Vec::new()).ok().and_then(|used| key.get(used..));
    rest.and_then(|rest| collation::split_entry_suffix(rest).ok()).map(|(id, _)| id.into_owned()).unwrap_or_default()
}
