//! Waiting for an event.

use anyhow::{Result, bail};
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(10);
/// Times that a machine may be slower than the one for which the tests name their limits: a limit tells what hangs, not what is
/// slow.
const SLOWER: u32 = 4;

/// Several times as long as `within`.
pub fn stretched(within: Duration) -> Duration {
    within * SLOWER
}

/// When what takes several times as long as `within` hangs.
pub fn deadline(within: Duration) -> Instant {
    Instant::now() + stretched(within)
}

/// Asks again and again until `ask` answers with something; fails with `what` and the last answer's reason when that takes
/// several times as long as `within`.
pub async fn until<T, F: Future<Output = Result<T, String>>>(
    what: &str,
    within: Duration,
    mut ask: impl FnMut() -> F,
) -> Result<T> {
    let deadline = deadline(within);
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(reason) if Instant::now() >= deadline => bail!("{what}: not within {:?}: {reason}", stretched(within)),
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}
