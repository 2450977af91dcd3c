//! One connection, kept up: its task reads frames into inboxes, writes commands, and connects again when it is lost.

use super::{
    codec::{self, Frame, Message},
    dial::{Dial, Dialled, READ, ServerInfo, Socket},
    inbox::Inbox,
};
use crate::{
    error::BusError,
    faults::fault,
    refusals::Refusals,
    supervise::{self, Task},
    troubles::Troubles,
};
use bytes::BytesMut;
use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::{Notify, mpsc, oneshot, watch},
    time::timeout,
};

/// Commands that may wait for the connection.
pub(super) const COMMANDS: usize = 4_096;
/// Commands that are written together.
const BURST: usize = 256;
/// The server is asked for a sign of life this often; two unanswered questions end a connection that brings nothing else.
const PING: Duration = Duration::from_secs(5);
/// A server that takes nothing for so long is given up.
const WRITTEN_WITHIN: Duration = Duration::from_secs(10);
/// How soon a subscription is known to the server, else it is made when the connection is back.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(2);
/// The longest wait between attempts to connect.
const LONGEST: Duration = Duration::from_millis(500);
/// Least time from the beginning of a connection to the next attempt to connect.
const SPACING: Duration = Duration::from_millis(200);

enum Command {
    Subscribe(u64),
    Unsubscribe(u64),
    /// Whole frames.
    Write(Vec<u8>),
    Flush(oneshot::Sender<()>),
}

struct Subscription {
    subject: String,
    queue: Option<String>,
    inbox: Arc<Inbox>,
}

struct Shared {
    subscriptions: Mutex<HashMap<u64, Subscription>>,
    next: AtomicU64,
    /// Who waits for which of the pongs that are due, oldest first.
    pongs: Mutex<VecDeque<Option<oneshot::Sender<()>>>>,
    /// Times that something was read.
    reads: AtomicU64,
    /// Pings of the server that are not answered.
    due: AtomicU32,
    /// The server wants an answer.
    asked: Notify,
    server: watch::Sender<ServerInfo>,
    /// Times that the connection was lost.
    losses: AtomicU64,
    troubles: Troubles,
    refusals: Refusals,
    /// Names the connection for tests that break it.
    label: &'static str,
}

/// A connection. It ends when the last handle is dropped.
#[derive(Clone)]
pub(crate) struct Link {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    task: Arc<Task>,
}

/// Subscriptions that fill one inbox; dropping it ends them.
pub(crate) struct Interest {
    link: Link,
    sids: Vec<u64>,
    inbox: Arc<Inbox>,
}

impl Shared {
    fn subscriptions(&self) -> MutexGuard<'_, HashMap<u64, Subscription>> {
        self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pongs(&self) -> MutexGuard<'_, VecDeque<Option<oneshot::Sender<()>>>> {
        self.pongs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn close(&self) {
        for subscription in self.subscriptions().values() {
            subscription.inbox.close();
        }
    }
}

impl Link {
    /// Connects; losses are healed until the last handle is gone.
    ///
    /// `label`: by which tests tell it from the process's other connections.
    pub(crate) async fn connect(
        dial: Arc<Dial>,
        troubles: Troubles,
        refusals: Refusals,
        label: &'static str,
    ) -> Result<Self, BusError> {
        let dialled = dial.connect(0).await.map_err(|e| dial.failed(&e))?;
        let shared = Arc::new(Shared {
            subscriptions: Mutex::default(),
            next: AtomicU64::new(1),
            pongs: Mutex::default(),
            reads: AtomicU64::new(0),
            due: AtomicU32::new(0),
            asked: Notify::new(),
            server: watch::Sender::new(dialled.info.clone()),
            losses: AtomicU64::new(0),
            troubles,
            refusals,
            label,
        });
        let (commands, waiting) = mpsc::channel(COMMANDS);
        let kept = keep_up(Arc::clone(&shared), dial, dialled, waiting);
        let task = supervise::task(&shared.troubles.clone().into(), "the connection for messages", kept);
        Ok(Self { shared, commands, task: Arc::new(task) })
    }

    /// The server that the connection is to, or was to last.
    pub(crate) fn server_id(&self) -> String {
        self.shared.server.borrow().server_id.clone()
    }

    /// The name of that server, as streams name their leaders.
    pub(crate) fn server_name(&self) -> String {
        self.shared.server.borrow().server_name.clone()
    }

    /// The largest message that this server takes of this user, bytes: it says the user's limit once it knows the user.
    pub(crate) fn max_payload(&self) -> usize {
        self.shared.server.borrow().max_payload
    }

    /// That server's version.
    pub(crate) fn server_version(&self) -> String {
        self.shared.server.borrow().version.clone()
    }

    /// How often the connection was lost.
    pub(crate) fn losses(&self) -> u64 {
        self.shared.losses.load(Ordering::Acquire)
    }

    /// True once the connection's task has ended, which only a panic does while it is used.
    pub(crate) fn is_over(&self) -> bool {
        self.task.is_over()
    }

    /// Tells every subscriber that nothing more comes.
    pub(crate) fn close(&self) {
        self.shared.close();
    }

    /// An interest in nothing yet.
    pub(crate) fn interest(&self) -> Interest {
        Interest { link: self.clone(), sids: Vec::new(), inbox: Arc::default() }
    }

    /// Sends a message, in order with subscriptions; false: too much waits to be sent.
    pub(crate) fn publish(&self, subject: &str, reply: &str, payload: &[u8]) -> bool {
        let mut frame = Vec::with_capacity(subject.len() + reply.len() + payload.len() + 40);
        let line = match reply {
            "" => format!("PUB {subject} {}\r\n", payload.len()),
            _ => format!("PUB {subject} {reply} {}\r\n", payload.len()),
        };
        frame.extend_from_slice(line.as_bytes());
        frame.extend_from_slice(payload);
        frame.extend_from_slice(b"\r\n");
        self.commands.try_send(Command::Write(frame)).is_ok()
    }

    /// Waits until the server has seen what was sent so far; false: the connection was lost meanwhile.
    pub(crate) async fn flush(&self) -> bool {
        let (done, answered) = oneshot::channel();
        self.commands.send(Command::Flush(done)).await.is_ok() && answered.await.is_ok()
    }
}

impl Interest {
    /// Also takes messages of these subjects; answers the number that their messages carry.
    pub(crate) async fn add(&mut self, subject: &str, queue: Option<&str>) -> u64 {
        let shared = &self.link.shared;
        let sid = shared.next.fetch_add(1, Ordering::Relaxed);
        let subscription =
            Subscription { subject: subject.into(), queue: queue.map(Into::into), inbox: Arc::clone(&self.inbox) };
        shared.subscriptions().insert(sid, subscription);
        self.sids.push(sid);
        if self.link.commands.send(Command::Subscribe(sid)).await.is_err() {
            // The connection's task has ended.
            self.inbox.close();
        }
        sid
    }

    /// Waits until the server knows of the subscriptions, within limits: when the connection is lost, they are made with the next.
    pub(crate) async fn confirmed(&self) {
        let _ = timeout(CONFIRMED_WITHIN, self.link.flush()).await;
    }

    pub(crate) fn inbox(&self) -> &Inbox {
        &self.inbox
    }

    pub(crate) fn link(&self) -> &Link {
        &self.link
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        for sid in &self.sids {
            self.link.shared.subscriptions().remove(sid);
            // If there is no room now, what still comes for it is dropped until the next connection.
            let _ = self.link.commands.try_send(Command::Unsubscribe(*sid));
        }
    }
}

/// Closes every inbox when the task ends, however it does.
struct Closing(Arc<Shared>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

async fn keep_up(shared: Arc<Shared>, dial: Arc<Dial>, first: Dialled, commands: mpsc::Receiver<Command>) {
    let _closing = Closing(Arc::clone(&shared));
    // Commands are refused before the inboxes are closed: an inbox that is added later is closed by who adds it.
    let mut commands = commands;
    let mut dialled = first;
    loop {
        fault("connection", shared.label);
        let began = Instant::now();
        shared.server.send_replace(dialled.info.clone());
        let why = serve(&shared, dialled, &mut commands).await;
        // Nobody uses it any more: that is no loss.
        if commands.is_closed() {
            return;
        }
        tracing::debug!(why, "the connection for messages was lost");
        shared.troubles.happened("connection to NATS for messages", &why, Instant::now());
        shared.pongs().clear();
        shared.due.store(0, Ordering::Relaxed);
        shared.losses.fetch_add(1, Ordering::Release);
        for subscription in shared.subscriptions().values() {
            subscription.inbox.lose();
        }
        // A server that closes every connection at once is not dialled without a pause.
        tokio::time::sleep_until((began + SPACING).into()).await;
        let mut retry = shared.troubles.retry("connecting to NATS for messages").within(LONGEST);
        let mut attempt = 0;
        dialled = loop {
            match dial.connect(attempt).await {
                Ok(dialled) => break dialled,
                Err(error) => retry.wait(&error).await,
            }
            attempt += 1;
        };
        retry.over();
    }
}

/// Serves one connection until it is lost; says why.
async fn serve(shared: &Shared, dialled: Dialled, commands: &mut mpsc::Receiver<Command>) -> String {
    let Dialled { socket, buffer, .. } = dialled;
    let (read, write) = tokio::io::split(socket);
    tokio::select! {
        why = reading(shared, read, buffer) => why,
        why = writing(shared, write, commands) => why,
    }
}

async fn reading(shared: &Shared, mut socket: ReadHalf<Box<dyn Socket>>, mut buffer: BytesMut) -> String {
    // Messages for one subscription that came together.
    let mut together: Vec<Message> = Vec::new();
    let mut skip = 0;
    loop {
        fault("frames", shared.label);
        loop {
            match codec::decode(&mut buffer, &mut skip) {
                Ok(Some(Frame::Message(message))) => {
                    if together.last().is_some_and(|last| last.sid != message.sid) {
                        deliver(shared, &mut together);
                    }
                    together.push(message);
                }
                Ok(Some(frame)) => {
                    deliver(shared, &mut together);
                    control(shared, frame);
                }
                Ok(None) => break,
                Err(error) => return error.to_string(),
            }
        }
        deliver(shared, &mut together);
        buffer.reserve(READ / 4);
        match socket.read_buf(&mut buffer).await {
            Ok(0) => return "the server ended the connection".into(),
            Ok(_) => _ = shared.reads.fetch_add(1, Ordering::Relaxed),
            Err(error) => return error.to_string(),
        }
    }
}

fn deliver(shared: &Shared, together: &mut Vec<Message>) {
    let Some(sid) = together.first().map(|message| message.sid) else { return };
    let inbox = shared.subscriptions().get(&sid).map(|subscription| Arc::clone(&subscription.inbox));
    let Some(inbox) = inbox else {
        // Nobody is interested any more; the server may not have heard of it.
        together.clear();
        return;
    };
    let dropped = inbox.put(together);
    if dropped > 0 {
        let why = format!("messages come faster than they are taken: {dropped} were dropped");
        shared.troubles.happened("subscription", &why, Instant::now());
    }
}

fn control(shared: &Shared, frame: Frame) {
    match frame {
        Frame::Ping => {
            shared.due.fetch_add(1, Ordering::Relaxed);
            shared.asked.notify_one();
        }
        Frame::Pong => {
            if let Some(Some(waiting)) = shared.pongs().pop_front() {
                // Who waited may be gone.
                let _ = waiting.send(());
            }
        }
        Frame::Error(words) => shared.refusals.said(&words, &shared.troubles),
        Frame::Info(info) => {
            if let Ok(info) = serde_json::from_slice(&info) {
                shared.server.send_replace(info);
            }
        }
        Frame::Ok | Frame::Message(_) => {}
    }
}

async fn writing(
    shared: &Shared,
    mut socket: WriteHalf<Box<dyn Socket>>,
    commands: &mut mpsc::Receiver<Command>,
) -> String {
    let mut out = Vec::new();
    for (sid, subscription) in &*shared.subscriptions() {
        subscribe(*sid, subscription, &mut out);
    }
    let mut alive = tokio::time::interval(PING);
    alive.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    alive.reset();
    let mut waiting = Vec::new();
    let mut reads = shared.reads.load(Ordering::Relaxed);
    loop {
        if !out.is_empty() {
            let written = async {
                socket.write_all(&out).await?;
                socket.flush().await
            };
            match timeout(WRITTEN_WITHIN, written).await {
                Ok(Ok(())) => out.clear(),
                Ok(Err(error)) => return error.to_string(),
                Err(_) => return "the server takes nothing".into(),
            }
        }
        tokio::select! {
            () = shared.asked.notified() => {}
            count = commands.recv_many(&mut waiting, BURST) => if count == 0 {
                return "nobody uses the connection any more".into();
            },
            _ = alive.tick() => {
                let mut pongs = shared.pongs();
                let before = std::mem::replace(&mut reads, shared.reads.load(Ordering::Relaxed));
                // An answer may wait behind a message that is long on its way.
                if reads == before && pongs.iter().filter(|waiting| waiting.is_none()).count() >= 2 {
                    return "the server says nothing".into();
                }
                pongs.push_back(None);
                out.extend_from_slice(b"PING\r\n");
            }
        }
        for _ in 0..shared.due.swap(0, Ordering::Relaxed) {
            out.extend_from_slice(b"PONG\r\n");
        }
        for command in waiting.drain(..) {
            match command {
                Command::Subscribe(sid) => {
                    if let Some(subscription) = shared.subscriptions().get(&sid) {
                        subscribe(sid, subscription, &mut out);
                    }
                }
                Command::Unsubscribe(sid) => out.extend_from_slice(format!("UNSUB {sid}\r\n").as_bytes()),
                Command::Write(frame) => out.extend_from_slice(&frame),
                Command::Flush(done) => {
                    shared.pongs().push_back(Some(done));
                    out.extend_from_slice(b"PING\r\n");
                }
            }
        }
    }
}

fn subscribe(sid: u64, subscription: &Subscription, out: &mut Vec<u8>) {
    let line = match &subscription.queue {
        Some(queue) => format!("SUB {} {queue} {sid}\r\n", subscription.subject),
        None => format!("SUB {} {sid}\r\n", subscription.subject),
    };
    out.extend_from_slice(line.as_bytes());
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("server", &self.server_id()).finish_non_exhaustive()
    }
}
