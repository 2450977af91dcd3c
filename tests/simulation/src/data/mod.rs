//! The cores of the data path, in a simulated deployment: what is read from sources that lose things, and what slices show.
//!
//! Real are the coordinator's core, the projector's `Cover`, `Removals` and verdicts, the router's `Packer` and `Window`, the
//! batches as they are encoded, the indexer's `BucketCore`. Stand-ins, written after the shells of the real ones: the tasks of
//! the projector, the lanes of the router, the worker and the stores of the indexer (maps), the log (which loses nothing).
//!
//! # Layout
//! - `world`: one run; `env`: what all share; `checks`: what must hold
//! - `source`: a stream, its faults and its truth; `pump`: a reader of it
//! - `task`, `projector`: a vbucket's task, and the process around them; `plan`: what the log wants of them; `looks`: messages
//!   looked up; `lane`: from there to the topics
//! - `indexer`, `store`: a node, and the slices on its disk; `coordinator`: the shell of the coordinator's core
//!
//! # What must hold
//! As in the protocol model: of every timestamp that a readable slice applies,
//! 1. I1: if it serves a request, it is as new as the source was before that;
//! 2. I2: if nothing can be hidden at it, it equals the source there, but for what vanished without a message since the last
//!    reconcile of all documents in its round began; and nothing is below its floor;
//! 3. I3: all slices that show it agree;
//! 4. I4: when the source rests, every slice equals a fresh build;
//! 5. I5: and then every slice is readable, sessions, rollbacks and reconciles end, the timestamps reach the source's end.

mod checks;
mod coordinator;
mod env;
mod indexer;
mod lane;
mod looks;
mod plan;
mod projector;
mod pump;
mod source;
mod store;
mod task;
mod world;

pub use world::{DataLimits, DataWorld};
