//! ADR-32 discovery and statistics: `$SRV.PING`, `INFO` and `STATS`, of all services, of one name, of one instance.
//!
//! One task answers; it ends with its [`Discovery`].

use super::ServiceSpec;
use crate::{
    connect::Bus,
    faults::fault,
    frames::Interest,
    subscription,
    supervise::{self, Task},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// The queue group of endpoints that name none, as ADR-32 has it.
pub(super) const DEFAULT_GROUP: &str = "q";
/// Subjects of an endpoint whose errors are counted apart, and how long they may be; those of others are in the endpoint's count
/// alone.
const MOST_SUBJECTS: usize = 64;
const LONGEST_SUBJECT: usize = 128;

#[derive(Debug, Clone, Copy)]
enum Verb {
    Ping,
    Info,
    Stats,
}

const VERBS: [(Verb, &str); 3] = [(Verb::Ping, "PING"), (Verb::Info, "INFO"), (Verb::Stats, "STATS")];

/// What a service says of itself.
#[derive(Debug)]
struct About {
    id: String,
    name: String,
    description: String,
    group: String,
    endpoints: Vec<(String, String)>,
    started: String,
}

/// What became of requests, by endpoint.
#[derive(Debug, Default)]
pub(super) struct Statistics(Mutex<Counted>);

#[derive(Debug, Default)]
struct Counted {
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Default, Clone)]
struct Endpoint {
    requests: u64,
    errors: u64,
    last_error: String,
    errors_by_subject: BTreeMap<String, u64>,
    time: Duration,
}

impl Statistics {
    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request was answered.
    pub(super) fn served(&self, endpoint: usize, took: Duration) {
        if let Some(endpoint) = self.counted().endpoints.get_mut(endpoint) {
            endpoint.requests += 1;
            endpoint.time += took;
        }
    }

    /// Counts a request that was answered by an error, given as number and code.
    pub(super) fn failed(&self, endpoint: usize, subject: &str, error: String) {
        let mut counted = self.counted();
        let Some(endpoint) = counted.endpoints.get_mut(endpoint) else { return };
        endpoint.errors += 1;
        endpoint.last_error = error;
        let by_subject = &mut endpoint.errors_by_subject;
        if subject.len() <= LONGEST_SUBJECT && (by_subject.contains_key(subject) || by_subject.len() < MOST_SUBJECTS) {
            *by_subject.entry(subject.to_owned()).or_default() += 1;
        }
    }
}

/// Answers discovery until it is dropped.
pub(super) struct Discovery {
    statistics: Arc<Statistics>,
    task: Task,
}

impl Discovery {
    pub(super) async fn start(bus: &Bus, spec: &ServiceSpec) -> Self {
        let id = bus.unique_id();
        let started = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
        let about = About {
            id,
            name: spec.name.clone(),
            description: spec.description.clone(),
            group: spec.queue_group.clone().unwrap_or_else(|| DEFAULT_GROUP.into()),
            endpoints: spec.endpoints.clone(),
            started,
        };
        let counted = Counted { endpoints: vec![Endpoint::default(); spec.endpoints.len()] };
        let statistics = Arc::new(Statistics(Mutex::new(counted)));
        let mut interest = bus.link().interest();
        let mut verbs = HashMap::new();
        for (verb, word) in VERBS {
            for subject in [
                format!("$SRV.{word}"),
                format!("$SRV.{word}.{}", about.name),
                format!("$SRV.{word}.{}.{}", about.name, about.id),
            ] {
                verbs.insert(interest.add(&subject, None).await, verb);
            }
        }
        let answers = answer(bus.clone(), about, Arc::clone(&statistics), interest, verbs);
        let task = supervise::task(&bus.incidents(), "service discovery", answers);
        Self { statistics, task }
    }

    /// Waits until it answers no more. Cancel safe.
    pub(super) async fn ended(&mut self) {
        let _ = (&mut self.task).await;
    }

    pub(super) fn statistics(&self) -> Arc<Statistics> {
        Arc::clone(&self.statistics)
    }
}

async fn answer(bus: Bus, about: About, statistics: Arc<Statistics>, interest: Interest, verbs: HashMap<u64, Verb>) {
    let mut losses = 0;
    while let Some(message) = subscription::next(&interest, &mut losses).await {
        fault("discovery", &about.name);
        let (Some(verb), Some(reply)) = (verbs.get(&message.sid), subscription::reply(bus.api(), &message)) else {
            continue;
        };
        let answer = match verb {
            Verb::Ping => about.said("ping", json!({ "metadata": {} })),
            Verb::Info => about.info(),
            Verb::Stats => about.stats(&statistics.counted()),
        };
        // Who asked may be gone.
        let _ = bus.publish(&reply, answer.to_string().into_bytes()).await;
    }
}

impl About {
    fn said(&self, kind: &str, more: Value) -> Value {
        let mut said = json!({
            "type": format!("io.nats.micro.v1.{kind}_response"),
            "name": self.name, "id": self.id, "version": env!("CARGO_PKG_VERSION"),
        });
        if let (Some(said), Value::Object(more)) = (said.as_object_mut(), more) {
            said.extend(more);
        }
        said
    }

    fn info(&self) -> Value {
        let endpoint = |(name, subject): &(String, String)| json!({ "name": name, "subject": subject, "queue_group": self.group, "metadata": {} });
        let endpoints: Vec<Value> = self.endpoints.iter().map(endpoint).collect();
        self.said("info", json!({ "description": self.description, "metadata": {}, "endpoints": endpoints }))
    }

    fn stats(&self, counted: &Counted) -> Value {
        let of = |((name, subject), served): (&(String, String), &Endpoint)| {
            let average = served.time.as_nanos().checked_div(u128::from(served.requests)).unwrap_or(0);
            json!({
                "name": name, "subject": subject, "queue_group": self.group,
                "num_requests": served.requests, "num_errors": served.errors, "last_error": served.last_error,
                "processing_time": served.time.as_nanos() as u64, "average_processing_time": average as u64,
                "data": { "errors_by_subject": served.errors_by_subject },
            })
        };
        let endpoints: Vec<Value> = self.endpoints.iter().zip(&counted.endpoints).map(of).collect();
        self.said("stats", json!({ "started": self.started, "metadata": {}, "endpoints": endpoints }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_errors_are_counted_by_endpoint_and_a_bounded_number_of_subjects() {
        let about = About {
            id: "i".into(),
            name: "s".into(),
            description: "d".into(),
            group: "q".into(),
            endpoints: vec![("scan".into(), "hw.scan".into()), ("other".into(), "hw.*".into())],
            started: "now".into(),
        };
        let statistics = Statistics(Mutex::new(Counted { endpoints: vec![Endpoint::default(); 2] }));
        statistics.served(0, Duration::from_nanos(30));
        statistics.served(0, Duration::from_nanos(10));
        for n in 0..MOST_SUBJECTS + 5 {
            statistics.failed(1, &format!("hw.{n}"), "400:bad_name".into());
        }
        statistics.failed(0, &"x".repeat(LONGEST_SUBJECT + 1), "400:bad_name".into());
        let stats = about.stats(&statistics.counted());
        let endpoints = &stats["endpoints"];
        assert_eq!((&endpoints[0]["num_requests"], &endpoints[0]["average_processing_time"]), (&json!(2), &json!(20)));
        assert_eq!(endpoints[1]["num_errors"], json!(MOST_SUBJECTS + 5));
        assert_eq!((&endpoints[0]["num_errors"], &endpoints[0]["data"]["errors_by_subject"]), (&json!(1), &json!({})));
        assert_eq!(endpoints[1]["last_error"], "400:bad_name");
        assert_eq!(endpoints[1]["data"]["errors_by_subject"].as_object().unwrap().len(), MOST_SUBJECTS);
        assert_eq!(about.info()["endpoints"][1]["subject"], "hw.*");
        assert_eq!(about.said("ping", json!({}))["type"], "io.nats.micro.v1.ping_response");
    }
}
