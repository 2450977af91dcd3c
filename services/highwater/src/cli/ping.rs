//! `highwater ping`: whether a node serves, or NATS does; what supervisors run as a health check.

use crate::args::Ping;
use anyhow::{Result, bail};
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
    let mut connected = None;
    // Over the whole: connecting to a server that is not there has a patience of its own.
    if let Ok(answered) = tokio::time::timeout(within, answer(&args, within, &mut connected)).await {
        answered?;
    } else {
        let mut why = vec![format!("{who} did not answer within {} ms", args.timeout_ms)];
        let troubles = connected.map(|bus: Bus| bus.troubles()).unwrap_or_default();
        why.extend(troubles.iter().map(|trouble| format!("{}: {}", trouble.what, trouble.error)));
        bail!(why.join("; "));
    }
    println!("{who} answers ({:.1} ms)", since.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

async fn answer(args: &Ping, within: Duration, connected: &mut Option<Bus>) -> Result<()> {
    let bus = connected.insert(Bus::connect(&args.nats.settings("highwater ping")?).await?);
    let Some(node) = &args.node else { return Ok(bus.check_nats().await?) };
    let reply = bus.request(&subjects::node(node, "ping"), b"{}".to_vec(), within).await?;
    api::reply(&reply.payload)?;
    Ok(())
}
