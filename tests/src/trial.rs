//! A deployment in which any single process may go, with documents, indexes and traffic, and what must hold of it at any time.

use crate::{
    ask,
    client::{Client, Refused},
    cluster::Cluster,
    documents,
    history::History,
    load::{self, Scanned, Scans, Writer},
    oracle::Index,
    rng::Rng,
    source::Source,
    wait::until,
    watch::Watch,
};
use anyhow::{Context, Result, ensure};
use highwater_schemas::{
    api::{ManagerReport, NodeKind},
    state::{IndexState, StateContext},
    subjects,
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Two or three of what coordinates, two of the rest.
pub const NODES: [&str; 11] = [
    "cluster-manager-1",
    "cluster-manager-2",
    "coordinator-1",
    "coordinator-2",
    "coordinator-3",
    "projector-1",
    "projector-2",
    "indexer-1",
    "indexer-2",
    "catalog-1",
    "catalog-2",
];
pub const MANAGERS: [&str; 3] = ["coordinator-1", "coordinator-2", "coordinator-3"];
/// A quick cluster manager, so that the tests are.
pub const QUICK: [&str; 6] = ["--heartbeat-ms", "250", "--misses", "4", "--lease-ms", "1000"];
pub const BUCKET: &str = "people";
/// From a loss until somebody coordinates again: what takes longer hangs.
pub const ELECTED_WITHIN: Duration = Duration::from_secs(60);
pub const SETTLED_WITHIN: Duration = Duration::from_secs(60);
/// After which an answer to DDL is not waited for.
pub const ANSWERED_WITHIN: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(10);

/// The deployment with traffic.
pub struct Trial {
    pub client: Client,
    pub source: Source,
    /// Those that were created and acknowledged, and not dropped.
    pub indexes: Vec<Index>,
    pub history: History,
    watch: Watch,
    writer: Option<Writer>,
    scans: Option<Scans>,
    /// The longest time without a master.
    pub longest: Duration,
}

/// What an answer to DDL says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Done,
    /// It may have been done or not.
    Unclear(Refused),
}

impl Cluster {
    /// [`NODES`], with quick cluster managers, on one nats-server.
    pub async fn deployed() -> Result<Self> {
        Self::without_services()?.deploy(&NODES).await
    }

    /// These nodes, with quick cluster managers.
    pub async fn deploy(self, nodes: &[&str]) -> Result<Self> {
        self.with_arguments("cluster-manager", &QUICK).with_nodes(nodes).await
    }
}

impl Trial {
    /// Documents, three indexes, a writer, and a scan that repeats.
    async fn start(cluster: &mut Cluster, documents: u64, rng: &mut Rng) -> Result<Self> {
        let client = cluster.client().await?;
        let replicas = cluster.servers().len();
        let watch = Watch::start(cluster.client().await?).await?;
        let source = Source::key_value_replicated(&client, BUCKET, replicas).await?;
        let source = if replicas > 1 { source.patient(SETTLED_WITHIN) } else { source };
        load::write(&source, documents, rng).await?;
        let mut trial = Self {
            client,
            source,
            indexes: Vec::new(),
            history: History::default(),
            watch,
            writer: None,
            scans: None,
            longest: Duration::ZERO,
        };
        for at in [0, 2, 4] {
            let index = documents::indexes(2).swap_remove(at);
            trial.client.create_index(&index.definition(BUCKET)).await?;
            trial.indexes.push(index);
        }
        trial.active().await?;
        trial.traffic(rng);
        Ok(trial)
    }

    /// Runs a test on a deployment with traffic; `name` tells its seed from others.
    pub async fn run<F>(name: &str, cluster: Cluster, documents: u64, test: F) -> Result<()>
    where
        F: AsyncFnOnce(&mut Cluster, &mut Self, &mut Rng) -> Result<()>,
    {
        let mut rng = Rng::seeded(name);
        cluster
            .run(async |cluster| {
                let mut trial = Self::start(cluster, documents, &mut rng).await?;
                test(cluster, &mut trial, &mut rng).await
            })
            .await
    }

    /// Waits until every index is active.
    pub async fn active(&self) -> Result<()> {
        for index in &self.indexes {
            self.client.wait_active(BUCKET, &index.name, SETTLED_WITHIN).await?;
        }
        Ok(())
    }

    /// Starts what writes and scans, where it does not yet.
    pub fn traffic(&mut self, rng: &mut Rng) {
        let scan = json!({"bucket": BUCKET, "index": self.indexes[0].name, "limit": 3});
        self.writer.get_or_insert_with(|| Writer::paced(&self.source, rng, PAUSE));
        self.scans.get_or_insert_with(|| Scans::start(&self.client, scan));
    }

    /// Ends what writes and scans; answers what became of the scans.
    pub async fn quiet(&mut self) -> Result<Scanned> {
        if let Some(writer) = self.writer.take() {
            writer.stop().await?;
        }
        match self.scans.take() {
            Some(scans) => scans.stop().await,
            None => Ok(Scanned::default()),
        }
    }

    /// As [`Self::quiet`], for when no scan may have failed.
    pub async fn quiet_without_failures(&mut self) -> Result<()> {
        let scanned = self.quiet().await?;
        println!("{} scans, the longest pause {:?}", scanned.answered, scanned.pause);
        ensure!(scanned.failed.is_empty(), "scans failed: {:?}", &scanned.failed[..scanned.failed.len().min(5)]);
        ensure!(scanned.answered > 0, "nothing was scanned");
        Ok(())
    }

    /// Who coordinates, in which term.
    pub async fn master(&self) -> Result<(String, u64)> {
        self.client.wait_term(0, ELECTED_WITHIN).await
    }

    /// Waits until somebody coordinates in a later term, whoever it is; `gone` is when nobody did any more. A scan that is asked
    /// meanwhile or afterwards is answered.
    pub async fn later_term(&mut self, than: u64, gone: Instant) -> Result<(String, u64)> {
        let scanned = self.scans.as_ref().map(Scans::answered);
        let found = self.client.wait_term(than, ELECTED_WITHIN).await?;
        self.longest = self.longest.max(gone.elapsed());
        if let (Some(scans), Some(before)) = (&self.scans, scanned) {
            until("scans go on", SETTLED_WITHIN, async || {
                let now = scans.answered();
                if now > before { Ok(()) } else { Err(now.to_string()) }
            })
            .await?;
        }
        Ok(found)
    }

    /// The replicated state as one index manager has it.
    pub async fn state_of(&self, node: &str) -> Result<StateContext> {
        let subject = subjects::node(node, "admin.state.get");
        let mut reply = self.client.request_within(&subject, &json!({}), ANSWERED_WITHIN).await?;
        serde_json::from_value(reply["state"].take()).context("no state")
    }

    /// An index manager's own report.
    pub async fn report_of(&self, node: &str) -> Result<ManagerReport, String> {
        let asked = self.client.request_within(&subjects::node(node, "status"), &json!({}), ANSWERED_WITHIN).await;
        serde_json::from_value(asked.map_err(|refused| refused.to_string())?).map_err(|e| e.to_string())
    }

    /// Waits until these nodes are alive for whoever coordinates, and the index managers among them have all of the log.
    pub async fn formed(&self, nodes: &[String]) -> Result<()> {
        let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
        self.client.wait_formed(&nodes).await?;
        let managers: Vec<&str> = nodes.into_iter().filter(|node| MANAGERS.contains(node)).collect();
        until("the index managers agree", SETTLED_WITHIN, async || {
            let mut reports = Vec::new();
            for node in &managers {
                reports.push(self.report_of(node).await?);
            }
            let first = reports.first().ok_or("none")?;
            let agree =
                reports.iter().all(|r| (r.version, &r.hash, r.term) == (first.version, &first.hash, first.term));
            let leading = reports.iter().filter(|r| r.leading == Some(first.term)).count();
            if agree && leading == 1 { Ok(()) } else { Err(format!("{reports:?}")) }
        })
        .await
    }

    /// Some more documents, and then quiet: no scan failed, all who run agree, and everything holds.
    pub async fn settle(&mut self, cluster: &Cluster) -> Result<()> {
        load::written(&self.source, 200).await?;
        self.quiet_without_failures().await?;
        self.formed(&cluster.nodes()).await?;
        self.check().await
    }

    /// What must hold now: the log is one, every acknowledged index is in it and listed, and agrees with the documents. Nothing
    /// may be written meanwhile.
    pub async fn check(&mut self) -> Result<()> {
        let context = self.history.read(&self.client).await.context("the log")?;
        self.holds(&context)?;
        self.active().await?;
        for index in &self.indexes {
            ask::whole(&self.client, &self.source, index).await?;
        }
        let numbers = self.watch.check()?;
        ensure!(numbers > 0, "no stability timestamp was heard");
        Ok(())
    }

    /// Every acknowledged index is there, and nothing else.
    pub fn holds(&self, context: &StateContext) -> Result<()> {
        let bucket = context.buckets.get(BUCKET).context("the bucket is lost")?;
        for index in &self.indexes {
            ensure!(bucket.index_by_name(&index.name).is_some(), "index {} is lost", index.name);
        }
        for index in bucket.indexes.values() {
            let name = &index.placed.definition.name;
            ensure!(self.indexes.iter().any(|known| known.name == *name), "index {name} should not be there");
        }
        Ok(())
    }

    /// Creates another index, and waits until it is active; after an unclear answer again, as its owner would, until the answer
    /// says that it is there.
    pub async fn create(&mut self, name: &str) -> Result<()> {
        let definition = named(name).definition(BUCKET);
        self.surely("hw.admin.index.create", &definition, "index_exists").await?;
        if self.indexes.iter().all(|index| index.name != name) {
            self.indexes.push(named(name));
        }
        self.client.wait_active(BUCKET, name, SETTLED_WITHIN).await?;
        Ok(())
    }

    /// Drops an index, after an unclear answer again, until the answer says that it is gone.
    pub async fn drop(&mut self, name: &str) -> Result<()> {
        self.surely("hw.admin.index.drop", &json!({"bucket": BUCKET, "name": name}), "index_not_found").await?;
        self.indexes.retain(|index| index.name != name);
        Ok(())
    }

    async fn surely(&self, subject: &str, request: &Value, already: &str) -> Result<()> {
        until(&format!("{subject} {request}"), SETTLED_WITHIN, async || {
            match self.client.ddl(subject, request).await {
                Ok(Answer::Done) => Ok(Ok(())),
                Ok(Answer::Unclear(refused)) => Err(refused.to_string()),
                Err(refused) if refused.code == already => Ok(Ok(())),
                Err(refused) => Ok(Err(refused)),
            }
        })
        .await??;
        Ok(())
    }

    /// The state of an index in the log, if it is there.
    pub async fn state_in_log(&self, master: &str, name: &str) -> Result<Option<IndexState>> {
        let context = self.state_of(master).await?;
        Ok(context.buckets[BUCKET].index_by_name(name).map(|index| index.state.clone()))
    }
}

impl Client {
    /// One request for DDL. An error is a refusal: it certainly was not done.
    pub async fn ddl(&self, subject: &str, request: &Value) -> Result<Answer, Refused> {
        match self.request_within(subject, request, ANSWERED_WITHIN).await {
            Ok(_) => Ok(Answer::Done),
            Err(refused) => match refused.code.as_str() {
                "no_reply" => Ok(Answer::Unclear(refused)),
                _ if refused.retry => Ok(Answer::Unclear(refused)),
                _ => Err(refused),
            },
        }
    }
}

/// One of several kinds of index, chosen by its name.
pub fn named(name: &str) -> Index {
    let all = documents::indexes(2);
    let number = name.bytes().map(usize::from).sum::<usize>() % all.len();
    Index { name: name.into(), ..all.into_iter().nth(number).unwrap_or_default() }
}

/// The active cluster manager.
pub async fn cluster_manager(client: &Client) -> Result<String> {
    until("a cluster manager is active", ELECTED_WITHIN, async || {
        let status = client.members().await.map_err(|refused| refused.to_string())?;
        let active = status["cluster_manager"].as_str().filter(|node| !node.is_empty());
        active.map(str::to_owned).ok_or_else(|| status.to_string())
    })
    .await
}

/// What an index manager is for the cluster manager: whether it is alive, its role and its note.
pub async fn seen_as(client: &Client, node: &str) -> Result<(bool, String, String), String> {
    let status = client.members().await.map_err(|refused| refused.to_string())?;
    let status: highwater_schemas::api::ClusterStatus = serde_json::from_value(status).map_err(|e| e.to_string())?;
    let found = status.members.into_iter().find(|m| m.kind == NodeKind::Coordinator && m.node == node);
    found.map(|m| (m.alive, m.role, m.note)).ok_or_else(|| format!("{node} is not known"))
}
