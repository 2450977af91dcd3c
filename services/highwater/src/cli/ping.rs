//! `highwater ping`: whether a node serves, or NATS does; what supervisors run as a health check.

use crate::args::Ping;
use anyhow::{Context, Result, ensure};
use highwater_bus::Bus;
use highwater_schemas::{api, names, subjects};
use std::time::{Duration, Instant};

pub(crate) async fn ping(args: Ping) -> Result<()> {
    if let Some(node) = &args.node {
        names::check("node", node)?;
    }
    let since = Instant::now();
    let within = Duration::from_millis(args.timeout_ms);
    let who = args.node.as_deref().unwrap_or("NATS");
    // Over the whole: connecting to a server that is not there has a patience of its own.
    tokio::time::timeout(within, answer(&args, within))
        .await
        .with_context(|| format!("{who} did not answer within {} ms", args.timeout_ms))??;
    println!("{who} answers ({:.1} ms)", since.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

async fn answer(args: &Ping, within: Duration) -> Result<()> {
    let bus = Bus::connect(&args.nats.settings("highwater ping")).await?;
    let Some(node) = &args.node else {
        ensure!(bus.jetstream_answers().await?, "NATS takes connections, but JetStream does not answer");
        return Ok(());
    };
    let reply = bus.request(&subjects::node(node, "ping"), b"{}".to_vec(), within).await?;
    api::reply(&reply.payload)?;
    Ok(())
}
