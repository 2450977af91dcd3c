//! `highwater dev`: all services in one process.

use super::{
    child_nats::ChildNats,
    ending, notify,
    services::{Kind, Place, Running, lock, start},
};
use crate::args::Dev;
use anyhow::{Result, anyhow, bail};
use highwater_bus::{Bus, ConnectSettings, Ending, Incidents, TaskSet};
use highwater_schemas::{
    api::{self, NodeKind},
    subjects,
};
use std::time::Duration;
use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};

const KINDS: [Kind; 5] = [Kind::ClusterManager, Kind::Coordinator, Kind::Projector, Kind::Indexer, Kind::Catalog];
/// In the server's list of connections.
const NAME: &str = "highwater dev";
const POLL: Duration = Duration::from_millis(20);
const SERVES_WITHIN: Duration = Duration::from_secs(60);
/// How long the whole may take to end: the services, and their nats-server after them.
const ENDS_WITHIN: Duration = Duration::from_secs(40);

/// The services by name, each with what came of it.
type Services = TaskSet<&'static str, Result<()>>;

pub(crate) async fn dev(args: Dev) -> Result<()> {
    let _lock = lock(&args.data_dir)?;
    let (settings, mut nats) = if let Some(settings) = args.nats.settings(NAME)? {
        (settings, None)
    } else {
        let nats = ChildNats::start(&args.data_dir.join("nats"), args.nats_port).await?;
        // It asks for no credentials, and has its JetStream for itself.
        let settings = ConnectSettings { url: nats.url.clone(), name: NAME.into(), ..ConnectSettings::default() };
        (settings, Some(nats))
    };
    let server = nats.as_ref().and_then(ChildNats::id);
    let stop = ending::on_signal(ENDS_WITHIN, move || {
        if let Some(id) = server {
            // It must not outlive us; we end in any case.
            let _ = std::process::Command::new("kill").args(["-KILL", &id.to_string()]).status();
        }
    })?;
    let (stopper, told) = watch::channel(false);
    let mut running: Services = TaskSet::new(Incidents::default());
    let mut asked = stop.clone();
    let outcome = tokio::select! {
        outcome = serve(&args, &settings, &mut nats, &mut running, told) => outcome,
        () = ending::asked(&mut asked) => Ok(()),
    };
    stopper.send_replace(true);
    let mut errors = Vec::new();
    let ended = timeout(ending::WITHIN, async {
        while let Some((name, ending)) = running.join_next().await {
            errors.extend(failure(name, ending));
        }
    });
    let in_time = ended.await.is_ok();
    if let Some(nats) = nats {
        nats.stop().await;
    }
    outcome?;
    match errors.into_iter().next() {
        Some(error) => Err(error),
        None if !in_time => bail!("not every service ended within {} s of being asked", ending::WITHIN.as_secs()),
        None => Ok(()),
    }
}

/// Starts everything, and waits for what ends by itself; that is an error.
async fn serve(
    args: &Dev,
    settings: &ConnectSettings,
    nats: &mut Option<ChildNats>,
    running: &mut Services,
    told: watch::Receiver<bool>,
) -> Result<()> {
    let mut serving = Vec::new();
    for kind in KINDS {
        let (ready, is_ready) = oneshot::channel();
        let node = format!("dev-{}", kind.as_str());
        let place = Place { node: &node, data_dir: &args.data_dir, limits: &args.limits };
        let service: Running = start(kind, &place, settings, ready, told.clone()).await?;
        running.spawn(kind.as_str(), service);
        serving.push(is_ready);
    }
    let bus = Bus::connect(settings).await?;
    let up = async {
        for is_ready in serving {
            is_ready.await.map_err(|_| anyhow!("a service ended before it served"))?;
        }
        timeout(SERVES_WITHIN, all_joined(&bus)).await.map_err(|_| anyhow!("the services did not find each other"))
    };
    tokio::select! {
        // What ended tells more than that it does not serve.
        biased;
        ended = running.join_next() => return Err(ended_early(ended)),
        up = up => up?,
    }
    notify::ready(&format!("highwater ready {}", settings.shown_url()));
    tokio::select! {
        ended = running.join_next() => Err(ended_early(ended)),
        why = child_ended(nats) => Err(anyhow!(why)),
    }
}

/// What is wrong with an end that was not asked for.
fn ended_early(ended: Option<(&'static str, Ending<Result<()>>)>) -> anyhow::Error {
    match ended {
        Some((name, ending)) => {
            failure(name, ending).unwrap_or_else(|| anyhow!("{name} ended, and nobody had asked it to"))
        }
        None => anyhow!("no service runs any more"),
    }
}

/// What went wrong in a service that has ended, if anything did.
fn failure(name: &str, ending: Ending<Result<()>>) -> Option<anyhow::Error> {
    match ending.done() {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error),
        Err(unfinished) => Some(anyhow!("{name}: {unfinished}")),
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
