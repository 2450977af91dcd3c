//! A connection to a nats-server that sends any bytes, as a client in another language might.

use anyhow::{Context, Result, bail, ensure};
use std::time::Duration;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};

const CONNECT: &[u8] =
    b"CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":true,\"protocol\":1}\r\n\
    SUB _INBOX.raw.* 1\r\n";
const HELLO_WITHIN: Duration = Duration::from_secs(10);

/// One connection.
pub struct Raw {
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
    requests: u64,
}

/// A message, or the server's answer to a PING.
enum Heard {
    Message { subject: Vec<u8>, headers: Vec<u8>, payload: Vec<u8> },
    Pong,
}

impl Raw {
    /// To the server that listens there.
    pub async fn connect(port: u16) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.context("no connection")?;
        let (read, write) = stream.into_split();
        let mut raw = Self { read: BufReader::new(read), write, requests: 0 };
        raw.line().await.context("no INFO")?;
        raw.write.write_all(CONNECT).await?;
        raw.flush().await?;
        Ok(raw)
    }

    /// Sends a message; with None it has no headers, which is not the same as a header block of 0 bytes.
    pub async fn publish(
        &mut self,
        subject: &[u8],
        reply: &[u8],
        headers: Option<&[u8]>,
        payload: &[u8],
    ) -> Result<()> {
        let mut frame = Vec::with_capacity(payload.len() + 256);
        frame.extend_from_slice(if headers.is_some() { b"HPUB " } else { b"PUB " });
        frame.extend_from_slice(subject);
        frame.push(b' ');
        if !reply.is_empty() {
            frame.extend_from_slice(reply);
            frame.push(b' ');
        }
        let block = headers.unwrap_or_default();
        if headers.is_some() {
            frame.extend_from_slice(format!("{} ", block.len()).as_bytes());
        }
        frame.extend_from_slice(format!("{}\r\n", block.len() + payload.len()).as_bytes());
        frame.extend_from_slice(block);
        frame.extend_from_slice(payload);
        frame.extend_from_slice(b"\r\n");
        self.write.write_all(&frame).await.context("the server has closed the connection")
    }

    /// Returns when the server has taken what was sent; an error when it has refused the connection for it.
    pub async fn flush(&mut self) -> Result<()> {
        self.write.write_all(b"PING\r\n").await?;
        timeout(HELLO_WITHIN, async {
            while !matches!(self.hear().await?, Heard::Pong) {}
            Ok(())
        })
        .await
        .context("no PONG")?
    }

    /// Sends a request. None: nobody listens, or there is no answer within that time.
    pub async fn request(
        &mut self,
        subject: &[u8],
        headers: Option<&[u8]>,
        payload: &[u8],
        within: Duration,
    ) -> Result<Option<Vec<u8>>> {
        self.requests += 1;
        let inbox = format!("_INBOX.raw.{}", self.requests).into_bytes();
        self.publish(subject, &inbox, headers, payload).await?;
        let answer = timeout(within, async {
            loop {
                match self.hear().await? {
                    Heard::Message { subject, headers, payload } if subject == inbox => {
                        return Ok((!headers.starts_with(b"NATS/1.0 503")).then_some(payload));
                    }
                    _ => {}
                }
            }
        });
        match answer.await {
            Ok(heard) => heard,
            Err(_) => Ok(None),
        }
    }

    async fn line(&mut self) -> Result<Vec<u8>> {
        let mut line = Vec::new();
        let read = self.read.read_until(b'\n', &mut line).await?;
        ensure!(read > 0, "the server has closed the connection");
        line.truncate(line.trim_ascii_end().len());
        Ok(line)
    }

    async fn hear(&mut self) -> Result<Heard> {
        loop {
            let line = self.line().await?;
            let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
            match words[0] {
                b"PING" => self.write.write_all(b"PONG\r\n").await?,
                b"PONG" => return Ok(Heard::Pong),
                b"INFO" | b"+OK" => {}
                // The connection goes on.
                b"-ERR" if line.starts_with(b"-ERR 'Permissions Violation") => {}
                kind @ (b"MSG" | b"HMSG") => {
                    let number = |word: &[u8]| std::str::from_utf8(word).ok()?.parse::<usize>().ok();
                    let total = words.last().and_then(|word| number(word)).context("a message without a length")?;
                    let block =
                        if kind == b"HMSG" { words.get(words.len() - 2).and_then(|word| number(word)) } else { None };
                    let mut body = vec![0; total + 2];
                    self.read.read_exact(&mut body).await?;
                    body.truncate(total);
                    let payload = body.split_off(block.unwrap_or(0));
                    return Ok(Heard::Message { subject: words[1].to_vec(), headers: body, payload });
                }
                _ => bail!("the server says {}", String::from_utf8_lossy(&line)),
            }
        }
    }
}
