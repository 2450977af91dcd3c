//! The heartbeat of a node, and the parts of its report.
//!
//! One task reads the cluster manager's replies and keeps the interval that they tell, in a watch channel; it ends with its
//! [`Heart`], which starts it again at the next beat when it has ended.

use crate::{
    Retry,
    connect::Bus,
    error::BusError,
    faults::fault,
    supervise::{self, Task},
};
use highwater_schemas::{
    api::{Join, JoinReply, Leave, MOST_HEARTBEAT, heartbeat},
    report::{MOST_ITEMS, Reporter},
    subjects::{CLUSTER_JOIN, CLUSTER_LEAVE, CLUSTER_REPORT},
};
use std::time::Duration;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

/// How long a heartbeat or a goodbye may take: a lost connection takes messages until its buffer is full.
const SENT_WITHIN: Duration = Duration::from_secs(1);
const TOO_LONG: &str = "it takes too long";
/// Parts of a report sent at once, and how soon the next ones may follow: who receives them has other work.
const PARTS_AT_ONCE: usize = 8;
const PARTS_APART: Duration = Duration::from_millis(10);

/// Sends heartbeats, as often as the active cluster manager asks for.
#[derive(Debug)]
pub struct Heart {
    bus: Bus,
    inbox: String,
    told: watch::Sender<Duration>,
    every: watch::Receiver<Duration>,
    last: Option<Instant>,
    /// When the last parts of a report were sent.
    reported: Option<Instant>,
    /// Failures to send heartbeats and parts of reports: each is stated as a trouble and logged.
    beats: Retry,
    parts: Retry,
    /// The reporter had more items than a report holds when parts were sent last.
    untold: bool,
    /// The last heartbeat could not be sent.
    unsent: bool,
    replies: Task,
}

impl Heart {
    /// One that beats `every` so often until a cluster manager says otherwise; the first beat is due at once.
    pub async fn new(bus: &Bus, every: Duration) -> Result<Self, BusError> {
        let inbox = bus.new_inbox();
        let (told, every) = watch::channel(every);
        let replies = listen(bus, &inbox, told.clone()).await?;
        Ok(Self {
            bus: bus.clone(),
            inbox,
            told,
            every,
            last: None,
            reported: None,
            beats: bus.retry("sending heartbeats"),
            parts: bus.retry("sending reports"),
            untold: false,
            unsent: false,
            replies,
        })
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

    /// Sends a heartbeat, with what fails here, without waiting for the answer. One that cannot be sent is an error: others
    /// take the node for gone, so the log says it at once.
    pub async fn beat(&mut self, join: &Join) {
        self.last = Some(Instant::now());
        if self.replies.is_over() {
            match listen(&self.bus, &self.inbox, self.told.clone()).await {
                Ok(replies) => self.replies = replies,
                Err(error) => tracing::debug!(%error, "cannot hear the cluster manager"),
            }
        }
        let most = MOST_HEARTBEAT.min(self.bus.max_payload());
        let payload = bounded(Join { troubles: self.bus.troubles(), ..join.clone() }, most);
        let client = self.bus.client();
        let sent = client.publish_with_reply(CLUSTER_JOIN, self.inbox.clone(), payload.into());
        let refused = match timeout(SENT_WITHIN, sent).await {
            Ok(Ok(())) => {
                self.beats.over();
                self.unsent = false;
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => TOO_LONG.to_owned(),
        };
        if !std::mem::replace(&mut self.unsent, true) {
            tracing::error!(error = refused, "cannot send a heartbeat");
        }
        self.beats.failed(&refused);
    }

    /// When the next parts of a report may be sent; none when everything was told.
    pub fn report_at(&self, reporter: &Reporter) -> Option<Instant> {
        (!reporter.is_told()).then(|| self.reported.map_or_else(Instant::now, |last| last + PARTS_APART))
    }

    /// Sends the next parts of a node's report. Lost parts show in the node's heartbeats, and are asked for again.
    pub async fn report(&mut self, reporter: &mut Reporter, join: &Join) {
        let sent = self.send_parts(reporter, join).await;
        let untold = reporter.untold();
        match sent {
            Err(why) => _ = self.parts.failed(&why),
            Ok(_) if untold > 0 => {
                self.parts.failed(&format_args!("{MOST_ITEMS} items are told, {untold} more are not"));
            }
            // A round without parts proves nothing of earlier failures to send.
            Ok(0) if !self.untold => {}
            Ok(_) => self.parts.over(),
        }
        self.untold = untold > 0;
        self.reported = Some(Instant::now());
    }

    /// Sends parts until there are no more, [`PARTS_AT_ONCE`] were sent, or one cannot be sent; answers how many.
    async fn send_parts(&self, reporter: &mut Reporter, join: &Join) -> Result<usize, String> {
        for sent in 0..PARTS_AT_ONCE {
            let Some(part) = reporter.next_part(&join.node, join.kind, join.incarnation) else { return Ok(sent) };
            let published = self.bus.publish(CLUSTER_REPORT, serde_json::to_vec(&part).unwrap_or_default());
            let published = timeout(SENT_WITHIN, published).await.map_err(|_| TOO_LONG.to_owned())?;
            published.map_err(|error| error.to_string())?;
        }
        Ok(PARTS_AT_ONCE)
    }

    /// Says goodbye for the node of this heartbeat.
    pub async fn leave(&self, join: &Join) {
        leave(&self.bus, &Leave { node: join.node.clone(), kind: join.kind, incarnation: join.incarnation }).await;
    }
}

/// A heartbeat as it travels, with as many troubles, the oldest first, as fit into so many bytes.
pub fn bounded(mut join: Join, most: usize) -> Vec<u8> {
    loop {
        let payload = serde_json::to_vec(&join).unwrap_or_default();
        if payload.len() <= most || join.troubles.pop().is_none() {
            return payload;
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use highwater_schemas::{
        api::{MOST_REGISTERED_TOLD, MOST_TROUBLES, MOST_WORDS, ManagerReport, NodeKind, Trouble},
        report::Told,
    };

    #[test]
    fn a_heartbeat_is_small_whatever_fails() {
        let trouble = |since| Trouble { what: "\u{1}".repeat(300), since, times: u64::MAX, error: "\u{1}".repeat(300) };
        let troubles: Vec<_> = (0..MOST_TROUBLES as u64).map(trouble).collect();
        let told = Told { edition: u64::MAX, parts: u64::MAX };
        let node = "n".repeat(64);
        let indexer = Join { term: u64::MAX, report: told, ..Join::new(NodeKind::Indexer, &node, u64::MAX) };
        assert!(bounded(indexer.clone(), MOST_HEARTBEAT).len() < 256);
        let report = ManagerReport {
            version: u64::MAX,
            hash: "h".repeat(64),
            term: u64::MAX,
            leading: Some(u64::MAX),
            registered: vec![node; MOST_REGISTERED_TOLD],
            declined: Some(u64::MAX),
            undecided: Some(u64::MAX),
            waiting: Some("\u{1}".repeat(MOST_WORDS)),
        };
        let manager = Join { kind: NodeKind::Coordinator, manager: Some(report), ..indexer.clone() };
        for join in [indexer, manager] {
            let payload = bounded(Join { troubles: troubles.clone(), ..join.clone() }, MOST_HEARTBEAT);
            assert!(payload.len() <= MOST_HEARTBEAT, "{} bytes", payload.len());
            let read: Join = serde_json::from_slice(&payload).unwrap();
            assert!(!read.troubles.is_empty() && read.troubles.is_sorted_by_key(|trouble| trouble.since));
            assert_eq!((read.troubles[0].since, &read.report, &read.manager), (0, &told, &join.manager));
        }
    }
}
