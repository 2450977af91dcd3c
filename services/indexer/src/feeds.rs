//! The tasks that feed a bucket's worker: mutation topic, sessions, stability broadcasts; and the one that speaks its HWT.

use crate::{
    config::{QUEUE_BYTES, SESSION_BYTES, SESSION_DURABLE},
    core::Batch,
    payload::Payload,
    worker::Event,
};
use highwater_bus::{Bus, BusError, ReadFrom, StreamMessage, StreamReader, Subscription, fault};
use highwater_schemas::{
    subjects,
    wire::{self, HighWatermark, Missed, Stability},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::{Instant, sleep_until, timeout_at},
};

/// Messages taken at once.
const TAKE: usize = 64;
/// A topic that cannot be read is tried at least this often.
const LONGEST: Duration = Duration::from_secs(1);
/// One that is not what it was is read from its beginning after this.
const AGAIN: Duration = Duration::from_millis(200);
/// HWT on progress, no faster than this.
const HWT_SPACING: Duration = Duration::from_millis(5);
/// HWT of an idle bucket is repeated this often: broadcasts are lossy.
const HWT_REPEAT: Duration = Duration::from_millis(500);
/// A damaged source of messages is logged once; then only counted.
pub(crate) type Refused = Arc<AtomicU64>;

/// Bytes of batches that a session may bring before a slice is made durable, so that its topic gets room: half of what the topic
/// holds.
#[derive(Clone, Debug)]
pub(crate) struct SessionShare(Arc<AtomicUsize>);

impl Default for SessionShare {
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(SESSION_DURABLE)))
    }
}

impl SessionShare {
    pub(crate) fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// The topic holds so many bytes; 0: no limit.
    fn of_topic(&self, max_bytes: i64) {
        let half = usize::try_from(max_bytes / 2).ok().filter(|half| *half > 0);
        self.0.store(half.map_or(SESSION_DURABLE, |half| half.min(SESSION_DURABLE)), Ordering::Relaxed);
    }
}

/// What every feed of a bucket has in common.
#[derive(Clone)]
pub(crate) struct Feed {
    pub(crate) bus: Bus,
    pub(crate) bucket: String,
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) refused: Refused,
    pub(crate) share: SessionShare,
}

impl Feed {
    /// Follows the mutation topic from where the slices stand.
    pub(crate) async fn mutation(self, node: String, mut resume: Option<(u64, i64)>) {
        let stream = subjects::mutation_stream(&self.bucket);
        let subject = subjects::mutation(&self.bucket, &node);
        let share = Arc::new(Semaphore::new(QUEUE_BYTES));
        let mut first = true;
        let mut retry = self.bus.retry(format!("reading stream {stream}")).within(LONGEST);
        loop {
            let state = match self.bus.stream_state(&stream).await {
                Ok(state) => state,
                Err(error) => {
                    retry.wait(&error).await;
                    continue;
                }
            };
            let after = match resume {
                // Nothing is stored: what comes from now on is enough, sessions bring the rest.
                None if first => state.last_seq,
                Some((after, created)) if created == state.created && after <= state.last_seq => after,
                // Another topic, or one that lost its tail: from its beginning, and the chain decides.
                _ => 0,
            };
            first = false;
            // Nothing is left of it that could still help.
            let cut = resume.is_some() && state.first_seq > state.last_seq.max(after);
            let from =
                ReadFrom { after, filter: Some(subject.clone()), created: Some(state.created), ..ReadFrom::default() };
            match StreamReader::open(&self.bus, &stream, from).await {
                Ok(reader) => {
                    retry.over();
                    let now = state.now.max(state.last_time);
                    let opened = Event::TopicOpened { after, created: reader.created(), cut, now };
                    if self.events.send(opened).await.is_err() {
                        return;
                    }
                    if self
                        .pump(reader, &share, QUEUE_BYTES, |topic, batch| Event::Live { topic, batch })
                        .await
                        .is_err()
                    {
                        return;
                    }
                    resume = None;
                }
                Err(error) => retry.wait(&error).await,
            }
        }
    }

    /// Follows a session until aborted.
    pub(crate) async fn session(self, session: u64) {
        let stream = subjects::catchup_stream(&self.bucket);
        let filter = Some(subjects::catchup(&self.bucket, session));
        let from = ReadFrom { after: 0, filter, apart: true, ..ReadFrom::default() };
        let share = Arc::new(Semaphore::new(SESSION_BYTES));
        let mut retry = self.bus.retry(format!("reading session {session} of stream {stream}")).within(LONGEST);
        loop {
            if let Ok(state) = self.bus.stream_state(&stream).await {
                self.share.of_topic(state.config.max_bytes);
            }
            match StreamReader::open(&self.bus, &stream, from.clone()).await {
                Ok(reader) => {
                    retry.over();
                    if self
                        .pump(reader, &share, SESSION_BYTES, |topic, batch| Event::Session { session, topic, batch })
                        .await
                        .is_err()
                    {
                        return;
                    }
                }
                Err(error) => retry.wait(&error).await,
            }
        }
    }

    /// Hands on batches until the stream changes (Ok) or nobody wants them any more (Err).
    async fn pump(
        &self,
        mut reader: StreamReader,
        share: &Arc<Semaphore>,
        quota: usize,
        event: impl Fn(u64, Arc<Batch>) -> Event,
    ) -> Result<(), ()> {
        let mut messages: Vec<StreamMessage> = Vec::new();
        let mut retry = self.bus.retry(format!("reading topics of bucket {}", self.bucket)).within(LONGEST);
        loop {
            fault("feed", &self.bucket);
            match reader.next_ready(TAKE, &mut messages).await {
                Ok(()) => retry.over(),
                Err(error @ BusError::StreamChanged { .. }) => {
                    tracing::warn!(bucket = self.bucket, %error, "reading the topic from its beginning");
                    tokio::time::sleep(AGAIN).await;
                    return Ok(());
                }
                Err(error) => retry.wait(&error).await,
            }
            for message in messages.drain(..) {
                let size = message.payload().len().clamp(1, quota) as u32;
                let Ok(permit) = Arc::clone(share).acquire_many_owned(size).await else { return Err(()) };
                match Batch::parse(&self.bucket, Payload::new(message.payload_bytes(), Some(permit))) {
                    Ok(batch) => self.events.send(event(message.seq, Arc::new(batch))).await.map_err(|_| ())?,
                    Err(error) => {
                        if self.refused.fetch_add(1, Ordering::Relaxed) == 0 {
                            tracing::warn!(subject = &*message.subject_text(), seq = message.seq, %error, "refused a batch; further ones are only counted");
                        }
                    }
                }
            }
        }
    }

    /// Hands on the bucket's stability timestamps: of `first`, where that is open already.
    pub(crate) async fn stability(self, mut first: Option<Subscription>) {
        let subject = subjects::stability(&self.bucket);
        let mut retry = self.bus.retry(format!("subscription to {subject}")).within(LONGEST);
        loop {
            let mut subscription = match first.take() {
                Some(subscription) => subscription,
                None => match self.bus.subscribe(&subject).await {
                    Ok(subscription) => subscription,
                    Err(error) => {
                        retry.wait(&error).await;
                        continue;
                    }
                },
            };
            retry.over();
            while let Some(message) = subscription.next().await {
                fault("timestamps", &self.bucket);
                match wire::decode::<Stability>(&message.payload) {
                    Ok(stability) if stability.bucket == self.bucket => {
                        if self.events.send(Event::Stability(Box::new(stability))).await.is_err() {
                            return;
                        }
                    }
                    Ok(_) => {
                        self.refused.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => {
                        if self.refused.fetch_add(1, Ordering::Relaxed) == 0 {
                            tracing::warn!(subject, %error, "refused a stability timestamp; further ones are only counted");
                        }
                    }
                }
            }
        }
    }
}

/// Questions for stability timestamps that may wait; those beyond are asked again, or given up.
pub(crate) const QUESTIONS: usize = 8;

/// Publishes the HWT of one bucket when it moves, and now and then when it does not; and its questions at once.
pub(crate) async fn speak(
    bus: Bus,
    mut watermark: watch::Receiver<Option<HighWatermark>>,
    mut missed: mpsc::Receiver<Missed>,
) {
    let mut rested = Instant::now();
    loop {
        fault("speaker", "");
        let moved = async {
            sleep_until(rested).await;
            timeout_at(rested + HWT_REPEAT, watermark.changed()).await
        };
        tokio::select! {
            moved = moved => if let Ok(Err(_)) = moved {
                return;
            },
            question = missed.recv() => {
                let Some(question) = question else { return };
                if let Err(error) = bus.publish(&subjects::missed(&question.bucket), wire::encode(&question)).await {
                    tracing::debug!(%error, "cannot ask for a stability timestamp");
                }
                continue;
            }
        }
        rested = Instant::now() + HWT_SPACING;
        let current = watermark.borrow_and_update().clone();
        if let Some(hwt) = current {
            let subject = subjects::hwt(&hwt.bucket, &hwt.node);
            if let Err(error) = bus.publish(&subject, wire::encode(&hwt)).await {
                tracing::debug!(%error, "cannot publish HWT");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_become_durable_at_half_of_their_topic() {
        let share = SessionShare::default();
        for (max_bytes, bytes) in
            [(-1, SESSION_DURABLE), (1 << 20, 1 << 19), (i64::MAX, SESSION_DURABLE), (0, SESSION_DURABLE)]
        {
            share.of_topic(max_bytes);
            assert_eq!(share.bytes(), bytes, "{max_bytes}");
        }
    }
}
