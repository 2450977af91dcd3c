//! Takes up lanes until the projector is gone.

use crate::lane;
use highwater_bus::Bus;
use highwater_schemas::lane::OpenLane;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

/// Why the router ended.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    #[error("a lane ended in a panic: {0}")]
    Lane(String),
}

/// Runs the router until `stop` turns true or nobody can open lanes any more.
pub async fn run(
    bus: Bus,
    mut lanes: mpsc::Receiver<OpenLane>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), RouterError> {
    let mut running = JoinSet::new();
    loop {
        tokio::select! {
            lane = lanes.recv() => match lane {
                Some(open) => {
                    running.spawn(lane::run(bus.clone(), open));
                }
                None => return Ok(()),
            },
            Some(ended) = running.join_next() => {
                if let Err(error) = ended {
                    return Err(RouterError::Lane(error.to_string()));
                }
            }
            _ = stop.changed() => return Ok(()),
        }
    }
}
