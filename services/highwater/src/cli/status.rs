//! `highwater status`: nodes and what fails there, buckets with their rollbacks and sessions, indexes.

use super::{Reply, Session, show};
use crate::args::Status;
use anyhow::{Context, Result};
use highwater_schemas::{
    api::{
        BootstrapStep, BucketStatus, ClusterStatus, ClusterStatusRequest, IndexStats, ListReply, ListRequest,
        MemberStatus, SessionSlice,
    },
    state::RollbackPhase,
    subjects,
};
use serde::Deserialize;
use serde_json::value::RawValue;

pub(crate) async fn status(args: Status) -> Result<()> {
    let session = Session::open(&args.client).await?;
    let (replies, cluster) = cluster(&session).await?;
    // Without a catalog the rest is still worth seeing.
    let listed = indexes(&session).await;
    if session.json {
        let (last, others) = replies.split_last().context("no reply")?;
        others.iter().try_for_each(Reply::print)?;
        return Ok(both(last, listed.map(|(replies, _)| replies))?.print()?);
    }
    let listed = listed.map(|(_, indexes)| indexes);
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
    if let Some(troubles) = troubles(&cluster.members) {
        println!("{troubles}\n");
    }
    println!("{}\n", bootstrap(&cluster.bootstrap, args.bootstrap));
    let buckets = cluster.buckets.iter().flat_map(|b| {
        b.vbuckets.iter().map(|v| {
            vec![
                b.name.clone(),
                v.stream.clone(),
                show::thousands(v.seqno),
                show::thousands(v.covered),
                show::thousands(v.source_last.saturating_sub(v.seqno)),
                show::thousands(v.reads.passed_over),
                b.st.to_string(),
                b.durable.to_string(),
                v.projector.clone(),
            ]
        })
    });
    let header = ["BUCKET", "STREAM", "SEQNO", "COVERED", "LAG", "PASSED OVER", "ST", "DURABLE ST", "PROJECTOR"];
    println!("{}\n", show::table(&header, &[2, 3, 4, 5, 6, 7], buckets));
    for text in [rollbacks(&cluster.buckets), sessions(&cluster.buckets)].into_iter().flatten() {
        println!("{text}\n");
    }
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

/// The members and buckets of all pages in one status, and the replies.
async fn cluster(session: &Session) -> Result<(Vec<Reply>, ClusterStatus)> {
    let mut request = ClusterStatusRequest::default();
    let (reply, mut all): (_, ClusterStatus) = session.typed(subjects::CLUSTER_MEMBERS, &request).await?;
    let mut replies = vec![reply];
    while all.more_members || all.more_buckets {
        // A list that is complete already answers an empty page.
        request.members_after = all.members.last().map(|member| (member.kind, member.node.clone()));
        request.buckets_after = all.buckets.last().map(|bucket| bucket.name.clone());
        let (reply, page): (_, ClusterStatus) = session.typed(subjects::CLUSTER_MEMBERS, &request).await?;
        replies.push(reply);
        let stands = page.members.is_empty() && page.buckets.is_empty();
        all.members.extend(page.members);
        all.buckets.extend(page.buckets);
        (all.more_members, all.more_buckets) = (page.more_members && !stands, page.more_buckets && !stands);
    }
    Ok((replies, all))
}

/// The indexes of all pages, and the replies. Unlike [`Session::pages`] it prints no refusal: the status is shown without the list.
async fn indexes(session: &Session) -> Result<(Vec<Reply>, Vec<IndexStats>)> {
    let (mut replies, mut all, mut request) = (Vec::new(), Vec::new(), ListRequest::default());
    loop {
        let reply = session.ask_within(&subjects::query("list"), &request, session.timeout).await?;
        reply.check()?;
        let page: ListReply = reply.read()?;
        replies.push(reply);
        request.after = page.next_after();
        all.extend(page.indexes);
        if request.after.is_none() {
            return Ok((replies, all));
        }
    }
}

/// The members' reply with the list's indexes behind its fields, or why there is no list.
fn both(members: &Reply, listed: Result<Vec<Reply>>) -> Result<Reply> {
    #[derive(Deserialize)]
    struct List<'a> {
        #[serde(borrow)]
        indexes: &'a RawValue,
    }
    let end = members.0.iter().rposition(|b| *b == b'}').unwrap_or(0);
    let mut all = members.0[..end].to_vec();
    all.extend_from_slice(br#","indexes":"#);
    match listed {
        Ok(pages) => {
            let mut separator = b'[';
            for page in &pages {
                let indexes = serde_json::from_slice::<List<'_>>(&page.0)?.indexes.get();
                let indexes = indexes.strip_prefix('[').and_then(|indexes| indexes.strip_suffix(']'));
                let indexes = indexes.context("the indexes are no list")?;
                if !indexes.is_empty() || separator == b'[' {
                    all.push(std::mem::replace(&mut separator, b','));
                    all.extend_from_slice(indexes.as_bytes());
                }
            }
            all.push(b']');
        }
        Err(error) => {
            all.extend_from_slice(br#"null,"indexes_error":"#);
            serde_json::to_writer(&mut all, &error.to_string())?;
        }
    }
    all.push(b'}');
    Ok(Reply(all))
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

/// What fails, and where; None: nothing.
fn troubles(members: &[MemberStatus]) -> Option<String> {
    let rows = members.iter().flat_map(|m| {
        m.troubles.iter().map(|t| {
            let since = show::time(t.since);
            vec![m.node.clone(), t.what.clone(), since, show::thousands(t.times), t.error.clone()]
        })
    });
    let rows: Vec<_> = rows.collect();
    (!rows.is_empty()).then(|| show::table(&["NODE", "FAILS", "SINCE", "TIMES", "ERROR"], &[3], rows))
}

/// The rollbacks under way.
fn rollbacks(buckets: &[BucketStatus]) -> Option<String> {
    let rows = buckets.iter().filter_map(|b| {
        let rollback = b.rollback.as_ref()?;
        let phase = match rollback.phase {
            RollbackPhase::Started => "slices go back",
            RollbackPhase::Restart => "slices are compared with the source",
            RollbackPhase::Resumed => "resumed",
        };
        let since = show::time(rollback.began);
        Some(vec![b.name.clone(), phase.into(), since, rollback.streams.join(", "), rollback.reason.clone()])
    });
    let rows: Vec<_> = rows.collect();
    (!rows.is_empty()).then(|| show::table(&["BUCKET", "ROLLBACK", "SINCE", "STREAMS", "REASON"], &[], rows))
}

/// The open sessions.
fn sessions(buckets: &[BucketStatus]) -> Option<String> {
    let rows = buckets.iter().flat_map(|b| {
        let further = b.session_count.saturating_sub(b.sessions.len() as u64);
        let further = (further > 0).then(|| {
            let mut line = vec![b.name.clone(), format!("{} more", show::thousands(further))];
            line.resize(7, String::new());
            line
        });
        let shown = b.sessions.iter().map(|s| {
            let kind = s.kind.as_str();
            let mut slices: Vec<String> = s.slices.iter().map(slice).collect();
            let further = s.slice_count.saturating_sub(slices.len() as u64);
            if further > 0 {
                slices.push(format!("{} more", show::thousands(further)));
            }
            let documents = show::thousands(s.documents);
            vec![
                b.name.clone(),
                s.session.to_string(),
                kind.into(),
                s.node.clone(),
                show::thousands(s.read),
                documents,
                slices.join(", "),
            ]
        });
        shown.chain(further)
    });
    let rows: Vec<_> = rows.collect();
    let header = ["BUCKET", "SESSION", "KIND", "NODE", "READ", "OF", "SLICES"];
    (!rows.is_empty()).then(|| show::table(&header, &[1, 4, 5], rows))
}

/// A slice of a session, such as `by_age/0 (building, 40% merged)`.
fn slice(slice: &SessionSlice) -> String {
    let state = slice.state.map_or("not reported", |state| state.as_str());
    let merged = match (slice.built * 100).checked_div(slice.to_build) {
        Some(percent) => format!(", {percent}% merged"),
        None => String::new(),
    };
    format!("{}/{} ({state}{merged})", slice.index, slice.partition)
}
