//! `highwater scan` and `count`.

use super::{Session, print, show};
use crate::args::{Count, Range, Scan};
use anyhow::{Result, anyhow};
use highwater_schemas::{api::ScanResult, subjects};
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
