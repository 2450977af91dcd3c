//! What a cluster manager is asked: who is there, who coordinates, and to go on without index managers that are missing.

use super::{MOST_ASKING, Shell};
use crate::{
    core::Event,
    questions::{BOOTSTRAP_TIMEOUT, with_master, without_master},
};
use highwater_bus::{ServiceRequest, fault, supervise};
use highwater_schemas::{
    ApiError, ErrorCode,
    api::{
        self, ClusterStatusRequest, MasterReply, MemberStatus, MembersReply, MembersRequest, NodeKind, NodeStatus, page,
    },
    subjects,
};

impl Shell {
    /// An operator gives up index managers that are missing: the active instance tells who it nominates next.
    pub(super) async fn recover(&mut self, request: ServiceRequest) {
        let now = self.now();
        let refuse = |why: &str| Err(ApiError::new(ErrorCode::NothingToRecover, why));
        let answer = match api::parse::<api::Recover>(&request.payload) {
            Err(error) => Err(error),
            Ok(api::Recover { force: false }) => {
                refuse("it needs force: what missing index managers alone know is lost")
            }
            Ok(_) => match self.core.master(now) {
                Some(master) => {
                    refuse(&format!("{} coordinates: nothing waits for missing index managers", master.node))
                }
                None if self.core.is_active(now) => {
                    self.handle(Event::Force).await;
                    Ok(api::ok(&api::Empty {}))
                }
                None => {
                    let active = self.core.status(now).cluster_manager;
                    if active.is_empty() || request.subject.starts_with("hw.node.") {
                        Err(ApiError::new(ErrorCode::NoCoordinator, "no cluster manager is active at the moment"))
                    } else if self.asking.under_way() >= MOST_ASKING {
                        Err(ApiError::new(ErrorCode::TooManyRequests, "too many requests are being passed on"))
                    } else {
                        let (bus, payload) = (self.bus.clone(), request.payload.to_vec());
                        self.asking.spawn("passing a request on", async move {
                            let subject = subjects::node(&active, "recover");
                            let asked = async {
                                fault("errand", "passing a request on");
                                bus.request(&subject, payload, BOOTSTRAP_TIMEOUT).await
                            };
                            let what = "passing a request on";
                            match supervise::caught(&bus.incidents(), what, asked).await.done() {
                                Ok(Ok(reply)) => request.pass_on(reply).await,
                                Ok(Err(e)) => {
                                    let error = ApiError::new(ErrorCode::NoCoordinator, e.to_string());
                                    request.respond(Err(error)).await;
                                }
                                Err(unfinished) => request.respond(Err(unfinished.into())).await,
                            }
                        });
                        return;
                    }
                }
            },
        };
        request.respond(answer).await;
    }

    pub(super) async fn cluster(&mut self, request: ServiceRequest) {
        if request.subject == subjects::CLUSTER_RECOVER {
            self.recover(request).await;
            return;
        }
        let now = self.now();
        match request.subject.as_str() {
            subjects::CLUSTER_MASTER => {
                let reply = MasterReply { master: self.core.master(now) };
                let answer = self.caught(|| api::parse::<api::Empty>(&request.payload).map(|_| api::ok(&reply)));
                request.respond(answer).await;
            }
            subjects::CLUSTER_REPLICAS => self.members(NodeKind::Coordinator, request).await,
            subjects::CLUSTER_INDEXERS => self.members(NodeKind::Indexer, request).await,
            _ => self.status(request).await,
        }
    }

    /// Runs the work that makes a reply; a panic of it is answered with the error `internal`.
    fn caught<T>(&self, work: impl FnOnce() -> Result<T, ApiError>) -> Result<T, ApiError> {
        let made = supervise::caught_now(&self.bus.incidents(), "a request to the cluster manager", || {
            fault("cluster", "");
            work()
        });
        made.answer()
    }

    /// The nodes of one kind.
    async fn members(&self, kind: NodeKind, request: ServiceRequest) {
        let reply = self.caught(|| {
            let asked: MembersRequest = api::parse(&request.payload)?;
            let members = self.core.status(self.now()).members.into_iter().filter(|m| m.kind == kind);
            let (members, more) = page(members.filter(|m| asked.after.as_ref().is_none_or(|after| m.node > *after)));
            Ok(api::ok(&MembersReply { members, more }))
        });
        request.respond(reply).await;
    }

    /// `hw.cluster.members`.
    async fn status(&mut self, request: ServiceRequest) {
        let known = self.caught(|| {
            let asked: ClusterStatusRequest = api::parse(&request.payload)?;
            let mut status = self.core.status(self.now());
            let further = |m: &MemberStatus| {
                asked.members_after.as_ref().is_none_or(|(kind, node)| (m.kind, &m.node) > (*kind, node))
            };
            (status.members, status.more_members) = page(status.members.into_iter().filter(further));
            Ok((asked, status))
        });
        let (asked, status) = match known {
            Ok(known) => known,
            Err(error) => return request.respond(Err(error)).await,
        };
        if status.coordinator.is_empty() || self.asking.under_way() >= MOST_ASKING {
            let answer = without_master(status, asked.buckets_after.as_ref());
            request.respond(answer.map(|status| api::ok(&status))).await;
            return;
        }
        let bus = self.bus.clone();
        self.asking.spawn("asking the master", async move {
            let asked = async {
                fault("members", "");
                with_master(&bus, status, asked.buckets_after).await
            };
            let status = supervise::caught(&bus.incidents(), "asking the master", asked).await.answer();
            request.respond(status.map(|status| api::ok(&status))).await;
        });
    }

    pub(super) async fn own(&self, request: ServiceRequest) {
        let status = NodeStatus {
            node: self.config.node.clone(),
            kind: NodeKind::ClusterManager,
            slices: Vec::new(),
            more: false,
            refused_messages: self.refused,
            void_batches: 0,
            unindexed: Vec::new(),
        };
        let answer: Result<Vec<u8>, ApiError> = match request.subject.rsplit('.').next() {
            Some("status") => Ok(api::ok(&status)),
            _ => Ok(api::ok(&api::Empty {})),
        };
        request.respond(answer).await;
    }
}
