//! Promises of the cluster managers: one is active, another takes over, and index managers are elected in rising terms.
//!
//! Index managers are played here, over the public subjects; the cluster managers are processes.

use bytes::Bytes;
use futures_util::StreamExt;
use highwater_schemas::{
    api::{
        self, Bootstrap, BootstrapReply, ClusterEvent, ClusterStatus, Join, JoinReply, Leave, ManagerReport, NodeKind,
    },
    subjects,
};
use highwater_tests::{
    foreign::{headers, lines},
    prelude::*,
    raw::Raw,
};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::task::JoinHandle;

const WITHIN: Duration = Duration::from_secs(15);
/// How often nodes are told to report.
const BEAT: Duration = Duration::from_millis(100);
/// Quick ones, so that the tests are.
const QUICK: [&str; 6] = ["--heartbeat-ms", "100", "--misses", "4", "--lease-ms", "1000"];
/// Nobody is silent for so long who is only slow.
const PATIENT: [&str; 6] = ["--heartbeat-ms", "100", "--misses", "20", "--lease-ms", "5000"];
/// As in [`PATIENT`]: heartbeats that a silent node misses before it is down.
const MISSES: usize = 20;
/// Longer than the misses and the lease of [`QUICK`] together.
const PAUSED: Duration = Duration::from_millis(2_500);
const ONE: &str = "cluster-manager-1";
const TWO: &str = "cluster-manager-2";

/// An index manager as the cluster managers see it; gone without a word when dropped.
struct Fake {
    name: String,
    incarnation: u64,
    report: Arc<Mutex<ManagerReport>>,
    task: JoinHandle<()>,
}

impl Fake {
    async fn start(url: &str, name: &str, incarnation: u64, report: ManagerReport) -> Result<Self> {
        let client = async_nats::connect(url).await?;
        let mut bootstraps = client.subscribe(subjects::node(name, "bootstrap")).await?;
        let inbox = client.new_inbox();
        let mut told = client.subscribe(inbox.clone()).await?;
        client.flush().await?;
        let report = Arc::new(Mutex::new(report));
        let (shared, own) = (Arc::clone(&report), name.to_owned());
        let task = tokio::spawn(async move {
            let mut every = tokio::time::interval(BEAT);
            let beat = |report: ManagerReport| {
                let mut join = Join::new(NodeKind::Coordinator, &own, incarnation);
                join.manager = Some(report);
                Bytes::from(serde_json::to_vec(&join).expect("json"))
            };
            loop {
                tokio::select! {
                    _ = every.tick() => {}
                    Some(message) = told.next() => {
                        if let Ok(reply) = serde_json::from_slice::<JoinReply>(&message.payload) {
                            assert_eq!(u128::from(reply.heartbeat_ms), BEAT.as_millis());
                        }
                        continue;
                    }
                    Some(message) = bootstraps.next() => {
                        let bootstrap: Bootstrap = serde_json::from_slice(&message.payload).expect("a bootstrap");
                        let reply = answer(&shared, &own, &bootstrap);
                        if let Some(to) = message.reply {
                            let _ = client.publish(to, api::ok(&reply).into()).await;
                        }
                    }
                }
                let report = shared.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let _ = client.publish_with_reply(subjects::CLUSTER_JOIN, inbox.clone(), beat(report)).await;
            }
        });
        Ok(Self { name: name.into(), incarnation, report, task })
    }

    fn report(&self) -> ManagerReport {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// As an index manager answers that keeps terms and can always lead.
fn answer(report: &Mutex<ManagerReport>, own: &str, bootstrap: &Bootstrap) -> BootstrapReply {
    let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
    let accepted = bootstrap.term >= report.term;
    if accepted {
        report.term = bootstrap.term;
        report.leading = (bootstrap.master == own).then_some(bootstrap.term);
        report.registered.clone_from(&bootstrap.registered);
    }
    BootstrapReply { accepted, report: report.clone() }
}

fn at(version: u64, term: u64) -> ManagerReport {
    ManagerReport { version, term, ..ManagerReport::default() }
}

async fn status(client: &Client) -> Result<ClusterStatus, String> {
    let reply = client.members().await.map_err(|refused| refused.to_string())?;
    serde_json::from_value(reply).map_err(|e| e.to_string())
}

/// Waits until the active cluster manager, the master and its term are what `good` asks for.
async fn settled(client: &Client, what: &str, good: impl Fn(&ClusterStatus) -> bool) -> Result<ClusterStatus> {
    until(what, WITHIN, async || {
        let status = status(client).await?;
        if good(&status) { Ok(status) } else { Err(format!("{status:?}")) }
    })
    .await
}

/// What the active one says, as soon as there is one.
async fn answered(client: &Client) -> Result<ClusterStatus> {
    settled(client, "a cluster manager answers", |_| true).await
}

async fn managers(nodes: &[&str], timing: &[&str]) -> Result<(Cluster, Client)> {
    let mut cluster = Cluster::without_services()?.with_arguments("cluster-manager", timing);
    for node in nodes {
        cluster.start_node(node).await?;
    }
    let client = cluster.client().await?;
    Ok((cluster, client))
}

fn alive(status: &ClusterStatus, node: &str) -> Option<bool> {
    status.members.iter().find(|m| m.node == node).map(|m| m.alive)
}

/// Events and heartbeats, as they are told to everyone, until it is dropped.
struct Heard {
    events: Arc<Mutex<Vec<ClusterEvent>>>,
    beats: Arc<Mutex<Vec<Join>>>,
    task: JoinHandle<()>,
}

impl Heard {
    async fn start(url: &str) -> Result<Self> {
        let client = async_nats::connect(url).await?;
        let mut events = client.subscribe(subjects::CLUSTER_EVENT).await?;
        let mut beats = client.subscribe(subjects::CLUSTER_JOIN).await?;
        client.flush().await?;
        let heard = (Arc::default(), Arc::default());
        let (told, beaten) = (Arc::clone(&heard.0), Arc::clone(&heard.1));
        let task = tokio::spawn(async move {
            let _client = client;
            loop {
                tokio::select! {
                    Some(message) = events.next() => keep(&told, &message.payload),
                    Some(message) = beats.next() => keep(&beaten, &message.payload),
                    else => return,
                }
            }
        });
        Ok(Self { events: heard.0, beats: heard.1, task })
    }

    fn events(&self) -> Vec<ClusterEvent> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn beats_of(&self, node: &str) -> usize {
        self.beats.lock().unwrap_or_else(PoisonError::into_inner).iter().filter(|beat| beat.node == node).count()
    }

    /// Waits until so many further events were heard.
    async fn further_events(&self, count: usize) -> Result<()> {
        let wanted = self.events().len() + count;
        until("events are told", WITHIN, async || {
            let heard = self.events().len();
            if heard >= wanted { Ok(()) } else { Err(format!("{heard} of {wanted}")) }
        })
        .await
    }

    /// Waits until so many further heartbeats of a node were heard.
    async fn further_beats(&self, node: &str, count: usize) -> Result<()> {
        let wanted = self.beats_of(node) + count;
        until(&format!("{node} reports"), WITHIN, async || {
            let heard = self.beats_of(node);
            if heard >= wanted { Ok(()) } else { Err(format!("{heard} of {wanted}")) }
        })
        .await
    }
}

impl Drop for Heard {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn keep<T: serde::de::DeserializeOwned>(heard: &Mutex<Vec<T>>, payload: &[u8]) {
    let message = serde_json::from_slice(payload).expect("a message of its kind");
    heard.lock().unwrap_or_else(PoisonError::into_inner).push(message);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_highest_version_is_elected_and_its_death_elects_the_next() -> Result<()> {
    let (cluster, client) = managers(&[ONE], &QUICK).await?;
    cluster
        .run(async |cluster| {
            let a = Fake::start(cluster.url(), "a", 1, at(5, 3)).await?;
            let b = Fake::start(cluster.url(), "b", 1, at(9, 2)).await?;
            let first = settled(&client, "b is elected", |s| s.coordinator == "b").await?;
            ensure!(first.cluster_manager == ONE && first.term >= 4 && first.version == 9, "{first:?}");
            let role = |node: &str| first.members.iter().find(|m| m.node == node).map(|m| m.role.clone());
            ensure!(role("a").as_deref() == Some("replica") && role("b").as_deref() == Some("master"), "{first:?}");
            ensure!(role(ONE).as_deref() == Some("active"), "{first:?}");
            let master = client.request("hw.cluster.master", &json!({})).await?;
            ensure!(master["master"]["node"] == "b", "{master}");
            let replicas = client.request("hw.cluster.replicas", &json!({})).await?;
            ensure!(replicas["members"].as_array().map(Vec::len) == Some(2), "{replicas}");
            ensure!(a.report().term == first.term && a.report().registered == ["a", "b"], "{:?}", a.report());
            drop(b);
            let second = settled(&client, "a is elected", |s| s.coordinator == "a").await?;
            ensure!(second.term > first.term && alive(&second, "b") == Some(false), "{second:?}");
            // It returns with a higher version, but somebody coordinates.
            let _b = Fake::start(cluster.url(), "b", 2, at(12, first.term)).await?;
            settled(&client, "b is back", |s| alive(s, "b") == Some(true)).await?;
            let third = answered(&client).await?;
            ensure!((third.coordinator.as_str(), third.term) == ("a", second.term), "{third:?}");
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_is_gone_at_once_whatever_arrives_late() -> Result<()> {
    let (cluster, client) = managers(&[ONE], &QUICK).await?;
    cluster
        .run(async |cluster| {
            let heard = Heard::start(cluster.url()).await?;
            let a = Fake::start(cluster.url(), "a", 1, at(5, 0)).await?;
            settled(&client, "a is elected", |s| s.coordinator == "a").await?;
            let leave = Leave { node: a.name.clone(), kind: NodeKind::Coordinator, incarnation: a.incarnation };
            let nats = async_nats::connect(cluster.url()).await?;
            nats.publish(subjects::CLUSTER_LEAVE, serde_json::to_vec(&leave)?.into()).await?;
            nats.flush().await?;
            // It goes on beating, as a late heartbeat would.
            settled(&client, "a is gone", |s| alive(s, "a") == Some(false) && s.coordinator.is_empty()).await?;
            heard.further_beats("a", 3).await?;
            let after = answered(&client).await?;
            ensure!(alive(&after, "a") == Some(false), "{after:?}");
            let _a = Fake::start(cluster.url(), "a", 2, at(5, 1)).await?;
            let back = settled(&client, "a is elected again", |s| s.coordinator == "a").await?;
            ensure!(back.term > 1, "{back:?}");
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_takes_over_from_one_that_ends_dies_or_sleeps() -> Result<()> {
    let (cluster, client) = managers(&[ONE, TWO], &PATIENT).await?;
    cluster
        .run(async |cluster| {
            let _a = Fake::start(cluster.url(), "a", 1, at(5, 0)).await?;
            let _b = Fake::start(cluster.url(), "b", 1, at(4, 0)).await?;
            let first = settled(&client, "a is elected", |s| s.coordinator == "a").await?;
            let known = |s: &ClusterStatus| s.coordinator == "a" && s.term == first.term;
            let (mut active, mut other) = if first.cluster_manager == ONE { (ONE, TWO) } else { (TWO, ONE) };
            let heard = Heard::start(cluster.url()).await?;

            // SIGTERM: the lease is let go, and nobody waits for its end.
            cluster.stop(active).await?;
            ensure!(client.lease_holder().await?.as_deref() != Some(active), "{active} has ended and holds the lease");
            settled(&client, "the other is active", |s| s.cluster_manager == other && known(s)).await?;
            cluster.start_node(active).await?;
            std::mem::swap(&mut active, &mut other);

            // SIGKILL: the lease runs out.
            ensure!(client.lease_holder().await?.as_deref() == Some(active), "{active} is active without the lease");
            cluster.kill(active)?;
            settled(&client, "the first is active again", |s| s.cluster_manager == other && known(s)).await?;
            cluster.start_node(active).await?;
            std::mem::swap(&mut active, &mut other);

            // Asleep for longer than its lease, then awake with all that it did not hear.
            cluster.node(active)?.freeze()?;
            settled(&client, "the sleeper is replaced", |s| s.cluster_manager == other && known(s)).await?;
            heard.further_events(20).await?;
            cluster.node(active)?.thaw()?;
            settled(&client, "the sleeper is a standby", |s| {
                s.cluster_manager == other && alive(s, active) == Some(true)
            })
            .await?;
            heard.further_events(5).await?;
            for event in heard.events() {
                let managers = event.members.iter().filter(|m| m.kind == NodeKind::Coordinator);
                ensure!(managers.clone().count() == 2 && managers.clone().all(|m| m.alive), "{event:?}");
                ensure!(event.master.as_ref().is_none_or(|m| m.node == "a" && m.term == first.term), "{event:?}");
            }
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn terms_rise_though_the_bucket_is_lost() -> Result<()> {
    let (cluster, client) = managers(&[ONE, TWO], &QUICK).await?;
    cluster
        .run(async |cluster| {
            let a = Fake::start(cluster.url(), "a", 1, at(5, 0)).await?;
            let _b = Fake::start(cluster.url(), "b", 1, at(4, 0)).await?;
            let first = settled(&client, "a is elected", |s| s.coordinator == "a").await?;
            let js = async_nats::jetstream::new(async_nats::connect(cluster.url()).await?);
            js.delete_stream(subjects::CLUSTER_STREAM).await?;
            until("the bucket is back with all that it held", WITHIN, async || {
                let stream = js.get_stream(subjects::CLUSTER_STREAM).await.map_err(|e| e.to_string())?;
                for key in [
                    subjects::CLUSTER_LEASE.to_owned(),
                    subjects::cluster_registered("a"),
                    subjects::cluster_registered("b"),
                ] {
                    stream.get_last_raw_message_by_subject(&key).await.map_err(|e| format!("{key}: {e}"))?;
                }
                Ok(())
            })
            .await?;
            let same =
                settled(&client, "a coordinates", |s| !s.cluster_manager.is_empty() && s.coordinator == "a").await?;
            ensure!(same.term == first.term, "{same:?}");
            drop(a);
            let second = settled(&client, "b is elected", |s| s.coordinator == "b").await?;
            ensure!(second.term > first.term, "{second:?}");
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_pauses_makes_nobody_down() -> Result<()> {
    let (cluster, client) = managers(&[ONE, TWO], &QUICK).await?;
    cluster
        .run(async |cluster| {
            let _a = Fake::start(cluster.url(), "a", 1, at(5, 0)).await?;
            let first = settled(&client, "a is elected", |s| s.coordinator == "a").await?;
            let heard = Heard::start(cluster.url()).await?;
            cluster.nats().child().freeze()?;
            let silent = client.request_within("hw.cluster.members", &json!({}), PAUSED).await;
            ensure!(silent.as_ref().is_err_and(|refused| refused.code == "no_reply"), "it does not pause: {silent:?}");
            cluster.nats().child().thaw()?;
            let after =
                settled(&client, "a coordinates", |s| !s.cluster_manager.is_empty() && s.coordinator == "a").await?;
            ensure!(after.term == first.term, "{after:?}");
            heard.further_events(5).await?;
            for event in heard.events() {
                ensure!(event.members.iter().all(|m| m.alive), "{event:?}");
            }
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_beats_as_often_as_told_answers_pings_and_says_goodbye() -> Result<()> {
    let (cluster, client) = managers(&[ONE], &PATIENT).await?;
    cluster
        .run(async |cluster| {
            let heard = Heard::start(cluster.url()).await?;
            cluster.start_node("projector-1").await?;
            settled(&client, "it is there", |s| alive(s, "projector-1") == Some(true)).await?;
            let pong = client.request(&subjects::node("projector-1", "ping"), &json!({})).await?;
            ensure!(pong["ok"] == true, "{pong}");
            // The cluster manager tells of the cluster as often as nodes are to report; by itself this one reports every 500 ms.
            let before = heard.beats_of("projector-1");
            heard.further_events(60).await?;
            let beats = heard.beats_of("projector-1") - before;
            ensure!(beats >= 20, "{beats} heartbeats in the time of 60");
            let members =
                |event: &ClusterEvent| event.members.iter().find(|m| m.node == "projector-1").map(|m| m.alive);
            ensure!(heard.events().iter().all(|event| members(event) != Some(false)), "it was down");
            let mut goodbye = client.nats.subscribe(subjects::CLUSTER_LEAVE).await?;
            client.nats.flush().await?;
            cluster.node("projector-1")?.terminate()?;
            tokio::time::timeout(WITHIN * 4, goodbye.next()).await.context("it says nothing")?;
            let left = heard.events().len();
            settled(&client, "it is gone", |s| alive(s, "projector-1") == Some(false)).await?;
            heard.further_events(1).await?;
            let told =
                heard.events().iter().position(|event| members(event) == Some(false)).context("nobody was told")?;
            ensure!(
                told < left + MISSES,
                "its heartbeats were waited for: it left at event {left}, and is gone at {told}"
            );
            cluster.stop("projector-1").await
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_refused_and_changes_nothing() -> Result<()> {
    let (cluster, client) = managers(&[ONE], &QUICK).await?;
    cluster
        .run(async |cluster| {
            let _a = Fake::start(cluster.url(), "a", 1, at(5, 0)).await?;
            let first = settled(&client, "a is elected", |s| s.coordinator == "a").await?;
            let nats = async_nats::connect(cluster.url()).await?;
            let bad = Join::new(NodeKind::Coordinator, "a.b *", 1);
            for garbage in [&b""[..], b"{", b"[]", b"{}", b"\xff\xfe", b"null", &serde_json::to_vec(&bad)?] {
                for subject in [subjects::CLUSTER_JOIN, subjects::CLUSTER_LEAVE, subjects::CLUSTER_EVENT] {
                    nats.publish_with_reply(subject, nats.new_inbox(), Bytes::copy_from_slice(garbage)).await?;
                }
            }
            // A heartbeat that is larger than any may be.
            let words = ManagerReport { waiting: Some("w".repeat(64 * 1024)), ..at(1, 0) };
            let mut large = Join::new(NodeKind::Coordinator, "large", 1);
            large.manager = Some(words);
            nats.publish(subjects::CLUSTER_JOIN, serde_json::to_vec(&large)?.into()).await?;
            nats.flush().await?;
            until("the garbage is counted", WITHIN, async || {
                let node =
                    client.request(&subjects::node(ONE, "status"), &json!({})).await.map_err(|e| e.to_string())?;
                if node["refused_messages"].as_u64() > Some(10) { Ok(()) } else { Err(node.to_string()) }
            })
            .await?;
            let after = answered(&client).await?;
            ensure!(after.members.len() == 2 && after.term == first.term && after.coordinator == "a", "{after:?}");
            let refused = client.request("hw.cluster.members", &json!({"x": 1})).await;
            ensure!(refused.is_err(), "an unknown field");
            Ok(())
        })
        .await
}

/// Terms that no other could follow, from whoever sends what: the next election is in the term after the last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terms_that_cannot_be_are_not_believed() -> Result<()> {
    let (cluster, client) = managers(&[ONE, TWO], &QUICK).await?;
    cluster
        .run(async |cluster| {
            let a = Fake::start(cluster.url(), "a", 1, at(5, 0)).await?;
            let first = settled(&client, "a is elected", |s| s.coordinator == "a").await?;
            let nats = async_nats::connect(cluster.url()).await?;
            for term in [1 << 53, 1 << 63, u64::MAX - 1, u64::MAX] {
                let mut join = Join::new(NodeKind::Coordinator, "x", 1);
                join.manager = Some(ManagerReport { leading: Some(term), ..at(9, term) });
                nats.publish(subjects::CLUSTER_JOIN, serde_json::to_vec(&join)?.into()).await?;
                let event = ClusterEvent {
                    cluster_manager: "y".into(),
                    lease: 1,
                    heartbeat_ms: 100,
                    master: Some(api::Master { node: "x".into(), term }),
                    members: Vec::new(),
                };
                nats.publish(subjects::CLUSTER_EVENT, serde_json::to_vec(&event)?.into()).await?;
            }
            nats.flush().await?;
            let after = answered(&client).await?;
            ensure!(after.coordinator == "a" && after.term == first.term, "{after:?}");
            drop(a);
            let _b = Fake::start(cluster.url(), "b", 1, at(5, first.term)).await?;
            let next = settled(&client, "b is elected", |s| s.coordinator == "b").await?;
            ensure!(next.term == first.term + 1, "term {} after {}", next.term, first.term);
            cluster.check()
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_a_client_library_refuses_is_written_anew() -> Result<()> {
    let (cluster, client) = managers(&[ONE, TWO], &QUICK).await?;
    cluster
        .run(async |cluster| {
            settled(&client, "somebody is active", |s| !s.cluster_manager.is_empty()).await?;
            let mut raw = Raw::connect(cluster.nats().port()).await?;
            for line in lines("bad_headers.txt", 3)? {
                let block = headers(&line[2])?;
                let answer = raw.request(b"$KV.hw_cluster.lease", block.as_deref(), b"{}", WITHIN).await?;
                let answer: Value = serde_json::from_slice(&answer.context("no answer")?)?;
                let Some(stored) = answer["seq"].as_u64() else { continue };
                until(&format!("the lease is written anew after {}", line[0]), WITHIN, async || {
                    let mut stream = client.js.get_stream("KV_hw_cluster").await.map_err(|e| e.to_string())?;
                    let last = stream.info().await.map_err(|e| e.to_string())?.state.last_sequence;
                    if last > stored { Ok(()) } else { Err(format!("{last}")) }
                })
                .await?;
            }
            settled(&client, "somebody is active again", |s| !s.cluster_manager.is_empty()).await?;
            cluster.check()
        })
        .await
}
