//! What a service manager is told: that we serve, and that we end.

use super::services::say;
use highwater_bus::{Incidents, fault, supervise};
use sd_notify::NotifyState;
use std::{sync::mpsc::sync_channel, time::Duration};

/// How long a service manager that does not read what it is told may hold us up.
const PATIENCE: Duration = Duration::from_secs(1);

/// Says on stdout and to the service manager, where one listens (`Type=notify`), that we serve.
pub(crate) fn ready(line: &str) {
    say(line);
    tell(NotifyState::Ready);
}

/// Tells the service manager that we were asked to end, and do.
pub(crate) fn stopping() {
    tell(NotifyState::Stopping);
}

/// Without a service manager this does nothing; whether one hears it changes nothing for us.
fn tell(state: NotifyState<'static>) {
    let (done, told) = sync_channel(1);
    // Its socket may be full.
    let telling = move || {
        fault("notify", "");
        if let Err(error) = sd_notify::notify(&[state]) {
            tracing::warn!(%error, "the service manager cannot be told what we do");
        }
        // Nobody waits for it any more when it took long.
        let _ = done.send(());
    };
    if supervise::thread(&Incidents::default(), "service manager", telling).is_ok() {
        let _ = told.recv_timeout(PATIENCE);
    }
}
