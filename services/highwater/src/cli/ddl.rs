//! `highwater bucket` and `highwater index`.

use super::{Reply, Session, diagnosis, print, show};
use crate::args::{Bucket, Index};
use anyhow::{Result, bail};
use highwater_schemas::{
    api::{
        self, BucketHistoryReply, BucketList, BucketListRequest, Describe, DescribeReply, IndexBuild, IndexDrop,
        IndexReply, IndexStats, IndexesReply, ListReply, ListRequest, ReconcileReply, ReconcileSummary,
    },
    definition::{BucketDefinition, IndexDefinition, Source, SourceStream},
    subjects,
};
use std::{
    io::{IsTerminal, Write},
    time::{Duration, Instant},
};

const POLL: Duration = Duration::from_millis(100);

pub(crate) async fn bucket(command: Bucket) -> Result<()> {
    match command {
        Bucket::Add { name, kv, stream, docid_codec, client } => {
            let session = Session::open(&client).await?;
            let source = if stream.is_empty() {
                Source { kv: Some(kv.unwrap_or_else(|| name.clone())), docid_codec, ..Source::default() }
            } else {
                Source {
                    streams: Some(stream.iter().map(|s| source_stream(s)).collect()),
                    docid_codec,
                    ..Source::default()
                }
            };
            let reply =
                session.ask(&subjects::admin("bucket.add"), &BucketDefinition { name: name.clone(), source }).await?;
            print(session.json, &reply, || format!("bucket {name} is declared"));
        }
        Bucket::List { client } => {
            let session = Session::open(&client).await?;
            let next = |request: &mut BucketListRequest, page: &BucketList| {
                request.after = page.next_after();
                request.after.is_some()
            };
            let (reply, pages) =
                session.pages(&subjects::admin("bucket.list"), BucketListRequest::default(), next).await?;
            print(session.json, &reply, || {
                let rows = pages.iter().flat_map(|page| &page.buckets).map(|b| {
                    let source = match (&b.source.kv, &b.source.streams) {
                        (Some(kv), _) => format!("key-value bucket {kv}"),
                        (None, Some(s)) => {
                            format!("streams {}", s.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", "))
                        }
                        (None, None) => String::new(),
                    };
                    let codec = b
                        .source
                        .docid_codec
                        .map_or_else(String::new, |codec| format!(", docids in {}", codec.as_str()));
                    vec![b.name.clone(), source + &codec, b.indexes.to_string()]
                });
                show::table(&["BUCKET", "SOURCE", "INDEXES"], &[2], rows)
            });
        }
        Bucket::History { name, client } => {
            let session = Session::open(&client).await?;
            let request = api::BucketHistory { name };
            let (reply, history): (_, BucketHistoryReply) =
                session.typed(&subjects::admin("bucket.history"), &request).await?;
            print(session.json, &reply, || show_history(&history));
        }
        Bucket::Reconcile { name, no_wait, within_s, client } => {
            let session = Session::open(&client).await?;
            reconcile(&session, name, (!no_wait).then(|| Duration::from_secs(within_s))).await?;
        }
        Bucket::Remove { name, client } => {
            let session = Session::open(&client).await?;
            let reply =
                session.ask(&subjects::admin("bucket.remove"), &api::BucketRemove { name: name.clone() }).await?;
            print(session.json, &reply, || {
                format!("bucket {name} is no longer declared; its documents are where they were")
            });
        }
    }
    Ok(())
}

/// Begins a reconcile, and waits until one that began afterwards is done.
async fn reconcile(session: &Session, name: String, within: Option<Duration>) -> Result<()> {
    let request = api::BucketReconcile { name: name.clone() };
    let (reply, begun): (_, ReconcileReply) = session.typed(&subjects::admin("bucket.reconcile"), &request).await?;
    let Some(within) = within else {
        print(session.json, &reply, || format!("the indexes of bucket {name} will be compared with its source"));
        return Ok(());
    };
    let until = Instant::now() + within;
    loop {
        let request = api::BucketHistory { name: name.clone() };
        let (reply, history): (_, BucketHistoryReply) =
            session.typed(&subjects::admin("bucket.history"), &request).await?;
        if let Some(done) = history.reconciled.filter(|done| done.id > begun.after) {
            print(session.json, &reply, || format!("the indexes of bucket {name} were {}", compared(&done)));
            return Ok(());
        }
        if Instant::now() > until {
            bail!("not done within {} s; it goes on", within.as_secs());
        }
        if history.reconcile.is_none() {
            // Whoever coordinated before may have forgotten that it was asked for.
            session.ask(&subjects::admin("bucket.reconcile"), &api::BucketReconcile { name: name.clone() }).await?;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The times may be of two coordinators, whose clocks are not compared.
fn compared(done: &ReconcileSummary) -> String {
    format!("compared with the source from {} to {}", show::time(done.began), show::time(done.ended))
}

fn show_history(history: &BucketHistoryReply) -> String {
    let kind = |broken| if broken { "broken" } else { "unproven" };
    let branches = history.streams.iter().flat_map(|s| {
        s.failover.iter().map(|b| {
            let kind = if b.reason.is_empty() { "first" } else { kind(b.broken) };
            vec![
                s.stream.clone(),
                b.vbuuid.clone(),
                show::thousands(b.start),
                kind.into(),
                show::time(b.at),
                b.reason.clone(),
            ]
        })
    });
    let branches = show::table(&["STREAM", "BRANCH", "FROM", "", "FOUND", "WHY"], &[2], branches);
    let last = history.reconciled.as_ref().map(compared);
    let running = history.reconcile.as_ref();
    let running = running.map(|r| format!("being compared with the source since {}", show::time(r.began)));
    let branches = [Some(branches), last, running].into_iter().flatten().collect::<Vec<_>>().join("\n\n");
    if history.rollbacks.is_empty() {
        return format!("{branches}\n\nnothing was ever rolled back");
    }
    let rollbacks = history.rollbacks.iter().map(|r| {
        let ended = match r.ended {
            0 => format!("{:?}", r.phase).to_lowercase(),
            ended => show::time(ended),
        };
        vec![show::time(r.began), ended, r.streams.join(", "), kind(r.broken).into(), r.reason.clone()]
    });
    format!("{branches}\n\n{}", show::table(&["ROLLED BACK", "UNTIL", "STREAMS", "", "WHY"], &[], rollbacks))
}

fn source_stream(text: &str) -> SourceStream {
    let (name, prefix) = text.split_once('=').unwrap_or((text, ""));
    SourceStream { name: name.into(), strip_prefix: prefix.into() }
}

pub(crate) async fn index(command: Index) -> Result<()> {
    match command {
        Index::Create {
            bucket,
            name,
            key,
            condition,
            include,
            num_partition,
            include_missing,
            defer_build,
            client,
        } => {
            let session = Session::open(&client).await?;
            let definition = IndexDefinition {
                bucket,
                name,
                keys: key,
                condition,
                include,
                num_partition,
                num_replica: 0,
                include_missing,
                defer_build,
            };
            let (reply, created): (_, IndexReply) =
                session.typed(&subjects::admin("index.create"), &definition).await?;
            print(session.json, &reply, || {
                let index = &created.index;
                let hint = if defer_build { "index build" } else { "index wait" };
                format!(
                    "index {} on {} is {}; `highwater {hint} {} {}`",
                    index.name, index.bucket, index.state, index.bucket, index.name
                )
            });
        }
        Index::Build { bucket, names, client } => {
            let session = Session::open(&client).await?;
            let (reply, built): (_, IndexesReply) =
                session.typed(&subjects::admin("index.build"), &IndexBuild { bucket, names }).await?;
            print(session.json, &reply, || {
                show::table(
                    &["INDEX", "STATE"],
                    &[],
                    built.indexes.iter().map(|i| vec![i.name.clone(), i.state.clone()]),
                )
            });
        }
        Index::Drop { bucket, name, client } => {
            let session = Session::open(&client).await?;
            let reply = session.ask(&subjects::admin("index.drop"), &IndexDrop { bucket, name: name.clone() }).await?;
            print(session.json, &reply, || format!("index {name} is dropped"));
        }
        Index::List { bucket, client } => {
            let session = Session::open(&client).await?;
            let (reply, list) = list(&session, bucket).await?;
            print(session.json, &reply, || indexes(&list));
        }
        Index::Describe { bucket, name, client } => {
            let session = Session::open(&client).await?;
            let (reply, described): (_, DescribeReply) =
                session.typed(&subjects::query("describe"), &Describe { bucket, index: name }).await?;
            print(session.json, &reply, || describe(&described));
        }
        Index::Wait { bucket, names, within, client } => {
            let session = Session::open(&client).await?;
            wait(&session, bucket, &names, Duration::from_secs(within)).await?;
        }
        Index::Verify { data_dir: Some(dir), client, .. } => diagnosis::verify_stopped(&dir, client.json)?,
        Index::Verify { bucket, names, within, client, data_dir: None } => {
            let session = Session::open(&client).await?;
            diagnosis::verify(&session, &bucket.unwrap_or_default(), &names, Duration::from_secs(within)).await?;
        }
    }
    Ok(())
}

pub(super) async fn list(session: &Session, bucket: Option<String>) -> Result<(Reply, Vec<IndexStats>)> {
    let next = |request: &mut ListRequest, page: &ListReply| {
        request.after = page.next_after();
        request.after.is_some()
    };
    let (reply, pages) = session.pages(&subjects::query("list"), ListRequest { bucket, after: None }, next).await?;
    Ok((reply, pages.into_iter().flat_map(|page| page.indexes).collect()))
}

fn indexes(list: &[IndexStats]) -> String {
    let rows = list.iter().map(|i| {
        let keys = if i.keys.is_empty() { "(primary)".to_owned() } else { i.keys.join(", ") };
        vec![
            i.bucket.clone(),
            i.name.clone(),
            i.state.clone(),
            format!("{:.0}%", i.progress * 100.0),
            show::thousands(i.items),
            show::bytes(i.bytes),
            show::thousands(i.unindexed),
            keys,
            i.error.clone().or_else(|| i.condition.as_ref().map(|c| format!("where {c}"))).unwrap_or_default(),
        ]
    });
    show::table(&["BUCKET", "INDEX", "STATE", "DONE", "ITEMS", "DISK", "UNINDEXED", "KEYS", ""], &[3, 4, 5, 6], rows)
}

fn describe(reply: &DescribeReply) -> String {
    let mut text = indexes(std::slice::from_ref(&reply.index));
    text.push_str("\n\npartitions on: ");
    text.push_str(&reply.hosts.join(", "));
    if !reply.unindexed.is_empty() {
        text.push_str("\n\n");
        let rows =
            reply.unindexed.iter().map(|d| vec![d.id.clone(), d.vb.to_string(), d.seqno.to_string(), d.reason.clone()]);
        text.push_str(&show::table(&["DOCUMENT NOT INDEXED", "VB", "SEQNO", "REASON"], &[1, 2], rows));
    }
    let further = reply.index.unindexed.saturating_sub(reply.unindexed.len() as u64);
    if further > 0 {
        text = format!("{text}\n{} more documents could not be indexed", show::thousands(further));
    }
    text
}

async fn wait(session: &Session, bucket: String, names: &[String], within: Duration) -> Result<()> {
    let until = Instant::now() + within;
    let live = !session.json && std::io::stderr().is_terminal();
    let mut said = None;
    loop {
        let (reply, all) = list(session, Some(bucket.clone())).await?;
        if let Some(unknown) = names.iter().find(|n| !all.iter().any(|i| i.name == **n)) {
            bail!("there is no index {unknown} on bucket {bucket}");
        }
        let wanted: Vec<IndexStats> = all.into_iter().filter(|i| names.is_empty() || names.contains(&i.name)).collect();
        if let Some(failed) = wanted.iter().find(|i| i.state == "error") {
            bail!("index {} failed: {}", failed.name, failed.error.as_deref().unwrap_or("no reason given"));
        }
        if let Some(deferred) = wanted.iter().find(|i| i.state == "created") {
            bail!("index {} is deferred: `highwater index build {bucket} {}` first", deferred.name, deferred.name);
        }
        if live {
            let line: Vec<String> = wanted.iter().map(|i| format!("{} {:.0}%", i.name, i.progress * 100.0)).collect();
            eprint!("\r\x1b[K{}", line.join("  "));
            let _ = std::io::stderr().flush();
        }
        if wanted.iter().all(|i| i.state == "active") {
            if live {
                eprintln!();
            }
            print(session.json, &reply, || indexes(&wanted));
            return Ok(());
        }
        let fails = wanted.iter().find_map(|i| Some(format!("index {}: {}", i.name, i.error.as_ref()?)));
        if Instant::now() > until {
            let why = fails.map_or_else(String::new, |why| format!("; {why}"));
            bail!("not active within {} s{why}", within.as_secs());
        }
        if fails.is_some() && fails != said {
            eprintln!("{}", fails.as_deref().unwrap_or_default());
            said = fails;
        }
        tokio::time::sleep(POLL).await;
    }
}
