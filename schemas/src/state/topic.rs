//! Topics: named streams of key versions to subscribers, each with a predicate (design section 12).
//!
//! Two topics are built in. *mutation* has the indexers of the bucket as subscribers, each with the partitions that it hosts;
//! every open session is a *catchup* topic with one subscriber. Both follow from the indexes and sessions in the log, so no
//! crash can leave them in disagreement with these. What people create and subscribe to stands in the log by itself. Who gets
//! what under a topology version is computed from all of them alike: [`Bucket::routes`].

use super::bucket::Bucket;
use crate::{
    error::{ApiError, ErrorCode},
    expr::{self, CompiledCondition, Path, Scratch, Truth},
    lane::Routes,
    language::Language,
    subjects,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The topic of live key versions.
pub const MUTATION: &str = "mutation";
/// Topics of a bucket, and subscriptions of a topic, at most.
pub const MOST_TOPICS: usize = 64;
pub const MOST_SUBSCRIPTIONS: usize = 256;
/// Bytes of a built-in predicate as it is shown.
const MOST_SHOWN: usize = 4_096;
/// What a predicate may speak of.
const FIELDS: [&str; 4] = ["bucket", "vbucket", "index", "partition"];

/// What people made of a topic.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topic {
    /// By subscriber.
    pub subscriptions: BTreeMap<String, Subscription>,
}

/// What a subscriber wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription {
    /// Empty: everything.
    pub predicate: String,
}

/// A topic with one subscriber, as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct SubscriptionView {
    pub topic: String,
    pub subscriber: String,
    /// Where it is published.
    pub subject: String,
    pub predicate: String,
    /// Follows from indexes and sessions; cannot be changed by itself.
    pub builtin: bool,
}

/// One of these holds, as it is shown: of very many the first, and how many more there are.
fn any_of(conditions: impl Iterator<Item = String>) -> String {
    let (mut text, mut further) = (String::new(), 0);
    for condition in conditions {
        if text.is_empty() {
            text = condition;
        } else if further == 0 && text.len() + condition.len() < MOST_SHOWN {
            text.push_str(" OR ");
            text.push_str(&condition);
        } else {
            further += 1;
        }
    }
    if further > 0 {
        text = format!("{text} OR … ({further} more)");
    }
    text
}

/// The stream and the subject where a subscriber of a topic reads.
pub fn place(bucket: &str, topic: &str, subscriber: &str) -> (String, String) {
    if topic == MUTATION {
        (subjects::mutation_stream(bucket), subjects::mutation(bucket, subscriber))
    } else {
        (subjects::topic_stream(bucket, topic), subjects::topic(bucket, topic, subscriber))
    }
}

/// A predicate that was read.
#[derive(Debug, Clone)]
pub struct Predicate(Option<CompiledCondition>);

impl Predicate {
    /// Reads a predicate: a condition over `bucket`, `vbucket` (the stream's name), `index` and `partition`; empty: everything.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        if text.trim().is_empty() {
            return Ok(Self(None));
        }
        // Its numbers are small integers, which every version reads alike; and one that was taken once must go on.
        let language = Language::V0;
        let expression = expr::parse_condition(text, language).map_err(|e| e.in_field("predicate"))?;
        let mut unknown = None;
        let condition = CompiledCondition::new(&expression, language, &mut |path: &Path| match path.0.as_slice() {
            [name] if FIELDS.contains(&name.as_str()) => FIELDS.iter().position(|f| f == name).unwrap_or_default(),
            _ => {
                unknown = Some(path.to_string());
                0
            }
        });
        match unknown {
            None => Ok(Self(Some(condition))),
            Some(path) => Err(ApiError::new(
                ErrorCode::BadExpression,
                format!("predicate: there is no {path}: a predicate speaks of {}", FIELDS.join(", ")),
            )),
        }
    }

    /// Whether a partition of an index, as far as it comes from a vbucket, is wanted.
    pub fn wants(&self, bucket: &str, stream: &str, index: &str, partition: u32) -> bool {
        let Some(condition) = &self.0 else { return true };
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let values = [quoted(bucket), quoted(stream), quoted(index), partition.to_string()];
        condition.eval(&|slot| values.get(slot).map(String::as_str), &mut Scratch::default()) == Truth::True
    }
}

impl Bucket {
    /// Who gets which entries of a vbucket under the present topology. Subscribers of `mutation` go by their names, those of
    /// other topics by `<topic>/<subscriber>`.
    pub fn routes(&self, vb: usize) -> Routes {
        let mut routes = Routes { topology: self.topology, ..Routes::default() };
        for (number, index) in self.live_indexes() {
            let n = index.placed.hosts.len() as u32;
            for (partition, node) in index.placed.hosts.iter().enumerate() {
                routes.nodes.entry(node.clone()).or_default().push((number, partition as u32, n));
            }
        }
        if self.topics.is_empty() {
            return routes;
        }
        let streams = self.definition.vbuckets();
        let stream = streams.get(vb).map_or("", |s| s.name.as_str());
        for (topic, subscriber, subscription) in self.subscriptions() {
            // It was read before it came into the log.
            let Ok(predicate) = Predicate::parse(&subscription.predicate) else { continue };
            let to = if topic == MUTATION { subscriber.to_owned() } else { format!("{topic}/{subscriber}") };
            // Who is subscribed gets the chain even when nothing in it is wanted.
            let wanted = routes.nodes.entry(to).or_default();
            for (number, index) in self.live_indexes() {
                let n = index.placed.hosts.len() as u32;
                let name = &index.placed.definition.name;
                let partitions = (0..n).filter(|p| predicate.wants(&self.definition.name, stream, name, *p));
                wanted.extend(partitions.map(|partition| (number, partition, n)));
            }
        }
        routes
    }

    fn subscriptions(&self) -> impl Iterator<Item = (&str, &str, &Subscription)> {
        self.topics.iter().flat_map(|(name, topic)| {
            topic.subscriptions.iter().map(move |(subscriber, s)| (name.as_str(), subscriber.as_str(), s))
        })
    }

    /// The nodes that host partitions.
    pub fn hosts(&self) -> std::collections::BTreeSet<&str> {
        self.live_indexes().flat_map(|(_, index)| index.placed.hosts.iter().map(String::as_str)).collect()
    }

    /// Every subscription, those of the built-in topics too.
    pub fn all_subscriptions(&self) -> Vec<SubscriptionView> {
        let bucket = &self.definition.name;
        let mut all = Vec::new();
        for host in self.hosts() {
            let hosted = self.live_indexes().filter_map(|(_, index)| {
                let partitions: Vec<String> = (0..)
                    .zip(&index.placed.hosts)
                    .filter(|(_, h)| *h == host)
                    .map(|(p, _): (u32, _)| p.to_string())
                    .collect();
                let name = &index.placed.definition.name;
                (!partitions.is_empty())
                    .then(|| format!("(index = '{name}' AND partition IN ({}))", partitions.join(", ")))
            });
            all.push(SubscriptionView {
                topic: MUTATION.into(),
                subscriber: host.into(),
                subject: subjects::mutation(bucket, host),
                predicate: any_of(hosted),
                builtin: true,
            });
        }
        for session in self.sessions.values() {
            let slices = session.slices.iter().map(|s| {
                let name = self.indexes.get(&s.index).map_or("", |i| i.placed.definition.name.as_str());
                format!("(index = '{name}' AND partition = {})", s.partition)
            });
            all.push(SubscriptionView {
                topic: format!("catchup-{}", session.id),
                subscriber: session.node.clone(),
                subject: subjects::catchup(bucket, session.id),
                predicate: any_of(slices),
                builtin: true,
            });
        }
        for (topic, subscriber, subscription) in self.subscriptions() {
            all.push(SubscriptionView {
                topic: topic.into(),
                subscriber: subscriber.into(),
                subject: place(bucket, topic, subscriber).1,
                predicate: subscription.predicate.clone(),
                builtin: false,
            });
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_predicate_speaks_of_what_is_routed() {
        let wants = |text: &str, index: &str, partition| {
            Predicate::parse(text).unwrap().wants("orders", "ORDERS_1", index, partition)
        };
        for (text, expected) in [
            ("", [true, true, true]),
            ("index = 'by_age'", [true, true, false]),
            ("index IN ('by_age', 'by_city') AND partition = 0", [true, false, true]),
            ("vbucket = 'ORDERS_0'", [false, false, false]),
            ("NOT (partition > 0) AND bucket = 'orders'", [true, false, true]),
        ] {
            assert_eq!(
                [("by_age", 0), ("by_age", 1), ("by_city", 0)].map(|(i, p)| wants(text, i, p)),
                expected,
                "{text}"
            );
        }
        for bad in ["indx = 'a'", "index = ", "index.name = 'a'"] {
            assert_eq!(Predicate::parse(bad).unwrap_err().code, ErrorCode::BadExpression, "{bad}");
        }
    }
}
