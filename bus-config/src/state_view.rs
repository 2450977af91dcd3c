//! What the log adds up to, as a service keeps it: a log that cannot be read is read again later.

use crate::{
    connect::Bus,
    error::BusError,
    state_log::{Followed, StateFollower},
};
use highwater_schemas::state::{Concerns, Following, StateContext, StateError};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// A log that cannot be read is read again after this.
const AGAIN: Duration = Duration::from_secs(1);

/// The log, for who keeps what it adds up to in a place of its own.
pub struct StateTail {
    bus: Bus,
    follower: StateFollower,
    ready: bool,
    again: Option<Instant>,
    /// That the log cannot be read was said.
    said: bool,
}

impl StateTail {
    pub fn new(bus: &Bus) -> Self {
        Self { bus: bus.clone(), follower: bus.follow_state(), ready: false, again: None, said: false }
    }

    /// True once all that the log held was read.
    pub fn ready(&self) -> bool {
        self.ready
    }

    /// Waits for what comes next and has it taken; `take` also hears whether nothing more is to come of what the log held when
    /// it was opened. None: it could not be taken, and the log is read from its beginning again, later. Cancel safe.
    pub async fn next<T>(
        &mut self,
        take: impl FnOnce(Followed, bool) -> Result<T, StateError>,
    ) -> Result<Option<T>, BusError> {
        if let Some(at) = self.again {
            sleep_until(at).await;
            self.again = None;
            self.follower = self.bus.follow_state();
        }
        let followed = self.follower.next().await?;
        let all = self.follower.caught_up();
        match take(followed, all) {
            Ok(taken) => {
                self.ready |= all;
                self.said &= !all;
                Ok(Some(taken))
            }
            Err(error) => {
                if !std::mem::replace(&mut self.said, true) {
                    tracing::warn!(%error, "the state log cannot be followed: reading it again until it can be");
                }
                self.again = Some(Instant::now() + AGAIN);
                Ok(None)
            }
        }
    }
}

/// A follower's state.
pub struct StateView {
    tail: StateTail,
    following: Following,
}

impl StateView {
    pub fn new(bus: &Bus) -> Self {
        Self { tail: StateTail::new(bus), following: Following::default() }
    }

    pub fn context(&self) -> &StateContext {
        self.following.context()
    }

    /// True once all that the log held was read.
    pub fn ready(&self) -> bool {
        self.tail.ready()
    }

    /// Waits for news; answers what they concern. Cancel safe.
    pub async fn next(&mut self) -> Result<Concerns, BusError> {
        let following = &mut self.following;
        let take = |followed, all| match followed {
            Followed::Opened { .. } => Ok(following.opened(all)),
            Followed::Record(_, record) => following.record(&record, all),
        };
        Ok(self.tail.next(take).await?.unwrap_or(Concerns::Nothing))
    }
}
