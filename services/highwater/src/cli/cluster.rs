//! `highwater topic` and `highwater state`: what stands behind the indexes.

use super::{Session, print, show};
use crate::args::{State, Topic};
use anyhow::Result;
use highwater_schemas::{
    api::{
        Recover, StateGet, StateHistory, StateHistoryReply, StateReply, Subscribe, SubscribeReply, TopicList,
        TopicListRequest, TopicRequest, Unsubscribe,
    },
    subjects,
};
use serde_json::Value;

pub(crate) async fn topic(command: Topic) -> Result<()> {
    match command {
        Topic::Create { bucket, topic, client } => {
            let session = Session::open(&client).await?;
            let text =
                format!("topic {topic} on {bucket} is created; `highwater topic subscribe {bucket} {topic} NAME`");
            let reply = session.ask(&subjects::admin("topic.create"), &TopicRequest { bucket, topic }).await?;
            print(session.json, &reply, || text);
        }
        Topic::Delete { bucket, topic, client } => {
            let session = Session::open(&client).await?;
            let text = format!("topic {topic} on {bucket} is deleted");
            let reply = session.ask(&subjects::admin("topic.delete"), &TopicRequest { bucket, topic }).await?;
            print(session.json, &reply, || text);
        }
        Topic::Subscribe { bucket, topic, subscriber, predicate, client } => {
            let session = Session::open(&client).await?;
            let request = Subscribe { bucket, topic, subscriber, predicate };
            let (reply, at): (_, SubscribeReply) = session.typed(&subjects::admin("topic.subscribe"), &request).await?;
            print(session.json, &reply, || {
                format!("{} reads {} of stream {}", request.subscriber, at.subject, at.stream)
            });
        }
        Topic::Unsubscribe { bucket, topic, subscriber, client } => {
            let session = Session::open(&client).await?;
            let text = format!("{subscriber} is no longer subscribed to {topic} on {bucket}");
            let request = Unsubscribe { bucket, topic, subscriber };
            let reply = session.ask(&subjects::admin("topic.unsubscribe"), &request).await?;
            print(session.json, &reply, || text);
        }
        Topic::List { bucket, client } => {
            let session = Session::open(&client).await?;
            let next = |request: &mut TopicListRequest, page: &TopicList| {
                request.after = page.next_after();
                request.after.is_some()
            };
            let request = TopicListRequest { bucket, after: None };
            let (reply, pages) = session.pages(&subjects::admin("topic.list"), request, next).await?;
            print(session.json, &reply, || topics(&pages));
        }
    }
    Ok(())
}

fn topics(pages: &[TopicList]) -> String {
    let rows = pages.iter().flat_map(|page| &page.topics).flat_map(|topic| {
        let line = |subscriber: &str, predicate: &str| {
            vec![topic.bucket.clone(), topic.topic.clone(), topic.kind.clone(), subscriber.into(), predicate.into()]
        };
        let mut lines: Vec<_> = topic.subscriptions.iter().map(|s| line(&s.subscriber, &s.predicate)).collect();
        let further = topic.subscription_count.saturating_sub(lines.len() as u64);
        if further > 0 {
            lines.push(line(&format!("({} more)", show::thousands(further)), ""));
        }
        if lines.is_empty() {
            lines.push(line("", ""));
        }
        lines
    });
    show::table(&["BUCKET", "TOPIC", "KIND", "SUBSCRIBER", "PREDICATE"], &[], rows)
}

pub(crate) async fn state(command: State) -> Result<()> {
    match command {
        State::Show { bucket, client } => {
            let session = Session::open(&client).await?;
            let (reply, shown): (_, StateReply) =
                session.typed(&subjects::admin("state.get"), &StateGet { bucket }).await?;
            print(session.json, &reply, || serde_json::to_string_pretty(&shown.state).unwrap_or_default());
        }
        State::History { limit, client } => {
            let session = Session::open(&client).await?;
            let request = StateHistory { limit: Some(limit) };
            let (reply, history): (_, StateHistoryReply) =
                session.typed(&subjects::admin("state.history"), &request).await?;
            print(session.json, &reply, || {
                let rows = history.records.iter().map(|record| {
                    let text = |name: &str| record[name].to_string();
                    let what = record["change"]["what"].as_str().unwrap_or_default().to_owned();
                    vec![text("version"), text("term"), text("incarnation"), what, rest(&record["change"])]
                });
                show::table(&["VERSION", "TERM", "LIFE", "CHANGE", ""], &[0, 1, 2], rows)
            });
        }
        State::Recover { force, client } => {
            let session = Session::open(&client).await?;
            let reply = session.ask(subjects::CLUSTER_RECOVER, &Recover { force }).await?;
            print(session.json, &reply, || {
                "the next index manager that is nominated goes on with what it finds; see `highwater status`".into()
            });
        }
    }
    Ok(())
}

/// The fields of a change in one line, as far as they are short.
fn rest(change: &Value) -> String {
    const MOST: usize = 100;
    let fields = change.as_object().into_iter().flatten().filter(|(name, _)| *name != "what");
    let shown = fields.map(|(name, value)| match value {
        Value::Object(_) | Value::Array(_) if value.to_string().len() > MOST => format!("{name}=…"),
        Value::String(text) => format!("{name}={text}"),
        value => format!("{name}={value}"),
    });
    shown.collect::<Vec<_>>().join(" ")
}
