//! Generated documents: JSON Schemas of the public requests and replies, and the page of error codes.

use crate::workspace::root;
use anyhow::{Context, Result, bail};
use highwater_schemas::{ApiError, ErrorCode, api};
use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::json;
use std::{collections::BTreeMap, fmt::Write, fs, path::PathBuf};

const DIRECTORY: &str = "schemas/json";
const ERRORS: &str = "docs/errors.md";

/// Writes what has changed, and removes schemas whose type is gone.
pub fn write() -> Result<()> {
    let wanted = generate()?;
    for (path, text) in &wanted {
        let file = root().join(path);
        if fs::read_to_string(&file).is_ok_and(|have| have == *text) {
            continue;
        }
        if let Some(directory) = file.parent() {
            fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
        }
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        println!("wrote {path}");
    }
    for path in strays(&wanted)? {
        fs::remove_file(root().join(&path)).with_context(|| format!("cannot remove {path}"))?;
        println!("removed {path}");
    }
    Ok(())
}

/// Fails when a generated document is not what the types say.
pub fn check() -> Result<()> {
    let wanted = generate()?;
    let mut stale: Vec<String> = strays(&wanted)?;
    for (path, text) in &wanted {
        if !fs::read_to_string(root().join(path)).is_ok_and(|have| have == *text) {
            stale.push(path.clone());
        }
    }
    if !stale.is_empty() {
        bail!("not up to date (run cargo xtask schemas): {}", stale.join(", "));
    }
    Ok(())
}

/// Path and text of every generated document.
fn generate() -> Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    for (name, what, schema) in types() {
        let mut schema = schema;
        schema.insert("title".into(), what.into());
        if what.starts_with("reply of") {
            say_ok(&mut schema);
        }
        let text = serde_json::to_string_pretty(&schema).context("a schema does not serialize")?;
        files.insert(format!("{DIRECTORY}/{name}.json"), text + "\n");
    }
    files.insert(ERRORS.into(), errors()?);
    Ok(files)
}

/// File name, what the message is, and its schema.
fn types() -> Vec<(&'static str, &'static str, schemars::Schema)> {
    vec![
        ("error", "error of a refused or failed request", of::<ApiError>()),
        ("admin.bucket.add.request", "hw.admin.bucket.add", of::<api::BucketAdd>()),
        ("admin.bucket.remove.request", "hw.admin.bucket.remove", of::<api::BucketRemove>()),
        ("admin.bucket.history.request", "hw.admin.bucket.history", of::<api::BucketHistory>()),
        ("admin.bucket.history.reply", "reply of hw.admin.bucket.history", of::<api::BucketHistoryReply>()),
        ("admin.bucket.reconcile.request", "hw.admin.bucket.reconcile", of::<api::BucketReconcile>()),
        ("admin.bucket.reconcile.reply", "reply of hw.admin.bucket.reconcile", of::<api::ReconcileReply>()),
        ("admin.bucket.list.request", "hw.admin.bucket.list", of::<api::BucketListRequest>()),
        ("admin.bucket.list.reply", "reply of hw.admin.bucket.list", of::<api::BucketList>()),
        ("admin.index.create.request", "hw.admin.index.create", of::<highwater_schemas::definition::IndexDefinition>()),
        ("admin.index.build.request", "hw.admin.index.build", of::<api::IndexBuild>()),
        ("admin.index.drop.request", "hw.admin.index.drop", of::<api::IndexDrop>()),
        ("admin.index.reply", "reply of hw.admin.index.create and .drop", of::<api::IndexReply>()),
        ("admin.index.build.reply", "reply of hw.admin.index.build", of::<api::IndexesReply>()),
        ("query.scan.request", "hw.query.scan and hw.query.count", of::<api::ScanQuery>()),
        ("query.scan.reply", "reply of hw.query.scan", of::<api::ScanResult>()),
        ("query.count.reply", "reply of hw.query.count", of::<api::CountReply>()),
        ("query.list.request", "hw.query.list", of::<api::ListRequest>()),
        ("query.list.reply", "reply of hw.query.list", of::<api::ListReply>()),
        ("query.describe.request", "hw.query.describe", of::<api::Describe>()),
        ("query.describe.reply", "reply of hw.query.describe", of::<api::DescribeReply>()),
        ("cluster.members.request", "hw.cluster.members", of::<api::ClusterStatusRequest>()),
        ("cluster.members.reply", "reply of hw.cluster.members", of::<api::ClusterStatus>()),
        ("cluster.recover.request", "hw.cluster.recover", of::<api::Recover>()),
        ("admin.topic.request", "hw.admin.topic.create and .delete", of::<api::TopicRequest>()),
        ("admin.topic.subscribe.request", "hw.admin.topic.subscribe", of::<api::Subscribe>()),
        ("admin.topic.subscribe.reply", "reply of hw.admin.topic.subscribe", of::<api::SubscribeReply>()),
        ("admin.topic.unsubscribe.request", "hw.admin.topic.unsubscribe", of::<api::Unsubscribe>()),
        ("admin.topic.list.request", "hw.admin.topic.list", of::<api::TopicListRequest>()),
        ("admin.topic.list.reply", "reply of hw.admin.topic.list", of::<api::TopicList>()),
        ("admin.state.get.request", "hw.admin.state.get", of::<api::StateGet>()),
        ("admin.state.get.reply", "reply of hw.admin.state.get", of::<api::StateReply>()),
        ("admin.state.history.request", "hw.admin.state.history", of::<api::StateHistory>()),
        ("admin.state.history.reply", "reply of hw.admin.state.history", of::<api::StateHistoryReply>()),
        ("cluster.master.reply", "reply of hw.cluster.master", of::<api::MasterReply>()),
        ("cluster.nodes.request", "hw.cluster.replicas and .indexers", of::<api::MembersRequest>()),
        ("cluster.nodes.reply", "reply of hw.cluster.replicas and .indexers", of::<api::MembersReply>()),
        ("node.verify.request", "hw.node.<id>.verify", of::<api::NodeVerifyRequest>()),
        ("node.verify.reply", "reply of hw.node.<id>.verify", of::<api::NodeVerify>()),
        ("node.dump.request", "hw.node.<id>.dump", of::<api::NodeDumpRequest>()),
        ("node.dump.reply", "reply of hw.node.<id>.dump", of::<api::NodeDump>()),
        ("node.status.reply", "reply of hw.node.<id>.status", of::<api::NodeStatus>()),
    ]
}

fn of<T: JsonSchema>() -> schemars::Schema {
    SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>()
}

/// Every reply carries `"ok":true`, which the types leave to the one place that writes replies.
fn say_ok(schema: &mut schemars::Schema) {
    let object = schema.ensure_object();
    let required = object.entry("required").or_insert_with(|| json!([]));
    if let Some(names) = required.as_array_mut().filter(|names| !names.contains(&json!("ok"))) {
        names.insert(0, json!("ok"));
    }
    let properties = object.entry("properties").or_insert_with(|| json!({}));
    properties["ok"] = json!({"const": true});
}

/// Files in the schema directory that no type stands behind any more.
fn strays(wanted: &BTreeMap<String, String>) -> Result<Vec<String>> {
    let directory: PathBuf = root().join(DIRECTORY);
    let Ok(entries) = fs::read_dir(&directory) else { return Ok(Vec::new()) };
    let mut strays = Vec::new();
    for entry in entries {
        let path = format!("{DIRECTORY}/{}", entry?.file_name().to_string_lossy());
        if !wanted.contains_key(&path) {
            strays.push(path);
        }
    }
    Ok(strays)
}

fn errors() -> Result<String> {
    let mut page = String::from(
        "# Error codes\n\n<!-- Generated from schemas/src/error.rs by `cargo xtask schemas`. -->\n\n\
         A request that is refused or fails is answered with\n\
         `{\"ok\":false,\"error\":{\"code\":\"…\",\"message\":\"…\",\"retry\":false}}`, and the headers `Nats-Service-Error` (the code)\n\
         and `Nats-Service-Error-Code` (the number, as in HTTP). Where *retry* says yes, the same request may succeed later.\n\n\
         | code | number | retry | meaning |\n|---|---|---|---|\n",
    );
    for code in ErrorCode::ALL {
        let retry = if code.retry() { "yes" } else { "no" };
        let meaning = code.meaning().replace('|', "\\|");
        writeln!(page, "| `{code}` | {} | {retry} | {meaning} |", code.number()).context("cannot write the page")?;
    }
    Ok(page)
}
