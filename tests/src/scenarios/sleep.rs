//! A master that sleeps for longer than anybody waits wakes up as one of many.

use crate::{
    prelude::*,
    trial::{self, BUCKET, SETTLED_WITHIN, Trial},
};
use highwater_schemas::subjects;

const DOCUMENTS: u64 = 3_000;

/// The master sleeps, alone or beside the active cluster manager, so many times.
pub async fn wakes_up(name: &str, cluster: Cluster, with_cluster_manager: bool, rounds: u64) -> Result<()> {
    Trial::run(name, cluster, DOCUMENTS, async |cluster, trial, rng| {
        for round in 0..rounds {
            trial.traffic(rng);
            let (master, term) = trial.master().await?;
            let active = trial::cluster_manager(&trial.client).await?;
            trial.create(&format!("before{round}")).await?;
            let gone = Instant::now();
            cluster.node(&master)?.freeze()?;
            if with_cluster_manager {
                cluster.node(&active)?.freeze()?;
            }
            // It waits for the sleeper, which has everything that it needs to append.
            let stale = trial::named(&format!("stale{round}")).definition(BUCKET);
            let old = subjects::node(&master, "admin.index.create");
            let client = trial.client.clone();
            let asked = tokio::spawn({
                let (old, stale) = (old.clone(), stale.clone());
                async move { client.request(&old, &stale).await }
            });
            let (next, later) = trial.later_term(term, gone).await?;
            println!("round {round}: {next} in term {later} after {master} in term {term}, {:?}", gone.elapsed());
            ensure!(next != master, "the sleeper coordinates");
            trial.create(&format!("meanwhile{round}")).await?;
            cluster.node(&master)?.thaw()?;
            if with_cluster_manager {
                cluster.node(&active)?.thaw()?;
            }
            let answer = asked.await?;
            let refused = answer.err().context("a deposed master created an index")?;
            ensure!(refused.code == "no_coordinator" && refused.retry, "{refused}");
            until("the sleeper is a replica", SETTLED_WITHIN, async || {
                match trial::seen_as(&trial.client, &master).await? {
                    (true, role, _) if role == "replica" => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
            .await?;
            let refused = trial.client.request(&old, &stale).await.err().context("a replica created an index")?;
            ensure!(refused.code == "no_coordinator", "{refused}");
            let report = trial.report_of(&master).await.map_err(anyhow::Error::msg)?;
            ensure!(report.leading.is_none(), "it still coordinates: {report:?}");
            trial.create(&format!("after{round}")).await?;
            trial.drop(&format!("before{round}")).await?;
            trial.settle(cluster).await?;
            let context = trial.history.read(&trial.client).await?;
            ensure!(context.coordinator == next && context.term == later, "{next} did not stay");
        }
        println!("without a master for {:?} at most", trial.longest);
        Ok(())
    })
    .await
}
