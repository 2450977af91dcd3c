//! `highwater scan` and `count`.

use super::{Session, print, show};
use crate::args::{Count, Range, Scan};
use anyhow::{Result, anyhow};
use highwater_schemas::{
    api::{AtPlus, Consistency, CountReply, ScanQuery, ScanResult, SnapshotChoice},
    collation::{Inclusion, Span},
    subjects,
};
use serde::Deserialize;
use serde_json::{Map, Value};

pub(crate) async fn scan(args: Scan) -> Result<()> {
    let session = Session::open(&args.range.client).await?;
    let mut request = ScanQuery {
        reverse: args.reverse,
        offset: Some(args.offset).filter(|offset| *offset > 0),
        limit: Some(args.limit).filter(|_| !args.all),
        ..request(&args.range)?
    };
    if session.json {
        return pages(&session, request).await;
    }
    let mut printed = 0;
    loop {
        let (reply, page): (_, ScanResult) = session.typed(&subjects::query("scan"), &request).await?;
        print(false, &reply, || rows(&page));
        printed += page.rows.len() as u64;
        request.page_token = page.page_token;
        if request.page_token.is_none() {
            let exact = if page.exact { "exact" } else { "still following overwritten revisions" };
            println!("\n{} rows at ST {} ({exact})", show::thousands(printed), page.st);
            return Ok(());
        }
    }
}

/// Prints each page as it came; of what it says only where the next one begins is read.
async fn pages(session: &Session, mut request: ScanQuery) -> Result<()> {
    #[derive(Deserialize)]
    struct Page {
        page_token: Option<String>,
    }
    loop {
        let (reply, page): (_, Page) = session.typed(&subjects::query("scan"), &request).await?;
        print(true, &reply, String::new);
        request.page_token = page.page_token;
        if request.page_token.is_none() {
            return Ok(());
        }
    }
}

pub(crate) async fn count(args: Count) -> Result<()> {
    let session = Session::open(&args.range.client).await?;
    let (reply, counted): (_, CountReply) = session.typed(&subjects::query("count"), &request(&args.range)?).await?;
    print(session.json, &reply, || show::thousands(counted.count));
    Ok(())
}

/// The request that the options describe.
fn request(range: &Range) -> Result<ScanQuery> {
    let components = |bound: &Option<crate::bound::Bound>| bound.as_ref().map(|bound| bound.0.clone());
    let inclusion = match range.inclusion.as_deref() {
        None | Some("both") => Inclusion::Both,
        Some("low") => Inclusion::Low,
        Some("high") => Inclusion::High,
        Some(_) => Inclusion::Neither,
    };
    let span =
        Span { low: components(&range.low), high: components(&range.high), equal: components(&range.equal), inclusion };
    Ok(ScanQuery {
        bucket: range.bucket.clone(),
        index: range.index.clone(),
        spans: if span == Span::default() { Vec::new() } else { vec![span] },
        consistency: Some(consistency(&range.consistency)?),
        timeout_ms: Some(range.client.timeout_ms),
        ..ScanQuery::default()
    })
}

fn consistency(text: &str) -> Result<Consistency> {
    let Some((name, number)) = text.split_once('=') else { return Ok(Consistency::Named(text.into())) };
    let choice = match name {
        "at_plus" => |number| SnapshotChoice::AtPlus(AtPlus::Revision(number)),
        "at_snapshot" => SnapshotChoice::AtSnapshot,
        _ => return Err(anyhow!("--consistency {name}: use any, request_plus, at_plus=REVISION or at_snapshot=ST")),
    };
    let number: u64 = number.parse().map_err(|_| anyhow!("--consistency {name}={number}: not a number"))?;
    Ok(Consistency::With(choice(number)))
}

fn rows(page: &ScanResult) -> String {
    let keys = page.rows.iter().map(|r| r.key.len()).max().unwrap_or(0).max(page.key_names.len());
    let mut fields: Vec<String> = Vec::new();
    for name in page.rows.iter().filter_map(|r| r.include.as_ref()).flat_map(Map::keys) {
        if !fields.contains(name) {
            fields.push(name.clone());
        }
    }
    let vb = page.rows.iter().any(|r| r.vb.is_some());
    // A catalog of an earlier version names no keys.
    let name = |k: usize| page.key_names.get(k).map_or_else(|| format!("KEY {}", k + 1), |name| name.to_uppercase());
    let mut header: Vec<String> = (0..keys).map(name).collect();
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
