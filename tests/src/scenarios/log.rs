//! The replicated log or the cluster managers' bucket is deleted.

use crate::{
    prelude::*,
    trial::{self, Trial},
};
use highwater_schemas::subjects;

const DOCUMENTS: u64 = 3_000;

/// The log is deleted so many times: it is published anew from the copies, and nothing that was acknowledged is lost.
pub async fn deleted(name: &str, cluster: Cluster, rounds: u64) -> Result<()> {
    Trial::run(name, cluster, DOCUMENTS, async |cluster, trial, rng| {
        for round in 0..rounds {
            trial.traffic(rng);
            let context = trial.history.read(&trial.client).await?;
            trial.create(&format!("before{round}")).await?;
            let (_, term) = trial.master().await?;
            let gone = Instant::now();
            trial.client.js.delete_stream(subjects::STATE_STREAM).await?;
            // Its loss is noticed by an append, or when it is looked after.
            let name = format!("meanwhile{round}");
            if rng.chance(50) {
                trial.create(&name).await?;
            }
            let (next, later) = trial.later_term(term, gone).await?;
            println!("round {round}: term {later} by {next} after {term}, {:?}", gone.elapsed());
            trial.holds(&trial.state_of(&next).await?)?;
            trial.create(&format!("after{round}")).await?;
            trial.drop(&format!("before{round}")).await?;
            trial.settle(cluster).await?;
            ensure!(trial.history.incarnation() == context.incarnation + 1, "not published anew once");
        }
        Ok(())
    })
    .await
}

/// The cluster managers' bucket is deleted with the master's death, so many times, and once more without: terms go on rising.
pub async fn without_bucket(name: &str, cluster: Cluster, rounds: u64) -> Result<()> {
    Trial::run(name, cluster, DOCUMENTS, async |cluster, trial, rng| {
        for round in 0..rounds {
            trial.traffic(rng);
            let (master, term) = trial.master().await?;
            let active = trial::cluster_manager(&trial.client).await?;
            trial.client.js.delete_stream(subjects::CLUSTER_STREAM).await?;
            // With the bucket gone, one that remembers nothing else may take over.
            if round % 2 == 1 {
                cluster.kill(&active)?;
            }
            let gone = Instant::now();
            cluster.kill(&master)?;
            let (next, later) = trial.later_term(term, gone).await?;
            println!("round {round}: term {later} by {next} after {term}, {:?}", gone.elapsed());
            trial.create(&format!("after{round}")).await?;
            for node in [&master, &active] {
                if !cluster.nodes().contains(node) {
                    cluster.start_node(node).await?;
                }
            }
            trial.settle(cluster).await?;
        }
        // Nobody needs to go for it.
        let (master, term) = trial.master().await?;
        trial.client.js.delete_stream(subjects::CLUSTER_STREAM).await?;
        until("the bucket is made again", trial::SETTLED_WITHIN, async || {
            let found = trial.client.js.get_stream(subjects::CLUSTER_STREAM).await;
            found.map(|_| ()).map_err(|error| error.to_string())
        })
        .await?;
        trial.create("at_last").await?;
        let (after, later) = trial.master().await?;
        ensure!(later > term || (later == term && after == master), "{after} in {later}, {master} in {term}");
        trial.check().await
    })
    .await
}
