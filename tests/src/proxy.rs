//! A network between one component and its nats-server, which can be cut, can stall, and can hold up some connections alone.

use anyhow::{Context, Result};
use std::{net::SocketAddr, sync::Arc};
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

/// Passes connections on until it is dropped.
pub struct Proxy {
    url: String,
    state: Arc<watch::Sender<State>>,
    held: Arc<watch::Sender<Held>>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// In front of a server on this machine.
    pub async fn start(port: u16) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no free port")?;
        let url = format!("nats://{}", listener.local_addr()?);
        let state = Arc::new(watch::Sender::new(State::Passes));
        let server = SocketAddr::from(([127, 0, 0, 1], port));
        let held = Arc::new(watch::Sender::new(None));
        let (told, holds) = (Arc::clone(&state), Arc::clone(&held));
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, server, told.subscribe(), holds.subscribe()));
            }
        });
        Ok(Self { url, state, held, task })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Ends every connection, and takes none.
    pub fn cut(&self) {
        self.state.send_replace(State::Cut);
    }

    /// Nothing more gets through, in either direction.
    pub fn stall(&self) {
        self.state.send_replace(State::Stalls);
    }

    /// Connections that begin from now on and introduce themselves with this text wait.
    pub fn hold(&self, text: &'static str) {
        self.held.send_replace(Some(text));
    }

    /// All is well again.
    pub fn heal(&self) {
        self.state.send_replace(State::Passes);
        self.held.send_replace(None);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.state.send_replace(State::Cut);
    }
}

async fn serve(
    client: TcpStream,
    server: SocketAddr,
    mut state: watch::Receiver<State>,
    mut held: watch::Receiver<Held>,
) {
    let (up, down) = (state.clone(), state.clone());
    let passed = async move {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(CHUNK as u32)?;
        let upstream = socket.connect(server).await?;
        let (mut from_client, to_client) = client.into_split();
        let (from_server, mut to_server) = upstream.into_split();
        let sent = async move {
            let mut first = vec![0; CHUNK];
            let read = from_client.read(&mut first).await?;
            let held_up = |text: &Held| {
                text.is_some_and(|text| first[..read].windows(text.len()).any(|part| part == text.as_bytes()))
            };
            // Whoever tells has not gone before this.
            let _ = held.wait_for(|text| !held_up(text)).await;
            to_server.write_all(&first[..read]).await?;
            pass(from_client, to_server, up).await
        };
        tokio::try_join!(sent, pass(from_server, to_client, down))
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
) -> std::io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        // Whoever tells has not gone before this.
        let _ = state.wait_for(|state| *state == State::Passes).await;
        let read = from.read(&mut chunk).await?;
        if read == 0 {
            return Err(std::io::ErrorKind::ConnectionAborted.into());
        }
        let _ = state.wait_for(|state| *state == State::Passes).await;
        to.write_all(&chunk[..read]).await?;
    }
}
