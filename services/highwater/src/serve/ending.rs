//! The end of a process that is asked for, by SIGTERM or SIGINT, and the time that it may take whatever hangs.
//!
//! A thread of its own waits for the signal and then for the time, so that neither a task that blocks nor a full runtime can hold
//! it up.

use super::notify;
use anyhow::{Context, Result};
use highwater_bus::{Incidents, fault, supervise};
use std::time::Duration;
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// How long a service may take to end. Within it an indexer makes durable what it has applied, a catalog answers what it has
/// begun, a cluster manager gives its lease back; what is not done by then is done over at the next start.
pub(crate) const WITHIN: Duration = Duration::from_secs(25);

/// Hands out what turns true at the first SIGTERM or SIGINT; when the process is still there `within` so much time later, `last`
/// is done, and it ends with code 1.
pub(crate) fn on_signal(within: Duration, last: impl FnOnce() + Send + 'static) -> Result<watch::Receiver<bool>> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().context("cannot wait for signals")?;
    // From here on the signals do not end the process by themselves.
    let (mut term, mut int) = {
        let _entered = runtime.enter();
        let listen = |kind| signal(kind).context("cannot wait for signals");
        (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?)
    };
    let (stopper, stop) = watch::channel(false);
    let watching = move || {
        runtime.block_on(async {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
        });
        fault("signals", "");
        notify::stopping();
        stopper.send_replace(true);
        std::thread::sleep(within);
        last();
        eprintln!("highwater: not everything ended within {} s of being asked: ending at once", within.as_secs());
        std::process::exit(1);
    };
    // It ends with the process alone.
    drop(supervise::thread(&Incidents::default(), "signals", watching).context("cannot wait for signals")?);
    Ok(stop)
}

/// Waits until the process is asked to end.
pub(crate) async fn asked(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}
