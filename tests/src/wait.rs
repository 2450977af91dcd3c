//! Waiting for an event.

use anyhow::{Result, bail};
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(10);

/// Asks again and again until `ask` answers with something; fails with `what` and the last answer's reason after `within`.
pub async fn until<T, F: Future<Output = Result<T, String>>>(
    what: &str,
    within: Duration,
    mut ask: impl FnMut() -> F,
) -> Result<T> {
    let deadline = Instant::now() + within;
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(reason) if Instant::now() >= deadline => bail!("{what}: not within {within:?}: {reason}"),
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}
