//! A master that sleeps for longer than anybody waits wakes up as one of many.

use highwater_tests::{prelude::*, scenarios::sleep::wakes_up};

const ROUNDS: u64 = 2;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_wakes_up_steps_down() -> Result<()> {
    wakes_up("sleeping master", Cluster::deployed().await?, false, ROUNDS).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_wakes_up_beside_its_cluster_manager_steps_down() -> Result<()> {
    wakes_up("both asleep", Cluster::deployed().await?, true, ROUNDS).await
}
