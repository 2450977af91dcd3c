//! Takes messages off a source stream, so that re-opening it never holds up the vbucket's task.

use highwater_bus::{
    Bus, BusError, Ending, List, ReadFrom, StreamMessage, StreamReader, fault,
    supervise::{self, Task},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Chunks that may wait for the vbucket task.
const CAPACITY: usize = 4;
/// Bytes of messages that may wait for it, but for one larger message.
const ROOM: usize = 1024 * 1024;
/// Up to this many readers of a process have all of [`ROOM`] each; beyond that they share what these have together.
const ROOMS: usize = 8;
/// Messages of one chunk.
const CHUNK: usize = 512;
/// A list of which nothing comes for so long may be complete.
const SILENCE: Duration = Duration::from_millis(100);
/// One of which nothing comes for so long, though it is not complete, is begun again.
const STALLED: Duration = Duration::from_secs(20);

/// What a pump yields.
#[derive(Debug)]
pub enum Pumped {
    /// The stream is open.
    Opened { created: i64 },
    /// The list that it began with is complete, up to this seqno.
    Listed { upto: u64 },
    Messages {
        messages: Vec<StreamMessage>,
        /// Rises when the reader was opened again after a server restart.
        restarts: u64,
        /// How often the connection on which answers come had been lost, at least, when the server sent them.
        losses: u64,
        /// Bytes of the queue that they take until this is dropped.
        room: OwnedSemaphorePermit,
    },
    /// The stream contradicts what was read before; nothing more comes.
    Changed(String),
}

/// Within this a pump that panicked has ended.
const ENDS: Duration = Duration::from_millis(100);

/// A pump at work.
#[must_use = "dropping it ends the pump"]
pub struct Running {
    task: Task,
    pub pumped: mpsc::Receiver<Pumped>,
}

impl Running {
    pub fn start(bus: &Bus, stream: &str, from: ReadFrom) -> Self {
        let (out, pumped) = mpsc::channel(CAPACITY);
        let reading = format!("reading source stream {stream}");
        let task = supervise::task(&bus.incidents(), reading, run(bus.clone(), stream.to_owned(), from, out));
        Self { task, pumped }
    }

    /// Nobody takes what it yields any more, so that it ends: whether it had panicked.
    pub async fn has_panicked(self) -> bool {
        drop(self.pumped);
        matches!(tokio::time::timeout(ENDS, self.task).await, Ok(Ending::Panicked(_)))
    }
}

/// Why a pump ends.
enum Over {
    /// Nobody takes what it yields.
    Unwanted,
    Changed(String),
}

/// Runs until the receiver is dropped or the stream contradicts.
async fn run(bus: Bus, stream: String, from: ReadFrom, out: mpsc::Sender<Pumped>) {
    let over = match open(&bus, &stream, from, &out).await {
        Ok(reader) => {
            let room = Arc::new(Semaphore::new(ROOM));
            let list = reader.list();
            Pump { bus, list, listed: 0, heard: Instant::now(), reader, out: &out, room, stream }.run().await
        }
        Err(over) => over,
    };
    if let Over::Changed(why) = over {
        // Who is told may be gone.
        let _ = out.send(Pumped::Changed(why)).await;
    }
}

async fn open(bus: &Bus, stream: &str, from: ReadFrom, out: &mpsc::Sender<Pumped>) -> Result<StreamReader, Over> {
    let mut retry = bus.retry(format!("reading source stream {stream}"));
    loop {
        match StreamReader::open(bus, stream, from.clone()).await {
            Ok(reader) => return Ok(reader),
            Err(BusError::StreamChanged { why, .. }) => return Err(Over::Changed(why)),
            Err(error) => {
                tokio::select! {
                    () = retry.wait(&error) => {}
                    () = out.closed() => return Err(Over::Unwanted),
                }
            }
        }
    }
}

struct Pump<'a> {
    bus: Bus,
    reader: StreamReader,
    /// The list that is not complete yet.
    list: Option<List>,
    /// The seqno up to which the completed list goes; 0 before that.
    listed: u64,
    /// When the list last brought something.
    heard: Instant,
    out: &'a mpsc::Sender<Pumped>,
    room: Arc<Semaphore>,
    stream: String,
}

impl Pump<'_> {
    async fn run(mut self) -> Over {
        let over = self.send(Pumped::Opened { created: self.reader.created() }).await;
        if let Err(over) = over {
            return over;
        }
        loop {
            if let Err(over) = self.step().await {
                return over;
            }
        }
    }

    async fn send(&self, pumped: Pumped) -> Result<(), Over> {
        self.out.send(pumped).await.map_err(|_| Over::Unwanted)
    }

    async fn send_messages(&self, messages: Vec<StreamMessage>, restarts: u64, losses: u64) -> Result<(), Over> {
        let bytes: usize = messages.iter().map(StreamMessage::size).sum();
        let taken = bytes.saturating_mul(self.bus.readers().div_ceil(ROOMS));
        let room = u32::try_from(taken.min(ROOM)).unwrap_or(u32::MAX);
        let room = tokio::select! {
            room = Arc::clone(&self.room).acquire_many_owned(room) => room.map_err(|_| Over::Unwanted)?,
            () = self.out.closed() => return Err(Over::Unwanted),
        };
        self.send(Pumped::Messages { messages, restarts, losses, room }).await
    }

    /// Takes what comes, and ends the list once the store says that it is complete.
    async fn step(&mut self) -> Result<(), Over> {
        fault("pump", &self.stream);
        let mut messages = Vec::new();
        // A list without messages is complete at once, else after the last one.
        let silence = match self.list {
            Some(list) if list.messages == 0 => Duration::ZERO,
            Some(_) => SILENCE,
            None => Duration::MAX,
        };
        tokio::select! {
            // Nothing that was taken is lost when the time is over: see the reader.
            read = tokio::time::timeout(silence, self.reader.next_ready(CHUNK, &mut messages)) => match read {
                Ok(Ok(())) => self.heard = Instant::now(),
                Err(_) => {}
                Ok(Err(BusError::StreamChanged { why, .. })) => return Err(Over::Changed(why)),
                Ok(Err(error)) => tracing::warn!(stream = self.stream, %error, "reading the source"),
            },
            () = self.out.closed() => return Err(Over::Unwanted),
        }
        // A message that was overwritten while the list was read may still arrive after the list was found complete without it.
        messages.drain(..messages.partition_point(|m| m.seq <= self.listed));
        let silent = messages.is_empty();
        let (restarts, losses) = (self.reader.restarts(), self.reader.losses());
        let Some(list) = self.list else {
            return self.send_messages(messages, restarts, losses).await;
        };
        let beyond = messages.split_off(messages.partition_point(|m| m.seq <= list.upto));
        let last = messages.last().map(|last| last.pending);
        if !messages.is_empty() {
            self.send_messages(messages, restarts, losses).await?;
        }
        // The list comes in the order of seqnos: what is beyond comes after all of it.
        if !beyond.is_empty() {
            self.end(list).await?;
            return self.send_messages(beyond, restarts, losses).await;
        }
        if silent || last == Some(0) {
            match self.reader.list_is_complete().await {
                Ok(true) => return self.end(list).await,
                Ok(false) => {}
                Err(BusError::StreamChanged { why, .. }) => return Err(Over::Changed(why)),
                Err(error) => tracing::debug!(stream = self.stream, %error, "whether a list is complete"),
            }
            if self.heard.elapsed() >= STALLED {
                return Err(Over::Changed("the list stopped before it was complete".into()));
            }
            if list.messages == 0 {
                // What is missing comes, or is asked for again.
                self.list = Some(List { messages: 1, ..list });
            }
        }
        Ok(())
    }

    async fn end(&mut self, list: List) -> Result<(), Over> {
        self.reader.list_ended().await.map_err(|error| Over::Changed(error.to_string()))?;
        self.list = None;
        self.listed = list.upto;
        self.send(Pumped::Listed { upto: list.upto }).await
    }
}
