//! What `cargo xtask` and its tools share: where things are, how they are built, what people see.
//!
//! # Layout
//! - [`busy`]: threads that keep the processor busy, for tests
//! - [`commands`]: the commands of the tools
//! - [`dist`]: static binaries, and the archive with all that is installed
//! - [`workspace`]: the root, the target directory, cargo
//! - [`nats_server`]: finds a nats-server, or fetches one; [`python`] carries it
//! - [`term`]: steps with their times

pub mod busy;
pub mod commands;
pub mod dist;
pub mod nats_server;
pub mod python;
pub mod term;
pub mod workspace;
