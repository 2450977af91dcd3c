//! `highwater dev`: all services in one process.

use super::{
    child_nats::ChildNats,
    services::{Kind, Place, Running, lock, say, start, stopped},
};
use crate::args::Dev;
use anyhow::{Result, anyhow};
use highwater_bus::{Bus, ConnectSettings};
use highwater_schemas::{
    api::{self, NodeKind},
    subjects,
};
use std::time::Duration;
use tokio::{
    sync::{oneshot, watch},
    task::JoinSet,
};

const KINDS: [Kind; 5] = [Kind::ClusterManager, Kind::Coordinator, Kind::Projector, Kind::Indexer, Kind::Catalog];
const POLL: Duration = Duration::from_millis(20);
const SERVES_WITHIN: Duration = Duration::from_secs(60);

pub(crate) async fn dev(args: Dev) -> Result<()> {
    let _lock = lock(&args.data_dir)?;
    let mut nats = match &args.nats_url {
        Some(_) => None,
        None => Some(ChildNats::start(&args.data_dir.join("nats"), args.nats_port).await?),
    };
    let url = args.nats_url.clone().or_else(|| nats.as_ref().map(|n| n.url.clone())).unwrap_or_default();
    // Our own nats-server asks for no credentials.
    let settings = if nats.is_none() {
        args.credentials.settings(&url, "highwater dev")
    } else {
        ConnectSettings { url: url.clone(), name: "highwater dev".into(), ..ConnectSettings::default() }
    };
    let (stopper, stop) = watch::channel(false);
    let mut running: JoinSet<Result<()>> = JoinSet::new();
    let mut serving = Vec::new();
    for kind in KINDS {
        let (ready, is_ready) = oneshot::channel();
        let node = format!("dev-{}", kind.as_str());
        let place = Place { node: &node, data_dir: &args.data_dir, limits: &args.limits };
        let service: Running = start(kind, &place, &settings, ready, stop.clone()).await?;
        running.spawn(service);
        serving.push(is_ready);
    }
    let bus = Bus::connect(&settings).await?;
    let up = async {
        for is_ready in serving {
            is_ready.await.map_err(|_| anyhow!("a service ended before it served"))?;
        }
        tokio::time::timeout(SERVES_WITHIN, all_joined(&bus))
            .await
            .map_err(|_| anyhow!("the services did not find each other"))
    };
    let outcome = tokio::select! {
        up = up => match up {
            Ok(()) => {
                say(&format!("highwater ready {url}"));
                tokio::select! {
                    ended = running.join_next() => ended_early(ended),
                    () = stopped() => Ok(()),
                    why = child_ended(&mut nats) => Err(anyhow!(why)),
                }
            }
            Err(error) => Err(error),
        },
        ended = running.join_next() => ended_early(ended),
        () = stopped() => Ok(()),
    };
    let _ = stopper.send(true);
    while running.join_next().await.is_some() {}
    if let Some(nats) = nats {
        nats.stop().await;
    }
    outcome
}

fn ended_early(ended: Option<Result<Result<()>, tokio::task::JoinError>>) -> Result<()> {
    match ended {
        Some(Ok(Err(error))) => Err(error),
        Some(Err(error)) => Err(anyhow!("a service panicked: {error}")),
        _ => Err(anyhow!("a service ended")),
    }
}

async fn child_ended(nats: &mut Option<ChildNats>) -> String {
    match nats {
        Some(nats) => nats.ended().await,
        None => std::future::pending().await,
    }
}

/// Waits until an index manager coordinates and there is a live node of every other kind.
async fn all_joined(bus: &Bus) {
    loop {
        if let Ok(reply) = bus.request(subjects::CLUSTER_MEMBERS, Vec::new(), Duration::from_secs(1)).await
            && let Ok(status) = serde_json::from_slice::<api::ClusterStatus>(&reply.payload)
        {
            let alive = |kind| status.members.iter().any(|m| m.kind == kind && m.alive);
            let served = [NodeKind::Projector, NodeKind::Indexer, NodeKind::Catalog].into_iter().all(alive);
            if served && !status.coordinator.is_empty() {
                return;
            }
        }
        tokio::time::sleep(POLL).await;
    }
}
