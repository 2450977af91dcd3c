//! The replicated log as everyone may read it, and what must hold of it however often it was lost.

use crate::client::Client;
use anyhow::{Context, Result, ensure};
use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::{StreamExt, TryStreamExt};
use highwater_schemas::{
    state::{Change, Record, StateContext, is_record, pack, unpack},
    subjects::{STATE_STREAM, STATE_SUBJECT},
};
use serde_json::{Value, json};
use std::{borrow::Cow, collections::BTreeMap, time::Duration};

/// Records that are asked for at once.
const AT_ONCE: usize = 32;

/// What was seen of the log, over all its lives.
#[derive(Debug, Default)]
pub struct History {
    /// By term, the hash of the record that opened it, and who did.
    opened: BTreeMap<u64, (String, String)>,
    /// Of the log as it was read last.
    incarnation: u64,
}

impl History {
    /// Reads the whole log; answers what it adds up to. Its records must form one chain, terms must rise, and each must have
    /// been opened once.
    pub async fn read(&mut self, client: &Client) -> Result<StateContext> {
        let records = records(client).await?;
        let mut context = StateContext::default();
        let mut before: Option<(Record, String)> = None;
        for json in records {
            let record: Record = serde_json::from_slice(&json).context("no record")?;
            let hash = Record::hash(&json);
            let at = format!("record {} of term {}", record.version, record.term);
            let opens = before.as_ref().is_none_or(|(last, _)| last.term != record.term);
            if let Some((last, last_hash)) = &before {
                ensure!(record.version == last.version + 1, "{at} follows {}", last.version);
                ensure!(record.prev == *last_hash, "{at} does not follow the hash of {}", last.version);
                ensure!(record.term >= last.term, "{at} follows term {}", last.term);
                ensure!(record.incarnation == last.incarnation, "{at} is of incarnation {}", record.incarnation);
            }
            match &record.change {
                Change::TermStarted { coordinator } => {
                    ensure!(opens, "{at} opens its term a second time");
                    self.opens(record.term, &hash, coordinator)?;
                }
                Change::Snapshot { context, reason } if !reason.is_empty() => {
                    ensure!(before.is_none(), "{at} is a snapshot behind others");
                    self.opens(record.term, &hash, &context.coordinator)?;
                }
                Change::Snapshot { .. } => {}
                change => ensure!(before.is_some() && !opens, "{at} does not open its term: {change:?}"),
            }
            context.offer(&json).with_context(|| format!("{at} cannot be applied"))?;
            before = Some((record, hash));
        }
        let (last, _) = before.context("the log is empty")?;
        let highest = self.opened.keys().next_back().copied().unwrap_or_default();
        ensure!(last.term == highest, "the log ends in term {}, and there was term {highest}", last.term);
        ensure!(last.incarnation >= self.incarnation, "the log is of an earlier life: {}", last.incarnation);
        self.incarnation = last.incarnation;
        Ok(context)
    }

    /// Of the log as it was read last: rises when it is published anew.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// The terms that were opened, and by whom.
    pub fn terms(&self) -> impl Iterator<Item = (u64, &str)> {
        self.opened.iter().map(|(term, (_, coordinator))| (*term, coordinator.as_str()))
    }

    fn opens(&mut self, term: u64, hash: &str, coordinator: &str) -> Result<()> {
        let opened = self.opened.entry(term).or_insert_with(|| (hash.to_owned(), coordinator.to_owned()));
        ensure!(opened.0 == hash, "term {term} was opened by {} and again by {coordinator}", opened.1);
        Ok(())
    }
}

/// Follows the log until NATS goes.
pub struct Follow(pull::Ordered);

impl Follow {
    /// From now on.
    pub async fn start(client: &Client) -> Result<Self> {
        Self::after(client, Self::end(client).await?).await
    }

    /// Where the log ends now.
    pub async fn end(client: &Client) -> Result<u64> {
        Ok(client.js.get_stream(STATE_STREAM).await.context("no state log")?.cached_info().state.last_sequence)
    }

    /// From where it ended then.
    pub async fn after(client: &Client, end: u64) -> Result<Self> {
        let stream = client.js.get_stream(STATE_STREAM).await.context("no state log")?;
        let deliver_policy = DeliverPolicy::ByStartSequence { start_sequence: end + 1 };
        let config = pull::OrderedConfig { deliver_policy, ..pull::OrderedConfig::default() };
        Ok(Self(stream.create_consumer(config).await?.messages().await?))
    }

    /// Waits for a record of this kind; answers what it changes.
    pub async fn until(&mut self, what: &str, within: Duration, wanted: impl Fn(&Change) -> bool) -> Result<Change> {
        let followed = async {
            loop {
                let message = self.0.next().await.context("the log ended")??;
                let record: Record = serde_json::from_slice(&unpack(&message.payload)?).context("no record")?;
                if wanted(&record.change) {
                    return Ok(record.change);
                }
            }
        };
        let followed = tokio::time::timeout(within, followed).await;
        followed.with_context(|| format!("{what}: no such record within {within:?}"))?
    }
}

/// What the records of the log changed, the oldest first.
pub async fn changes(client: &Client) -> Result<Vec<Change>> {
    let change = |json: Vec<u8>| Ok(serde_json::from_slice::<Record>(&json).context("no record")?.change);
    records(client).await?.into_iter().map(change).collect()
}

/// Puts in the log's place one whose records were changed, the first one first, and then chained again. No service may run.
pub async fn rewrite(client: &Client, mut change: impl FnMut(&mut Value)) -> Result<()> {
    let mut rewritten: Vec<Vec<u8>> = Vec::new();
    for json in records(client).await? {
        let mut record: Value = serde_json::from_slice(&json).context("no record")?;
        change(&mut record);
        if let Some(before) = rewritten.last() {
            record["prev"] = Record::hash(before).into();
        }
        rewritten.push(record.to_string().into_bytes());
    }
    let config = client.js.get_stream(STATE_STREAM).await.context("no state log")?.cached_info().config.clone();
    client.js.delete_stream(STATE_STREAM).await?;
    client.js.create_stream(config).await?;
    for json in rewritten {
        client.js.publish(STATE_SUBJECT, pack(json).into()).await?.await?;
    }
    Ok(())
}

/// The payload of a message of the log, whose headers the client library may refuse.
async fn payload(client: &Client, seq: u64) -> Result<Vec<u8>> {
    let question = json!({"seq": seq}).to_string();
    let answer = client.nats.request(format!("$JS.API.STREAM.MSG.GET.{STATE_STREAM}"), question.into()).await?;
    let answer: Value = serde_json::from_slice(&answer.payload)?;
    let data = answer["message"]["data"].as_str().or(answer["message"]["seq"].as_u64().map(|_| ""));
    Ok(STANDARD.decode(data.with_context(|| answer.to_string())?)?)
}

/// The records of the log, as JSON, the oldest first.
async fn records(client: &Client) -> Result<Vec<Vec<u8>>> {
    let stream = client.js.get_stream(STATE_STREAM).await.context("no state log")?;
    let state = &stream.cached_info().state;
    futures_util::stream::iter(state.first_sequence..=state.last_sequence)
        .map(async |seq| {
            let payload = payload(client, seq).await.with_context(|| format!("no record at {seq}"))?;
            // What is no record was written by the test.
            let record = is_record(&payload).then(|| unpack(&payload).map(Cow::into_owned));
            Ok(record.transpose()?)
        })
        .buffered(AT_ONCE)
        .try_filter_map(async |record| Ok(record))
        .try_collect()
        .await
}
