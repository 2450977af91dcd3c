//! Bytes that a client library refuses, in stored messages and in requests: the document is indexed, or counted with its
//! reason; a request is answered, or not; nothing ends, and nothing connects again. The inputs are in `tests/data/foreign`.

use highwater_schemas::{state::is_record, subjects};
use highwater_tests::{
    cluster::SERVICES,
    foreign::{bytes, headers, lines},
    prelude::*,
    raw::Raw,
};
use std::collections::{BTreeMap, BTreeSet};

const CONFIGURATION: &str = "jetstream: enabled\nhttp: \"127.0.0.1:-1\"\n";
const BUCKET: &str = "people";
const ACTIVE_WITHIN: Duration = Duration::from_secs(60);
const SEEN_WITHIN: Duration = Duration::from_secs(20);
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);
/// For what need not be answered.
const PERHAPS_WITHIN: Duration = Duration::from_millis(20);
/// Who has not answered a ping by then does not.
const SILENT_WITHIN: Duration = Duration::from_secs(2);

/// The codes of a request that cannot be read.
const BAD_REQUEST: [&str; 2] = ["malformed_request", "unknown_field"];

/// A cluster, the raw connection, and what must not change.
struct Stage<'a> {
    cluster: &'a mut Cluster,
    client: Client,
    raw: Raw,
    /// That the server has accepted.
    connections: u64,
    /// Of the source's stream.
    consumers: (String, BTreeSet<String>),
    /// What went wrong, by input.
    wrong: Vec<String>,
}

impl<'a> Stage<'a> {
    async fn new(cluster: &'a mut Cluster, client: Client, stream: &str) -> Result<Self> {
        let raw = Raw::connect(cluster.nats().port()).await?;
        let mut stage = Self {
            cluster,
            client,
            raw,
            connections: 0,
            consumers: (stream.into(), BTreeSet::new()),
            wrong: Vec::new(),
        };
        stage.look().await?;
        Ok(stage)
    }

    /// What must not change from here on.
    async fn look(&mut self) -> Result<()> {
        self.connections = self.cluster.nats().counted("total_connections")?;
        self.consumers.1 = self.consumers().await?;
        Ok(())
    }

    async fn consumers(&self) -> Result<BTreeSet<String>> {
        use futures_util::TryStreamExt;
        let stream = self.client.js.get_stream(&self.consumers.0).await?;
        Ok(stream.consumer_names().try_collect().await?)
    }

    /// Notes what is wrong after an input; who ended is started again, so that the next one shows what it does.
    async fn note(&mut self, what: &str, outcome: Result<()>) -> Result<()> {
        let mut found: Vec<String> = outcome.err().map(|error| format!("{error:#}")).into_iter().collect();
        let mut ended = Vec::new();
        for node in self.cluster.nodes() {
            if let Some(status) = self.cluster.node(&node)?.exited() {
                found.push(format!("{node} ended ({status})"));
                ended.push(node);
            }
        }
        let connections = self.cluster.nats().counted("total_connections")?;
        if connections != self.connections {
            found.push(format!("{} connections were made", connections - self.connections));
        }
        // What a session has read with goes away by itself.
        if !self.consumers().await?.is_subset(&self.consumers.1) {
            found.push("the source is read by another consumer".into());
        }
        if found.is_empty() {
            return Ok(());
        }
        println!("{what}: {}", found.join("; "));
        self.wrong.push(format!("{what}: {}", found.join("; ")));
        for node in ended {
            self.cluster.kill(&node)?;
            self.cluster.start_node(&node).await?;
        }
        self.client.wait_formed(&SERVICES).await?;
        self.look().await
    }

    fn end(self) -> Result<()> {
        ensure!(self.wrong.is_empty(), "{} inputs:\n{}", self.wrong.len(), self.wrong.join("\n"));
        Ok(())
    }
}

/// What an index must show.
#[derive(Default)]
struct Expected {
    /// By docid.
    rows: BTreeMap<String, u64>,
    /// By the docid's bytes, the reason.
    unindexed: BTreeMap<Vec<u8>, String>,
}

impl Expected {
    /// An exact scan shows the rows and the count, `describe` the reasons.
    async fn is_seen(&self, client: &Client, index: &str) -> Result<(), String> {
        let request = json!({"bucket": BUCKET, "index": index, "consistency": "request_plus", "timeout_ms": 3_000});
        let reply = client.scan(&request).await.map_err(|refused| refused.to_string())?;
        if reply["exact"] != true {
            return Err("not exact".into());
        }
        let rows: Vec<(String, u64)> = reply["rows"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|row| (row["id"].as_str().unwrap_or_default().to_owned(), row["key"][0].as_u64().unwrap_or_default()))
            .collect();
        let shown: BTreeMap<String, u64> = rows.iter().cloned().collect();
        let differs = |(id, n): &(&String, &u64), other: &BTreeMap<String, u64>| other.get(*id) != Some(n);
        let short = |(id, n): (&String, &u64)| format!("{:?}={n}", id.chars().take(40).collect::<String>());
        let missing: Vec<String> = self.rows.iter().filter(|row| differs(row, &shown)).map(short).collect();
        let more: Vec<String> = shown.iter().filter(|row| differs(row, &self.rows)).map(short).collect();
        if !missing.is_empty() || !more.is_empty() || rows.len() != self.rows.len() {
            return Err(format!("{} rows; missing {missing:?}, instead {more:?}", rows.len()));
        }
        let described = client.request("hw.query.describe", &json!({"bucket": BUCKET, "index": index})).await;
        let described = described.map_err(|refused| refused.to_string())?;
        let mut reasons: Vec<&str> =
            described["unindexed"].as_array().into_iter().flatten().filter_map(|d| d["reason"].as_str()).collect();
        let mut wanted: Vec<&str> = self.unindexed.values().map(String::as_str).collect();
        reasons.sort_unstable();
        wanted.sort_unstable();
        if reasons != wanted || reply["unindexed"].as_u64() != Some(wanted.len() as u64) {
            return Err(format!("{} unindexed: {reasons:?} instead of {wanted:?}", reply["unindexed"]));
        }
        Ok(())
    }

    /// What becomes of it when this was seen of a message; `put` is what a good document says.
    fn take(&mut self, id: &[u8], seen: &str, put: u64) -> Result<()> {
        let text = String::from_utf8(id.to_vec()).ok();
        if let Some(text) = &text {
            self.rows.remove(text);
        }
        self.unindexed.remove(id);
        match seen.split_once(' ').unwrap_or((seen, "")) {
            ("indexed", n) => {
                let n = if n.is_empty() { put } else { n.parse()? };
                self.rows.insert(text.context("a docid that is not UTF-8 is indexed")?, n);
            }
            ("unindexed", reason) => _ = self.unindexed.insert(id.to_vec(), reason.to_owned()),
            ("gone", "") => {}
            _ => bail!("{seen:?} cannot be seen"),
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_stored_in_a_bucket_is_indexed_or_counted() -> Result<()> {
    stored(true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_stored_in_a_stream_is_indexed_or_counted() -> Result<()> {
    stored(false).await
}

async fn stored(kv: bool) -> Result<()> {
    Cluster::configured(CONFIGURATION)?
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = if kv {
                Source::key_value(&client, BUCKET).await?
            } else {
                Source::keyed_streams(&client, BUCKET, 1).await?
            };
            let (stream, prefix) = source.streams[0].clone();
            let by_n = |name: &str| json!({"bucket": BUCKET, "name": name, "keys": ["n"]});
            client.create_index(&by_n("by_n")).await?;
            client.wait_active(BUCKET, "by_n", ACTIVE_WITHIN).await?;
            let mut expected = Expected::default();
            until("the index is empty", SEEN_WITHIN, async || expected.is_seen(&client, "by_n").await).await?;
            let mut stage = Stage::new(cluster, client.clone(), &stream).await?;
            for (number, line) in (1_u64..).zip(lines("stored.txt", 5)?) {
                let [what, id, block, payload, seen] = &line[..] else { bail!("five columns") };
                let (id, block) = (bytes(id)?, headers(block)?);
                let payload =
                    if payload == "doc" { format!("{{\"n\":{number}}}").into_bytes() } else { bytes(payload)? };
                let seen =
                    seen.split_once(" / ").map_or(seen.as_str(), |(bucket, stream)| if kv { bucket } else { stream });
                let subject = [prefix.as_bytes(), &id].concat();
                // What is there before is to be replaced.
                if seen != "refused" && std::str::from_utf8(&id).is_ok() {
                    let old = format!("{{\"n\":{}}}", 100_000 + number);
                    ensure!(store(&mut stage.raw, &subject, None, old.as_bytes()).await?, "{what} cannot be put");
                }
                let taken = store(&mut stage.raw, &subject, block.as_deref(), &payload).await?;
                ensure!(taken == (seen != "refused"), "{what}: taken by the server: {taken}");
                if taken {
                    expected.take(&id, seen, number).with_context(|| what.clone())?;
                }
                let seen = until("seen", SEEN_WITHIN, async || expected.is_seen(&client, "by_n").await).await;
                stage.note(what, seen).await?;
            }
            // A build reads all of it at once, and so does a projector that starts again.
            client.create_index(&by_n("again")).await?;
            client.wait_active(BUCKET, "again", ACTIVE_WITHIN).await?;
            until("the second index shows the same", SEEN_WITHIN, async || expected.is_seen(&client, "again").await)
                .await?;
            stage.cluster.restart("projector-1").await?;
            stage.cluster.restart("indexer-1").await?;
            for index in ["by_n", "again"] {
                let what = format!("{index} shows the same after a restart");
                until(&what, SEEN_WITHIN, async || expected.is_seen(&client, index).await).await?;
            }
            stage.end()
        })
        .await
}

/// Publishes to a stream; whether it was stored.
async fn store(raw: &mut Raw, subject: &[u8], headers: Option<&[u8]>, payload: &[u8]) -> Result<bool> {
    let Some(answer) = raw.request(subject, headers, payload, ANSWERED_WITHIN).await? else { return Ok(false) };
    let answer: Value = serde_json::from_slice(&answer).context("the server's answer is not JSON")?;
    Ok(answer["error"].is_null())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_asked_is_answered_or_passed_over() -> Result<()> {
    Cluster::configured(CONFIGURATION)?
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value(&client, BUCKET).await?;
            source.write((0..10).map(|n| Write::put(0, format!("d{n}"), &json!({"n": n})))).await?;
            client.create_index(&json!({"bucket": BUCKET, "name": "by_n", "keys": ["n"]})).await?;
            client.wait_active(BUCKET, "by_n", ACTIVE_WITHIN).await?;
            let services = responders(&client, usize::MAX).await?;
            let mut stage = Stage::new(cluster, client.clone(), "KV_people").await?;
            let requests = lines("requests.txt", 4)?;
            for line in lines("bad_headers.txt", 3)? {
                let [what, reply, block] = &line[..] else { bail!("three columns") };
                let (reply, block) = (bytes(reply)?, headers(block)?);
                let mut outcome = Ok(());
                for request in &requests {
                    let (subject, good) = (bytes(&request[0])?, bytes(&request[1])?);
                    let asked = if reply.is_empty() {
                        ask(&mut stage.raw, &subject, block.as_deref(), &good, &request[2]).await
                    } else {
                        stage.raw.publish(&subject, &reply, block.as_deref(), &good).await?;
                        // One by one: nats-server mistakes a CR in a subject that it reads in two parts.
                        stage.raw.flush().await
                    };
                    outcome = outcome.and(asked);
                }
                let all = outcome.and(is_well(&client, services).await);
                stage.note(what, all).await?;
            }
            stage.note("no answer went into a stream", no_answers(&client).await).await?;
            for line in lines("bad_payloads.txt", 2)? {
                let [what, payload] = &line[..] else { bail!("two columns") };
                let payload = bytes(payload)?;
                let mut outcome = Ok(());
                for request in &requests {
                    let wanted = if payload.is_empty() { "any" } else { &request[3] };
                    let asked = ask(&mut stage.raw, &bytes(&request[0])?, None, &payload, wanted).await;
                    outcome = outcome.and(asked);
                }
                let all = outcome.and(is_well(&client, services).await);
                stage.note(what, all).await?;
            }
            stage.end()
        })
        .await
}

/// No answer of Highwater's is in a stream, and none took anything out of one. Two of the requests are themselves stored in
/// streams: the server acknowledges these wherever it is told to.
async fn no_answers(client: &Client) -> Result<()> {
    let state = client.js.get_stream("KV_people").await?.cached_info().state.clone();
    ensure!((state.messages, state.last_sequence) == (11, 12), "the bucket: {state:?}");
    let log = client.js.get_stream(subjects::STATE_STREAM).await?;
    let state = &log.cached_info().state;
    let mut acknowledgements = 0;
    for seq in state.first_sequence..=state.last_sequence {
        let message = log.get_raw_message(seq).await?;
        if !is_record(&message.payload) {
            let acknowledgement: Value = serde_json::from_slice(&message.payload)?;
            ensure!(acknowledgement["stream"].is_string(), "message {seq} of the log: {acknowledgement}");
            acknowledgements += 1;
        }
    }
    ensure!(acknowledgements == 2, "{acknowledgements} acknowledgements in the log");
    Ok(())
}

/// Asks, and compares with the answer that is wanted.
async fn ask(raw: &mut Raw, subject: &[u8], headers: Option<&[u8]>, payload: &[u8], wanted: &str) -> Result<()> {
    let within = if ["any", "none"].contains(&wanted) { PERHAPS_WITHIN } else { ANSWERED_WITHIN };
    let answer = raw.request(subject, headers, payload, within).await?;
    let subject = String::from_utf8_lossy(subject);
    let said = match &answer {
        None => "none".to_owned(),
        Some(_) if wanted == "any" => return Ok(()),
        Some(answer) => {
            let answer: Value = serde_json::from_slice(answer).with_context(|| format!("{subject} answers no JSON"))?;
            let code = answer["error"]["code"].as_str().unwrap_or("no code");
            match wanted {
                _ if answer["ok"] == true => "ok".to_owned(),
                "refused" if BAD_REQUEST.contains(&code) => wanted.to_owned(),
                _ => code.to_owned(),
            }
        }
    };
    ensure!(wanted == "any" || said == wanted, "{subject} answers {said}, not {wanted}");
    Ok(())
}

/// Everybody is there and answers.
async fn is_well(client: &Client, services: usize) -> Result<()> {
    let request = json!({"bucket": BUCKET, "index": "by_n", "consistency": "request_plus"});
    until("the index is counted", SEEN_WITHIN, async || match client.count(&request).await {
        Ok(10) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await?;
    client.wait_formed(&SERVICES).await?;
    let found = responders(client, services).await?;
    ensure!(found == services, "{found} services answer a ping, not {services}");
    Ok(())
}

/// How many services answer `$SRV.PING`, up to `enough`.
async fn responders(client: &Client, enough: usize) -> Result<usize> {
    use futures_util::StreamExt;
    let inbox = client.nats.new_inbox();
    let mut answers = client.nats.subscribe(inbox.clone()).await?;
    client.nats.publish_with_reply("$SRV.PING", inbox, "".into()).await?;
    let mut found = 0;
    while found < enough {
        let Ok(Some(_)) = tokio::time::timeout(SILENT_WITHIN, answers.next()).await else { break };
        found += 1;
    }
    Ok(found)
}
