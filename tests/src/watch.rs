//! Listens to what is told to everyone: stability timestamps and the membership.

use crate::client::Client;
use anyhow::{Result, bail, ensure};
use futures_util::StreamExt;
use highwater_schemas::{
    api::ClusterEvent,
    subjects,
    timestamp::{StVb, StabilityTimestamp},
    wire::{self, Stability},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::task::JoinHandle;

/// What was heard.
#[derive(Default)]
struct Heard {
    /// By bucket and number.
    timestamps: BTreeMap<(String, u64), (u64, Vec<StVb>)>,
    /// By term, who coordinates in it.
    masters: BTreeMap<u64, String>,
    newest: u64,
    wrong: Option<String>,
}

/// Listens until it is dropped.
pub struct Watch {
    heard: Arc<Mutex<Heard>>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Over this connection.
    pub async fn start(client: Client) -> Result<Self> {
        let client = client.nats;
        let mut issued = client.subscribe(subjects::stability("*")).await?;
        let mut events = client.subscribe(subjects::CLUSTER_EVENT).await?;
        client.flush().await?;
        let heard = Arc::new(Mutex::new(Heard::default()));
        let kept = Arc::clone(&heard);
        let task = tokio::spawn(async move {
            let _client = client;
            loop {
                let outcome = tokio::select! {
                    Some(message) = issued.next() => match wire::decode::<Stability>(&message.payload) {
                        Ok(stability) => lock(&kept).stability(&stability),
                        Err(error) => Err(error.into()),
                    },
                    Some(message) = events.next() => match serde_json::from_slice::<ClusterEvent>(&message.payload) {
                        Ok(event) => lock(&kept).event(&event),
                        Err(error) => Err(error.into()),
                    },
                    else => return,
                };
                if let Err(error) = outcome {
                    lock(&kept).wrong.get_or_insert_with(|| error.to_string());
                }
            }
        });
        Ok(Self { heard, task })
    }

    /// Fails when a number named two timestamps, or a term two masters, or terms fell. Answers how many numbers were heard.
    pub fn check(&self) -> Result<usize> {
        let heard = lock(&self.heard);
        if let Some(wrong) = &heard.wrong {
            bail!("{wrong}");
        }
        Ok(heard.timestamps.len())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(heard: &Mutex<Heard>) -> std::sync::MutexGuard<'_, Heard> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Heard {
    fn stability(&mut self, message: &Stability) -> Result<()> {
        self.timestamp(&message.bucket, &message.st)
    }

    fn timestamp(&mut self, bucket: &str, st: &StabilityTimestamp) -> Result<()> {
        let key = (bucket.to_owned(), st.number);
        let (term, vbs) = self.timestamps.entry(key).or_insert_with(|| (st.term, st.vbs.clone()));
        ensure!(
            *term == st.term && *vbs == st.vbs,
            "number {} names two timestamps: {vbs:?} of term {term}, and {:?} of term {}",
            st.number,
            st.vbs,
            st.term
        );
        Ok(())
    }

    fn event(&mut self, event: &ClusterEvent) -> Result<()> {
        let Some(master) = &event.master else { return Ok(()) };
        let known = self.masters.entry(master.term).or_insert_with(|| master.node.clone());
        ensure!(*known == master.node, "{known} and {} coordinate in term {}", master.node, master.term);
        ensure!(master.term >= self.newest, "term {} after term {}", master.term, self.newest);
        self.newest = master.term;
        Ok(())
    }
}
