//! What is done to a stack: documents come from outside, the master's container stops, an indexer loses its network; and after
//! each of it, every index must hold what the documents say.

use super::{
    oracle::{Documents, Index, falling, number, text},
    stack::Stack,
};
use crate::{
    client::{self, Highwater, coordinator},
    demo::{BUCKET, cities},
    term::{group, step},
};
use anyhow::{Context, Result, bail, ensure};
use async_nats::{Client, jetstream::kv};
use futures_util::TryStreamExt;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The bucket of the stack's own writer, and its service.
const READINGS: &str = "readings";
const WRITER: &str = "writer";
const MILLION: u64 = 1_000_000;
/// Documents that one round changes.
const CHANGES: usize = 300;
/// One change in so many is a delete.
const DELETE_EVERY: usize = 7;

const FIRST_ANSWER: Duration = Duration::from_secs(30);
const BUILT_WITHIN: Duration = Duration::from_secs(120);
/// How long another index manager may take to coordinate, and queries to be answered again.
const NEW_MASTER_WITHIN: Duration = Duration::from_secs(60);
/// How long an indexer stays without its network.
const AWAY_FOR: Duration = Duration::from_secs(15);
/// How long it may take afterwards until its indexes answer.
const BACK_WITHIN: Duration = Duration::from_secs(90);
const SOON: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(100);

const BY_COUNTRY: Index = Index {
    bucket: BUCKET,
    name: "by_country",
    keys: &["country", "population DESC"],
    condition: None,
    include: &["name"],
    partitions: 2,
    entry: |city| Some(vec![text(city, "country")?, falling(city, "population")?]),
};
const OF_A_MILLION: Index = Index {
    bucket: BUCKET,
    name: "million",
    keys: &["population"],
    condition: Some("population > 1000000"),
    include: &["name", "country"],
    partitions: 1,
    entry: |city| (city["population"].as_u64()? > MILLION).then(|| number(city, "population").map(|key| vec![key]))?,
};
const BY_TIMEZONE: Index = Index {
    bucket: BUCKET,
    name: "by_timezone",
    keys: &["timezone", "name"],
    condition: None,
    include: &[],
    partitions: 1,
    entry: |city| Some(vec![text(city, "timezone")?, text(city, "name")?]),
};
/// Created by the second master.
const BY_NAME: Index = Index {
    bucket: BUCKET,
    name: "by_name",
    keys: &["name"],
    condition: None,
    include: &["population"],
    partitions: 1,
    entry: |city| Some(vec![text(city, "name")?]),
};
const BY_ROOM: Index = Index {
    bucket: READINGS,
    name: "by_room",
    keys: &["room", "reading DESC"],
    condition: None,
    include: &["sensor"],
    partitions: 1,
    entry: |reading| Some(vec![text(reading, "room")?, falling(reading, "reading")?]),
};

/// Brings the stack up and goes through all of it.
pub async fn run(stack: &mut Stack<'_>) -> Result<()> {
    let since = Instant::now();
    let containers = stack.up().await?;
    step(&format!("{containers} containers are up and healthy"), since.elapsed());

    let mut outside = Outside::connect(stack).await?;
    for index in [BY_COUNTRY, OF_A_MILLION, BY_TIMEZONE, BY_ROOM] {
        outside.create(index).await?;
    }
    outside.compare("built", SOON).await?;
    outside.change().await?;
    outside.compare("after updates and deletes", SOON).await?;
    lose_master(stack, &mut outside).await?;
    lose_network(stack, &mut outside).await?;
    stop_writer(stack, &outside).await?;

    stack.start(WRITER).await?;
    stack.wait_healthy().await?;
    let restarted = stack.restarted().await?;
    ensure!(restarted.is_empty(), "containers have ended by themselves: {}", restarted.join(", "));
    Ok(())
}

/// The master's container stops: another index manager takes over, and takes definitions.
async fn lose_master(stack: &Stack<'_>, outside: &mut Outside) -> Result<()> {
    let master = outside.master().await?.context("nobody coordinates")?;
    let since = Instant::now();
    stack.stop(&master).await?;
    step(&format!("the master's container is stopped: {master}"), since.elapsed());

    outside.answers_any().await?;
    outside.change().await?;
    let next = outside.master_after(&master).await?;
    step(&format!("{next} coordinates now"), since.elapsed());
    outside.compare("with the new master", NEW_MASTER_WITHIN).await?;
    outside.create(BY_NAME).await?;
    outside.compare("with an index that the new master has created", SOON).await?;

    let since = Instant::now();
    stack.start(&master).await?;
    stack.wait_healthy().await?;
    step(&format!("{master} is started again and healthy"), since.elapsed());
    outside.change().await?;
    outside.compare("with all index managers again", SOON).await
}

/// An indexer loses its network: its indexes are refused with a code that says to try again, the others go on; then it is back.
async fn lose_network(stack: &Stack<'_>, outside: &mut Outside) -> Result<()> {
    let lost = outside.hosts(&OF_A_MILLION).await?.into_iter().next().context("the index has no host")?;
    let since = Instant::now();
    stack.disconnect(&lost).await?;
    step(&format!("{lost} is disconnected from the network"), since.elapsed());
    let (mut refused, mut right) = (Vec::new(), Vec::new());
    while since.elapsed() < AWAY_FOR {
        outside.change().await?;
        (refused, right) = outside.compare_without(&lost).await?;
    }
    let (refused, right) = (refused.join(", "), right.join(", "));
    step(&format!("without it: refused with a code: {refused}; right: {right}"), since.elapsed());

    let since = Instant::now();
    stack.connect(&lost).await?;
    outside.change().await?;
    outside.compare("with its network again", BACK_WITHIN).await?;
    stack.wait_healthy().await?;
    step(&format!("{lost} is connected again and healthy"), since.elapsed());
    Ok(())
}

/// The writer wrote all the time; once it is stopped, its bucket can be compared too.
async fn stop_writer(stack: &Stack<'_>, outside: &Outside) -> Result<()> {
    let since = Instant::now();
    stack.stop(WRITER).await?;
    let documents = outside.read_all(READINGS).await?;
    let rows = BY_ROOM.check(&outside.highwater, &documents, SOON).await?;
    step(&format!("the writer's bucket: {} rows are those of its documents", group(rows)), since.elapsed());
    Ok(())
}

/// A client outside of the stack, with its own copy of the documents that it put.
struct Outside {
    nats: Client,
    highwater: Highwater,
    bucket: kv::Store,
    cities: Documents,
    indexes: Vec<Index>,
    rounds: usize,
}

impl Outside {
    /// Connects and puts every city.
    async fn connect(stack: &Stack<'_>) -> Result<Self> {
        let nats = client::connect(&stack.nats_url().await?).await?;
        let loaded = cities::load()?;
        let bucket = cities::put_all(&nats, &loaded, stack.kind().replicas()).await?;
        let mut cities = Documents::new();
        for (id, city) in &loaded {
            cities.insert(id.clone(), serde_json::to_value(city).context("a city does not serialize")?);
        }
        let highwater = Highwater::new(nats.clone());
        Ok(Self { nats, highwater, bucket, cities, indexes: Vec::new(), rounds: 0 })
    }

    async fn create(&mut self, index: Index) -> Result<()> {
        let since = Instant::now();
        let created = self.highwater.insist("hw.admin.index.create", &index.definition(), FIRST_ANSWER).await;
        // An earlier try may have come through without its answer.
        if let Err(error) = created
            && !error.to_string().contains("index_exists")
        {
            return Err(error);
        }
        index.wait_active(&self.highwater, BUILT_WITHIN).await?;
        step(&format!("index {} on {} is active", index.name, index.bucket), since.elapsed());
        self.indexes.push(index);
        Ok(())
    }

    /// Every index over the cities must hold what the documents say.
    async fn compare(&self, when: &str, within: Duration) -> Result<()> {
        let since = Instant::now();
        let mut rows = 0;
        for index in self.over_cities() {
            rows += index.check(&self.highwater, &self.cities, within).await.with_context(|| when.to_owned())?;
        }
        step(&format!("{when}: {} rows are those of the documents", group(rows)), since.elapsed());
        Ok(())
    }

    /// The same while a node is away: what it hosts must be refused as something to try again. Returns that, and what it does
    /// not host and is right.
    async fn compare_without(&self, node: &str) -> Result<(Vec<String>, Vec<&'static str>)> {
        let (mut refused, mut right) = (Vec::new(), Vec::new());
        for index in self.over_cities() {
            if !self.hosts(index).await?.iter().any(|host| host == node) {
                index.check(&self.highwater, &self.cities, SOON).await.with_context(|| format!("without {node}"))?;
                right.push(index.name);
                continue;
            }
            match index.scan(&self.highwater).await {
                Ok(_) => bail!("index {} answers while {node}, which hosts it, has no network", index.name),
                Err(answer) => {
                    let code = answer.code.with_context(|| format!("index {}: {}", index.name, answer.text))?;
                    ensure!(answer.retry, "index {} is refused for good: {}", index.name, answer.text);
                    refused.push(format!("{} ({code})", index.name));
                }
            }
        }
        ensure!(!refused.is_empty(), "{node} hosts no index");
        // Two indexers get one each of the indexes with one partition that are created first.
        ensure!(!right.is_empty(), "{node} hosts a part of every index");
        Ok((refused, right))
    }

    /// Updates and deletes some documents, a different part of them each time.
    async fn change(&mut self) -> Result<()> {
        self.rounds += 1;
        let stride = (self.cities.len() / CHANGES).max(1);
        let ids: Vec<String> = self.cities.keys().skip(self.rounds * 13 % stride).step_by(stride).cloned().collect();
        for (number, id) in ids.into_iter().enumerate() {
            if number % DELETE_EVERY == 0 {
                self.bucket.delete(&id).await.with_context(|| format!("cannot delete {id}"))?;
                self.cities.remove(&id);
                continue;
            }
            let Some(city) = self.cities.get_mut(&id) else { continue };
            let population = city["population"].as_u64().unwrap_or_default();
            // Across the million and back, so that the partial index changes as well.
            city["population"] = json!(if population > MILLION { population / 3 } else { population * 5 + 1 });
            city["name"] = json!(format!("{} {}", city["name"].as_str().unwrap_or_default(), self.rounds));
            let payload = city.to_string();
            self.bucket.put(&id, payload.into()).await.with_context(|| format!("cannot put {id}"))?;
        }
        Ok(())
    }

    /// A count without any freshness must be answered, whoever coordinates.
    async fn answers_any(&self) -> Result<()> {
        let request = json!({"bucket": BUCKET, "index": BY_COUNTRY.name, "consistency": "any"});
        let reply = self.highwater.insist("hw.query.count", &request, SOON).await?;
        ensure!(reply["count"].is_u64(), "the reply has no count: {reply}");
        Ok(())
    }

    /// The index manager that coordinates.
    async fn master(&self) -> Result<Option<String>> {
        match self.highwater.ask("hw.cluster.members", &"{}").await {
            Ok(status) => Ok(coordinator(&status).map(str::to_owned)),
            Err(refused) if refused.retry => Ok(None),
            Err(refused) => bail!("hw.cluster.members answers {}", refused.text),
        }
    }

    async fn master_after(&self, old: &str) -> Result<String> {
        let deadline = Instant::now() + NEW_MASTER_WITHIN;
        loop {
            match self.master().await? {
                Some(master) if master != old => return Ok(master),
                _ if Instant::now() > deadline => {
                    bail!("nobody coordinates instead of {old} within {} s", NEW_MASTER_WITHIN.as_secs())
                }
                _ => tokio::time::sleep(POLL).await,
            }
        }
    }

    /// The nodes that host an index.
    async fn hosts(&self, index: &Index) -> Result<Vec<String>> {
        let request = json!({"bucket": index.bucket, "index": index.name});
        let reply = self.highwater.insist("hw.query.describe", &request, SOON).await?;
        let hosts = reply["hosts"].as_array().context("the reply names no hosts")?;
        Ok(hosts.iter().filter_map(|host| host.as_str().map(str::to_owned)).collect())
    }

    fn over_cities(&self) -> impl Iterator<Item = &Index> {
        self.indexes.iter().filter(|index| index.bucket == BUCKET)
    }

    /// Every document of a bucket, as any client reads it.
    async fn read_all(&self, bucket: &str) -> Result<Documents> {
        let context = async_nats::jetstream::new(self.nats.clone());
        let bucket = context.get_key_value(bucket).await.with_context(|| format!("there is no bucket {bucket}"))?;
        let keys: Vec<String> = bucket.keys().await.context("no keys")?.try_collect().await.context("no keys")?;
        let mut documents = Documents::new();
        for key in keys {
            let Some(bytes) = bucket.get(&key).await.with_context(|| format!("cannot read {key}"))? else { continue };
            let document: Value = serde_json::from_slice(&bytes).with_context(|| format!("{key} is not JSON"))?;
            documents.insert(key, document);
        }
        ensure!(!documents.is_empty(), "the bucket holds no documents");
        Ok(documents)
    }
}
