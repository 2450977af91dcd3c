//! Whoever coordinates is killed: nothing that was acknowledged is lost, nothing stays half done, and scans go on.

use futures_util::{FutureExt, StreamExt};
use highwater_schemas::{state::IndexState, subjects::STATE_SUBJECT};
use highwater_tests::{
    files, load,
    prelude::*,
    trial::{self, Answer, BUCKET, SETTLED_WITHIN, Trial},
};
use std::collections::{BTreeMap, BTreeSet};
use tokio::sync::mpsc::Sender;

const DOCUMENTS: u64 = 3_000;
const ROUNDS: u64 = 3;
/// Requests for DDL that go on at the same time.
const SEQUENCES: usize = 2;
const EACH: usize = 4;

/// What a request may ask for.
#[derive(Clone, Copy, PartialEq)]
enum Ask {
    Create,
    Build,
    Drop,
}

impl Ask {
    /// Indexes that one request names.
    fn at_once(self) -> usize {
        if self == Self::Build { 2 } else { 1 }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_killed_while_indexes_are_created_leaves_none_half_created() -> Result<()> {
    killed_during("killed during create", Ask::Create).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_killed_while_deferred_indexes_are_built_leaves_the_builds_to_the_next() -> Result<()> {
    killed_during("killed during build", Ask::Build).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_killed_while_indexes_are_dropped_leaves_none_half_dropped() -> Result<()> {
    killed_during("killed during drop", Ask::Drop).await
}

/// Kills the master while requests of one kind are under way.
async fn killed_during(name: &str, ask: Ask) -> Result<()> {
    let documents = if ask == Ask::Build { 10 * DOCUMENTS } else { DOCUMENTS };
    Trial::run(name, Cluster::deployed().await?, documents, async |cluster, trial, rng| {
        let mut met = 0;
        for round in 0..ROUNDS {
            // Some request is under way then; soon in one half of the cases.
            let requests = (SEQUENCES * EACH / ask.at_once()) as u64;
            let answered = if rng.chance(50) { rng.below(requests - 1) } else { 0 };
            met += u64::from(one_round(cluster, trial, ask, round, answered, rng).await?);
        }
        println!("without a master for {:?} at most; {} terms", trial.longest, trial.history.terms().count());
        ensure!(met > 0, "every request was answered before its master was killed");
        Ok(())
    })
    .await
}

/// Kills the master when so many requests are answered, at once or as it publishes the next record. True: some of what was asked
/// of it was not done then.
async fn one_round(
    cluster: &mut Cluster,
    trial: &mut Trial,
    ask: Ask,
    round: u64,
    answered: u64,
    rng: &mut Rng,
) -> Result<bool> {
    let names: Vec<Vec<String>> =
        (0..SEQUENCES).map(|sequence| (0..EACH).map(|n| format!("r{round}_{sequence}_{n}")).collect()).collect();
    if ask != Ask::Create {
        for (n, name) in names.iter().flat_map(|names| names.iter().enumerate()) {
            let mut definition = trial::named(name).definition(BUCKET);
            // What is dropped has slices, or has none yet.
            let defer = ask == Ask::Build || n % 2 == 1;
            definition["defer_build"] = defer.into();
            trial.client.create_index(&definition).await?;
            if !defer {
                trial.client.wait_active(BUCKET, name, SETTLED_WITHIN).await?;
            }
        }
    }
    trial.traffic(rng);
    let (master, term) = trial.master().await?;
    let mut records = trial.client.nats.subscribe(STATE_SUBJECT).await?;
    trial.client.nats.flush().await?;
    let (answer, mut told) = tokio::sync::mpsc::channel(SEQUENCES * EACH);
    let start = |names: &Vec<String>| tokio::spawn(sequence(trial.client.clone(), ask, names.clone(), answer.clone()));
    let sequences: Vec<_> = names.iter().map(start).collect();
    drop(answer);
    for _ in 0..answered {
        // None: each sequence has ended, at an answer that was not clear.
        if told.recv().await.is_none() {
            break;
        }
    }
    let records_before = std::iter::from_fn(|| records.next().now_or_never().flatten()).count();
    let at_a_record = rng.chance(70);
    if at_a_record {
        // Of a request that is under way; or all of them are answered.
        tokio::select! {
            _ = records.next() => {}
            _ = told.recv() => {}
        }
    }
    cluster.kill(&master)?;
    let gone = Instant::now();
    let mut answers = BTreeMap::new();
    for sequence in sequences {
        answers.extend(sequence.await.context("a request panicked")??);
    }
    let (next, _) = trial.later_term(term, gone).await?;
    let done = answers.values().filter(|answer| **answer == Answer::Done).count();
    let met = done < SEQUENCES * EACH && (answered > 0 || at_a_record);
    println!(
        "round {round}: {master} killed after {answered} requests and {records_before} records, at another: {at_a_record}; \
         {done} of {} names acknowledged",
        answers.len()
    );

    // What was acknowledged is so at once for who coordinates.
    for name in names.iter().flatten() {
        let state = trial.state_in_log(&next, name).await?;
        let as_acknowledged = match (ask, answers.get(name)) {
            (Ask::Create, Some(Answer::Done)) => {
                !matches!(state, None | Some(IndexState::Created | IndexState::Failed(_)))
            }
            (Ask::Build, Some(Answer::Done)) => matches!(state, Some(IndexState::Building | IndexState::Active)),
            (Ask::Drop, Some(Answer::Done)) | (Ask::Create, None) => state.is_none(),
            (Ask::Build, None) => state == Some(IndexState::Created),
            (Ask::Drop, None) => matches!(state, Some(IndexState::Created | IndexState::Active)),
            (Ask::Create, Some(_)) => !matches!(state, Some(IndexState::Failed(_))),
            (Ask::Build, Some(_)) => {
                matches!(state, Some(IndexState::Created | IndexState::Building | IndexState::Active))
            }
            (Ask::Drop, Some(_)) => matches!(state, None | Some(IndexState::Created | IndexState::Active)),
        };
        ensure!(as_acknowledged, "{name} is {state:?} after {:?}", answers.get(name));
    }
    // What is unclear becomes one or the other by itself, and can be asked for again.
    until("no index is half created", SETTLED_WITHIN, async || {
        let context = trial.state_of(&next).await.map_err(|e| e.to_string())?;
        let half = context.buckets[BUCKET].indexes.values().find(|index| index.state == IndexState::Preparing);
        half.map_or(Ok(()), |index| Err(index.placed.definition.name.clone()))
    })
    .await?;
    for (name, answer) in &answers {
        match (ask, answer) {
            (Ask::Drop, Answer::Unclear(_)) => trial.drop(name).await?,
            (Ask::Drop, Answer::Done) => {}
            (Ask::Build, Answer::Unclear(_)) => build_surely(trial, name).await?,
            (Ask::Create, Answer::Unclear(_)) => trial.create(name).await?,
            (Ask::Build | Ask::Create, Answer::Done) => trial.indexes.push(trial::named(name)),
        }
    }
    // Those that were not asked for are there as they were.
    for name in names.iter().flatten().filter(|name| !answers.contains_key(*name)) {
        match ask {
            Ask::Create => {}
            Ask::Build => build_surely(trial, name).await?,
            Ask::Drop => trial.drop(name).await?,
        }
    }
    cluster.start_node(&master).await?;
    trial.settle(cluster).await?;
    // All of these names can be used again.
    for name in names.iter().flatten() {
        if trial.indexes.iter().any(|index| index.name == *name) {
            trial.drop(name).await?;
        }
    }
    let again = names[0][0].clone();
    trial.create(&again).await?;
    trial.drop(&again).await?;
    nothing_left(cluster, trial, &next).await?;
    Ok(met)
}

/// Waits until the indexers have the slices of the indexes that are there, and nothing of those that were dropped.
async fn nothing_left(cluster: &Cluster, trial: &Trial, master: &str) -> Result<()> {
    until("what was dropped is gone from the disks", SETTLED_WITHIN, async || {
        let context = trial.state_of(master).await.map_err(|e| e.to_string())?;
        let live: BTreeSet<&str> = context.buckets[BUCKET].indexes.values().map(|index| &*index.placed.id).collect();
        let mut found = BTreeSet::new();
        for node in ["indexer-1", "indexer-2"] {
            for slice in files::slices(&cluster.data_dir(node)).map_err(|e| format!("{e:#}"))? {
                // <index id>.<partition>.<life>
                let name = slice.file_name().unwrap_or_default().to_string_lossy().into_owned();
                found.insert(name.split('.').next().unwrap_or_default().to_owned());
            }
        }
        let gone = found.iter().map(String::as_str).eq(live.iter().copied());
        if gone { Ok(()) } else { Err(format!("slices of {found:?}, indexes {live:?}")) }
    })
    .await
}

/// One request after the other, until one stays without a clear answer; answers what was answered.
async fn sequence(client: Client, ask: Ask, names: Vec<String>, told: Sender<()>) -> Result<BTreeMap<String, Answer>> {
    let mut answers = BTreeMap::new();
    // Several deferred indexes are built by one request.
    for names in names.chunks(ask.at_once()) {
        let (subject, request) = match ask {
            Ask::Create => ("hw.admin.index.create", trial::named(&names[0]).definition(BUCKET)),
            Ask::Build => ("hw.admin.index.build", json!({"bucket": BUCKET, "names": names})),
            Ask::Drop => ("hw.admin.index.drop", json!({"bucket": BUCKET, "name": names[0]})),
        };
        let answer = client.ddl(subject, &request).await.with_context(|| format!("{subject} {request}"))?;
        answers.extend(names.iter().map(|name| (name.clone(), answer.clone())));
        // Nobody listens any more once the master is killed.
        let _ = told.send(()).await;
        if answer != Answer::Done {
            break;
        }
    }
    Ok(answers)
}

async fn build_surely(trial: &mut Trial, name: &str) -> Result<()> {
    let request = json!({"bucket": BUCKET, "names": [name]});
    trial.client.insist("hw.admin.index.build", &request, SETTLED_WITHIN).await?;
    trial.indexes.push(trial::named(name));
    trial.client.wait_active(BUCKET, name, SETTLED_WITHIN).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn master_and_active_cluster_manager_killed_together_are_both_replaced() -> Result<()> {
    Trial::run("killed together", Cluster::deployed().await?, DOCUMENTS, async |cluster, trial, rng| {
        for round in 0..ROUNDS {
            trial.traffic(rng);
            let (master, term) = trial.master().await?;
            let active = trial::cluster_manager(&trial.client).await?;
            let name = format!("together{round}");
            trial.create(&name).await?;
            // In any order, with or without something written between.
            let (first, second) = if rng.chance(50) { (&master, &active) } else { (&active, &master) };
            cluster.kill(first)?;
            if rng.chance(50) {
                load::written(&trial.source, rng.below(2_000)).await?;
            }
            let gone = Instant::now();
            cluster.kill(second)?;
            let (next, _) = trial.later_term(term, gone).await?;
            let other = trial::cluster_manager(&trial.client).await?;
            println!("round {round}: {master} and {active} killed, {next} and {other} follow");
            ensure!(next != master && other != active, "{next} and {other}");
            trial.holds(&trial.state_of(&next).await?)?;
            trial.create(&format!("after{round}")).await?;
            trial.drop(&name).await?;
            cluster.start_node(&master).await?;
            cluster.start_node(&active).await?;
            trial.settle(cluster).await?;
        }
        println!("without a master for {:?} at most", trial.longest);
        Ok(())
    })
    .await
}
