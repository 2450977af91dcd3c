//! Members and buckets that do not fit one message come in pages: each of them once, in order, whoever is asked.

use highwater_schemas::{
    api::{Join, NodeKind, Trouble},
    subjects,
};
use highwater_tests::{cli::highwater, prelude::*};
use std::collections::BTreeSet;

const NODES: [&str; 2] = ["coordinator-1", "catalog-1"];
const WITHIN: Duration = Duration::from_secs(60);
/// Nodes of a kind that say that they are there, each with troubles of some kB.
const NODES_OF_A_KIND: usize = 150;
const TROUBLES: usize = 16;
/// Half of what nodes wait between heartbeats.
const BEAT: Duration = Duration::from_millis(250);
/// Buckets, each of many streams with long names.
const BUCKETS: usize = 45;
const STREAMS: usize = 32;
/// Bytes of a name's padding.
const LONG: usize = 40;
/// Each bucket reserves more than a gigabyte for what it would publish.
const CONFIGURATION: &str = "jetstream { max_file_store: 1T }\n";
/// The largest message that a server takes as it comes.
const LARGEST: usize = 1024 * 1024;

fn bucket(n: usize) -> String {
    format!("b{}{n:02}", "x".repeat(LONG))
}

fn stream(n: usize) -> String {
    format!("s{}{n:02}", "y".repeat(6 * LONG))
}

/// Streams, and buckets that are all of them.
async fn declare(client: &Client) -> Result<()> {
    for n in 0..STREAMS {
        let config = async_nats::jetstream::stream::Config {
            name: stream(n),
            subjects: vec![format!("{}.>", stream(n))],
            storage: async_nats::jetstream::stream::StorageType::Memory,
            max_messages_per_subject: 1,
            ..Default::default()
        };
        client.js.create_stream(config).await?;
    }
    let of = |n| json!({"name": stream(n), "strip_prefix": format!("{}.", stream(n))});
    let streams: Vec<Value> = (0..STREAMS).map(of).collect();
    for n in 0..BUCKETS {
        let request = json!({"name": bucket(n), "source": {"streams": streams}});
        client.insist("hw.admin.bucket.add", &request, WITHIN).await?;
    }
    Ok(())
}

/// Heartbeats of nodes that are nowhere, with their names.
fn heartbeats(kind: NodeKind) -> Result<Vec<(String, Vec<u8>)>> {
    let trouble = |n| Trouble {
        what: format!("what {n} of this node tries again and again"),
        since: 1,
        times: 1,
        error: "no ".repeat(100),
    };
    let heartbeat = |n| {
        let name = format!("n{}{n:03}", "z".repeat(LONG));
        let mut join = Join::new(kind, &name, 1);
        join.troubles = (0..TROUBLES).map(trouble).collect();
        Ok((name, serde_json::to_vec(&join)?))
    };
    (0..NODES_OF_A_KIND).map(heartbeat).collect()
}

/// Sends heartbeats as often as nodes do: the troubles of a node that is down are not shown any more.
async fn beat(client: Client, heartbeats: Vec<Vec<u8>>) -> Result<()> {
    loop {
        for heartbeat in &heartbeats {
            client.nats.publish(subjects::CLUSTER_JOIN, heartbeat.clone().into()).await?;
        }
        tokio::time::sleep(BEAT).await;
    }
}

/// What a list shows over all of its pages, as texts that differ; each page fits a message and brings something.
async fn listed(
    client: &Client,
    subject: &str,
    request: &Value,
    take: impl Fn(&Value, &mut Value, &mut Vec<String>) -> bool,
) -> Result<Vec<String>> {
    let (mut all, mut pages, mut bytes) = (Vec::new(), 0, 0);
    let mut asked = request.clone();
    loop {
        let reply = client.request(subject, &asked).await.with_context(|| format!("{subject} {asked}"))?;
        let (before, size) = (all.len(), reply.to_string().len());
        let more = take(&reply, &mut asked, &mut all);
        ensure!(all.len() > before && size < LARGEST, "{subject}: {} in {size} bytes", all.len() - before);
        pages += 1;
        bytes += size;
        if !more {
            break;
        }
    }
    println!("{subject}: {} in {pages} pages of {bytes} bytes", all.len());
    ensure!(pages > 1, "{subject} has one page");
    let distinct: BTreeSet<&String> = all.iter().collect();
    ensure!(distinct.len() == all.len(), "{subject}: {} of {} are new", distinct.len(), all.len());
    Ok(all)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The items of a list by their names.
fn names(list: &Value, field: &str) -> Vec<String> {
    list.as_array().into_iter().flatten().map(|item| text(&item[field])).collect()
}

/// A list of one kind of things, and the field that names them.
async fn of_one_kind(client: &Client, subject: &str, list: &str, field: &str) -> Result<Vec<String>> {
    listed(client, subject, &json!({}), |reply, asked, all| {
        all.extend(names(&reply[list], field));
        asked["after"] = all.last().cloned().into();
        reply["more"] == true
    })
    .await
}

/// Members, and buckets, of a status of the whole cluster; both are asked for from where they ended.
async fn of_cluster(client: &Client, subject: &str) -> Result<(Vec<String>, Vec<String>)> {
    let all = listed(client, subject, &json!({}), |reply, asked, all| {
        let members = reply["members"].as_array().cloned().unwrap_or_default();
        if let Some(last) = members.last() {
            asked["members_after"] = json!([last["kind"], last["node"]]);
        }
        all.extend(members.iter().map(|member| format!("{} {}", text(&member["kind"]), text(&member["node"]))));
        let buckets = names(&reply["buckets"], "name");
        if let Some(last) = buckets.last() {
            asked["buckets_after"] = json!(last);
        }
        all.extend(buckets.into_iter().map(|name| format!("bucket {name}")));
        reply["more_members"] == true || reply["more_buckets"] == true
    })
    .await?;
    let (buckets, members): (Vec<_>, Vec<_>) = all.into_iter().partition(|item| item.starts_with("bucket "));
    Ok((members, buckets))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_and_buckets_come_in_pages() -> Result<()> {
    Cluster::configured(CONFIGURATION)?
        .with_nodes(&NODES)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            declare(&client).await?;
            let buckets: Vec<String> = (0..BUCKETS).map(bucket).collect();
            let mut members: Vec<String> =
                ["cluster_manager cluster-manager-1", "coordinator coordinator-1", "catalog catalog-1"]
                    .map(str::to_owned)
                    .into();
            let mut beats = Vec::new();
            for kind in [NodeKind::Indexer, NodeKind::Catalog] {
                for (node, heartbeat) in heartbeats(kind)? {
                    members.push(format!("{} {node}", kind.as_str()));
                    beats.push(heartbeat);
                }
            }
            let beating = tokio::spawn(beat(client.clone(), beats));
            members.sort_unstable();
            // Heartbeats are not acknowledged: they are counted.
            until("every node is known", WITHIN, async || {
                let (known, _) =
                    of_cluster(&client, "hw.cluster.members").await.map_err(|error| format!("{error:#}"))?;
                (known.len() == members.len()).then_some(()).ok_or_else(|| format!("{} members", known.len()))
            })
            .await?;

            for subject in ["hw.cluster.members", "hw.query.nodes"] {
                let (mut shown, of) = of_cluster(&client, subject).await?;
                shown.sort_unstable();
                ensure!(shown == members, "{subject}: {shown:?}");
                let wanted: Vec<String> = buckets.iter().map(|name| format!("bucket {name}")).collect();
                ensure!(of == wanted, "{subject}: {of:?}");
            }
            ensure!(of_one_kind(&client, "hw.admin.bucket.list", "buckets", "name").await? == buckets, "buckets");
            let indexers = of_one_kind(&client, "hw.cluster.indexers", "members", "node").await?;
            ensure!(indexers.len() == NODES_OF_A_KIND && indexers.is_sorted(), "{indexers:?}");
            let manager = subjects::node("coordinator-1", "status");
            let of_manager = listed(&client, &manager, &json!({}), |reply, asked, all| {
                all.extend(names(&reply["buckets"], "name"));
                asked["buckets_after"] = all.last().cloned().into();
                reply["more_buckets"] == true
            })
            .await?;
            ensure!(of_manager == buckets, "the buckets of the index manager");

            // The command line asks for all of them, and prints a reply a line.
            let (code, text, error) = highwater(&["status", "--json", "--nats-url", cluster.url()])?;
            ensure!(code == Some(0), "{code:?}: {error}");
            let replies: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
            let shown = |list: &str, field: &str| -> Vec<String> {
                replies.iter().flat_map(|reply| names(&reply[list], field)).collect()
            };
            ensure!(replies.len() > 2 && shown("buckets", "name") == buckets, "{} replies", replies.len());
            let shown = shown("members", "node");
            ensure!(shown.len() == members.len(), "{} members", shown.len());
            ensure!(!beating.is_finished(), "heartbeats cannot be sent");
            beating.abort();
            Ok(())
        })
        .await
}
