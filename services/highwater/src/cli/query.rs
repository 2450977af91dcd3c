//! `highwater scan`, `count` and `status`.

use super::{Session, print, show};
use crate::args::{Count, Range, Scan, Status};
use anyhow::{Result, anyhow};
use highwater_schemas::{
    api::{BootstrapStep, ClusterStatus, Empty, ListReply, ListRequest, ScanResult},
    subjects,
};
use serde_json::{Map, Value, json};

pub(crate) async fn scan(args: Scan) -> Result<()> {
    let session = Session::open(&args.range.client).await?;
    let mut request = request(&args.range)?;
    if args.reverse {
        request.insert("reverse".into(), true.into());
    }
    if args.offset > 0 {
        request.insert("offset".into(), args.offset.into());
    }
    if !args.all {
        request.insert("limit".into(), args.limit.into());
    }
    let mut printed = 0;
    loop {
        let (reply, page): (Value, ScanResult) = session.typed(&subjects::query("scan"), &request).await?;
        print(session.json, &reply, || rows(&page));
        printed += page.rows.len() as u64;
        if let Some(token) = page.page_token {
            request.insert("page_token".into(), token.into())
        } else {
            if !session.json {
                let exact = if page.exact { "exact" } else { "still following overwritten revisions" };
                println!("\n{} rows at ST {} ({exact})", show::thousands(printed), page.st);
            }
            return Ok(());
        };
    }
}

pub(crate) async fn count(args: Count) -> Result<()> {
    let session = Session::open(&args.range.client).await?;
    let reply = session.ask(&subjects::query("count"), &request(&args.range)?).await?;
    print(session.json, &reply, || show::thousands(reply["count"].as_u64().unwrap_or(0)));
    Ok(())
}

/// The JSON request that the options describe.
fn request(range: &Range) -> Result<Map<String, Value>> {
    let mut request = Map::new();
    request.insert("bucket".into(), range.bucket.clone().into());
    request.insert("index".into(), range.index.clone().into());
    request.insert("timeout_ms".into(), range.client.timeout_ms.into());
    let mut span = Map::new();
    for (name, text) in [("equal", &range.equal), ("low", &range.low), ("high", &range.high)] {
        if let Some(text) = text {
            span.insert(name.into(), bound(text));
        }
    }
    if let Some(inclusion) = &range.inclusion {
        span.insert("inclusion".into(), inclusion.clone().into());
    }
    if !span.is_empty() {
        request.insert("spans".into(), json!([span]));
    }
    request.insert("consistency".into(), consistency(&range.consistency)?);
    Ok(request)
}

/// A JSON array; anything else is a single component, and what is not JSON is a string.
fn bound(text: &str) -> Value {
    match serde_json::from_str::<Value>(text) {
        Ok(array @ Value::Array(_)) => array,
        Ok(value) => json!([value]),
        Err(_) => json!([text]),
    }
}

fn consistency(text: &str) -> Result<Value> {
    match text.split_once('=') {
        None => Ok(text.into()),
        Some((name @ ("at_plus" | "at_snapshot"), number)) => {
            let number: u64 = number.parse().map_err(|_| anyhow!("--consistency {name}={number}: not a number"))?;
            Ok(json!({ name: number }))
        }
        Some((name, _)) => {
            Err(anyhow!("--consistency {name}: use any, request_plus, at_plus=REVISION or at_snapshot=ST"))
        }
    }
}

fn rows(page: &ScanResult) -> String {
    let keys = page.rows.iter().map(|r| r.key.len()).max().unwrap_or(0);
    let mut fields: Vec<String> = Vec::new();
    for name in page.rows.iter().filter_map(|r| r.include.as_ref()).flat_map(Map::keys) {
        if !fields.contains(name) {
            fields.push(name.clone());
        }
    }
    let vb = page.rows.iter().any(|r| r.vb.is_some());
    let mut header: Vec<String> = (1..=keys).map(|n| format!("KEY {n}")).collect();
    header.push("ID".into());
    if vb {
        header.push("STREAM".into());
    }
    header.extend(fields.iter().map(|f| f.to_uppercase()));
    let lines = page.rows.iter().map(|row| {
        let mut line: Vec<String> = (0..keys).map(|k| row.key.get(k).map(show::cell).unwrap_or_default()).collect();
        line.push(row.id.clone());
        if vb {
            line.push(row.vb.clone().unwrap_or_default());
        }
        line.extend(
            fields.iter().map(|f| row.include.as_ref().and_then(|i| i.get(f)).map(show::cell).unwrap_or_default()),
        );
        line
    });
    let numbers: Vec<usize> =
        (0..keys).filter(|k| page.rows.iter().all(|r| r.key.get(*k).is_none_or(Value::is_number))).collect();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    show::table(&header, &numbers, lines)
}

pub(crate) async fn status(args: Status) -> Result<()> {
    let session = Session::open(&args.client).await?;
    let (reply, cluster): (Value, ClusterStatus) = session.typed(subjects::CLUSTER_MEMBERS, &Empty {}).await?;
    // Without a catalog the rest is still worth seeing.
    let listed = session.typed::<_, ListReply>(&subjects::query("list"), &ListRequest { bucket: None }).await;
    let listed = listed.map(|(_, list)| list.indexes);
    if session.json {
        let mut reply = reply;
        match &listed {
            Ok(indexes) => reply["indexes"] = serde_json::to_value(indexes)?,
            Err(error) => {
                reply["indexes"] = Value::Null;
                reply["indexes_error"] = error.to_string().into();
            }
        }
        println!("{reply}");
        return Ok(());
    }
    let or_none = |name: String| if name.is_empty() { "none".into() } else { name };
    let (manager, coordinator) = (or_none(cluster.cluster_manager), or_none(cluster.coordinator));
    println!(
        "cluster manager {manager}, coordinator {coordinator}, term {}, state version {}\n",
        cluster.term, cluster.version
    );
    let members = cluster.members.iter().map(|m| {
        let state = if m.alive { "alive" } else { "down" };
        let heard = format!("{} ms ago", m.last_heartbeat_ms);
        vec![m.node.clone(), m.kind.as_str().into(), state.into(), m.role.clone(), heard, m.note.clone()]
    });
    println!("{}\n", show::table(&["NODE", "KIND", "STATE", "ROLE", "HEARTBEAT", ""], &[4], members));
    println!("{}\n", bootstrap(&cluster.bootstrap, args.bootstrap));
    let buckets = cluster.buckets.iter().flat_map(|b| {
        b.vbuckets.iter().map(|v| {
            vec![
                b.name.clone(),
                v.stream.clone(),
                show::thousands(v.seqno),
                show::thousands(v.covered),
                show::thousands(v.source_last.saturating_sub(v.seqno)),
                b.st.to_string(),
                b.durable.to_string(),
                v.projector.clone(),
            ]
        })
    });
    let header = ["BUCKET", "STREAM", "SEQNO", "COVERED", "LAG", "ST", "DURABLE ST", "PROJECTOR"];
    println!("{}\n", show::table(&header, &[2, 3, 4, 5, 6], buckets));
    let indexes = match listed {
        Ok(indexes) => indexes,
        Err(error) => {
            println!("the indexes cannot be listed: {error}");
            return Ok(());
        }
    };
    let indexes = indexes.iter().map(|i| {
        vec![
            i.bucket.clone(),
            i.name.clone(),
            i.state.clone(),
            format!("{:.0}%", i.progress * 100.0),
            show::thousands(i.items),
        ]
    });
    println!("{}", show::table(&["BUCKET", "INDEX", "STATE", "DONE", "ITEMS"], &[3, 4], indexes));
    Ok(())
}

/// In one line when all is done, unless every step is wanted.
fn bootstrap(steps: &[BootstrapStep], all: bool) -> String {
    let done: Vec<&BootstrapStep> = steps.iter().filter(|s| s.done_ms.is_some()).collect();
    if steps.is_empty() {
        return "bootstrap: nobody coordinates".into();
    }
    if done.len() == steps.len() && !all {
        let took = done.last().and_then(|s| s.done_ms).unwrap_or_default();
        return format!("bootstrap: all {} steps done in {took} ms", steps.len());
    }
    let rows = steps.iter().map(|s| {
        let took = s.done_ms.map_or_else(|| "waits".to_owned(), |ms| format!("{ms} ms"));
        vec![s.step.to_string(), s.name.clone(), took, s.note.clone()]
    });
    show::table(&["STEP", "BOOTSTRAP", "AFTER", ""], &[0, 2], rows)
}
