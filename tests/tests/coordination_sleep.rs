//! A master that sleeps for longer than anybody waits wakes up as one of many.

use highwater_schemas::subjects;
use highwater_tests::{
    prelude::*,
    trial::{self, BUCKET, SETTLED_WITHIN, Trial},
};

const DOCUMENTS: u64 = 3_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_wakes_up_steps_down() -> Result<()> {
    wakes_up("sleeping master", false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_wakes_up_beside_its_cluster_manager_steps_down() -> Result<()> {
    wakes_up("both asleep", true).await
}

async fn wakes_up(name: &str, with_cluster_manager: bool) -> Result<()> {
    Trial::run(name, Cluster::deployed().await?, DOCUMENTS, async |cluster, trial, rng| {
        for round in 0..2 {
            trial.traffic(rng);
            let (master, term) = trial.master().await?;
            let (active, _) = trial::cluster_managers(&trial.client).await?;
            let slept = cluster.node(&master)?.log().matches("coordinates no more").count();
            trial.create(&format!("before{round}")).await?;
            let gone = Instant::now();
            cluster.node(&master)?.signal("STOP")?;
            if with_cluster_manager {
                cluster.node(&active)?.signal("STOP")?;
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
            println!("round {round}: {next} in term {later} after {master} in term {term}");
            ensure!(next != master, "the sleeper coordinates");
            trial.create(&format!("meanwhile{round}")).await?;
            cluster.node(&master)?.signal("CONT")?;
            if with_cluster_manager {
                cluster.node(&active)?.signal("CONT")?;
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
            let log = cluster.node(&master)?.log();
            ensure!(log.matches("coordinates no more").count() == slept + 1, "it did not step down once");
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
