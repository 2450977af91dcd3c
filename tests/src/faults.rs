//! Faults inside of services, at places that they name: panics and standstills.

use crate::{cluster::Cluster, wait::until};
use anyhow::{Context, Result};
use std::{fs, path::PathBuf, time::Duration};

/// Names the directory to the services.
const ENVIRONMENT: &str = "HIGHWATER_TEST_FAULTS";
/// By then a service that has work passes every place that it has.
const HIT_WITHIN: Duration = Duration::from_secs(30);

impl Cluster {
    /// The environment of a node's process: where it looks for faults.
    pub(crate) fn faults_of(&self, node: &str) -> (&'static str, PathBuf) {
        (ENVIRONMENT, self.path().join("faults").join(node))
    }

    /// Has a node panic where it passes this place next; see `highwater_bus::fault` for their names.
    pub fn panic_at(&self, node: &str, place: &str) -> Result<()> {
        self.break_at(node, place, "panic")
    }

    /// Has a node stand still there, the thread with it.
    pub fn hang_at(&self, node: &str, place: &str) -> Result<()> {
        self.break_at(node, place, "hang")
    }

    fn break_at(&self, node: &str, place: &str, fault: &str) -> Result<()> {
        let directory = self.faults_of(node).1;
        fs::create_dir_all(&directory).context("no directory for faults")?;
        let taken = directory.join(format!("{place}.taken"));
        if taken.exists() {
            fs::remove_file(taken).context("the fault before it stays")?;
        }
        // Complete when it gets its name.
        let written = directory.join("next");
        fs::write(&written, fault).and_then(|()| fs::rename(&written, directory.join(place))).context("no fault")
    }

    /// Waits until a node has met the fault that it was to meet.
    pub async fn hit(&self, node: &str, place: &str) -> Result<()> {
        let taken = self.faults_of(node).1.join(format!("{place}.taken"));
        until(&format!("{node} passes {place}"), HIT_WITHIN, async || {
            taken.exists().then_some(()).ok_or_else(|| "it has not passed yet".to_owned())
        })
        .await
    }
}
