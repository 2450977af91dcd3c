//! One page of a scan: what to ask of each partition, and the reply made of their answers.

use crate::{
    merge::{Merge, Page},
    render::{EXPANSION_ONE, Head, Renderer},
    request::Plan,
    token::PageToken,
};
use highwater_schemas::{
    ApiError, ErrorCode, StabilityTimestamp,
    wire::{ScanMode, ScanPage, ScanRequest, StChoice},
};

/// A token's stability timestamp stays readable this long, renewed with every page.
pub const LEASE_MS: u32 = 30_000;
/// The least that is asked of a partition, bytes.
const MIN_PAGE_BYTES: u64 = 16 * 1024;

/// Where a page begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub at: StChoice,
    pub after: Option<Vec<u8>>,
    /// Rows to pass over first.
    pub skip: u64,
}

/// What the partitions' answers make.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Reply {
        body: Vec<u8>,
        /// It carries a page token.
        token: bool,
    },
    /// Every row was passed over: go on here.
    Skipped(Place),
}

impl Plan {
    /// What stands before the rows of a reply.
    pub fn head<'a>(&'a self, st: &'a StabilityTimestamp, unindexed: u64) -> Head<'a> {
        Head {
            st,
            unindexed,
            streams: &self.streams,
            key_names: &self.key_names,
            directions: &self.directions,
            language: self.language,
        }
    }

    /// The most rows in this reply.
    fn rows_wanted(&self) -> Option<u64> {
        match (self.left, self.page_size) {
            (Some(left), Some(size)) => Some(left.min(size)),
            (left, size) => left.or(size),
        }
    }

    /// The scan of one partition. A reply may hold `budget` bytes in all.
    pub fn slice_request(
        &self,
        partition: u32,
        place: &Place,
        budget: usize,
        mode: ScanMode,
        timeout_ms: u32,
    ) -> ScanRequest {
        // A single slice passes rows over itself; of several none knows which of its rows come first.
        let single = self.hosts.len() == 1;
        let (skip, further) = if single { (place.skip, 0) } else { (0, place.skip) };
        let limit = match mode {
            ScanMode::Rows => self.rows_wanted().map_or(u64::MAX, |rows| rows.saturating_add(further)),
            ScanMode::Count => u64::MAX,
        };
        ScanRequest {
            bucket: self.bucket.clone(),
            index: self.index,
            partition,
            at: place.at,
            ranges: self.ranges.clone(),
            reverse: self.reverse,
            after: place.after.clone(),
            skip,
            limit,
            page_bytes: self.page_bytes(budget),
            mode,
            lease_ms: if self.page.is_some() { LEASE_MS } else { 0 },
            timeout_ms,
        }
    }

    /// A request without rows that keeps the stability timestamp readable for the next page.
    ///
    /// First pages do not ask for it with their rows: most scans have one page, and would pin a timestamp for nothing.
    pub fn lease_request(&self, partition: u32, st: u64, timeout_ms: u32) -> ScanRequest {
        let place = Place { at: StChoice::Exactly(st), after: None, skip: 0 };
        let request = self.slice_request(partition, &place, 0, ScanMode::Rows, timeout_ms);
        ScanRequest { ranges: Vec::new(), limit: 0, lease_ms: LEASE_MS, ..request }
    }

    /// How many encoded bytes each partition may send: rows grow in JSON, by what the page before showed.
    fn page_bytes(&self, budget: usize) -> u32 {
        let budget = budget as u64;
        let most = budget * 3 / 4;
        let expansion = self.page.as_ref().map_or(EXPANSION_ONE, |page| u64::from(page.expansion).max(1));
        let all = (budget * EXPANSION_ONE / expansion).min(most);
        u32::try_from((all / self.hosts.len().max(1) as u64).max(MIN_PAGE_BYTES).min(most)).unwrap_or(u32::MAX)
    }

    /// Merges the answers of all partitions into a reply of at most `budget` bytes; or of `message`, when a single row has more.
    pub fn assemble(
        &self,
        pages: &[ScanPage],
        place: &Place,
        (budget, message): (usize, usize),
    ) -> Result<Outcome, ApiError> {
        let internal = |message: &str| Err(ApiError::new(ErrorCode::Internal, message));
        let Some(first) = pages.first() else { return internal("the index has no partitions") };
        let st = &first.st;
        if pages.iter().any(|page| page.st.number != st.number) {
            return internal("the partitions answered at different stability timestamps");
        }
        let unindexed = pages.iter().map(|page| page.unindexed).sum();
        let head = self.head(st, unindexed);
        let sources: Vec<Page> = pages.iter().map(|page| Page { rows: &page.rows, more: page.more }).collect();
        let mut rows = Merge::new(&sources, self.reverse);
        let mut renderer = Renderer::new(&head, budget).first_row(message);
        let wanted = self.rows_wanted();
        let mut skip = place.skip.saturating_sub(if pages.len() == 1 { first.skipped } else { 0 });
        let (mut last, mut full) = (None, false);
        while wanted.is_none_or(|wanted| renderer.rows() < wanted) {
            let Some(row) = rows.next() else { break };
            if skip > 0 {
                skip -= 1;
            } else if !renderer.push(row)? {
                full = true;
                break;
            }
            last = Some(row.key);
        }
        let left = self.left.map(|left| left - renderer.rows());
        if left == Some(0) || !(full || rows.more()) {
            return Ok(Outcome::Reply { body: renderer.finish(None), token: false });
        }
        let Some(last) = last else { return internal("a partition has more rows and gave none") };
        if renderer.rows() == 0 {
            return Ok(Outcome::Skipped(Place { at: StChoice::Exactly(st.number), after: Some(last.to_vec()), skip }));
        }
        let expansion = renderer.expansion().unwrap_or(EXPANSION_ONE as u16);
        let token = PageToken { st: st.number, left, fingerprint: self.fingerprint, expansion, after: last.to_vec() };
        Ok(Outcome::Reply { body: renderer.finish(Some(&token.write())), token: true })
    }
}

#[cfg(test)]
mod tests;
