//! Runs services: one per process, or all of them for `dev`.

mod child_nats;
mod dev;
mod ending;
mod notify;
mod services;

pub(crate) use dev::dev;
pub(crate) use services::{Kind, one};
