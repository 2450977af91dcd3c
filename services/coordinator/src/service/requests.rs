//! What is asked of an index manager: by the cluster manager, by administrators, and by others that pass on.

use super::{MOST_WAITING, Shell, random};
use crate::{
    CoordinatorError,
    admin::{self, Admin},
    core,
    manager::Event,
    source,
};
use highwater_bus::{
    Bus, BusError, Endpoints, ServiceRequest, ServiceSpec, fault,
    supervise::{self, Unfinished},
};
use highwater_schemas::{
    ApiError, ErrorCode,
    api::{self, Assign, Empty, ManagerStatus, ManagerStatusRequest, StateGet, StateReply},
    subjects,
};
use std::{sync::Arc, time::Duration};

/// How long a host may take to say whether it has room.
const ASSIGN_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) async fn admin_service(bus: &Bus) -> Result<Endpoints, BusError> {
    bus.service(&ServiceSpec {
        name: subjects::ADMIN_SERVICE.into(),
        description: "Highwater administration".into(),
        endpoints: admin::NOUN_VERBS.iter().map(|v| (v.replace('.', "-"), subjects::admin(v))).collect(),
        queue_group: Some(subjects::ADMIN_SERVICE.into()),
    })
    .await
}

pub(super) async fn node_service(bus: &Bus, node: &str) -> Result<Endpoints, BusError> {
    let endpoint = |verb: &str| (verb.replace(".>", ""), subjects::node(node, verb));
    bus.service(&ServiceSpec {
        name: "highwater-coordinator".into(),
        description: "Highwater index manager".into(),
        endpoints: ["bootstrap", "status", "ping", "admin.>"].map(endpoint).into(),
        queue_group: None,
    })
    .await
}

impl Shell {
    /// `hw.node.<id>.<verb>`.
    pub(super) async fn node_request(&mut self, request: ServiceRequest) -> Result<(), CoordinatorError> {
        match request.subject.strip_prefix(&subjects::node(&self.config.node, "")) {
            Some("bootstrap") => match api::parse(&request.payload) {
                Ok(bootstrap) => {
                    self.next_token += 1;
                    let token = self.next_token;
                    self.nominations.insert(token, request);
                    self.handle(Event::Nominated { token, bootstrap }).await?;
                }
                Err(error) => request.respond(Err(error)).await,
            },
            Some("status") => {
                let status =
                    self.caught("status", || api::parse(&request.payload).map(|asked| api::ok(&self.status(&asked))));
                request.respond(status).await;
            }
            Some("ping") => request.respond(Ok(api::ok(&Empty {}))).await,
            _ => self.admin_request(request).await?,
        }
        Ok(())
    }

    /// Runs the work that makes a reply; a panic of it is answered with the error `internal`.
    fn caught<T>(&self, place: &str, work: impl FnOnce() -> Result<T, ApiError>) -> Result<T, ApiError> {
        let made = supervise::caught_now(&self.incidents, "a request to an index manager", || {
            fault("manager", place);
            work()
        });
        made.answer()
    }

    fn status(&self, asked: &ManagerStatusRequest) -> ManagerStatus {
        let core = self.manager.core();
        let (buckets, more_buckets) = core.map(|core| core.buckets(asked.buckets_after.as_deref())).unwrap_or_default();
        ManagerStatus {
            node: self.config.node.clone(),
            report: self.manager.report(),
            bootstrap: self.manager.bootstrap(self.now().ms),
            buckets,
            more_buckets,
        }
    }

    /// `hw.admin.<noun>.<verb>`, or `hw.node.<id>.admin.<noun>.<verb>` from whoever passed it on.
    pub(super) async fn admin_request(&mut self, request: ServiceRequest) -> Result<(), CoordinatorError> {
        let passed_on = request.subject.strip_prefix(&subjects::node(&self.config.node, "admin."));
        let noun_verb = passed_on.or_else(|| request.subject.strip_prefix(&subjects::admin("")));
        let (passed_on, noun_verb) = (passed_on.is_some(), noun_verb.unwrap_or_default().to_owned());
        let parsed = supervise::caught_now(&self.incidents, "an administrative request", || {
            fault("admin", &noun_verb);
            admin::parse(&noun_verb, &request.payload)
        });
        let ddl = match parsed.answer() {
            Ok(Admin::Ddl(ddl)) => ddl,
            Ok(Admin::StateGet(wanted)) => {
                let state = self.caught(&noun_verb, || self.state(&wanted).map(|state| api::ok(&state)));
                request.respond(state).await;
                return Ok(());
            }
            Ok(Admin::StateHistory(limit)) => {
                self.settle().await?;
                let answer = self.caught(&noun_verb, || {
                    let newest = self.keeper.copy().newest(limit, self.bus.max_payload() / 2);
                    let newest = newest.map_err(|e| ApiError::new(ErrorCode::StorageFailed, e.to_string()))?;
                    Ok(api::ok(&admin::history(&newest)))
                });
                request.respond(answer).await;
                return Ok(());
            }
            Err(error) => {
                request.respond(Err(error)).await;
                return Ok(());
            }
        };
        if self.manager.leading().is_none() {
            self.pass_on(request, noun_verb, passed_on).await;
            return Ok(());
        }
        if self.waiting.len() >= MOST_WAITING {
            request.respond(Err(too_many())).await;
            return Ok(());
        }
        self.next_token += 1;
        let token = self.next_token;
        self.waiting.insert(token, request);
        let known = |name: &str| self.manager.context().buckets.contains_key(name);
        if let Some(definition) = ddl.probes().filter(|definition| !known(&definition.name)) {
            let (bus, asked) = (self.bus.clone(), ddl.clone());
            let failed = move |unfinished: Unfinished| {
                let probe = Err(unfinished.into());
                Event::Lead(core::Event::Ddl { token, ddl: asked, probe, random: random() })
            };
            self.spawn("looking at a source", failed, async move {
                let probe = source::probe(&bus, &definition).await;
                Event::Lead(core::Event::Ddl { token, ddl, probe, random: random() })
            });
            return Ok(());
        }
        fault("ddl", &noun_verb);
        let event = core::Event::Ddl { token, ddl, probe: core::unprobed(), random: random() };
        self.handle(Event::Lead(event)).await
    }

    fn state(&self, wanted: &StateGet) -> Result<StateReply, ApiError> {
        let context = self.manager.context();
        let state = match &wanted.bucket {
            Some(bucket) if !context.buckets.contains_key(bucket) => return Err(core::no_bucket(bucket)),
            Some(bucket) => serde_json::to_value(context.only(bucket)),
            None => serde_json::to_value(context),
        };
        Ok(StateReply { node: self.config.node.clone(), state: state.unwrap_or_default() })
    }

    /// To the coordinator; what was passed on once is not passed on again.
    async fn pass_on(&mut self, request: ServiceRequest, noun_verb: String, passed_on: bool) {
        if passed_on {
            let message = format!("index manager {} does not coordinate any more", self.config.node);
            request.respond(Err(ApiError::new(ErrorCode::NoCoordinator, message))).await;
            return;
        }
        let Ok(room) = Arc::clone(&self.passing).try_acquire_owned() else {
            request.respond(Err(too_many())).await;
            return;
        };
        let (bus, mut master, incidents) = (self.bus.clone(), self.master.subscribe(), self.incidents.clone());
        self.errands.spawn("passing a request on", async move {
            let forwarded = async {
                fault("errand", "passing a request on");
                bus.forward(&mut master, &noun_verb, request.payload.to_vec()).await
            };
            match supervise::caught(&incidents, "passing a request on", forwarded).await.answer() {
                Ok(reply) => request.pass_on(reply).await,
                Err(error) => request.respond(Err(error)).await,
            }
            drop(room);
        });
    }
}

fn too_many() -> ApiError {
    ApiError::new(ErrorCode::TooManyRequests, "too many admin requests are under way")
}

pub(super) async fn assign(bus: &Bus, node: &str, request: &Assign) -> Result<(), ApiError> {
    let unavailable = |why: String| ApiError::new(ErrorCode::NodeUnavailable, why);
    let payload = serde_json::to_vec(request).unwrap_or_default();
    let reply = bus.request(&subjects::node(node, "assign"), payload, ASSIGN_TIMEOUT).await;
    api::reply(&reply.map_err(|e| unavailable(e.to_string()))?.payload).map(|_| ())
}
