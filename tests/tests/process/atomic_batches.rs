//! Atomic batches (ADR-50) of a source: no scan that says that it is exact shows a part of one, whatever it asks for and whatever
//! happens meanwhile. Also with several streams, and on a replicated stream whose leader changes.

use async_nats::{HeaderMap, Request};
use highwater_tests::{cluster::SERVICES, leaders::another_leads, prelude::*, wait::deadline};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};
use tokio::task::JoinHandle;

/// Each writer has accounts of its own, with so much in them at first.
const ACCOUNTS: usize = 40;
const WRITERS: usize = 2;
const BALANCE: i64 = 100;
const TOTAL: i64 = (WRITERS * ACCOUNTS) as i64 * BALANCE;
/// So many of a writer's accounts have a token.
const TOKENS: usize = 10;
const LARGEST: u64 = 1_000;
const BUILT_WITHIN: Duration = Duration::from_secs(60);
pub const ANSWERED_WITHIN: Duration = Duration::from_secs(30);
/// An acknowledgement that comes no sooner was lost with the leader of a replicated stream.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(5);
const SCANNERS: usize = 3;
/// A scan that an indexer takes with it when it is killed is answered after this time.
const SCAN_MS: u64 = 5_000;
/// What is looked at by all of the scanners together between two faults; [`LATER`] too once that index is there.
const SORTS: [&str; 6] = ["any", "request_plus", "at_plus", "pages", "at_snapshot", "counts"];
const LATER: &str = "later";
/// Written between two faults, at least.
const BATCHES: u64 = 100;
const INDEXER_KILLS: usize = 2;

/// Scans so far, by what they were.
type Seen = Arc<Mutex<BTreeMap<&'static str, u64>>>;

/// Streams that take batches, declared as a bucket.
#[derive(Clone)]
pub struct Bank {
    client: Client,
    bucket: String,
    /// The names of the streams are also the first tokens of their subjects.
    pub streams: Vec<String>,
    /// By stream, the newest sequence that was acknowledged.
    newest: Arc<Vec<AtomicU64>>,
    batches: Arc<AtomicU64>,
    /// The leader may change: a batch may be lost then.
    replicated: bool,
    /// The index [`LATER`] can be scanned.
    later: Arc<AtomicBool>,
}

impl Bank {
    pub async fn open(client: &Client, bucket: &str, streams: usize, history: i64, replicas: u64) -> Result<Self> {
        let streams: Vec<String> = (0..streams).map(|n| format!("{bucket}{n}")).collect();
        for stream in &streams {
            let config = json!({"name": stream, "subjects": [format!("{stream}.>")], "storage": "file", "retention": "limits",
                "max_msgs_per_subject": history, "allow_atomic": true, "discard": "old", "num_replicas": replicas});
            make(client, stream, &config).await?;
        }
        declare(client, bucket, streams.iter().map(|stream| (stream.clone(), stream.clone()))).await?;
        let newest = Arc::new(streams.iter().map(|_| AtomicU64::new(0)).collect());
        Ok(Self {
            client: client.clone(),
            bucket: bucket.into(),
            streams,
            newest,
            batches: Arc::default(),
            replicated: replicas > 1,
            later: Arc::default(),
        })
    }

    pub async fn index(&self, name: &str, definition: Value) -> Result<()> {
        let mut definition = definition;
        (definition["bucket"], definition["name"]) = (json!(self.bucket), json!(name));
        self.client.create_index(&definition).await?;
        self.client.wait_active(&self.bucket, name, BUILT_WITHIN).await.map(|_| ())
    }

    async fn indexes(&self) -> Result<()> {
        self.index("balances", json!({"keys": ["balance"], "include": ["balance"], "num_partition": 2})).await?;
        self.index("tokens", json!({"keys": ["id"], "where": "token = true", "num_partition": 2})).await
    }

    /// Writes a batch to a stream; its end is said by its last message, or by one more that is not stored. Answers its last
    /// sequence.
    pub async fn batch(&self, stream: usize, id: &str, documents: &[(String, Value)], marker: bool) -> Result<u64> {
        let headers = |sequence: usize, commit: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert("Nats-Batch-Id", id);
            headers.insert("Nats-Batch-Sequence", sequence.to_string().as_str());
            if let Some(commit) = commit {
                headers.insert("Nats-Batch-Commit", commit);
            }
            headers
        };
        let subject = |docid: &str| format!("{}.{docid}", self.streams[stream]);
        let (sent, last) =
            if marker { documents.split_at(documents.len()) } else { documents.split_at(documents.len() - 1) };
        for (i, (docid, document)) in sent.iter().enumerate() {
            let payload = document.to_string().into();
            self.client.nats.publish_with_headers(subject(docid), headers(i + 1, None), payload).await?;
        }
        let request = match last {
            [(docid, document)] => (docid.as_str(), document.to_string(), headers(documents.len(), Some("1"))),
            _ => ("end", String::new(), headers(documents.len() + 1, Some("eob"))),
        };
        let (docid, payload, headers) = request;
        let within = if self.replicated { ACKNOWLEDGED_WITHIN } else { ANSWERED_WITHIN };
        let request = Request::new().headers(headers).payload(payload.into()).timeout(Some(within));
        let reply = self.client.nats.send_request(subject(docid), request).await.context("no answer to a batch")?;
        let ack: Value = serde_json::from_slice(&reply.payload).context("an odd answer to a batch")?;
        ensure!(ack["count"] == documents.len(), "{ack}");
        let seq = ack["seq"].as_u64().context("no sequence")?;
        self.newest[stream].fetch_max(seq, Ordering::Relaxed);
        self.batches.fetch_add(1, Ordering::Relaxed);
        Ok(seq)
    }

    async fn put(&self, docid: &str, document: &Value) -> Result<u64> {
        let subject = format!("{}.{docid}", self.streams[0]);
        let ack = self.client.js.publish(subject, document.to_string().into()).await?.await?;
        Ok(ack.sequence)
    }

    /// A consistency that shows what was acknowledged so far.
    fn at_plus(&self) -> Value {
        let newest = self.newest.iter().map(|newest| newest.load(Ordering::Relaxed));
        let by_stream = self.streams.iter().cloned().zip(newest);
        json!({"at_plus": by_stream.collect::<BTreeMap<String, u64>>()})
    }

    /// What a scan of all of an index at this consistency shows, and whether it says that it is exact.
    async fn look(&self, index: &str, consistency: &Value, pages: Option<u64>) -> Result<(Shown, Value), Refused> {
        let mut request =
            json!({"bucket": self.bucket, "index": index, "consistency": consistency, "timeout_ms": SCAN_MS});
        if let Some(rows) = pages {
            request["page_size"] = json!(rows);
        }
        let reply = self.client.scan(&request).await?;
        let rows = reply["rows"].as_array().cloned().unwrap_or_default();
        let accounts = rows.iter().filter(|row| row["id"].as_str().is_some_and(|id| id.starts_with('a')));
        let balances: Vec<i64> = accounts.filter_map(|row| row["include"]["balance"].as_i64()).collect();
        let shown = Shown { exact: reply["exact"] == true, accounts: balances.len(), sum: balances.iter().sum() };
        Ok((shown, reply["st"].clone()))
    }

    async fn tokens(&self, consistency: &Value) -> Result<(u64, bool), Refused> {
        let request =
            json!({"bucket": self.bucket, "index": "tokens", "consistency": consistency, "timeout_ms": SCAN_MS});
        let reply = self.client.request("hw.query.count", &request).await?;
        Ok((reply["count"].as_u64().unwrap_or(u64::MAX), reply["exact"] == true))
    }

    /// Everything that is acknowledged is shown, exactly.
    async fn settled(&self) -> Result<()> {
        until("the whole is shown exactly", ANSWERED_WITHIN, async || {
            for index in ["balances", LATER].into_iter().take(1 + usize::from(self.later.load(Ordering::Relaxed))) {
                let looked = self.look(index, &json!("request_plus"), None).await;
                let (shown, _) = looked.map_err(|refused| refused.to_string())?;
                if !shown.exact || !shown.is_whole() {
                    return Err(format!("{index}: {shown:?}"));
                }
            }
            Ok(())
        })
        .await
    }
}

async fn make(client: &Client, stream: &str, config: &Value) -> Result<()> {
    let made: Value = client.js.request(format!("STREAM.CREATE.{stream}"), config).await.context("no stream")?;
    ensure!(made["error"].is_null(), "{made}");
    Ok(())
}

/// Declares a bucket of streams, each with the first token of its subjects.
async fn declare(client: &Client, bucket: &str, streams: impl Iterator<Item = (String, String)>) -> Result<()> {
    let stream = |(name, first)| json!({"name": name, "strip_prefix": format!("{first}.")});
    let source = json!({"streams": streams.map(stream).collect::<Vec<_>>()});
    client.insist("hw.admin.bucket.add", &json!({"name": bucket, "source": source}), ANSWERED_WITHIN).await?;
    Ok(())
}

#[derive(Debug, Clone, Copy)]
struct Shown {
    exact: bool,
    accounts: usize,
    sum: i64,
}

impl Shown {
    fn is_whole(self) -> bool {
        self.sum == TOTAL && self.accounts == WRITERS * ACCOUNTS
    }
}

/// Moves money and tokens between its accounts, always in one batch.
struct Teller {
    bank: Bank,
    number: usize,
    rng: Rng,
    balances: Vec<i64>,
    tokens: Vec<bool>,
    written: u64,
}

impl Teller {
    fn new(bank: &Bank, number: usize, rng: &mut Rng) -> Self {
        let tokens = (0..ACCOUNTS).map(|account| account < TOKENS).collect();
        Self { bank: bank.clone(), number, rng: rng.fork(), balances: vec![BALANCE; ACCOUNTS], tokens, written: 0 }
    }

    fn document(&self, account: usize) -> (String, Value) {
        let id = format!("a{}-{account}", self.number);
        let document = json!({"id": id, "balance": self.balances[account], "token": self.tokens[account]});
        (id, document)
    }

    async fn write(&mut self, documents: Vec<(String, Value)>) -> Result<u64> {
        self.written += 1;
        let id = format!("t{}-{}", self.number, self.written);
        let marker = self.rng.chance(30);
        let stream = self.number % self.bank.streams.len();
        self.bank.batch(stream, &id, &documents, marker).await
    }

    async fn all(&mut self) -> Result<u64> {
        let documents = (0..ACCOUNTS).map(|account| self.document(account)).collect();
        self.write(documents).await
    }

    /// A batch of some transfers; the more of them, the more often it overwrites what it wrote itself.
    async fn transfer(&mut self) -> Result<u64> {
        let most = if self.rng.chance(2) { LARGEST / 2 } else { 1 + self.rng.below(8) };
        let mut documents = Vec::new();
        for _ in 0..most {
            let from = self.rng.below(ACCOUNTS as u64) as usize;
            let to = (from + 1 + self.rng.below(ACCOUNTS as u64 - 1) as usize) % ACCOUNTS;
            let amount = self.rng.below(50) as i64;
            self.balances[from] -= amount;
            self.balances[to] += amount;
            self.tokens.swap(from, to);
            documents.extend([self.document(from), self.document(to)]);
        }
        self.write(documents).await
    }

    fn start(mut self, over: &Arc<AtomicBool>, pause: Duration) -> JoinHandle<Result<()>> {
        let over = Arc::clone(over);
        tokio::spawn(async move {
            while !over.load(Ordering::Relaxed) {
                if let Err(error) = self.transfer().await {
                    ensure!(self.bank.replicated, "a batch was not taken: {error:#}");
                    // It may be stored or not: either way this is what all of it comes to.
                    let deadline = deadline(ANSWERED_WITHIN);
                    while let Err(again) = self.all().await {
                        ensure!(Instant::now() < deadline, "no batch is taken any more: {error:#}, {again:#}");
                    }
                }
                tokio::time::sleep(pause).await;
            }
            Ok(())
        })
    }
}

/// Scans, counts, pages and repeats until it is over; counts what it saw by consistency.
fn scanner(bank: &Bank, rng: &mut Rng, over: &Arc<AtomicBool>, seen: &Seen) -> JoinHandle<Result<()>> {
    let (bank, mut rng, over, seen) = (bank.clone(), rng.fork(), Arc::clone(over), Arc::clone(seen));
    let count = move |what| *lock(&seen).entry(what).or_default() += 1;
    tokio::spawn(async move {
        while !over.load(Ordering::Relaxed) {
            let (name, consistency) = match rng.below(3) {
                0 => ("any", json!("any")),
                1 => ("request_plus", json!("request_plus")),
                _ => ("at_plus", bank.at_plus()),
            };
            let pages = rng.chance(30).then(|| 1 + rng.below(20));
            let index = if bank.later.load(Ordering::Relaxed) && rng.chance(40) { LATER } else { "balances" };
            let (shown, st) = match bank.look(index, &consistency, pages).await {
                Ok(found) => found,
                Err(refused) if refused.retry => continue,
                // What its first page leased is gone with the indexer.
                Err(refused) if pages.is_some() && refused.code == "snapshot_expired" => continue,
                Err(refused) => bail!("{index}, {name}: {refused}"),
            };
            let torn = shown.exact && !shown.is_whole();
            ensure!(!torn, "{index} is torn: {shown:?} at {st}, {name}, pages of {pages:?}");
            let what = if !shown.exact {
                "not exact"
            } else if pages.is_some() {
                "pages"
            } else {
                name
            };
            count(what);
            if !shown.is_whole() {
                count("torn, and not exact");
            } else if shown.exact && index == LATER {
                count(LATER);
            }
            let again = json!({"at_snapshot": st});
            match bank.look(index, &again, None).await {
                Ok((same, _)) => {
                    ensure!(same.exact == shown.exact && same.sum == shown.sum, "{shown:?} and then {same:?} at {st}");
                    count("at_snapshot");
                }
                Err(refused) if refused.code == "snapshot_expired" || refused.retry => {}
                Err(refused) => bail!("at_snapshot: {refused}"),
            }
            match bank.tokens(&consistency).await {
                Ok((tokens, true)) => {
                    ensure!(tokens == (WRITERS * TOKENS) as u64, "torn: {tokens} tokens, {name}");
                    count("counts");
                }
                Ok(_) => {}
                Err(refused) if refused.retry => {}
                Err(refused) => bail!("count, {name}: {refused}"),
            }
        }
        Ok(())
    })
}

fn lock(seen: &Seen) -> MutexGuard<'_, BTreeMap<&'static str, u64>> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Other documents, one at a time.
fn notes(bank: &Bank, over: &Arc<AtomicBool>, pause: Duration) -> JoinHandle<Result<()>> {
    let (bank, over) = (bank.clone(), Arc::clone(over));
    tokio::spawn(async move {
        for n in 0u64.. {
            if over.load(Ordering::Relaxed) {
                break;
            }
            let (docid, document) = (format!("note{}", n % 50), json!({"balance": n}));
            if bank.replicated {
                let put = async || bank.put(&docid, &document).await.map_err(|error| error.to_string());
                until("a note is taken", ANSWERED_WITHIN, put).await?;
            } else {
                bank.put(&docid, &document).await?;
            }
            tokio::time::sleep(pause).await;
        }
        Ok(())
    })
}

/// Everyone who writes to a bank and looks at it, in the background.
struct Busy {
    bank: Bank,
    over: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Result<()>>>,
    seen: Seen,
}

impl Busy {
    /// The bank is filled and indexed; then they begin.
    async fn start(bank: &Bank, rng: &mut Rng) -> Result<Self> {
        let mut tellers: Vec<Teller> = (0..WRITERS).map(|n| Teller::new(bank, n, rng)).collect();
        for teller in &mut tellers {
            teller.all().await?;
        }
        bank.indexes().await?;
        bank.settled().await?;
        let over = Arc::new(AtomicBool::new(false));
        let pause = Duration::from_millis(2);
        let tellers = tellers.into_iter().map(|teller| teller.start(&over, pause));
        let mut tasks: Vec<_> = tellers.chain([notes(bank, &over, pause)]).collect();
        let seen = Seen::default();
        tasks.extend((0..SCANNERS).map(|_| scanner(bank, rng, &over, &seen)));
        Ok(Self { bank: bank.clone(), over, tasks, seen })
    }

    /// Waits until more batches are written, and scans of every sort are answered.
    async fn goes_on(&self) -> Result<()> {
        let written = self.bank.batches.load(Ordering::Relaxed);
        let before = lock(&self.seen).clone();
        let later = self.bank.later.load(Ordering::Relaxed).then_some(LATER);
        until("batches are written, and scans answered", BUILT_WITHIN, async || {
            let batches = self.bank.batches.load(Ordering::Relaxed) - written;
            let seen = lock(&self.seen).clone();
            let missing = SORTS.into_iter().chain(later).find(|sort| seen.get(sort) <= before.get(sort));
            let ended = self.tasks.iter().any(JoinHandle::is_finished);
            let enough = ended || batches >= BATCHES && missing.is_none();
            if enough { Ok(()) } else { Err(format!("{batches} batches, no {missing:?} in {seen:?}")) }
        })
        .await
    }

    /// All of them saw what they look for, and nothing torn.
    async fn end(self) -> Result<()> {
        self.goes_on().await?;
        self.over.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.context("a writer or scanner panicked")??;
        }
        self.bank.settled().await?;
        let batches = self.bank.batches.load(Ordering::Relaxed);
        println!("{}: {batches} batches, {:?}", self.bank.bucket, lock(&self.seen));
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_exact_scan_shows_a_part_of_a_batch() -> Result<()> {
    let mut rng = Rng::seeded("atomic batches");
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            for (bucket, streams, history) in [("one", 1, 1), ("five", 1, 5), ("pair", 2, 1)] {
                let bank = Bank::open(&client, bucket, streams, history, 1).await?;
                let busy = Busy::start(&bank, &mut rng).await?;
                busy.goes_on().await?;
                // What is read anew begins anywhere.
                cluster.restart("projector-1").await?;
                busy.goes_on().await?;
                client.insist("hw.admin.bucket.reconcile", &json!({"name": bucket}), ANSWERED_WITHIN).await?;
                bank.index(LATER, json!({"keys": ["token", "balance"], "include": ["balance"]})).await?;
                bank.later.store(true, Ordering::Relaxed);
                busy.goes_on().await?;
                // What was applied and not durable is applied again, from anywhere.
                for _ in 0..INDEXER_KILLS {
                    cluster.restart("indexer-1").await?;
                    busy.goes_on().await?;
                }
                busy.end().await?;
            }
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_of_a_replicated_stream_are_not_torn_either() -> Result<()> {
    let mut rng = Rng::seeded("replicated batches");
    Cluster::replicated()
        .await?
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let bank = Bank::open(&client, "three", 1, 1, 3).await?;
            let busy = Busy::start(&bank, &mut rng).await?;
            let mut led = 0;
            for _ in 0..4 {
                busy.goes_on().await?;
                led += u64::from(another_leads(&client, &bank.streams[0], ANSWERED_WITHIN).await?);
            }
            ensure!(led > 0, "the stream was always led by one server");
            busy.end().await
        })
        .await
}
