//! What the log adds up to, as a service keeps it: a log that cannot be read is read again later.

use crate::{
    connect::Bus,
    error::BusError,
    state_log::{Followed, StateFollower},
};
use highwater_schemas::state::{Concerns, Following, StateContext};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// A log that cannot be read is read again after this.
const AGAIN: Duration = Duration::from_secs(1);

/// A follower's state.
pub struct StateView {
    bus: Bus,
    follower: StateFollower,
    following: Following,
    ready: bool,
    again: Option<Instant>,
    /// That the log cannot be read was said.
    said: bool,
}

impl StateView {
    pub fn new(bus: &Bus) -> Self {
        let (follower, following) = (bus.follow_state(), Following::default());
        Self { bus: bus.clone(), follower, following, ready: false, again: None, said: false }
    }

    pub fn context(&self) -> &StateContext {
        self.following.context()
    }

    /// True once all that the log held was read.
    pub fn ready(&self) -> bool {
        self.ready
    }

    /// Waits for news; answers what they concern. Cancel safe.
    pub async fn next(&mut self) -> Result<Concerns, BusError> {
        if let Some(at) = self.again {
            sleep_until(at).await;
            self.again = None;
            self.follower = self.bus.follow_state();
        }
        let followed = self.follower.next().await?;
        let all = self.follower.caught_up();
        let taken = match followed {
            Followed::Opened { .. } => Ok(self.following.opened(all)),
            Followed::Record(_, record) => self.following.record(&record, all),
        };
        match taken {
            Ok(concerns) => {
                self.ready |= all;
                self.said &= !all;
                Ok(concerns)
            }
            Err(error) => {
                if !std::mem::replace(&mut self.said, true) {
                    tracing::warn!(%error, "the state log cannot be followed: reading it again until it can be");
                }
                self.again = Some(Instant::now() + AGAIN);
                Ok(Concerns::Nothing)
            }
        }
    }
}
