//! The command line.

use crate::bound::Bound;
use crate::connection::{JoinedNats, Nats};
use crate::generate::{Completions, ManPages};
use crate::limits::{CatalogLimits, ClusterLimits, CoordinatorLimits, IndexerLimits, Limits};
use clap::{Args as ClapArgs, Parser, Subcommand};
use highwater_bus::CLIENT_LOG_OFF;
use highwater_schemas::definition::DocidCodec;
use std::path::PathBuf;

/// Secondary indexes and consistent scans for JSON documents in NATS.
#[derive(Parser)]
#[command(name = "highwater", version, propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run all services in one process; without --nats-url or --context beside a nats-server of its own.
    Dev(Dev),
    /// Run a cluster manager: who is there, and which index manager coordinates.
    ClusterManager(With<ClusterLimits>),
    /// Run the index coordinator.
    Coordinator(With<CoordinatorLimits>),
    /// Run a projector with its router.
    Projector(Service),
    /// Run an indexer.
    Indexer(With<IndexerLimits>),
    /// Run a query catalog.
    Catalog(With<CatalogLimits>),
    /// Declare, list and remove buckets.
    #[command(subcommand)]
    Bucket(Bucket),
    /// Create, build, drop, list, describe, wait for and verify indexes.
    #[command(subcommand)]
    Index(Index),
    /// Look into the parts of indexes that nodes keep.
    #[command(subcommand)]
    Slice(Slice),
    /// Create, delete, subscribe to and list topics.
    #[command(subcommand)]
    Topic(Topic),
    /// Show the replicated state and its history; publish a lost one anew.
    #[command(subcommand)]
    State(State),
    /// Scan an index.
    Scan(Scan),
    /// Count the rows of a range.
    Count(Count),
    /// Show nodes and buckets.
    Status(Status),
    /// Ask a node, or NATS itself, whether it serves; exit code 1 when it does not.
    Ping(Ping),
    /// Print the script that completes this command line in a shell.
    Completions(Completions),
    /// Write the manual pages.
    #[command(hide = true)]
    ManPages(ManPages),
}

impl Command {
    /// Whether its limits agree with one another; what does not is named.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self {
            Self::Dev(dev) => dev.limits.catalog.check(),
            Self::Catalog(catalog) => catalog.limits.check(),
            _ => Ok(()),
        }
    }

    /// What is logged unless HIGHWATER_LOG says otherwise.
    pub(crate) fn default_log(&self) -> String {
        match self {
            Self::Dev(_) => format!("warn,{CLIENT_LOG_OFF}"),
            Self::ClusterManager(_)
            | Self::Coordinator(_)
            | Self::Projector(_)
            | Self::Indexer(_)
            | Self::Catalog(_) => {
                format!("info,{CLIENT_LOG_OFF}")
            }
            _ => "off".into(),
        }
    }
}

#[derive(ClapArgs)]
pub(crate) struct Service {
    /// Name of this node: 1 to 64 characters of A-Z a-z 0-9 _ -.
    #[arg(long)]
    pub(crate) node_id: String,
    /// Where this node keeps its files.
    #[arg(long, env = "HIGHWATER_DATA_DIR")]
    pub(crate) data_dir: PathBuf,
    #[command(flatten)]
    pub(crate) nats: Nats,
}

/// A service, and what can be set of it.
#[derive(ClapArgs)]
pub(crate) struct With<L: ClapArgs> {
    #[command(flatten)]
    pub(crate) service: Service,
    #[command(flatten)]
    pub(crate) limits: L,
}

#[derive(ClapArgs)]
pub(crate) struct Dev {
    /// Where NATS and the services keep their files.
    #[arg(long, env = "HIGHWATER_DATA_DIR", default_value = "highwater-data")]
    pub(crate) data_dir: PathBuf,
    /// Port of the nats-server to start.
    #[arg(long, default_value_t = 4222)]
    pub(crate) nats_port: u16,
    #[command(flatten)]
    pub(crate) nats: JoinedNats,
    #[command(flatten)]
    pub(crate) limits: Limits,
}

/// A client command's way to the services.
#[derive(ClapArgs)]
pub(crate) struct Client {
    #[command(flatten)]
    pub(crate) nats: Nats,
    /// Print the reply as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// How long to wait for an answer, milliseconds.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(highwater_catalog::TIMEOUT_MS))]
    pub(crate) timeout_ms: u64,
}

#[derive(Subcommand)]
pub(crate) enum Bucket {
    /// Declare a bucket: a NATS key-value bucket, or keyed streams.
    Add {
        name: String,
        /// The NATS key-value bucket; without --kv and --stream, the one of the same name.
        #[arg(long, conflicts_with = "stream")]
        kv: Option<String>,
        /// A source stream as STREAM or STREAM=SUBJECT_PREFIX; once per vbucket.
        #[arg(long)]
        stream: Vec<String>,
        /// How clients encode docids in subjects, where they do: base64 or path.
        #[arg(long, value_name = "CODEC", value_parser = docid_codec)]
        docid_codec: Option<DocidCodec>,
        #[command(flatten)]
        client: Client,
    },
    /// List declared buckets.
    List {
        #[command(flatten)]
        client: Client,
    },
    /// Show the branches of a bucket's sources, and what was rolled back.
    History {
        name: String,
        #[command(flatten)]
        client: Client,
    },
    /// Compare a bucket's indexes with its source now, for documents that vanished from it without a message.
    Reconcile {
        name: String,
        /// Do not wait until it is done.
        #[arg(long)]
        no_wait: bool,
        /// How long to wait until it is done, seconds.
        #[arg(long, default_value_t = 600, conflicts_with = "no_wait")]
        within_s: u64,
        #[command(flatten)]
        client: Client,
    },
    /// Remove a declaration; the documents stay.
    Remove {
        name: String,
        #[command(flatten)]
        client: Client,
    },
}

#[derive(Subcommand)]
pub(crate) enum Index {
    /// Create an index.
    Create {
        bucket: String,
        name: String,
        /// A path with an optional ASC or DESC, such as "address.city" or "age DESC"; none: a primary index.
        #[arg(long)]
        key: Vec<String>,
        /// Only documents for which this is true, such as "active = true".
        #[arg(long = "where")]
        condition: Option<String>,
        /// A field to keep beside the key.
        #[arg(long)]
        include: Vec<String>,
        #[arg(long, default_value_t = 1)]
        num_partition: u32,
        /// Also index documents whose leading key is missing.
        #[arg(long)]
        include_missing: bool,
        /// Wait for `index build`.
        #[arg(long)]
        defer_build: bool,
        #[command(flatten)]
        client: Client,
    },
    /// Build deferred indexes of a bucket in one pass.
    Build {
        bucket: String,
        #[arg(required = true)]
        names: Vec<String>,
        #[command(flatten)]
        client: Client,
    },
    /// Drop an index.
    Drop {
        bucket: String,
        name: String,
        #[command(flatten)]
        client: Client,
    },
    /// List indexes, of one bucket or of all.
    List {
        bucket: Option<String>,
        #[command(flatten)]
        client: Client,
    },
    /// Show an index, and the documents that it could not take.
    Describe {
        bucket: String,
        name: String,
        #[command(flatten)]
        client: Client,
    },
    /// Wait until indexes are active, showing their progress.
    Wait {
        bucket: String,
        /// None: all of the bucket.
        names: Vec<String>,
        /// Give up after this many seconds.
        #[arg(long, default_value_t = 600)]
        within: u64,
        #[command(flatten)]
        client: Client,
    },
    /// Read indexes from end to end and say whether they agree with themselves; exit code 1 when anything is wrong.
    ///
    /// Asks the running nodes, or reads the directory of a node that does not run. A damaged slice of a running node is built
    /// again at once, that of a stopped one at its next start or verification.
    Verify {
        #[arg(required_unless_present = "data_dir")]
        bucket: Option<String>,
        /// None: all of the bucket.
        names: Vec<String>,
        /// Data directory of a stopped indexer, or of a slice, instead of running nodes.
        #[arg(long, conflicts_with_all = ["bucket", "names"])]
        data_dir: Option<PathBuf>,
        /// Give each slice up after this many seconds.
        #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=3_600))]
        within: u64,
        #[command(flatten)]
        client: Client,
    },
}

#[derive(Subcommand)]
pub(crate) enum Slice {
    /// Show what slices are, how far they go, what they keep, and documents of them.
    Dump(Dump),
}

#[derive(Subcommand)]
pub(crate) enum Topic {
    /// Create a topic: a stream of a bucket's key versions.
    Create {
        bucket: String,
        topic: String,
        #[command(flatten)]
        client: Client,
    },
    /// Delete a topic with what it holds.
    Delete {
        bucket: String,
        topic: String,
        #[command(flatten)]
        client: Client,
    },
    /// Subscribe to a topic that was created, or to `mutation`; again with another predicate to change it.
    Subscribe {
        bucket: String,
        topic: String,
        subscriber: String,
        /// Only what this is true for, such as "index = 'by_age' AND partition = 0"; over bucket, vbucket, index and partition.
        #[arg(long, default_value = "")]
        predicate: String,
        #[command(flatten)]
        client: Client,
    },
    /// End a subscription.
    Unsubscribe {
        bucket: String,
        topic: String,
        subscriber: String,
        #[command(flatten)]
        client: Client,
    },
    /// List topics and subscriptions, of one bucket or of all.
    List {
        bucket: Option<String>,
        #[command(flatten)]
        client: Client,
    },
}

#[derive(Subcommand)]
pub(crate) enum State {
    /// Show the state: nodes, buckets, indexes, owners, sessions, timestamps.
    Show {
        /// Only this bucket.
        #[arg(long)]
        bucket: Option<String>,
        #[command(flatten)]
        client: Client,
    },
    /// Show the newest records of the log.
    History {
        #[arg(long, default_value_t = 20)]
        limit: usize,
        #[command(flatten)]
        client: Client,
    },
    /// Go on without index managers that are missing, when the state log is lost and nobody coordinates.
    Recover {
        /// What missing index managers alone know is lost.
        #[arg(long, required = true)]
        force: bool,
        #[command(flatten)]
        client: Client,
    },
}

fn docid_codec(text: &str) -> Result<DocidCodec, String> {
    let all = [DocidCodec::Base64, DocidCodec::Path];
    all.into_iter().find(|codec| codec.as_str() == text).ok_or_else(|| "it must be base64 or path".into())
}

/// Of a running node a bucket and an index, or the directory of a node that does not run.
#[derive(ClapArgs)]
pub(crate) struct Dump {
    #[arg(required_unless_present = "data_dir")]
    pub(crate) bucket: Option<String>,
    #[arg(required_unless_present = "data_dir")]
    pub(crate) index: Option<String>,
    /// The node to ask; none: the partition's host.
    #[arg(long)]
    pub(crate) node: Option<String>,
    #[arg(long)]
    pub(crate) partition: Option<u32>,
    /// Data directory of a stopped indexer, or of a slice, instead of a running node.
    #[arg(long, conflicts_with_all = ["bucket", "index", "node", "partition"])]
    pub(crate) data_dir: Option<PathBuf>,
    /// Also show so many documents, of each slice.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=10_000))]
    pub(crate) rows: u64,
    /// Documents from this docid on.
    #[arg(long)]
    pub(crate) from: Option<String>,
    /// The vbucket of --from.
    #[arg(long, default_value_t = 0)]
    pub(crate) vb: u16,
    #[command(flatten)]
    pub(crate) client: Client,
}

/// What to scan or count. Bounds are JSON arrays, such as '["NO", 100000]'; a single value may stand without brackets, and a text
/// without quotes unless it looks like a number.
#[derive(ClapArgs)]
pub(crate) struct Range {
    pub(crate) bucket: String,
    pub(crate) index: String,
    /// Keys equal to this.
    #[arg(long, allow_hyphen_values = true, conflicts_with_all = ["low", "high", "inclusion"])]
    pub(crate) equal: Option<Bound>,
    /// Keys from here on.
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) low: Option<Bound>,
    /// Keys up to here.
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) high: Option<Bound>,
    /// Which bounds belong to the range.
    #[arg(long, value_parser = ["both", "low", "high", "neither"])]
    pub(crate) inclusion: Option<String>,
    /// any, request_plus, at_plus=REVISION or at_snapshot=ST.
    #[arg(long, default_value = "any")]
    pub(crate) consistency: String,
    #[command(flatten)]
    pub(crate) client: Client,
}

#[derive(ClapArgs)]
pub(crate) struct Scan {
    #[command(flatten)]
    pub(crate) range: Range,
    /// From the end to the beginning.
    #[arg(long)]
    pub(crate) reverse: bool,
    /// Rows to pass over first.
    #[arg(long, default_value_t = 0)]
    pub(crate) offset: u64,
    /// Rows wanted in all.
    #[arg(long, default_value_t = 20)]
    pub(crate) limit: u64,
    /// All rows, whatever --limit says.
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(ClapArgs)]
pub(crate) struct Count {
    #[command(flatten)]
    pub(crate) range: Range,
}

#[derive(ClapArgs)]
pub(crate) struct Status {
    /// Show every step of the coordinator's bootstrap.
    #[arg(long)]
    pub(crate) bootstrap: bool,
    #[command(flatten)]
    pub(crate) client: Client,
}

#[derive(ClapArgs)]
pub(crate) struct Ping {
    /// The node to ask.
    #[arg(required_unless_present = "only_nats")]
    pub(crate) node: Option<String>,
    /// Ask no node: only whether NATS takes connections, and has JetStream as Highwater needs it.
    #[arg(long = "nats", conflicts_with = "node")]
    pub(crate) only_nats: bool,
    #[command(flatten)]
    pub(crate) nats: Nats,
    /// How long to wait for all of it, milliseconds.
    #[arg(long, default_value_t = 3_000, value_parser = clap::value_parser!(u64).range(highwater_catalog::TIMEOUT_MS))]
    pub(crate) timeout_ms: u64,
}
