//! The replicated log, its tail or the cluster managers' bucket is taken away: it is published anew from the copies, whoever
//! follows it goes on without a restart, and nothing that was acknowledged is lost.

use highwater_schemas::subjects;
use highwater_tests::{
    files,
    prelude::*,
    scenarios::log,
    trial::{self, Trial},
};

const DOCUMENTS: u64 = 3_000;
const ROUNDS: u64 = 2;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_log_is_published_anew() -> Result<()> {
    log::deleted("deleted log", Cluster::deployed().await?, ROUNDS).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_lost_its_tail_while_the_server_was_down_gets_it_back() -> Result<()> {
    Trial::run("lost tail", Cluster::deployed().await?, DOCUMENTS, async |cluster, trial, rng| {
        let kept = cluster.path().join("kept");
        for round in 0..ROUNDS {
            trial.quiet_without_failures().await?;
            let incarnation = trial.history.read(&trial.client).await?.incarnation;
            // An old tail, or a torn one.
            let old = round % 2 == 0;
            if old {
                cluster.nats().kill();
                files::copy(&cluster.nats().stream_dir(subjects::STATE_STREAM), &kept)?;
                cluster.nats().start_again()?;
                // What is asked before a connection is seen to be lost is lost with it.
                until("the members answer", trial::SETTLED_WITHIN, async || {
                    trial.client.members().await.map_err(|refused| refused.to_string())
                })
                .await?;
            }
            let dropped = trial.indexes.pop().context("no index")?;
            trial.client.drop_index(trial::BUCKET, &dropped.name).await?;
            for n in 0..3 {
                trial.create(&format!("tail{round}_{n}")).await?;
            }
            let (_, term) = trial.master().await?;
            let before = trial.history.read(&trial.client).await?;
            cluster.nats().kill();
            let stream = cluster.nats().stream_dir(subjects::STATE_STREAM);
            if old {
                files::put_back(&kept, &stream)?;
            } else {
                files::cut_stream(&stream, 50 + rng.below(45))?;
            }
            let gone = Instant::now();
            cluster.nats().start_again()?;
            let (next, later) = trial.later_term(term, gone).await?;
            let after = trial.state_of(&next).await?;
            println!(
                "round {round}: term {later} by {next} after {term}; version {} then {}",
                before.version, after.version
            );
            ensure!(after.version > before.version, "records are lost");
            trial.holds(&after)?;
            trial.create(&format!("after{round}")).await?;
            trial.traffic(rng);
            trial.settle(cluster).await?;
            ensure!(trial.history.incarnation() > incarnation, "not published anew");
            trial.traffic(rng);
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terms_rise_without_the_cluster_managers_bucket() -> Result<()> {
    log::without_bucket("lost bucket", Cluster::deployed().await?, ROUNDS).await
}
