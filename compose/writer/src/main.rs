//! The writer of the compose stacks: puts and deletes documents in a key-value bucket for as long as it runs.
//!
//! It knows nothing of Highwater: it is what any NATS client is. Each write waits for its acknowledgement and is tried again
//! until it has one. `highwater-compose-writer check` exits with 0 while the last acknowledgement is recent.
//!
//! | environment | default | |
//! |---|---|---|
//! | `NATS_URL` | `nats://127.0.0.1:4222` | several with commas |
//! | `WRITER_BUCKET` | `readings` | created when it does not exist |
//! | `WRITER_REPLICAS` | 1 | of the bucket's stream |
//! | `WRITER_RATE` | 20 | writes per second, 1 to 1000 |
//! | `WRITER_KEYS` | 500 | different documents |

use anyhow::{Context, Result, bail, ensure};
use async_nats::{ConnectOptions, jetstream, jetstream::kv};
use serde_json::json;
use std::{fs, path::Path, process::ExitCode, str::FromStr, time::Duration};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval, sleep},
};

/// Touched at an acknowledgement: writable for every user in every container, also in a read-only one, and gone with it.
const ACKNOWLEDGED: &str = "/dev/shm/acknowledged";
/// An older acknowledgement means that the writer is stuck.
const RECENT: Duration = Duration::from_secs(15);
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// How often the file is touched, at most.
const TOUCH_AFTER: Duration = Duration::from_secs(1);
/// One write in so many is a delete.
const DELETE_EVERY: u64 = 37;
const ROOMS: u64 = 20;
/// Revisions kept of each key, since they are rewritten all the time.
const HISTORY: i64 = 8;

struct Settings {
    url: String,
    bucket: String,
    replicas: usize,
    rate: u32,
    keys: u64,
}

fn main() -> ExitCode {
    let outcome = match std::env::args().nth(1).as_deref() {
        None => run(),
        Some("check") => check(Path::new(ACKNOWLEDGED)),
        Some(other) => Err(anyhow::anyhow!("{other} is not known; the only argument is `check`")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("writer: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check(file: &Path) -> Result<()> {
    let age = fs::metadata(file)
        .and_then(|data| data.modified())
        .context("nothing was acknowledged yet")?
        .elapsed()
        .unwrap_or_default();
    ensure!(age < RECENT, "the last acknowledgement is {} s old", age.as_secs());
    Ok(())
}

fn run() -> Result<()> {
    let settings = Settings::read()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // The first process of a container is ended by no signal that it does not handle.
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            outcome = write(&settings) => outcome,
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        }
    })
}

async fn write(settings: &Settings) -> Result<()> {
    let servers: Vec<&str> = settings.url.split(',').collect();
    let options = ConnectOptions::new().name("writer").retry_on_initial_connect();
    let client = options.connect(servers).await.context("cannot connect to NATS_URL")?;
    let bucket = open(&jetstream::new(client), settings).await;
    println!("writing {} a second to {}", settings.rate, settings.bucket);
    let mut pace = interval(Duration::from_secs(1) / settings.rate);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut touched: Option<Instant> = None;
    for number in 0_u64.. {
        pace.tick().await;
        while let Err(error) = write_one(&bucket, settings, number).await {
            eprintln!("writer: {error:#}");
            sleep(RETRY_AFTER).await;
        }
        if touched.is_none_or(|then| then.elapsed() >= TOUCH_AFTER) {
            fs::write(ACKNOWLEDGED, number.to_string()).with_context(|| format!("cannot write {ACKNOWLEDGED}"))?;
            touched = Some(Instant::now());
        }
    }
    Ok(())
}

/// Opens or creates the bucket; JetStream may still be starting.
async fn open(context: &jetstream::Context, settings: &Settings) -> kv::Store {
    loop {
        let config = kv::Config {
            bucket: settings.bucket.clone(),
            history: HISTORY,
            num_replicas: settings.replicas,
            ..Default::default()
        };
        let error = match context.create_key_value(config).await {
            Ok(bucket) => return bucket,
            Err(error) => error,
        };
        // There already, with settings of its own.
        if let Ok(bucket) = context.get_key_value(&settings.bucket).await {
            return bucket;
        }
        eprintln!("writer: the bucket cannot be created: {error}");
        sleep(RETRY_AFTER).await;
    }
}

async fn write_one(bucket: &kv::Store, settings: &Settings, number: u64) -> Result<()> {
    // A prime step, so that neighbours in time are not neighbours in the index.
    let key = number.wrapping_mul(7_919) % settings.keys;
    let id = format!("sensor-{key:04}");
    if number % DELETE_EVERY == DELETE_EVERY - 1 {
        return bucket.delete(&id).await.with_context(|| format!("cannot delete {id}"));
    }
    let document = json!({"sensor": key, "room": format!("room-{:02}", key % ROOMS), "reading": number});
    bucket.put(&id, document.to_string().into()).await.with_context(|| format!("cannot put {id}"))?;
    Ok(())
}

impl Settings {
    fn read() -> Result<Self> {
        let settings = Self {
            url: text("NATS_URL", "nats://127.0.0.1:4222"),
            bucket: text("WRITER_BUCKET", "readings"),
            replicas: number("WRITER_REPLICAS", 1)?,
            rate: number("WRITER_RATE", 20)?,
            keys: number("WRITER_KEYS", 500)?,
        };
        if !(1..=1_000).contains(&settings.rate) {
            bail!("WRITER_RATE is from 1 to 1000");
        }
        ensure!(settings.keys > 0, "WRITER_KEYS is at least 1");
        Ok(settings)
    }
}

fn text(name: &str, default: &str) -> String {
    std::env::var(name).ok().filter(|value| !value.is_empty()).unwrap_or_else(|| default.to_owned())
}

fn number<T: FromStr>(name: &str, default: T) -> Result<T> {
    match std::env::var(name).ok().filter(|value| !value.is_empty()) {
        None => Ok(default),
        Some(value) => value.parse().ok().with_context(|| format!("{name} is not a number: {value}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_asks_for_a_recent_acknowledgement() {
        let file = std::env::temp_dir().join(format!("highwater-writer-check-{}", std::process::id()));
        assert!(check(&file).is_err(), "nothing acknowledged");
        fs::write(&file, "1").unwrap();
        assert!(check(&file).is_ok(), "acknowledged just now");
        let old = std::time::SystemTime::now() - RECENT;
        fs::File::options().write(true).open(&file).unwrap().set_modified(old).unwrap();
        assert!(check(&file).is_err(), "an old acknowledgement");
        fs::remove_file(&file).unwrap();
    }
}
