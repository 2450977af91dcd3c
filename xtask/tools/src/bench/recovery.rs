//! Recovery: an indexer that is started again, one that must be caught up, and a source that goes back.

use super::{
    BUCKET, Options, STREAM, Sources,
    documents::{document, subject},
    limits::{self, WINDOW},
    report::{Recovery, Report},
};
use crate::{
    client::{self, Highwater},
    fleet::{Fleet, SMALLEST},
    term::{group, step},
    writer::Writer,
};
use anyhow::{Context, Result, bail, ensure};
use async_nats::{Client, jetstream};
use serde_json::{Value, json};
use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

const INDEXER: &str = "indexer-1";
/// Indexes with one entry for each document; the first two are what is caught up and rolled back.
const INDEXES: [(&str, &[&str]); 4] =
    [("by_city", &["city", "age DESC"]), ("by_age", &["age"]), ("by_name", &["name"]), ("by_email", &["email"])];
const KEPT: usize = 2;
const RESTARTS: usize = 3;
/// What is rolled back, at most.
const MUTATIONS: u64 = 500_000;
const JOINED_WITHIN: Duration = Duration::from_secs(10);
const FIRST_ANSWER: Duration = Duration::from_secs(15);
const PATIENCE: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(5);

/// Measures in a fleet of its own.
pub async fn measure(sources: &Sources<'_>, options: &Options, report: &mut Report) -> Result<()> {
    let mut fleet = Fleet::start(sources.server, Some(sources.directory))?;
    let nats = client::connect(fleet.url()).await?;
    let documents = options.docs;
    let publish = limits::publish_all(&nats, documents).await?;
    step(
        &format!("raw acked publish: {} msg/s", group(publish as u64)),
        Duration::from_secs_f64(documents as f64 / publish),
    );
    fleet.start_services(sources.binary, &SMALLEST).await?;
    let highwater = Highwater::new(nats.clone());
    highwater.formed(&SMALLEST, JOINED_WITHIN).await?;
    let mut run = Run { highwater, nats, documents, fleet, sources };
    let outcome = run.all(report).await;
    if outcome.is_err() {
        run.fleet.check()?;
    }
    outcome
}

struct Run<'a> {
    highwater: Highwater,
    nats: Client,
    documents: u64,
    fleet: Fleet,
    sources: &'a Sources<'a>,
}

impl Run<'_> {
    async fn all(&mut self, report: &mut Report) -> Result<()> {
        let since = Instant::now();
        for (name, keys) in INDEXES {
            let definition = json!({"bucket": BUCKET, "name": name, "keys": keys, "defer_build": true});
            self.highwater.insist("hw.admin.index.create", &definition, FIRST_ANSWER).await?;
        }
        let names = INDEXES.map(|(name, _)| name);
        self.highwater.call("hw.admin.index.build", &json!({"bucket": BUCKET, "names": names})).await?;
        let st = self.counted(&names, "request_plus").await?;
        self.durable(st).await?;
        step("indexes built and durable", since.elapsed());

        let mut restart = Duration::ZERO;
        for _ in 0..RESTARTS {
            self.fleet.kill(INDEXER)?;
            let since = Instant::now();
            self.fleet.start_again(self.sources.binary, INDEXER).await?;
            self.answered(&names, "any").await?;
            restart = restart.max(since.elapsed());
            self.counted(&names, "any").await?;
        }
        let entries = self.documents * INDEXES.len() as u64;
        step(&format!("restart of an indexer with {} entries", group(entries)), restart);

        let (rate, read) = self.catch_up(&names).await?;
        let (mutations, rolled_back, resumed) = self.roll_back(&names[..KEPT]).await?;
        report.recovery(&Recovery { entries, restart, rate, read, mutations, rolled_back, resumed });
        Ok(())
    }

    /// Documents per second for an indexer whose topic lost all that was written while it was down, and what is read raw.
    async fn catch_up(&mut self, names: &[&str]) -> Result<(f64, f64)> {
        for name in &names[KEPT..] {
            self.highwater.call("hw.admin.index.drop", &json!({"bucket": BUCKET, "name": name})).await?;
        }
        self.fleet.kill(INDEXER)?;
        self.write(self.documents, 1).await?;
        let topic = jetstream::new(self.nats.clone()).get_stream(format!("HW_MUTATION_{BUCKET}")).await?;
        // The router may be a little behind the writer.
        self.published().await?;
        topic.purge().await.context("cannot purge the mutation topic")?;
        let read = limits::read(&self.nats, self.documents).await?;
        let since = Instant::now();
        self.fleet.start_again(self.sources.binary, INDEXER).await?;
        let started = since.elapsed();
        self.answered(&names[..KEPT], "request_plus").await?;
        let took = since.elapsed();
        self.counted(&names[..KEPT], "request_plus").await?;
        step(&format!("{} documents caught up, {started:?} of it until it was started", group(self.documents)), took);
        Ok((self.documents as f64 / took.as_secs_f64(), read))
    }

    /// Older files in the place of the source's: how many mutations are rolled back, the time that the indexer spent with that,
    /// and the time until the present is readable again.
    async fn roll_back(&mut self, names: &[&str]) -> Result<(u64, Duration, Duration)> {
        let store = self.fleet.path().join("nats/store/jetstream/$G/streams").join(STREAM);
        let kept = self.fleet.path().join("kept");
        // What was caught up at rest is made durable with the next change.
        self.write(1, 1).await?;
        let st = self.counted(names, "request_plus").await?;
        self.durable(st).await?;
        self.fleet.restart_nats(self.sources.server, || copy(&store, &kept))?;
        self.counted(names, "request_plus").await?;
        let mutations = self.documents.min(MUTATIONS);
        self.write(mutations, 2).await?;
        let st = self.counted(names, "request_plus").await?;
        self.durable(st).await?;
        let since = Instant::now();
        self.fleet.restart_nats(self.sources.server, || {
            std::fs::remove_dir_all(&store).context("cannot remove the newer files")?;
            copy(&kept, &store)
        })?;
        let history = loop {
            let asked = self.highwater.ask("hw.admin.bucket.history", &json!({"name": BUCKET})).await;
            let rollbacks = asked.as_ref().ok().and_then(|reply| reply["rollbacks"].as_array().cloned());
            if let Some(last) =
                rollbacks.and_then(|all| all.into_iter().find(|r| r["ended"].as_u64() > Some(0) && r["broken"] == true))
            {
                break last;
            }
            ensure!(since.elapsed() < PATIENCE, "the bucket is not rolled back");
            tokio::time::sleep(POLL).await;
        };
        self.answered(names, "request_plus").await?;
        let resumed = since.elapsed();
        self.counted(names, "request_plus").await?;
        let log = std::fs::read_to_string(self.fleet.path().join(format!("{INDEXER}.log"))).context("no log")?;
        let took: Vec<u64> = log.lines().filter(|line| line.contains("rolled back")).filter_map(took).collect();
        ensure!(took.len() >= names.len(), "the log of {INDEXER} does not say how long it took; {history}");
        let rolled_back = Duration::from_millis(took.iter().sum());
        step(&format!("{} mutations rolled back in {rolled_back:?}; readable again", group(mutations)), resumed);
        Ok((mutations, rolled_back, resumed))
    }

    /// Replaces the first documents.
    async fn write(&self, documents: u64, version: u64) -> Result<()> {
        let since = Instant::now();
        let writer = Writer::new(self.nats.clone(), WINDOW).await?;
        for number in 0..documents {
            let one = document(number, version);
            writer.publish(subject(&one.id), one.json).await?;
        }
        writer.flush().await?;
        step(&format!("{} documents replaced", group(documents)), since.elapsed());
        Ok(())
    }

    /// Waits until every one of these indexes answers a scan.
    async fn answered(&self, names: &[&str], consistency: &str) -> Result<()> {
        let since = Instant::now();
        for name in names {
            let request =
                json!({"bucket": BUCKET, "index": name, "consistency": consistency, "timeout_ms": 60_000, "limit": 1});
            while let Err(refused) = self.highwater.ask("hw.query.scan", &request).await {
                ensure!(since.elapsed() < PATIENCE, "{name} is not scanned: {}", refused.text);
                tokio::time::sleep(POLL).await;
            }
        }
        Ok(())
    }

    /// Waits until every one of these indexes counts all documents; answers the newest ST.
    async fn counted(&self, names: &[&str], consistency: &str) -> Result<u64> {
        let (since, mut newest) = (Instant::now(), 0);
        for name in names {
            let request = json!({"bucket": BUCKET, "index": name, "consistency": consistency, "timeout_ms": 60_000});
            loop {
                let counted = self.highwater.ask("hw.query.count", &request).await;
                match counted {
                    Ok(reply) if reply["count"] == self.documents => {
                        newest = newest.max(reply["st"].as_u64().unwrap_or(0));
                        break;
                    }
                    other if since.elapsed() > PATIENCE => match other {
                        Ok(reply) => bail!("{name} counts {} of {} documents", reply["count"], self.documents),
                        Err(refused) => bail!("{name} is not counted: {}", refused.text),
                    },
                    _ => tokio::time::sleep(POLL).await,
                }
            }
        }
        Ok(newest)
    }

    /// Waits until an ST is durable.
    async fn durable(&self, st: u64) -> Result<()> {
        let bucket = |status: &Value| status["buckets"].as_array()?.iter().find(|b| b["name"] == BUCKET).cloned();
        self.wait(|status| bucket(status).is_some_and(|b| b["durable"].as_u64() >= Some(st))).await
    }

    /// Waits until all that is in the source is published.
    async fn published(&self) -> Result<()> {
        let all =
            |vb: &Value| vb["seqno"] == vb["source_last"] && vb["source_last"].as_u64() >= Some(2 * self.documents);
        self.wait(|status| status["buckets"][0]["vbuckets"].as_array().is_some_and(|vbs| vbs.iter().all(all))).await
    }

    async fn wait(&self, good: impl Fn(&Value) -> bool) -> Result<()> {
        let since = Instant::now();
        loop {
            let status = self.highwater.status(FIRST_ANSWER).await?;
            if good(&status) {
                return Ok(());
            }
            ensure!(since.elapsed() < PATIENCE, "the bucket does not come to rest: {}", status["buckets"]);
            tokio::time::sleep(POLL).await;
        }
    }
}

/// The milliseconds of a line with `took=`.
fn took(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once("took=")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().context("cp does not start")?;
    ensure!(status.success(), "cannot copy {} to {}", from.display(), to.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_a_rollback_took_is_read_from_the_log() {
        assert_eq!(super::took("INFO rolled back bucket=\"users\" st=7 took=812"), Some(812));
        assert_eq!(super::took("INFO rolled back took=12 st=7"), Some(12));
        assert_eq!(super::took("INFO nothing"), None);
    }
}
