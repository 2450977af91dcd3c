//! Limits of the services as flags and environment variables. What each may be is the service's own to say; a value beyond it is
//! a usage error.

use clap::{Args as ClapArgs, value_parser};
use highwater_bus::{
    StreamSettings,
    allowed::{CLUSTER_BYTES, STATE_BYTES, TOPIC_BYTES},
};
use highwater_catalog::{Deadlines, MAX_IN_FLIGHT, PAGE_BYTES, TIMEOUT_MS};
use highwater_cluster_manager as cluster;
use highwater_coordinator::RECONCILE_INTERVAL_S;
use highwater_indexer::config::allowed;
use std::{ops::RangeInclusive, time::Duration};

/// Units of sizes, the largest first.
const UNITS: [(&str, u64); 5] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Those of all services.
#[derive(ClapArgs, Clone, Default)]
pub(crate) struct Limits {
    #[command(flatten)]
    pub(crate) cluster: ClusterLimits,
    #[command(flatten)]
    pub(crate) reconciles: Reconciles,
    #[command(flatten)]
    pub(crate) indexer: IndexerLimits,
    #[command(flatten)]
    pub(crate) catalog: CatalogLimits,
}

/// Sizes are numbers of bytes with an optional unit, such as 96MiB or 1GiB.
#[derive(ClapArgs, Clone)]
#[command(next_help_heading = "Limits of an indexer")]
pub(crate) struct IndexerLimits {
    /// Memory of all slices together, bytes: from half of it on the larger ones become durable out of turn, at twice as much builds wait, at four times as much everything.
    #[arg(long, env = "HIGHWATER_MEMORY_QUOTA", value_name = "SIZE", default_value = "96MiB", value_parser = size(allowed::MEMORY_QUOTA))]
    memory_quota: u64,
    /// Layers in memory that a scan meets at most, as far as merging keeps up.
    #[arg(long, env = "HIGHWATER_MERGE_LAYERS", value_name = "LAYERS", default_value_t = 8, value_parser = value_parser!(u64).range(allowed::MERGE_LAYERS))]
    merge_layers: u64,
    /// How long a stability timestamp stays readable after a newer one, unless a page token leases it, milliseconds.
    #[arg(long, env = "HIGHWATER_SNAPSHOT_AGE_MS", value_name = "MS", default_value_t = 2_000, value_parser = value_parser!(u64).range(allowed::SNAPSHOT_AGE_MS))]
    snapshot_age_ms: u64,
    /// Scans that run at once; more wait for their turn.
    #[arg(long, env = "HIGHWATER_SCANS", value_name = "SCANS", default_value_t = 32, value_parser = value_parser!(u64).range(allowed::SCANS))]
    scans: u64,
    /// Address space reserved for each slice, bytes; less where many slices share what the process has. Files grow as needed.
    #[arg(long, env = "HIGHWATER_MAP_SIZE", value_name = "SIZE", default_value = "64GiB", value_parser = size(allowed::MAP))]
    map_size: u64,
    /// How much more is reserved when a slice has outgrown that, bytes.
    #[arg(long, env = "HIGHWATER_MAP_GROWTH", value_name = "SIZE", default_value = "64GiB", value_parser = size(allowed::MAP))]
    map_growth: u64,
    /// Undo records of a slice, bytes; beyond it its oldest kept snapshots go first.
    #[arg(long, env = "HIGHWATER_UNDO_QUOTA", value_name = "SIZE", default_value = "1GiB", value_parser = size(allowed::UNDO_QUOTA))]
    undo_quota: u64,
    /// How long snapshots are kept to go back to, seconds.
    #[arg(long, env = "HIGHWATER_KEPT_FOR_S", value_name = "S", default_value_t = 180, value_parser = value_parser!(u64).range(allowed::KEPT_FOR_S))]
    kept_for_s: u64,
    /// How many snapshots are kept at least, however old.
    #[arg(long, env = "HIGHWATER_KEPT_LEAST", value_name = "SNAPSHOTS", default_value_t = 5, value_parser = value_parser!(u64).range(allowed::KEPT_LEAST))]
    kept_least: u64,
    /// Entries that the last step of a build holds in memory, bytes; beyond it they are sorted on disk.
    #[arg(long, env = "HIGHWATER_BUILD_MEMORY", value_name = "SIZE", default_value = "32MiB", value_parser = size(allowed::BUILD_MEMORY))]
    build_memory: u64,
}

/// Limits of a catalog.
#[derive(ClapArgs, Clone)]
#[command(next_help_heading = "Limits of a catalog")]
pub(crate) struct CatalogLimits {
    /// How long a scan or count may take that does not say, milliseconds.
    #[arg(long, env = "HIGHWATER_SCAN_TIMEOUT_MS", value_name = "MS", default_value_t = 5_000, value_parser = value_parser!(u64).range(TIMEOUT_MS))]
    scan_timeout_ms: u64,
    /// The longest that a scan or count may ask for, milliseconds.
    #[arg(long, env = "HIGHWATER_MAX_SCAN_TIMEOUT_MS", value_name = "MS", default_value_t = 60_000, value_parser = value_parser!(u64).range(TIMEOUT_MS))]
    max_scan_timeout_ms: u64,
    /// The most bytes in one page of rows; never more than NATS takes in one message.
    #[arg(long, env = "HIGHWATER_PAGE_BYTES", value_name = "SIZE", default_value = "64MiB", value_parser = size(PAGE_BYTES))]
    page_bytes: u64,
    /// Requests that are worked on at once; more are refused.
    #[arg(long, env = "HIGHWATER_IN_FLIGHT", value_name = "REQUESTS", default_value_t = 256, value_parser = value_parser!(u64).range(1..=MAX_IN_FLIGHT as u64))]
    in_flight: u64,
}

/// Timing of a cluster manager.
#[derive(ClapArgs, Clone)]
#[command(next_help_heading = "Timing of a cluster manager")]
pub(crate) struct ClusterLimits {
    /// How often every node reports, milliseconds.
    #[arg(long, env = "HIGHWATER_HEARTBEAT_MS", value_name = "MS", default_value_t = 500, value_parser = value_parser!(u64).range(cluster::allowed::HEARTBEAT_MS))]
    heartbeat_ms: u64,
    /// A node that misses this many heartbeats is down.
    #[arg(long, env = "HIGHWATER_MISSES", value_name = "HEARTBEATS", default_value_t = 3, value_parser = value_parser!(u64).range(cluster::allowed::MISSES))]
    misses: u64,
    /// How long the active cluster manager may be silent before another takes over, milliseconds.
    #[arg(long, env = "HIGHWATER_LEASE_MS", value_name = "MS", default_value_t = 3_000, value_parser = value_parser!(u64).range(cluster::allowed::LEASE_MS))]
    lease_ms: u64,
    #[command(flatten)]
    pub(crate) streams: Streams,
}

/// What can be set of an index manager.
#[derive(ClapArgs, Clone, Default)]
pub(crate) struct CoordinatorLimits {
    #[command(flatten)]
    pub(crate) streams: Streams,
    #[command(flatten)]
    pub(crate) reconciles: Reconciles,
}

/// When indexes are compared with their source.
#[derive(ClapArgs, Clone)]
#[command(next_help_heading = "Timing of the coordinator")]
pub(crate) struct Reconciles {
    /// How often every index is compared with its source, for documents that vanished from it without a message, seconds.
    #[arg(long, env = "HIGHWATER_RECONCILE_INTERVAL_S", value_name = "S", default_value_t = 3_600, value_parser = value_parser!(u64).range(RECONCILE_INTERVAL_S))]
    reconcile_interval_s: u64,
}

/// Highwater's own streams. What is not set is left as it is where a stream was made beforehand.
#[derive(ClapArgs, Clone, Default)]
#[command(next_help_heading = "Streams")]
pub(crate) struct Streams {
    /// Copies that NATS keeps of Highwater's own streams, 1 if nothing is set; more than one needs a cluster of NATS servers.
    #[arg(long, env = "HIGHWATER_STREAM_REPLICAS", value_name = "COPIES", value_parser = copies())]
    stream_replicas: Option<usize>,
    /// Bytes that the state log holds at most, without a limit if nothing is set: 64MiB where the account demands one.
    #[arg(long, env = "HIGHWATER_STATE_BYTES", value_name = "SIZE", value_parser = size(STATE_BYTES))]
    state_bytes: Option<u64>,
    /// The same of the cluster managers' bucket: 1MiB where the account demands a limit.
    #[arg(long, env = "HIGHWATER_CLUSTER_BYTES", value_name = "SIZE", value_parser = size(CLUSTER_BYTES))]
    cluster_bytes: Option<u64>,
    /// Bytes of each bucket's mutation topic, 64MiB if nothing is set.
    #[arg(long, env = "HIGHWATER_MUTATION_BYTES", value_name = "SIZE", value_parser = size(TOPIC_BYTES))]
    mutation_bytes: Option<u64>,
    /// Bytes up to which it grows when it drops what indexers have not read, 1GiB if nothing is set.
    #[arg(long, env = "HIGHWATER_MUTATION_BYTES_MOST", value_name = "SIZE", value_parser = size(TOPIC_BYTES))]
    mutation_bytes_most: Option<u64>,
    /// Bytes of each bucket's catchup topic, 64MiB if nothing is set.
    #[arg(long, env = "HIGHWATER_CATCHUP_BYTES", value_name = "SIZE", value_parser = size(TOPIC_BYTES))]
    catchup_bytes: Option<u64>,
    /// Bytes up to which it grows when it is full, 256MiB if nothing is set.
    #[arg(long, env = "HIGHWATER_CATCHUP_BYTES_MOST", value_name = "SIZE", value_parser = size(TOPIC_BYTES))]
    catchup_bytes_most: Option<u64>,
    /// Bytes of each topic that someone creates, 64MiB if nothing is set.
    #[arg(long, env = "HIGHWATER_TOPIC_BYTES", value_name = "SIZE", value_parser = size(TOPIC_BYTES))]
    topic_bytes: Option<u64>,
}

impl From<ClusterLimits> for Limits {
    fn from(cluster: ClusterLimits) -> Self {
        Self { cluster, ..Self::default() }
    }
}

impl From<CoordinatorLimits> for Limits {
    fn from(CoordinatorLimits { streams, reconciles }: CoordinatorLimits) -> Self {
        let cluster = ClusterLimits { streams, ..ClusterLimits::default() };
        Self { cluster, reconciles, ..Self::default() }
    }
}

impl From<IndexerLimits> for Limits {
    fn from(indexer: IndexerLimits) -> Self {
        Self { indexer, ..Self::default() }
    }
}

impl From<CatalogLimits> for Limits {
    fn from(catalog: CatalogLimits) -> Self {
        Self { catalog, ..Self::default() }
    }
}

impl ClusterLimits {
    pub(crate) fn enter(&self, config: &mut cluster::Config) {
        config.heartbeat = Duration::from_millis(self.heartbeat_ms);
        config.misses = self.misses as u32;
        config.lease = Duration::from_millis(self.lease_ms);
        config.streams = self.streams.settings();
    }
}

impl Default for ClusterLimits {
    fn default() -> Self {
        let config = cluster::Config::new("", 0);
        Self {
            heartbeat_ms: config.heartbeat.as_millis() as u64,
            misses: u64::from(config.misses),
            lease_ms: config.lease.as_millis() as u64,
            streams: Streams::default(),
        }
    }
}

impl Reconciles {
    pub(crate) fn interval(&self) -> Duration {
        Duration::from_secs(self.reconcile_interval_s)
    }
}

impl Default for Reconciles {
    fn default() -> Self {
        Self { reconcile_interval_s: highwater_coordinator::Config::new("", 0).reconcile_interval.as_secs() }
    }
}

impl Streams {
    pub(crate) fn settings(&self) -> StreamSettings {
        StreamSettings {
            replicas: self.stream_replicas,
            state: self.state_bytes,
            cluster: self.cluster_bytes,
            mutation: self.mutation_bytes,
            catchup: self.catchup_bytes,
            topic: self.topic_bytes,
            mutation_most: self.mutation_bytes_most,
            catchup_most: self.catchup_bytes_most,
        }
    }
}

impl IndexerLimits {
    pub(crate) fn enter(&self, config: &mut highwater_indexer::Config) {
        config.memory_quota = self.memory_quota as usize;
        config.snapshot_age = Duration::from_millis(self.snapshot_age_ms);
        config.scans = self.scans as usize;
        let store = &mut config.store;
        store.merge_layers = self.merge_layers as usize;
        store.map_size = self.map_size as usize;
        store.map_growth = self.map_growth as usize;
        store.undo_quota = self.undo_quota;
        store.kept_for = Duration::from_secs(self.kept_for_s);
        store.kept_least = self.kept_least as usize;
        store.build_memory = self.build_memory as usize;
    }
}

impl Default for IndexerLimits {
    fn default() -> Self {
        let config = highwater_indexer::Config::new("", std::path::PathBuf::new(), 0);
        let store = config.store;
        Self {
            memory_quota: config.memory_quota as u64,
            merge_layers: store.merge_layers as u64,
            snapshot_age_ms: config.snapshot_age.as_millis() as u64,
            scans: config.scans as u64,
            map_size: store.map_size as u64,
            map_growth: store.map_growth as u64,
            undo_quota: store.undo_quota,
            kept_for_s: store.kept_for.as_secs(),
            kept_least: store.kept_least as u64,
            build_memory: store.build_memory as u64,
        }
    }
}

impl CatalogLimits {
    pub(crate) fn enter(&self, config: &mut highwater_catalog::Config) {
        let (unsaid, most) = (self.scan_timeout_ms, self.max_scan_timeout_ms);
        config.deadlines = Deadlines { unsaid: Duration::from_millis(unsaid), most: Duration::from_millis(most) };
        config.page_bytes = self.page_bytes as usize;
        config.in_flight = self.in_flight as usize;
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        let (unsaid, most) = (self.scan_timeout_ms, self.max_scan_timeout_ms);
        if unsaid <= most {
            return Ok(());
        }
        Err(format!("--scan-timeout-ms {unsaid} is more than --max-scan-timeout-ms {most}"))
    }
}

impl Default for CatalogLimits {
    fn default() -> Self {
        let config = highwater_catalog::Config::new("");
        Self {
            scan_timeout_ms: config.deadlines.unsaid.as_millis() as u64,
            max_scan_timeout_ms: config.deadlines.most.as_millis() as u64,
            page_bytes: config.page_bytes as u64,
            in_flight: config.in_flight as u64,
        }
    }
}

/// Reads a number of replicas.
fn copies() -> impl Fn(&str) -> Result<usize, String> + Clone + Send + Sync + 'static {
    |text| {
        let copies = text.parse().ok().filter(|copies| cluster::allowed::REPLICAS.contains(copies));
        copies.ok_or_else(|| "it must be 1, 3 or 5".into())
    }
}

/// Reads a size within these bounds.
fn size(allowed: RangeInclusive<u64>) -> impl Fn(&str) -> Result<u64, String> + Clone + Send + Sync + 'static {
    move |text| {
        let value = read(text).ok_or("not a size such as 4096, 96MiB or 1GiB")?;
        if allowed.contains(&value) {
            return Ok(value);
        }
        Err(format!("it must be {} to {}", write(*allowed.start()), write(*allowed.end())))
    }
}

fn read(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim();
    let (_, factor) =
        UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit) || (unit.is_empty() && *name == "B"))?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

fn write(size: u64) -> String {
    let (name, factor) = UNITS.iter().find(|(_, factor)| size.is_multiple_of(*factor) && size > 0).unwrap_or(&("B", 1));
    format!("{}{name}", size / factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, FromArgMatches, Parser};

    #[derive(Parser)]
    struct All {
        #[command(flatten)]
        limits: Limits,
    }

    fn parsed(arguments: &[&str]) -> Result<Limits, clap::Error> {
        let matches = All::command().no_binary_name(true).try_get_matches_from(arguments)?;
        Ok(All::from_arg_matches(&matches)?.limits)
    }

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, bytes) in
            [("4096", 4_096), ("96MiB", 96 << 20), ("1GiB", 1 << 30), ("2 kib", 2_048), ("3TiB", 3 << 40), ("7B", 7)]
        {
            assert_eq!(read(text), Some(bytes), "{text}");
        }
        for text in ["", "MiB", "1.5GiB", "-1", "1GB", "99999999TiB", "1MiB extra"] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!([write(96 << 20), write(1 << 44), write(1_025), write(0)], ["96MiB", "16TiB", "1025B", "0B"]);
    }

    #[test]
    fn the_defaults_are_those_of_the_services() {
        let from_flags = parsed(&[]).expect("good");
        let own = highwater_indexer::Config::new("n", std::path::PathBuf::new(), 1);
        let mut config = own.clone();
        from_flags.indexer.enter(&mut config);
        assert_eq!(format!("{config:?}"), format!("{own:?}"));
        let own = cluster::Config::new("n", 1);
        let mut config = own.clone();
        from_flags.cluster.enter(&mut config);
        assert_eq!(config, own);
        let own = highwater_catalog::Config::new("n");
        let mut config = own.clone();
        from_flags.catalog.enter(&mut config);
        assert_eq!(config, own);
        assert!(own.check().is_ok() && from_flags.catalog.check().is_ok());
    }

    #[test]
    fn a_wrong_value_is_refused_where_it_is_set_and_named() {
        for (flag, value) in [
            ("--memory-quota", "1MiB"),
            ("--memory-quota", "much"),
            ("--merge-layers", "1"),
            ("--snapshot-age-ms", "10"),
            ("--scans", "0"),
            ("--map-size", "1KiB"),
            ("--map-growth", "100TiB"),
            ("--undo-quota", "0"),
            ("--kept-for-s", "86400"),
            ("--kept-least", "49"),
            ("--build-memory", "10"),
            ("--scan-timeout-ms", "0"),
            ("--max-scan-timeout-ms", "600001"),
            ("--page-bytes", "1KiB"),
            ("--in-flight", "5000"),
            ("--heartbeat-ms", "49"),
            ("--misses", "1"),
            ("--lease-ms", "999"),
            ("--stream-replicas", "2"),
            ("--state-bytes", "10"),
            ("--cluster-bytes", "none"),
            ("--mutation-bytes", "1MiB"),
            ("--mutation-bytes-most", "0"),
            ("--catchup-bytes", "3MiB"),
            ("--catchup-bytes-most", "100TiB"),
            ("--topic-bytes", "4095"),
            ("--reconcile-interval-s", "0"),
        ] {
            let error = parsed(&[flag, value]).err().expect(flag).to_string();
            assert!(error.contains(flag), "{error}");
        }
        let limits =
            parsed(&["--memory-quota", "1GiB", "--kept-for-s", "60", "--max-scan-timeout-ms", "900"]).expect("good");
        assert_eq!((limits.indexer.memory_quota, limits.indexer.kept_for_s), (1 << 30, 60));
        assert!(limits.catalog.check().unwrap_err().contains("--max-scan-timeout-ms 900"));
        let streams = parsed(&["--mutation-bytes", "8MiB", "--stream-replicas", "3"]).expect("good").cluster.streams;
        let set = StreamSettings { replicas: Some(3), mutation: Some(8 << 20), ..StreamSettings::default() };
        assert_eq!(streams.settings(), set);
    }
}
