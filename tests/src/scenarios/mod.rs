//! What is done to a deployment, which may have one nats-server or several, and what must hold afterwards.

pub mod copies;
pub mod log;
pub mod sleep;
