//! An indexer that has not heard of a rollback goes on answering with what the source has taken back: no catalog passes that on,
//! whatever was asked for.

use futures_util::StreamExt;
use highwater_schemas::{
    ErrorCode, StabilityTimestamp, subjects,
    wire::{self, HighWatermark, Rows, ScanPage, ScanReply, ScanRequest, StChoice, Stability},
};
use highwater_tests::{branches::Branches, files, load, prelude::*, wait::deadline};

const BUCKET: &str = "people";
const STREAM: &str = "KV_people";
const INDEXER: &str = "indexer-1";
const DOCUMENTS: u64 = 300;
const WITHIN: Duration = Duration::from_secs(30);
/// What the stand-in counts in each partition.
const COUNTED: u64 = 4_242;

/// Answers in the place of an indexer as it did at one timestamp, and hears nothing of any later one.
struct StandIn {
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl StandIn {
    async fn start(client: &Client, st: StabilityTimestamp) -> Result<Self> {
        let mut requests = client.nats.subscribe(subjects::node(INDEXER, "scan")).await?;
        let (nats, at) = (client.nats.clone(), st.clone());
        let answers = tokio::spawn(async move {
            while let Some(message) = requests.next().await {
                let Some(to) = message.reply else { continue };
                let Ok(request) = wire::decode::<ScanRequest>(&message.payload) else { continue };
                let holds = match request.at {
                    StChoice::AtLeast(number) => number <= at.number,
                    StChoice::Exactly(number) => number == at.number,
                };
                let reply = if holds {
                    ScanReply::Page(ScanPage {
                        st: at.clone(),
                        unindexed: 0,
                        rows: Rows::default(),
                        count: COUNTED,
                        skipped: 0,
                        more: false,
                    })
                } else {
                    ScanReply::refused(ErrorCode::Timeout, "not reached")
                };
                let _ = nats.publish(to, wire::encode(&reply).into()).await;
            }
        });
        let held = HighWatermark {
            bucket: BUCKET.into(),
            node: INDEXER.into(),
            incarnation: 1,
            hwt: Vec::new(),
            held: (st.number, st.number),
            durable: 0,
            queued: 0,
        };
        let nats = client.nats.clone();
        let says = tokio::spawn(async move {
            let mut again = tokio::time::interval(Duration::from_millis(20));
            loop {
                again.tick().await;
                let _ = nats.publish(subjects::hwt(BUCKET, INDEXER), wire::encode(&held).into()).await;
            }
        });
        client.nats.flush().await?;
        Ok(Self { tasks: vec![answers, says] })
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// The first timestamp from now on.
async fn next_timestamp(client: &Client, source: &Source, rng: &mut Rng) -> Result<StabilityTimestamp> {
    let mut heard = client.nats.subscribe(subjects::stability(BUCKET)).await?;
    client.nats.flush().await?;
    load::write(source, 20, rng).await?;
    let message = tokio::time::timeout(WITHIN, heard.next()).await?.context("the connection ended")?;
    Ok(wire::decode::<Stability>(&message.payload)?.st)
}

/// A page token of each index, at this timestamp.
async fn tokens_at(client: &Client, names: [&str; 2], st: u64) -> Result<Vec<Value>, Refused> {
    let mut tokens = Vec::new();
    for name in names {
        let at = json!({"at_snapshot": st});
        let request = json!({"bucket": BUCKET, "index": name, "page_size": 5, "consistency": at});
        let page = client.request("hw.query.scan", &request).await?;
        tokens.push(page["page_token"].clone());
    }
    Ok(tokens)
}

/// Every way of asking for an answer that needs no newer timestamp: what it is called, subject and request.
fn questions(names: [&str; 2], tokens: &[Value], st: u64) -> Vec<(String, &'static str, Value)> {
    let mut all = Vec::new();
    for (name, token) in names.into_iter().zip(tokens) {
        let request = json!({"bucket": BUCKET, "index": name, "timeout_ms": 400});
        let with = |changes: Value| {
            let mut request = request.clone();
            for (field, value) in changes.as_object().into_iter().flatten() {
                request[field] = value.clone();
            }
            request
        };
        let at_snapshot = json!({"consistency": {"at_snapshot": st}});
        all.extend([
            (format!("{name}: any"), "hw.query.scan", with(json!({}))),
            (format!("{name}: count"), "hw.query.count", with(json!({}))),
            (format!("{name}: at_snapshot"), "hw.query.scan", with(at_snapshot.clone())),
            (format!("{name}: count at_snapshot"), "hw.query.count", with(at_snapshot)),
            (
                format!("{name}: page token"),
                "hw.query.scan",
                with(json!({"page_size": 5, "consistency": {"at_snapshot": st}, "page_token": token})),
            ),
        ]);
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_an_abandoned_branch_is_passed_on() -> Result<()> {
    let mut rng = Rng::seeded("abandoned branch");
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value(&client, BUCKET).await?;
            load::write(&source, DOCUMENTS, &mut rng).await?;
            let index = |name: &str, partitions| Index {
                name: name.into(),
                keys: Vec::new(),
                condition: None,
                include: Vec::new(),
                partitions,
            };
            let indexes = [index("one", 1), index("several", 3)];
            for index in &indexes {
                client.create_index(&index.definition(BUCKET)).await?;
                client.wait_active(BUCKET, &index.name, WITHIN).await?;
            }
            // What the source goes back to later.
            let kept = cluster.path().join("kept");
            cluster.nats().kill();
            files::copy(&cluster.nats().stream_dir(STREAM), &kept)?;
            cluster.nats().start_again()?;
            load::write(&source, 100, &mut rng).await?;
            for index in &indexes {
                ask::whole(&client, &source, index).await?;
            }
            Branches::at_rest(&client, BUCKET, WITHIN).await?;
            let names = ["one", "several"];
            // Both tokens are of the timestamp that the stand-in has, so that it could answer for them.
            let deadline = deadline(WITHIN);
            let (st, tokens) = loop {
                let st = next_timestamp(&client, &source, &mut rng).await?;
                match tokens_at(&client, names, st.number).await {
                    Ok(tokens) => break (st, tokens),
                    // It was not applied, or has expired.
                    Err(refused) => ensure!(Instant::now() < deadline, "{refused}"),
                }
            };

            cluster.kill(INDEXER)?;
            let stand_in = StandIn::start(&client, st.clone()).await?;
            // The same stand-in is believed while the history is the one that it knows.
            for (what, subject, request) in questions(names, &tokens, st.number) {
                let answer = until(&what, WITHIN, async || {
                    client.request(subject, &request).await.map_err(|refused| refused.to_string())
                });
                let answer = answer.await?;
                ensure!(answer["st"] == st.number, "{what}: {answer}");
                if subject.ends_with("count") {
                    let partitions = if request["index"] == "one" { 1 } else { 3 };
                    ensure!(answer["count"] == COUNTED * partitions, "{what}: {answer}");
                }
            }

            let before = Branches::soon(&client, BUCKET, WITHIN).await?;
            cluster.nats().kill();
            files::put_back(&kept, &cluster.nats().stream_dir(STREAM))?;
            cluster.nats().start_again()?;
            until("NATS is there", WITHIN, async || {
                client.js.get_stream(STREAM).await.map(|_| ()).map_err(|e| e.to_string())
            })
            .await?;
            source.reread().await?;
            load::write(&source, 30, &mut rng).await?;
            // While it is rolled back, nothing is answered in any case. It is over once the indexer is known to be gone.
            before.back(&client, BUCKET, &[0], WITHIN).await?;
            // The catalog reads the log a moment later than the coordinator.
            let any = json!({"bucket": BUCKET, "index": "one", "timeout_ms": 400});
            until("the catalog compares branches", WITHIN, async || {
                match client.request("hw.query.count", &any).await {
                    Err(refused) if refused.message.contains("another branch") => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
            .await?;
            for round in 0..3 {
                for (what, subject, request) in questions(names, &tokens, st.number) {
                    let Err(refused) = client.request(subject, &request).await else {
                        bail!("{what} was answered with what was taken back, round {round}");
                    };
                    // One partition: the node is asked until the deadline. One timestamp for all: it has ended. Several and no
                    // timestamp: there is none of the branch in force that they hold.
                    let expected: &[&str] = match &what {
                        what if what.contains("snapshot") || what.contains("token") => &["snapshot_expired"],
                        what if what.starts_with("one") => &["in_rollback"],
                        _ => &["in_rollback", "timeout"],
                    };
                    ensure!(expected.contains(&refused.code.as_str()), "{what}: {refused}");
                }
            }

            // Who hears of it answers again, with what is there now.
            drop(stand_in);
            cluster.start_node(INDEXER).await?;
            before.back(&client, BUCKET, &[0], WITHIN).await?;
            for index in &indexes {
                client.wait_active(BUCKET, &index.name, WITHIN).await?;
                ask::whole(&client, &source, index).await?;
            }
            Ok(())
        })
        .await
}
