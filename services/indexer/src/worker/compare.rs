//! Slices whose source's history changed, or that missed removals without a message: they go back, and are compared with the list
//! of every present document that a session begins with.

use super::{Worker, stores::UNSEALED, walks::Purpose};
use crate::{
    core::{Action, Batch},
    documents::{self, Named},
    store::{SliceMark, SliceStore, StoreError},
};
use highwater_bus::fault;
use highwater_schemas::state::SliceName;
use std::{collections::BTreeMap, time::Instant};

/// What a session's list has named, by vbucket.
pub(super) struct Listed {
    session: u64,
    pub(super) vbs: BTreeMap<u16, Named>,
}

impl Listed {
    /// Bytes held, about.
    pub(super) fn memory(&self) -> usize {
        self.vbs.values().map(Named::memory).sum()
    }
}

impl Worker {
    pub(super) fn roll_back(&mut self, slice: SliceName, st: u64) -> Vec<Action> {
        fault("roll back", &self.outside.bucket);
        let Some(name) = self.open.get(&slice).map(|open| self.full_name(&open.stem)) else { return Vec::new() };
        // A newer mark of a slice without changes would speak of what is taken back now.
        if let Err(error) = self.outside.marks.forget(&[&name]) {
            return self.fail(slice, &error);
        }
        let Some(open) = self.open.get_mut(&slice) else { return Vec::new() };
        let began = Instant::now();
        let kept = open.store.kept().iter().find(|k| k.mark.st == st).map(|k| (k.mark.topic, k.mark.topic_created));
        match open.store.roll_back(st, kept.unwrap_or_default()) {
            Ok(()) => {
                let took = began.elapsed().as_millis();
                tracing::info!(bucket = self.outside.bucket, ?slice, st, took, "rolled back");
                open.mark = open.store.durable().clone();
                let (mark, bulk) = (open.mark.clone(), open.store.in_bulk());
                let kept: Vec<SliceMark> = open.store.kept().iter().map(|k| k.mark.clone()).collect();
                self.core.opened(slice, &mark, &kept, bulk)
            }
            Err(error) => self.fail(slice, &error),
        }
    }

    /// Takes a batch of the list.
    pub(super) fn compare(
        &mut self,
        slice: SliceName,
        session: u64,
        batch: &Batch,
        after: u64,
        proven: u64,
    ) -> Result<(), StoreError> {
        fault("compare", &self.outside.bucket);
        let (Some(open), Some(info)) = (self.open.get_mut(&slice), self.infos.get(&slice)) else { return Ok(()) };
        if open.listed.as_ref().is_none_or(|listed| listed.session != session) {
            open.listed = Some(Listed { session, vbs: BTreeMap::new() });
        }
        let Some(listed) = &mut open.listed else { return Ok(()) };
        let named = listed.vbs.entry(batch.vb).or_insert_with(|| Named::new(proven));
        let range = after..=batch.to.seqno;
        documents::compare(&mut open.store, info, slice, batch, range, named)?;
        open.unsealed += batch.size();
        open.collected += batch.size();
        open.brought = Instant::now();
        if open.unsealed > UNSEALED {
            open.unsealed = 0;
            open.store.seal()?;
            self.merge_layers(slice);
        }
        Ok(())
    }

    /// The list of a vbucket is complete: what it did not name is gone.
    pub(super) fn sweep(&mut self, slice: SliceName, session: u64, vb: u16, walk: u64) -> Vec<Action> {
        if let Some(open) = self.open.get_mut(&slice) {
            if open.listed.as_ref().is_none_or(|listed| listed.session != session) {
                open.listed = Some(Listed { session, vbs: BTreeMap::new() });
            }
            if let Some(listed) = &mut open.listed {
                listed.vbs.entry(vb).or_default().complete();
            }
            open.oldest.clear();
        }
        self.walk(slice, vb, walk, Purpose::Sweep)
    }
}
