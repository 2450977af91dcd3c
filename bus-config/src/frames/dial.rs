//! From a list of servers to a connection on which the server has answered.

use super::{
    codec::{self, Frame},
    credentials::Proof,
};
use crate::{error::BusError, settings::Target, supervise::Incidents, troubles::Troubles};
use async_nats::ServerAddr;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::BytesMut;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};

/// One server may take this long to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// Servers of a cluster that are remembered beside those that were given.
const MOST_DISCOVERED: usize = 256;
/// Free room in the buffer before it is read into.
pub(super) const READ: usize = 256 * 1024;

/// A byte stream to a server, encrypted or not.
pub(super) trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// What a server says of itself.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ServerInfo {
    pub(crate) server_id: String,
    pub(crate) server_name: String,
    pub(super) version: String,
    pub(super) max_payload: usize,
    nonce: String,
    tls_required: bool,
    tls_available: bool,
    connect_urls: Vec<String>,
}

/// A connection on which the server has answered.
pub(super) struct Dialled {
    pub(super) socket: Box<dyn Socket>,
    /// What was read beyond the answer.
    pub(super) buffer: BytesMut,
    pub(super) info: ServerInfo,
}

/// Why there is no connection.
#[derive(Debug, Clone)]
pub(super) enum DialError {
    /// The server does not take the credentials.
    Refused(String),
    Unreachable(String),
}

impl DialError {
    fn by_server(words: String) -> Self {
        let lower = words.to_lowercase();
        let refused = ["authorization", "authentication"].iter().any(|word| lower.contains(word));
        if refused { Self::Refused(words) } else { Self::Unreachable(words) }
    }
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Refused(why) | Self::Unreachable(why)) = self;
        f.write_str(why)
    }
}

/// Where to connect, and as whom.
pub(crate) struct Dial {
    target: Arc<Target>,
    discovered: Mutex<Vec<ServerAddr>>,
    incidents: Incidents,
}

impl Dial {
    pub(crate) fn new(target: Arc<Target>, troubles: Troubles) -> Self {
        Self { target, discovered: Mutex::default(), incidents: troubles.into() }
    }

    /// Reads the files that every connection needs.
    ///
    /// # Errors
    /// What is wrong with one of them.
    pub(crate) async fn check(&self) -> Result<(), String> {
        self.target.credentials.prove("").await?;
        if self.target.tls.wanted() {
            self.target.tls.config(&self.incidents).await?;
        }
        Ok(())
    }

    /// The error of who cannot connect at all.
    pub(super) fn failed(&self, error: &DialError) -> BusError {
        let url = self.target.servers.shown.clone();
        match error {
            DialError::Refused(_) => BusError::Credentials { url },
            DialError::Unreachable(why) => BusError::Unreachable { url, why: why.clone() },
        }
    }

    /// Tries each server once, those that were given first, beginning with the `attempt`th.
    ///
    /// # Errors
    /// What the last one said.
    pub(super) async fn connect(&self, attempt: usize) -> Result<Dialled, DialError> {
        let mut servers = self.target.servers.all.clone();
        let first = attempt % servers.len().max(1);
        servers.rotate_left(first);
        servers.extend(self.discovered.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned());
        let mut failed = DialError::Unreachable("no server is given".into());
        let several = servers.len() > 1;
        for server in servers {
            let at = |why: &str| {
                let place = if several { format!("{}:{}: ", server.host(), server.port()) } else { String::new() };
                DialError::Unreachable(place + why)
            };
            match timeout(ANSWERS_WITHIN, self.connect_to(&server)).await {
                Ok(Ok(dialled)) => {
                    self.discover(&server, &dialled.info);
                    return Ok(dialled);
                }
                Ok(Err(refused @ DialError::Refused(_))) => failed = refused,
                // That one server is away tells less than that another refuses.
                _ if matches!(failed, DialError::Refused(_)) => {}
                Ok(Err(DialError::Unreachable(why))) => failed = at(&why),
                Err(_) => failed = at("it does not answer in time"),
            }
        }
        Err(failed)
    }

    async fn connect_to(&self, server: &ServerAddr) -> Result<Dialled, DialError> {
        let text = |e: std::io::Error| DialError::Unreachable(e.to_string());
        let stream = TcpStream::connect((server.host(), server.port())).await.map_err(text)?;
        stream.set_nodelay(true).map_err(text)?;
        let mut socket: Box<dyn Socket> = Box::new(stream);
        let mut buffer = BytesMut::with_capacity(READ);
        let tls = &self.target.tls;
        if tls.first {
            socket = self.encrypt(server, socket).await.map_err(DialError::Unreachable)?;
        }
        let info = match next(&mut socket, &mut buffer).await.map_err(DialError::Unreachable)? {
            Frame::Info(info) => info,
            Frame::Error(words) => return Err(DialError::by_server(words)),
            _ => return Err(DialError::Unreachable("the server did not introduce itself".into())),
        };
        let info: ServerInfo = serde_json::from_slice(&info).map_err(|e| DialError::Unreachable(e.to_string()))?;
        let encrypted = info.tls_required || server.tls_required() || tls.wanted();
        if encrypted && !tls.first {
            if !info.tls_required && !info.tls_available {
                return Err(DialError::Unreachable("the server has no TLS".into()));
            }
            if !buffer.is_empty() {
                return Err(DialError::Unreachable("the server said more in the clear than who it is".into()));
            }
            socket = self.encrypt(server, socket).await.map_err(DialError::Unreachable)?;
        }
        let mut connect = json!({
            "verbose": false, "pedantic": false, "tls_required": encrypted, "name": self.target.name, "lang": "rust",
            "version": env!("CARGO_PKG_VERSION"), "protocol": 1, "echo": true, "headers": true, "no_responders": true,
        });
        let proof = self.target.credentials.prove(&info.nonce).await.map_err(DialError::Unreachable)?;
        prove(proof, connect.as_object_mut().unwrap_or(&mut Map::new()));
        let hello = format!("CONNECT {connect}\r\nPING\r\n");
        socket.write_all(hello.as_bytes()).await.map_err(text)?;
        socket.flush().await.map_err(text)?;
        loop {
            match next(&mut socket, &mut buffer).await.map_err(DialError::Unreachable)? {
                Frame::Pong => return Ok(Dialled { socket, buffer, info }),
                Frame::Error(words) => return Err(DialError::by_server(words)),
                _ => {}
            }
        }
    }

    async fn encrypt(&self, server: &ServerAddr, socket: Box<dyn Socket>) -> Result<Box<dyn Socket>, String> {
        let name = ServerName::try_from(server.host().to_owned()).map_err(|e| e.to_string())?;
        let connector = TlsConnector::from(Arc::new(self.target.tls.config(&self.incidents).await?));
        Ok(Box::new(connector.connect(name, socket).await.map_err(|e| e.to_string())?))
    }

    /// Remembers the servers of the cluster.
    fn discover(&self, from: &ServerAddr, info: &ServerInfo) {
        let scheme = if from.tls_required() { "tls" } else { "nats" };
        let found = info.connect_urls.iter().filter_map(|url| format!("{scheme}://{url}").parse::<ServerAddr>().ok());
        let place = |server: &ServerAddr| (server.host().to_owned(), server.port());
        let given: Vec<_> = self.target.servers.all.iter().map(place).collect();
        let mut discovered = self.discovered.lock().unwrap_or_else(PoisonError::into_inner);
        *discovered = found.filter(|server| !given.contains(&place(server))).take(MOST_DISCOVERED).collect();
    }
}

/// Fills in who connects.
fn prove(proof: Proof, connect: &mut Map<String, Value>) {
    let Proof { user, password, token, nkey, jwt, signature } = proof;
    let signature = signature.map(|signature| URL_SAFE_NO_PAD.encode(signature));
    let fields = [user, password, token, nkey, jwt, signature];
    for (name, value) in ["user", "pass", "auth_token", "nkey", "jwt", "sig"].into_iter().zip(fields) {
        if let Some(value) = value {
            connect.insert(name.into(), Value::String(value));
        }
    }
}

/// The next frame, read as it comes.
async fn next(socket: &mut Box<dyn Socket>, buffer: &mut BytesMut) -> Result<Frame, String> {
    loop {
        // Before it knows us the server sends no message.
        if let Some(frame) = codec::decode(buffer, &mut 0).map_err(|e| e.to_string())? {
            return Ok(frame);
        }
        match socket.read_buf(buffer).await {
            Ok(0) => return Err("the server ended the connection".into()),
            Ok(_) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
}

impl fmt::Debug for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dial").field("target", &self.target).finish_non_exhaustive()
    }
}
