//! One service, from its arguments to its end.

use super::{ending, notify};
use crate::{args::Service, limits::Limits};
use anyhow::{Context, Result, bail, ensure};
use highwater_bus::{Action, Bus, BusError, ConnectSettings};
use highwater_schemas::{lane, names};
use std::{
    fs::{File, TryLockError},
    future::Future,
    io::Write,
    path::{Path, PathBuf},
    pin::Pin,
};
use tokio::sync::{mpsc, oneshot, watch};

/// The services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    ClusterManager,
    Coordinator,
    Projector,
    Indexer,
    Catalog,
}

impl Kind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::ClusterManager => "cluster-manager",
            Self::Coordinator => "coordinator",
            Self::Projector => "projector",
            Self::Indexer => "indexer",
            Self::Catalog => "catalog",
        }
    }
    fn keeps_files(self) -> bool {
        matches!(self, Self::Coordinator | Self::Indexer)
    }
}

/// A running service: ends with an error, or well when told to stop.
pub(crate) type Running = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// Runs one service until SIGTERM or SIGINT. An end that nobody asked for is an error.
pub(crate) async fn one(kind: Kind, args: Service, limits: Limits) -> Result<()> {
    names::check("node", &args.node_id)?;
    let (ready, serving) = oneshot::channel();
    let mut stop = ending::on_signal(ending::WITHIN, || ())?;
    let settings = args.nats.settings(&format!("highwater {} {}", kind.as_str(), args.node_id))?;
    let place = Place { node: &args.node_id, data_dir: &args.data_dir, limits: &limits };
    let starting = start(kind, &place, &settings, ready, stop.clone());
    let mut running = tokio::select! {
        running = starting => running?,
        () = ending::asked(&mut stop) => return Ok(()),
    };
    let node = &args.node_id;
    let ended = tokio::select! {
        ended = &mut running => ended,
        Ok(()) = serving => {
            notify::ready(&format!("highwater ready {} {node}", kind.as_str()));
            running.await
        }
    };
    if ended.is_ok() && !*stop.borrow() {
        bail!("{} {node} ended, and nobody had asked it to", kind.as_str());
    }
    ended
}

/// What a service is started with.
pub(crate) struct Place<'a> {
    pub(crate) node: &'a str,
    pub(crate) data_dir: &'a Path,
    pub(crate) limits: &'a Limits,
}

/// Starts a service: connects, locks its files, and hands back what to wait for.
pub(crate) async fn start(
    kind: Kind,
    place: &Place<'_>,
    settings: &ConnectSettings,
    ready: oneshot::Sender<()>,
    stop: watch::Receiver<bool>,
) -> Result<Running> {
    let dir = place.data_dir.join(kind.as_str());
    let lock = if kind.keeps_files() { Some(lock(&dir)?) } else { None };
    let bus = Bus::connect(settings).await?;
    match bus.jetstream_answers().await {
        Ok(true) => {}
        // Whoever needs it tries until it does.
        Ok(false) => tracing::warn!("JetStream does not answer yet"),
        // That is all for which we would have asked.
        Err(error @ BusError::NotPermitted { action: Action::Publish, .. }) => {
            tracing::warn!(%error, "whether JetStream answers cannot be told");
        }
        Err(error) => return Err(error.into()),
    }
    let incarnation = uuid::Uuid::new_v4().as_u64_pair().0;
    let node = place.node.to_owned();
    Ok(match kind {
        Kind::ClusterManager => {
            let mut config = highwater_cluster_manager::Config::new(node, incarnation);
            place.limits.cluster.enter(&mut config);
            kept(lock, async move { Ok(highwater_cluster_manager::run(config, bus, ready, stop).await?) })
        }
        Kind::Coordinator => {
            let mut config = highwater_coordinator::Config::new(node, incarnation);
            config.streams = place.limits.cluster.streams.settings();
            config.reconcile_interval = place.limits.reconciles.interval();
            kept(lock, async move { Ok(highwater_coordinator::run(config, &dir, bus, ready, stop).await?) })
        }
        Kind::Projector => {
            let config = highwater_projector::Config::new(node, incarnation);
            let (lanes, open) = mpsc::channel(lane::OPEN_CAPACITY);
            kept(lock, async move {
                let (router, asked) = (highwater_router::run(bus.clone(), open, stop.clone()), stop.clone());
                let mut projector = std::pin::pin!(highwater_projector::run(config, bus, lanes, ready, stop));
                tokio::select! {
                    ended = &mut projector => Ok(ended?),
                    () = router => {
                        ensure!(*asked.borrow(), "the router ended");
                        // The projector has a goodbye to say.
                        Ok(projector.await?)
                    }
                }
            })
        }
        Kind::Indexer => {
            raise_file_limit();
            let mut config = highwater_indexer::Config::new(node, dir, incarnation);
            place.limits.indexer.enter(&mut config);
            kept(lock, async move { Ok(highwater_indexer::run(config, bus, ready, stop).await?) })
        }
        Kind::Catalog => {
            let mut config = highwater_catalog::Config::new(node);
            place.limits.catalog.enter(&mut config);
            kept(lock, async move { Ok(highwater_catalog::run(config, bus, ready, stop).await?) })
        }
    })
}

/// The lock is held as long as the service runs.
fn kept(lock: Option<File>, service: impl Future<Output = Result<()>> + Send + 'static) -> Running {
    Box::pin(async move {
        let outcome = service.await;
        drop(lock);
        outcome
    })
}

/// A slice keeps files open: raises the limit as far as the system lets us, and says so when that is little.
fn raise_file_limit() {
    const WANTED: u64 = 65_536;
    const LITTLE: u64 = 4_096;
    match rlimit::increase_nofile_limit(WANTED) {
        Ok(limit) if limit < LITTLE => {
            tracing::warn!(
                limit,
                "few files may be open at once: some hundred slices will use them up (raise `ulimit -n`)"
            );
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
    }
}

/// Creates the directory and locks it against other processes.
pub(crate) fn lock(dir: &Path) -> Result<File> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create data directory {}", dir.display()))?;
    let path: PathBuf = dir.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("data directory {} is not writable", dir.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!("data directory {} is in use by another process", dir.display()),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// One line on stdout, at once.
pub(crate) fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody may be reading.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
