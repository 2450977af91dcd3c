//! The cores of the cluster manager and of the index managers, in a simulated deployment.
//!
//! One seed is one run: which processes there are, what administrators ask, what goes wrong and when, and how long every message
//! takes. Time is virtual, and everything happens in one thread, so a seed that fails, fails again. What is simulated: a bus
//! that loses, delays and reorders; a log that loses its tail, or all of it; processes that end or stand still between any two
//! actions. What is real: the state machines, the records, the StateContext.
//!
//! # Layout
//! - [`World`] (`world`): the loop; `queue`: time; `rng`: chance; `node`, `message`: who, and what travels
//! - `network`, `server`: the bus; `log`, `bucket`: what the server keeps; `follower`: readers of the log
//! - `manager`, `cluster_manager`: the shells of the real cores; `disk`: an index manager's copy
//! - `projector`, `indexer`, `client`: stand-ins for everyone else
//! - `faults`: what goes wrong; `invariants`, `oracle`: what must hold
//! - `campaign`: many seeds, on several threads
//! - [`data`]: another world, of the data path
//!
//! # What must hold
//! 1. At most one index manager opens a term, and at most one leads in it, ever.
//! 2. What was acknowledged is there in the end, unless a later request undid it. A tail of the log that nobody held who was
//!    there when the next term was opened is outside the promise; such runs are counted.
//!    So is a record that was decided before the log lost something and enters it afterwards (`--stale-appends` lets them in).
//! 3. Copies are prefixes of one hash chain, and in the end all the same.
//! 4. Terms never go back.
//! 5. An ST number never names two timestamps, but after a loss that is outside the promise (counted), and none is issued below one that was reported.
//! 6. When nothing goes wrong any more, one coordinates, all follow it, requests are answered, sessions end, STs are issued.
//! 7. Nothing panics; the log never holds what a reader from its beginning cannot apply; every copy can be opened.

mod bucket;
mod campaign;
mod client;
mod cluster_manager;
pub mod data;
mod disk;
mod faults;
mod follower;
mod indexer;
mod invariants;
mod log;
mod manager;
mod message;
mod network;
mod node;
mod oracle;
mod projector;
mod queue;
mod rng;
mod server;
mod world;

pub use campaign::{Campaign, Summary, first_seed};
pub use data::{DataLimits, DataWorld};
pub use world::{Limits, Outcome, World};
