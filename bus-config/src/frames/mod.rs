//! A small NATS connection of our own, for bytes that any client may have sent.
//!
//! nats-server checks little of what it stores and passes on: header blocks, subjects and reply subjects may hold any bytes but
//! the few that end a line. The client library refuses many of them, some by a panic that ends its connection. Where such
//! bytes can arrive (messages of streams, requests, service discovery, broadcasts) they are read here, by the lengths that the
//! server gives, and nothing in them is an error.
//!
//! # Layout
//! - [`codec`]: bytes of the connection → frames; pure
//! - [`headers`]: what we look up in a header block, leniently; pure
//! - [`inbox`]: what arrived for a subscriber and was not taken yet, bounded
//! - [`servers`]: a list of URLs, read; pure
//! - [`credentials`]: what a connection proves itself with
//! - [`tls`]: by what it is encrypted
//! - [`dial`]: from a list of servers to a connection that has answered
//! - [`link`]: the task of a connection: reads, writes, connects again
//!
//! # Tasks and queues
//! A [`Link`] has one task; it ends when the last handle is dropped. Commands wait in a channel of `link::COMMANDS`, a subscriber's
//! messages in its [`inbox::Inbox`], whose limits are named there. The task never waits for a subscriber.

pub mod codec;
pub(crate) mod credentials;
mod dial;
pub mod headers;
pub(crate) mod inbox;
mod link;
pub(crate) mod servers;
pub(crate) mod tls;

pub(crate) use dial::Dial;
pub(crate) use link::{Interest, Link};
