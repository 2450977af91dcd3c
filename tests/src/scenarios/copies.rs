//! An old copy of the log comes back.

use crate::{
    files,
    prelude::*,
    trial::{MANAGERS, Trial},
};

const DOCUMENTS: u64 = 1_000;

/// It follows the log, as a replica and as the only index manager.
pub async fn stray(name: &str, cluster: Cluster) -> Result<()> {
    Trial::run(name, cluster, DOCUMENTS, async |cluster, trial, _| {
        let first = trial.history.read(&trial.client).await?.incarnation;
        let (master, _) = trial.master().await?;
        let stray = MANAGERS.into_iter().find(|node| *node != master).context("no replica")?;
        let kept = cluster.path().join("kept");
        let place = cluster.data_dir(stray).join("coordinator/state");
        cluster.stop(stray).await?;
        files::copy(&place, &kept)?;
        cluster.start_node(stray).await?;
        trial.drop(&trial.indexes[2].name.clone()).await?;
        trial.create("later").await?;
        trial.formed(&cluster.nodes()).await?;

        // It comes back as a replica.
        cluster.stop(stray).await?;
        files::put_back(&kept, &place)?;
        cluster.start_node(stray).await?;
        trial.formed(&cluster.nodes()).await?;
        trial.holds(&trial.state_of(stray).await?)?;
        trial.create("after").await?;

        // It comes back as the only one.
        let (_, term) = trial.master().await?;
        let gone = Instant::now();
        for node in MANAGERS {
            cluster.kill(node)?;
        }
        files::put_back(&kept, &place)?;
        cluster.start_node(stray).await?;
        let (next, later) = trial.later_term(term, gone).await?;
        println!("{next} coordinates in term {later} after {term}, {:?}", gone.elapsed());
        ensure!(next == stray, "{next} coordinates");
        trial.holds(&trial.state_of(stray).await?)?;
        trial.create("at_last").await?;
        for node in MANAGERS.into_iter().filter(|node| *node != stray) {
            cluster.start_node(node).await?;
        }
        trial.settle(cluster).await?;
        ensure!(trial.history.incarnation() == first, "the log was replaced: {}", trial.history.incarnation());
        Ok(())
    })
    .await
}
