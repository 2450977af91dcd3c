//! Topics and subscriptions: requests of administrators.

use super::{Action, Core, Token, ddl::json};
use highwater_schemas::{
    ApiError, ErrorCode,
    api::{
        Empty, NodeKind, Subscribe, SubscribeReply, TopicList, TopicListRequest, TopicRequest, TopicSummary,
        Unsubscribe, page,
    },
    names,
    state::{Bucket, Change, MOST_SUBSCRIPTIONS, MOST_TOPICS, MUTATION, Predicate, place},
    subjects,
};
use serde_json::Value;

impl Core {
    /// Checks a new topic; its stream must be made before it is entered.
    pub(super) fn check_topic(&self, request: &TopicRequest) -> Result<(), ApiError> {
        let bucket = self.bucket(&request.bucket)?;
        names::check("topic", &request.topic)?;
        let builtin = request.topic == MUTATION || request.topic.starts_with("catchup");
        if builtin || bucket.topics.contains_key(&request.topic) {
            let message = format!("topic {} exists already on bucket {}", request.topic, request.bucket);
            return Err(ApiError::new(ErrorCode::TopicExists, message));
        }
        if bucket.topics.len() >= MOST_TOPICS {
            let message = format!("a bucket has at most {MOST_TOPICS} topics");
            return Err(ApiError::new(ErrorCode::BadDefinition, message));
        }
        Ok(())
    }

    pub(super) fn topic_delete(
        &mut self,
        token: Token,
        request: TopicRequest,
        out: &mut Vec<Action>,
    ) -> Result<(), ApiError> {
        let TopicRequest { bucket, topic } = request;
        if topic == MUTATION || !self.bucket(&bucket)?.topics.contains_key(&topic) {
            return Err(no_topic(&bucket, &topic));
        }
        let stream = subjects::topic_stream(&bucket, &topic);
        out.push(Action::Append(Change::TopicDeleted { bucket, topic }));
        self.delete_streams(Some(token), vec![stream], out);
        Ok(())
    }

    pub(super) fn subscribe(&self, request: &Subscribe, out: &mut Vec<Action>) -> Result<Value, ApiError> {
        let bucket = self.bucket(&request.bucket)?;
        names::check("subscriber", &request.subscriber)?;
        Predicate::parse(&request.predicate)?;
        let known = bucket.topics.get(&request.topic);
        if known.is_none() && request.topic != MUTATION {
            return Err(no_topic(&request.bucket, &request.topic));
        }
        let indexer = (NodeKind::Indexer, request.subscriber.clone());
        if request.topic == MUTATION && self.context.nodes.contains_key(&indexer) {
            let message = format!("{} is an indexer: it is subscribed to what it hosts", request.subscriber);
            return Err(ApiError::new(ErrorCode::BadDefinition, message));
        }
        if known.is_some_and(|t| t.subscriptions.len() >= MOST_SUBSCRIPTIONS) {
            let message = format!("a topic has at most {MOST_SUBSCRIPTIONS} subscriptions");
            return Err(ApiError::new(ErrorCode::BadDefinition, message));
        }
        let (stream, subject) = place(&request.bucket, &request.topic, &request.subscriber);
        let same = known
            .and_then(|t| t.subscriptions.get(&request.subscriber))
            .is_some_and(|s| s.predicate == request.predicate);
        if !same {
            let Subscribe { bucket, topic, subscriber, predicate } = request.clone();
            out.push(Action::Append(Change::Subscribed { bucket, topic, subscriber, predicate }));
        }
        Ok(json(&SubscribeReply { stream, subject }))
    }

    pub(super) fn unsubscribe(&self, request: &Unsubscribe, out: &mut Vec<Action>) -> Result<Value, ApiError> {
        let bucket = self.bucket(&request.bucket)?;
        let topic = bucket.topics.get(&request.topic);
        if !topic.is_some_and(|t| t.subscriptions.contains_key(&request.subscriber)) {
            let message = format!("{} is not subscribed to topic {}", request.subscriber, request.topic);
            return Err(ApiError::new(ErrorCode::TopicNotFound, message));
        }
        let Unsubscribe { bucket, topic, subscriber } = request.clone();
        out.push(Action::Append(Change::Unsubscribed { bucket, topic, subscriber }));
        Ok(json(&Empty {}))
    }

    pub(super) fn topic_list(&self, request: &TopicListRequest) -> Result<Value, ApiError> {
        if let Some(name) = &request.bucket {
            self.bucket(name)?;
        }
        let wanted = |name: &String| request.bucket.as_ref().is_none_or(|b| b == name);
        let passed = |name: &String| request.after.as_ref().is_some_and(|(bucket, _)| name < bucket);
        let buckets = self.context.buckets.iter().filter(|(name, _)| wanted(name) && !passed(name));
        let all = buckets.flat_map(|(name, bucket)| summaries(name, bucket));
        let is_further = |topic: &TopicSummary| {
            request.after.as_ref().is_none_or(|(bucket, name)| (&topic.bucket, &topic.topic) > (bucket, name))
        };
        let (topics, more) = page(all.filter(is_further));
        Ok(json(&TopicList { topics, more }))
    }
}

fn no_topic(bucket: &str, topic: &str) -> ApiError {
    ApiError::new(ErrorCode::TopicNotFound, format!("there is no topic {topic} to change on bucket {bucket}"))
}

/// The topics of a bucket by name, each with as many subscriptions as fit.
fn summaries(name: &str, bucket: &Bucket) -> Vec<TopicSummary> {
    let summary = |topic: &str, kind: &str, stream: String| TopicSummary {
        bucket: name.into(),
        topic: topic.into(),
        kind: kind.into(),
        stream,
        subscriptions: Vec::new(),
        subscription_count: 0,
    };
    let mut all = vec![summary(MUTATION, "mutation", subjects::mutation_stream(name))];
    let sessions = bucket.sessions.keys();
    all.extend(sessions.map(|id| summary(&format!("catchup-{id}"), "catchup", subjects::catchup_stream(name))));
    let custom = bucket.topics.keys().filter(|t| *t != MUTATION);
    all.extend(custom.map(|topic| summary(topic, "custom", subjects::topic_stream(name, topic))));
    for subscription in bucket.all_subscriptions() {
        if let Some(topic) = all.iter_mut().find(|t| t.topic == subscription.topic) {
            topic.subscriptions.push(subscription);
        }
    }
    for topic in &mut all {
        topic.subscription_count = topic.subscriptions.len() as u64;
        topic.subscriptions = page(std::mem::take(&mut topic.subscriptions)).0;
    }
    all.sort_by(|a, b| a.topic.cmp(&b.topic));
    all
}
