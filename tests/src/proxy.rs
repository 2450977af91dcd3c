//! A network between one component and its nats-server, which can be cut, can stall, can hold up some connections alone, and can
//! tamper with what the server says.

use anyhow::{Context, Result};
use std::{
    net::SocketAddr,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// Bytes that are passed on at once, and what the sockets towards the server keep: little, so that a stall is soon felt there.
const CHUNK: usize = 64 * 1024;

/// What becomes of what is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Passes,
    /// Nothing goes through, and nobody hears of it.
    Stalls,
    /// Connections end, and new ones end at once.
    Cut,
}

/// New connections whose first bytes have this text get no further.
type Held = Option<&'static str>;

/// How what the server says is tampered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tampering {
    Nothing,
    /// A connection brings what comes before this text, and no more.
    CutBefore(&'static str),
    /// Answers about this stream tell of a lower last sequence.
    LowerLastSeq(&'static str),
}

/// What is told to every connection, and what happened there.
#[derive(Clone)]
struct Settings {
    state: Arc<watch::Sender<State>>,
    held: Arc<watch::Sender<Held>>,
    tampering: Arc<watch::Sender<Tampering>>,
    /// Answers still to be changed. Goes on falling below zero with every further answer.
    left: Arc<AtomicI64>,
    /// How often a fault hit: a connection was held or cut short, or an answer was changed.
    faults_hit: Arc<AtomicU64>,
}

/// Passes connections on until it is dropped.
pub struct Proxy {
    url: String,
    settings: Settings,
    task: JoinHandle<()>,
}

impl Proxy {
    /// In front of a server on this machine.
    pub async fn start(port: u16) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no free port")?;
        let url = format!("nats://{}", listener.local_addr()?);
        let server = SocketAddr::from(([127, 0, 0, 1], port));
        let settings = Settings {
            state: Arc::new(watch::Sender::new(State::Passes)),
            held: Arc::new(watch::Sender::new(None)),
            tampering: Arc::new(watch::Sender::new(Tampering::Nothing)),
            left: Arc::default(),
            faults_hit: Arc::default(),
        };
        let told = settings.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, server, told.clone()));
            }
        });
        Ok(Self { url, settings, task })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Ends every connection, and takes none.
    pub fn cut(&self) {
        self.settings.state.send_replace(State::Cut);
    }

    /// Nothing more gets through, in either direction.
    pub fn stall(&self) {
        self.settings.state.send_replace(State::Stalls);
    }

    /// Connections that begin from now on and introduce themselves with this text wait.
    pub fn hold(&self, text: &'static str) {
        self.settings.held.send_replace(Some(text));
    }

    /// What the server sends gets through up to this text, and nothing more on that connection. Bytes that may be the beginning
    /// of the text are held back until the next ones show whether they are: it should begin with a byte that is rarely sent.
    pub fn cut_before(&self, text: &'static str) {
        self.settings.tampering.send_replace(Tampering::CutBefore(text));
    }

    /// In so many of the server's next answers about a stream the last sequence is 1, 10, 100 and so on, as long as the true one;
    /// those that follow are true again.
    pub fn lower_last_seq(&self, stream: &'static str, answers: u32) {
        self.settings.left.store(i64::from(answers), Ordering::Release);
        self.settings.tampering.send_replace(Tampering::LowerLastSeq(stream));
    }

    /// How often a fault hit so far: a connection was held or cut short, or an answer was changed.
    pub fn faults_hit(&self) -> u64 {
        self.settings.faults_hit.load(Ordering::Acquire)
    }

    /// All is well again.
    pub fn heal(&self) {
        self.settings.state.send_replace(State::Passes);
        self.settings.held.send_replace(None);
        self.settings.tampering.send_replace(Tampering::Nothing);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.settings.state.send_replace(State::Cut);
    }
}

async fn serve(client: TcpStream, server: SocketAddr, settings: Settings) {
    let (mut state, mut held) = (settings.state.subscribe(), settings.held.subscribe());
    let (up, down) = (state.clone(), state.clone());
    let (tampering, left, faults_hit) = (settings.tampering.subscribe(), settings.left, settings.faults_hit);
    let held_hits = Arc::clone(&faults_hit);
    let passed = async move {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(CHUNK as u32)?;
        let upstream = socket.connect(server).await?;
        let (mut from_client, to_client) = client.into_split();
        let (from_server, mut to_server) = upstream.into_split();
        let sent = async move {
            let mut first = vec![0; CHUNK];
            let read = from_client.read(&mut first).await?;
            let held_up = |text: &Held| text.is_some_and(|text| find(&first[..read], text.as_bytes()).is_some());
            if held_up(&held.borrow()) {
                held_hits.fetch_add(1, Ordering::Release);
            }
            // The sender outlives this task, so this cannot fail.
            let _ = held.wait_for(|text| !held_up(text)).await;
            to_server.write_all(&first[..read]).await?;
            pass(from_client, to_server, up, None).await
        };
        let tamperer = Tamperer { tampering, left, faults_hit, kept: Vec::new() };
        tokio::try_join!(sent, pass(from_server, to_client, down, Some(tamperer)))
    };
    tokio::select! {
        _ = passed => {}
        _ = state.wait_for(|state| *state == State::Cut) => {}
    }
}

/// Ends with an error when one side is gone, so that the other direction ends too.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut state: watch::Receiver<State>,
    mut tamperer: Option<Tamperer>,
) -> std::io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        // The sender outlives this task, so this cannot fail.
        let _ = state.wait_for(|state| *state == State::Passes).await;
        let read = from.read(&mut chunk).await?;
        if read == 0 {
            return Err(std::io::ErrorKind::ConnectionAborted.into());
        }
        let _ = state.wait_for(|state| *state == State::Passes).await;
        match &mut tamperer {
            Some(tamperer) => tamperer.pass(&chunk[..read], &mut to).await?,
            None => to.write_all(&chunk[..read]).await?,
        }
    }
}

/// Tampers with one connection.
struct Tamperer {
    tampering: watch::Receiver<Tampering>,
    left: Arc<AtomicI64>,
    faults_hit: Arc<AtomicU64>,
    /// What could be the beginning of the text that nothing gets beyond.
    kept: Vec<u8>,
}

impl Tamperer {
    async fn pass(&mut self, read: &[u8], to: &mut (impl AsyncWrite + Unpin)) -> std::io::Result<()> {
        let mut bytes = std::mem::take(&mut self.kept);
        bytes.extend_from_slice(read);
        let tampering = *self.tampering.borrow();
        match tampering {
            Tampering::Nothing => {}
            Tampering::LowerLastSeq(stream) => {
                if let Some(digits) = last_sequence(&bytes, stream)
                    && self.left.fetch_sub(1, Ordering::AcqRel) > 0
                {
                    lower(&mut bytes[digits]);
                    self.faults_hit.fetch_add(1, Ordering::Release);
                }
            }
            Tampering::CutBefore(text) => match find(&bytes, text.as_bytes()) {
                Some(at) => {
                    to.write_all(&bytes[..at]).await?;
                    bytes.drain(..at);
                    self.faults_hit.fetch_add(1, Ordering::Release);
                    // The sender outlives this task, so this cannot fail.
                    let _ = self.tampering.wait_for(|now| *now != tampering).await;
                }
                None => self.kept = bytes.split_off(bytes.len() - could_become(&bytes, text.as_bytes())),
            },
        }
        to.write_all(&bytes).await
    }
}

fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    bytes.windows(text.len()).position(|part| part == text)
}

/// How many of the last bytes are the beginning of a text, but not all of it.
fn could_become(bytes: &[u8], text: &[u8]) -> usize {
    (1..text.len()).rev().find(|many| bytes.ends_with(&text[..*many])).unwrap_or(0)
}

/// Where an answer about a stream has the digits of its last sequence; None: it is no such answer.
fn last_sequence(bytes: &[u8], stream: &str) -> Option<Range<usize>> {
    const LAST: &[u8] = b"\"last_seq\":";
    let named = find(bytes, format!("\"name\":\"{stream}\"").as_bytes())?;
    let begin = named + find(&bytes[named..], LAST)? + LAST.len();
    let digits = bytes[begin..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    (digits > 0).then(|| begin..begin + digits)
}

/// Makes of a number the lowest one of as many digits.
fn lower(digits: &mut [u8]) {
    digits.fill(b'0');
    if let Some(first) = digits.first_mut() {
        *first = b'1';
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = r#"{"config":{"name":"KV_a"},"state":{"first_seq":12,"last_seq":3156,"last_ts":"2"}}"#;

    #[test]
    fn an_answer_about_the_stream_tells_of_less_and_no_other_does() {
        let told = |answer: &str| {
            let mut bytes = answer.as_bytes().to_vec();
            let digits = last_sequence(&bytes, "KV_a")?;
            lower(&mut bytes[digits]);
            String::from_utf8(bytes).ok()
        };
        assert_eq!(told(ANSWER), Some(ANSWER.replace("3156", "1000")));
        for other in [ANSWER.replace("KV_a", "KV_b"), ANSWER.replace("last_seq", "seq"), ANSWER.replace("3156", "")] {
            assert_eq!(told(&other), None, "{other}");
        }
    }

    #[tokio::test]
    async fn as_many_answers_are_changed_as_were_asked_for() -> Result<()> {
        let settings = watch::Sender::new(Tampering::LowerLastSeq("KV_a"));
        let (left, faults_hit) = (Arc::new(AtomicI64::new(2)), Arc::<AtomicU64>::default());
        let mut heard: Vec<u8> = Vec::new();
        // Whichever connections they come over.
        for _ in 0..4 {
            let (tampering, left, faults_hit) = (settings.subscribe(), Arc::clone(&left), Arc::clone(&faults_hit));
            let mut tamperer = Tamperer { tampering, left, faults_hit, kept: Vec::new() };
            tamperer.pass(ANSWER.as_bytes(), &mut heard).await?;
        }
        let less = ANSWER.replace("3156", "1000");
        let heard = String::from_utf8(heard)?;
        anyhow::ensure!(heard == format!("{less}{less}{ANSWER}{ANSWER}"), "{heard}");
        anyhow::ensure!(faults_hit.load(Ordering::Acquire) == 2);
        Ok(())
    }

    #[tokio::test]
    async fn a_connection_is_cut_before_the_text_however_it_is_cut_into_pieces() -> Result<()> {
        let settings = watch::Sender::new(Tampering::CutBefore("~here~"));
        for at in 0..=16 {
            settings.send_replace(Tampering::CutBefore("~here~"));
            let (tampering, faults_hit) = (settings.subscribe(), Arc::<AtomicU64>::default());
            let mut tamperer =
                Tamperer { tampering, left: Arc::default(), faults_hit: Arc::clone(&faults_hit), kept: Vec::new() };
            let (mut to, mut heard) = tokio::io::duplex(64);
            let (one, two) = b"one~~here~two~ha".split_at(at);
            let passed = tokio::spawn(async move {
                tamperer.pass(one, &mut to).await?;
                tamperer.pass(two, &mut to).await
            });
            let mut before = [0; 4];
            heard.read_exact(&mut before).await?;
            anyhow::ensure!(&before == b"one~", "{at}: {before:?}");
            while faults_hit.load(Ordering::Acquire) == 0 {
                tokio::task::yield_now().await;
            }
            settings.send_replace(Tampering::Nothing);
            let mut after = Vec::new();
            heard.read_to_end(&mut after).await?;
            passed.await??;
            anyhow::ensure!(after == b"~here~two~ha", "{at}: {}", String::from_utf8_lossy(&after));
        }
        Ok(())
    }
}
