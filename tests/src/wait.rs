//! Waiting for an event.

use anyhow::{Result, bail};
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(10);
/// Times that a machine may be slower than the one for which the tests name their limits: a limit tells what hangs, not what is
/// slow.
pub(crate) const SLOWER: u32 = 4;

/// Asks again and again until `ask` answers with something; fails with `what` and the last answer's reason when that takes
/// several times as long as `within`.
pub async fn until<T, F: Future<Output = Result<T, String>>>(
    what: &str,
    within: Duration,
    mut ask: impl FnMut() -> F,
) -> Result<T> {
    let deadline = Instant::now() + within * SLOWER;
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(reason) if Instant::now() >= deadline => bail!("{what}: not within {:?}: {reason}", within * SLOWER),
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}
