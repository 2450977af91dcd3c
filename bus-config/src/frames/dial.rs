//! From a list of servers to a connection on which the server has answered.

use super::{
    codec::{self, Frame},
    credentials::Credentials,
};
use async_nats::ServerAddr;
use bytes::BytesMut;
use serde::Deserialize;
use serde_json::{Map, json};
use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, pki_types::ServerName},
};

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
    pub(super) max_payload: usize,
    nonce: String,
    tls_required: bool,
    connect_urls: Vec<String>,
}

/// A connection on which the server has answered.
pub(super) struct Dialled {
    pub(super) socket: Box<dyn Socket>,
    /// What was read beyond the answer.
    pub(super) buffer: BytesMut,
    pub(super) info: ServerInfo,
}

/// Where to connect, and as whom.
pub(crate) struct Dial {
    given: Vec<ServerAddr>,
    discovered: Mutex<Vec<ServerAddr>>,
    credentials: Credentials,
    name: String,
    tls: Mutex<Option<Arc<ClientConfig>>>,
}

impl Dial {
    /// The servers of a comma separated list of URLs.
    ///
    /// # Errors
    /// One of them is no NATS URL.
    pub(crate) fn new(urls: &str, credentials: Credentials, name: &str) -> io::Result<Self> {
        let given = urls.split(',').map(|url| url.trim().parse()).collect::<io::Result<Vec<ServerAddr>>>()?;
        Ok(Self { given, discovered: Mutex::default(), credentials, name: name.into(), tls: Mutex::default() })
    }

    /// Tries each server once, those that were given first, beginning with the `attempt`th.
    ///
    /// # Errors
    /// What the last one said.
    pub(super) async fn connect(&self, attempt: usize) -> Result<Dialled, String> {
        let mut servers = self.given.clone();
        let first = attempt % servers.len().max(1);
        servers.rotate_left(first);
        servers.extend(self.discovered.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned());
        let mut why = "no server is given".into();
        for server in servers {
            match timeout(ANSWERS_WITHIN, self.connect_to(&server)).await {
                Ok(Ok(dialled)) => {
                    self.discover(&server, &dialled.info);
                    return Ok(dialled);
                }
                Ok(Err(error)) => why = error,
                Err(_) => why = format!("{}:{} does not answer in time", server.host(), server.port()),
            }
        }
        Err(why)
    }

    async fn connect_to(&self, server: &ServerAddr) -> Result<Dialled, String> {
        let text = |e: io::Error| format!("{}:{}: {e}", server.host(), server.port());
        let stream = TcpStream::connect((server.host(), server.port())).await.map_err(text)?;
        stream.set_nodelay(true).map_err(text)?;
        let mut socket: Box<dyn Socket> = Box::new(stream);
        let mut buffer = BytesMut::with_capacity(READ);
        let Frame::Info(info) = next(&mut socket, &mut buffer).await? else {
            return Err("the server did not introduce itself".into());
        };
        let info: ServerInfo = serde_json::from_slice(&info).map_err(|e| e.to_string())?;
        let encrypted = info.tls_required || server.tls_required();
        if encrypted {
            let name = ServerName::try_from(server.host().to_owned()).map_err(|e| e.to_string())?;
            let connector = TlsConnector::from(self.tls()?);
            socket = Box::new(connector.connect(name, socket).await.map_err(text)?);
        }
        let mut connect = json!({
            "verbose": false, "pedantic": false, "tls_required": encrypted, "name": self.name, "lang": "rust",
            "version": env!("CARGO_PKG_VERSION"), "protocol": 1, "echo": true, "headers": true, "no_responders": true,
        });
        self.credentials.prove(&info.nonce, connect.as_object_mut().unwrap_or(&mut Map::new()))?;
        let hello = format!("CONNECT {connect}\r\nPING\r\n");
        socket.write_all(hello.as_bytes()).await.map_err(text)?;
        socket.flush().await.map_err(text)?;
        loop {
            match next(&mut socket, &mut buffer).await? {
                Frame::Pong => return Ok(Dialled { socket, buffer, info }),
                Frame::Error(error) => return Err(error),
                _ => {}
            }
        }
    }

    /// Remembers the servers of the cluster.
    fn discover(&self, from: &ServerAddr, info: &ServerInfo) {
        let scheme = if from.tls_required() { "tls" } else { "nats" };
        let found = info.connect_urls.iter().filter_map(|url| format!("{scheme}://{url}").parse::<ServerAddr>().ok());
        let place = |server: &ServerAddr| (server.host().to_owned(), server.port());
        let given: Vec<_> = self.given.iter().map(place).collect();
        let mut discovered = self.discovered.lock().unwrap_or_else(PoisonError::into_inner);
        *discovered = found.filter(|server| !given.contains(&place(server))).take(MOST_DISCOVERED).collect();
    }

    /// Trusts what the system trusts, as the client library does.
    fn tls(&self) -> Result<Arc<ClientConfig>, String> {
        if let Some(config) = &*self.tls.lock().unwrap_or_else(PoisonError::into_inner) {
            return Ok(Arc::clone(config));
        }
        let found = rustls_native_certs::load_native_certs();
        if found.certs.is_empty() {
            let why = found.errors.first().map_or_else(|| "there are none".into(), ToString::to_string);
            return Err(format!("the certificates that the system trusts cannot be read: {why}"));
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(found.certs);
        let config = Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth());
        *self.tls.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&config));
        Ok(config)
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

impl std::fmt::Debug for Dial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dial").field("name", &self.name).finish_non_exhaustive()
    }
}
