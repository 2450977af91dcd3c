//! The heartbeat of a node.
//!
//! One task reads the cluster manager's replies and keeps the interval that they tell, in a watch channel; it ends with its
//! [`Heart`], which starts it again at the next beat when it has ended.

use crate::{
    connect::Bus,
    error::BusError,
    faults::fault,
    supervise::{self, Task},
};
use highwater_schemas::{
    api::{Join, JoinReply, Leave, heartbeat},
    subjects::{CLUSTER_JOIN, CLUSTER_LEAVE},
};
use std::time::Duration;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

/// How long a heartbeat or a goodbye may take: a lost connection takes messages until its buffer is full.
const SENT_WITHIN: Duration = Duration::from_secs(1);

/// Sends heartbeats, as often as the active cluster manager asks for.
#[derive(Debug)]
pub struct Heart {
    bus: Bus,
    inbox: String,
    told: watch::Sender<Duration>,
    every: watch::Receiver<Duration>,
    last: Option<Instant>,
    replies: Task,
}

impl Heart {
    /// One that beats `every` so often until a cluster manager says otherwise; the first beat is due at once.
    pub async fn new(bus: &Bus, every: Duration) -> Result<Self, BusError> {
        let inbox = format!("_INBOX.{}", bus.unique_id());
        let (told, every) = watch::channel(every);
        let replies = listen(bus, &inbox, told.clone()).await?;
        Ok(Self { bus: bus.clone(), inbox, told, every, last: None, replies })
    }

    /// Waits until the next beat is due. Cancel safe.
    pub async fn due(&mut self) {
        let Some(last) = self.last else { return };
        loop {
            let at = last + *self.every.borrow_and_update();
            tokio::select! {
                () = sleep_until(at) => return,
                changed = self.every.changed() => if changed.is_err() {
                    return sleep_until(at).await;
                },
            }
        }
    }

    /// Sends a heartbeat, without waiting for the answer.
    pub async fn beat(&mut self, join: &Join) {
        self.last = Some(Instant::now());
        if self.replies.is_over() {
            match listen(&self.bus, &self.inbox, self.told.clone()).await {
                Ok(replies) => self.replies = replies,
                Err(error) => tracing::debug!(%error, "cannot hear the cluster manager"),
            }
        }
        self.say(join).await;
    }

    /// Sends what is between two heartbeats, and what fails here; the next one is due as before.
    pub async fn say(&self, join: &Join) {
        let join = Join { troubles: self.bus.troubles(), ..join.clone() };
        let payload = serde_json::to_vec(&join).unwrap_or_default();
        let client = self.bus.client();
        let sent = client.publish_with_reply(CLUSTER_JOIN, self.inbox.clone(), payload.into());
        match timeout(SENT_WITHIN, sent).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "cannot send a heartbeat"),
            Err(_) => tracing::debug!("cannot send a heartbeat in time"),
        }
    }

    /// Says goodbye for the node of this heartbeat.
    pub async fn leave(&self, join: &Join) {
        leave(&self.bus, &Leave { node: join.node.clone(), kind: join.kind, incarnation: join.incarnation }).await;
    }
}

/// Says goodbye for a node, so that nobody waits for its next heartbeat.
pub async fn leave(bus: &Bus, leave: &Leave) {
    let said = async {
        bus.publish(CLUSTER_LEAVE, serde_json::to_vec(leave).unwrap_or_default()).await?;
        bus.flush().await
    };
    match timeout(SENT_WITHIN, said).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "cannot say goodbye"),
        Err(_) => tracing::debug!("cannot say goodbye in time"),
    }
}

/// Reads the replies to heartbeats.
async fn listen(bus: &Bus, inbox: &str, told: watch::Sender<Duration>) -> Result<Task, BusError> {
    let mut answers = bus.subscribe(inbox).await?;
    Ok(supervise::task(&bus.incidents(), "replies to heartbeats", async move {
        while let Some(answer) = answers.next().await {
            fault("heart", "");
            // Empty when no cluster manager is there.
            if let Ok(reply) = serde_json::from_slice::<JoinReply>(&answer.payload) {
                let interval = heartbeat(reply.heartbeat_ms);
                told.send_if_modified(|every| std::mem::replace(every, interval) != interval);
            }
        }
    }))
}
