//! `highwater index verify` and `highwater slice dump`: of running nodes over NATS, of stopped ones from their directory.

use super::{Reply, Session, ddl, print, show};
use crate::args::{Dump, Slice};
use anyhow::{Result, anyhow, bail};
use highwater_indexer::stopped::{Rows, StoppedNode};
use highwater_schemas::{
    ApiError, ErrorCode,
    api::{
        Describe, DescribeReply, DocumentDump, MarkDump, NodeDump, NodeDumpRequest, NodeVerify, NodeVerifyRequest,
        SliceCheck, SliceDump,
    },
    subjects,
};
use serde::Serialize;
use serde_json::{Value, json};
use std::{fmt::Write as _, path::Path, time::Duration};

pub(super) async fn verify(session: &Session, bucket: &str, names: &[String], within: Duration) -> Result<()> {
    let (_, indexes) = ddl::list(session, Some(bucket.to_owned())).await?;
    if let Some(unknown) = names.iter().find(|n| !indexes.iter().any(|i| i.name == **n)) {
        bail!("there is no index {unknown} on bucket {bucket}");
    }
    let mut checks = Vec::new();
    for index in indexes.into_iter().filter(|i| names.is_empty() || names.contains(&i.name)) {
        // One that is deferred has no slices yet.
        if index.state == "created" {
            continue;
        }
        let describe = Describe { bucket: bucket.to_owned(), index: index.name.clone() };
        let described: DescribeReply = session.typed(&subjects::query("describe"), &describe).await?.1;
        for (partition, node) in described.hosts.iter().enumerate() {
            checks.extend(verify_slice(session, bucket, &index.name, (partition as u32, node), within).await);
        }
    }
    report(session.json, &checks, None)
}

/// What the host of a partition says; or, if it says nothing, that.
async fn verify_slice(
    session: &Session,
    bucket: &str,
    index: &str,
    (partition, node): (u32, &String),
    within: Duration,
) -> Vec<SliceCheck> {
    let request = NodeVerifyRequest {
        bucket: bucket.to_owned(),
        index: Some(index.to_owned()),
        partition: Some(partition),
        timeout_ms: Some(within.as_millis() as u64),
    };
    let answer = session.ask_within(&subjects::node(node, "verify"), &request, within).await;
    match answer.and_then(|reply| reply.check().and_then(|()| reply.read::<NodeVerify>())) {
        Ok(reply) => reply.slices,
        Err(error) => {
            let silent = || ApiError::new(ErrorCode::NodeUnavailable, format!("{error:#}"));
            let coded = error.downcast_ref::<ApiError>().cloned().unwrap_or_else(silent);
            vec![SliceCheck {
                at: node.clone(),
                bucket: bucket.to_owned(),
                index: index.to_owned(),
                partition,
                state: "unknown".into(),
                error: Some(coded),
                ..SliceCheck::default()
            }]
        }
    }
}

pub(super) fn verify_stopped(dir: &Path, json: bool) -> Result<()> {
    let node = StoppedNode::open(dir)?;
    let checks: Vec<SliceCheck> = node.slices().iter().map(|slice| node.verify(slice)).collect();
    report(json, &checks, node.verify_marks())
}

/// Prints what was found; an error when anything is wrong.
fn report(json: bool, checks: &[SliceCheck], marks: Option<String>) -> Result<()> {
    let wrong = checks.iter().filter(|c| c.error.is_some()).count();
    let good = wrong == 0 && marks.is_none();
    let mut reply = json!({"ok": good, "slices": checks});
    if let Some(marks) = &marks {
        reply["marks_error"] = marks.as_str().into();
    }
    print(json, &Reply::made(&reply), || verdicts(checks));
    match marks {
        Some(marks) => Err(anyhow!(marks)),
        None if wrong > 0 => Err(anyhow!("{wrong} of {} slices are not right", checks.len())),
        None => Ok(()),
    }
}

fn verdicts(checks: &[SliceCheck]) -> String {
    if checks.is_empty() {
        return "there are no slices".into();
    }
    let rows = checks.iter().map(|c| {
        let verdict = match (&c.error, c.state.as_str()) {
            (Some(error), _) => error.message.clone(),
            (None, "building") if c.runs > 0 => format!("ok, {} runs of a build", c.runs),
            (None, "building") if c.documents == 0 => "nothing to check yet".into(),
            (None, "empty") => "nothing to check".into(),
            (None, _) => "ok".into(),
        };
        vec![
            format!("{}/{}.{}", c.bucket, c.index, c.partition),
            c.at.clone(),
            c.state.clone(),
            show::thousands(c.documents),
            show::thousands(c.entries),
            show::thousands(c.unindexed),
            c.snapshots.to_string(),
            show::thousands(c.undo),
            verdict,
        ]
    });
    let place = if checks.iter().any(|c| Path::new(&c.at).is_absolute()) { "DIRECTORY" } else { "NODE" };
    let header = ["SLICE", place, "STATE", "DOCUMENTS", "ENTRIES", "UNINDEXED", "KEPT", "UNDO", ""];
    show::table(&header, &[3, 4, 5, 6, 7], rows)
}

pub(crate) async fn slice(command: Slice) -> Result<()> {
    let Slice::Dump(args) = command;
    let (reply, dumps) = match &args.data_dir {
        Some(dir) => {
            let node = StoppedNode::open(dir)?;
            let rows = Rows { most: args.rows, from: args.from.clone().unwrap_or_default(), vb: args.vb };
            let slices: Vec<SliceDump> = node.slices().iter().map(|slice| node.dump(slice, &rows)).collect();
            (stopped(&slices)?, slices)
        }
        None => running(&args).await?,
    };
    print(args.client.json, &reply, || {
        let texts: Vec<String> = dumps.iter().map(dump).collect();
        if texts.is_empty() { "there are no slices".into() } else { texts.join("\n\n") }
    });
    match dumps.iter().find_map(|s| Some((s, s.error.as_ref()?))) {
        Some((slice, error)) => Err(anyhow!("slice {}: {}", slice.at, error.message)),
        None => Ok(()),
    }
}

/// The reply of a node that does not run.
fn stopped(slices: &[SliceDump]) -> Result<Reply> {
    #[derive(Serialize)]
    struct Stopped<'a> {
        ok: bool,
        slices: &'a [SliceDump],
    }
    let ok = slices.iter().all(|s| s.error.is_none());
    Ok(Reply(serde_json::to_vec(&Stopped { ok, slices })?))
}

async fn running(args: &Dump) -> Result<(Reply, Vec<SliceDump>)> {
    let session = Session::open(&args.client).await?;
    let (bucket, index) = (args.bucket.clone().unwrap_or_default(), args.index.clone().unwrap_or_default());
    let (node, partition) = if let Some(node) = &args.node {
        (node.clone(), args.partition)
    } else {
        let describe = Describe { bucket: bucket.clone(), index: index.clone() };
        let described: DescribeReply = session.typed(&subjects::query("describe"), &describe).await?.1;
        let partition = match (args.partition, described.hosts.len()) {
            (Some(partition), _) => partition,
            (None, 1) => 0,
            (None, many) => bail!("index {index} has {many} partitions: name one with --partition"),
        };
        let host = described.hosts.get(partition as usize).cloned();
        (host.ok_or_else(|| anyhow!("index {index} has no partition {partition}"))?, Some(partition))
    };
    let request = NodeDumpRequest { bucket, index, partition, rows: args.rows, from: args.from.clone(), vb: args.vb };
    let (reply, dump): (_, NodeDump) = session.typed(&subjects::node(&node, "dump"), &request).await?;
    Ok((reply, dump.slices))
}

fn dump(slice: &SliceDump) -> String {
    let mut text = format!(
        "slice {}/{}.{} at {}: {}\n",
        slice.bucket,
        slice.index,
        slice.partition,
        slice.at,
        if slice.state.is_empty() { "cannot be read" } else { &slice.state },
    );
    // Writing into a String cannot fail.
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:<12} {value}");
    };
    if let Some(error) = &slice.error {
        line("error", error.message.clone());
    }
    if slice.format_version == 0 {
        return text.trim_end().to_owned();
    }
    line("index", format!("{}, number {}, bucket declared {}", slice.index_id, slice.number, slice.declared));
    line("format", format!("version {}", slice.format_version));
    line(
        "holds",
        format!("{} entries, {} documents unindexed", show::thousands(slice.entries), show::thousands(slice.unindexed)),
    );
    let sizes = [
        ("live", slice.live_bytes),
        ("undo", slice.undo_bytes),
        ("file", slice.file_bytes),
        ("memory", slice.memory_bytes),
    ];
    line(
        "bytes",
        sizes.map(|(name, n)| format!("{name} {}", show::bytes(n))).join(", ") + &format!(", {} layers", slice.layers),
    );
    line("mark", mark(&slice.mark));
    if let Some(newer) = &slice.newer_mark {
        line("newer mark", mark(newer));
    }
    for run in &slice.runs {
        line(
            "run",
            format!(
                "{}: {} records, {}; {}",
                run.file,
                show::thousands(run.records),
                show::bytes(run.bytes),
                mark(&run.mark)
            ),
        );
    }
    let newest = slice.newer_mark.as_ref().unwrap_or(&slice.mark);
    let vbs = newest.vbs.iter().enumerate().map(|(number, vb)| {
        let time =
            if vb.server_time == 0 { String::new() } else { show::time(vb.server_time.unsigned_abs() / 1_000_000) };
        let numbers = [vb.seqno, vb.round, vb.covered, vb.content].map(|n| n.to_string());
        let mut row = vec![number.to_string(), vb.vbuuid.clone()];
        row.extend(numbers);
        row.extend([time, vb.hash.clone()]);
        row
    });
    let header = ["VB", "VBUUID", "SEQNO", "ROUND", "COVERED", "CONTENT", "TIME", "HASH"];
    let _ = write!(text, "\n{}", show::table(&header, &[0, 2, 3, 4, 5], vbs));
    if !slice.kept.is_empty() {
        let kept = slice.kept.iter().map(|k| {
            let numbers = [k.entries, k.unindexed].map(show::thousands);
            vec![
                k.mark.st.to_string(),
                show::time(k.at),
                numbers[0].clone(),
                numbers[1].clone(),
                show::bytes(k.undo_bytes),
            ]
        });
        let table = show::table(&["KEPT ST", "MADE", "ENTRIES", "UNINDEXED", "UNDO"], &[0, 2, 3, 4], kept);
        let _ = write!(text, "\n\n{table}");
    }
    if !slice.rows.is_empty() {
        let table =
            show::table(&["DOCUMENT", "VB", "SEQNO", "KEY", "INCLUDED"], &[1, 2], slice.rows.iter().flat_map(document));
        let _ = write!(text, "\n\n{table}");
        if let Some(last) = slice.rows.last().filter(|_| slice.more) {
            let _ = write!(text, "\nand more after {:?}", last.id);
        }
    }
    text
}

/// A line for each entry of a document, or one that says why there is none.
fn document(row: &DocumentDump) -> Vec<Vec<String>> {
    let head = vec![row.id.clone(), row.vb.to_string(), row.seqno.to_string()];
    if let Some(reason) = &row.reason {
        return vec![[head, vec![format!("not indexed: {reason}"), String::new()]].concat()];
    }
    let lines = row.entries.iter().map(|entry| {
        let key = entry.key.as_ref().map(|key| Value::from(key.clone()).to_string());
        let key = key.or_else(|| Some(format!("bytes {}", entry.bytes.as_ref()?))).unwrap_or_default();
        let include = entry.include.as_ref().map(|fields| fields.0.get().to_owned()).unwrap_or_default();
        [head.clone(), vec![key, include]].concat()
    });
    lines.collect()
}

fn mark(mark: &MarkDump) -> String {
    let building = if mark.building { ", building" } else { "" };
    format!(
        "ST {} of term {}{building}, topic position {}, {} documents read",
        mark.st, mark.term, mark.topic, mark.docs_done
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_an_error_and_said_in_its_line() {
        let good = SliceCheck { state: "active".into(), documents: 1_234, ..SliceCheck::default() };
        let building = SliceCheck { state: "building".into(), ..SliceCheck::default() };
        let error = Some(ApiError::new(ErrorCode::StorageFailed, "damaged slice: x"));
        let bad = SliceCheck { error, ..good.clone() };
        let text = verdicts(&[good.clone(), building.clone(), bad.clone()]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].contains("1,234") && lines[1].ends_with("ok"), "{text}");
        assert!(lines[2].ends_with("nothing to check yet") && lines[3].ends_with("damaged slice: x"), "{text}");
        assert!(report(true, &[good.clone(), building], None).is_ok());
        assert!(report(true, &[good.clone(), bad], None).is_err());
        assert!(report(true, &[good], Some("marks".into())).is_err());
    }

    #[test]
    fn a_dump_shows_documents_and_why_some_have_no_key() {
        let entries = r#"[{"key":[40,"Oslo"],"include":{"n":18446744073709551617,"m":1.0}},{"bytes":"01ff"}]"#;
        let text = format!(r#"{{"vb":1,"id":"a","seqno":7,"entries":{entries}}}"#);
        let row: DocumentDump = serde_json::from_str(&text).unwrap();
        let lines = document(&row);
        assert_eq!(lines[0], ["a", "1", "7", r#"[40,"Oslo"]"#, r#"{"n":18446744073709551617,"m":1.0}"#]);
        assert_eq!(lines[1][3], "bytes 01ff");
        let refused = DocumentDump { reason: Some("not_json".into()), ..DocumentDump::default() };
        assert_eq!(document(&refused)[0][3], "not indexed: not_json");
        let slice = SliceDump {
            rows: vec![row],
            more: true,
            format_version: 2,
            state: "active".into(),
            ..SliceDump::default()
        };
        let text = dump(&slice);
        assert!(
            text.contains("version 2") && text.contains("Oslo") && text.ends_with("and more after \"a\""),
            "{text}"
        );
    }
}
