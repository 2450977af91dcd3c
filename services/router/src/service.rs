//! Takes up lanes until the projector is gone.

use crate::{lane, window::Lanes};
use highwater_bus::{Bus, TaskSet};
use highwater_schemas::lane::OpenLane;
use tokio::sync::{mpsc, watch};

/// Runs the router until `stop` turns true or nobody can open lanes any more. A lane that panics lets go of its input, so that
/// the vbucket's task loses its chain, and another generation goes on; the other lanes are untouched.
pub async fn run(bus: Bus, mut lanes: mpsc::Receiver<OpenLane>, mut stop: watch::Receiver<bool>) {
    let mut running: TaskSet<String> = TaskSet::new(bus.incidents());
    let open_lanes = Lanes::default();
    loop {
        tokio::select! {
            lane = lanes.recv() => match lane {
                Some(open) => {
                    let name = format!("lane of vbucket {} of bucket {}", open.vb, open.bucket);
                    running.spawn(name, lane::run(bus.clone(), open, Lanes::clone(&open_lanes)));
                }
                None => return,
            },
            // The set has noted a panic.
            Some(_) = running.join_next() => {}
            _ = stop.changed() => return,
        }
    }
}
