//! Files of one slice are damaged while its indexer is stopped: that slice alone is built again, and the others serve meanwhile.

use highwater_schemas::state::{Change, SessionKind};
use highwater_tests::{cli::json_of, deleting::Deleting, files, history, load, prelude::*};
use std::{
    fs,
    path::{Path, PathBuf},
};

const BUCKET: &str = "people";
const CATCHUP: &str = "HW_CATCHUP_people";
const INDEXER: &str = "indexer-1";
const FIRST: u64 = 3_000;
const WITHIN: Duration = Duration::from_secs(60);
const PAGE: usize = 4_096;
const META: usize = 2 * PAGE;

/// Where a data file is damaged.
#[derive(Debug, Clone, Copy)]
enum Damage {
    /// The pages that say where everything else is.
    Meta,
    /// Some pages in the middle, all of them in a row.
    Middle,
    Truncated,
    Emptied,
    Deleted,
    /// The whole directory of the slice.
    Lost,
}

impl Damage {
    fn inflict(self, slice: &Path, rng: &mut Rng) -> Result<()> {
        let file = slice.join("data.mdb");
        let mut bytes = fs::read(&file).with_context(|| format!("no {}", file.display()))?;
        ensure!(bytes.len() > 16 * PAGE, "{} is too small to have a middle", file.display());
        let mut noise = |bytes: &mut [u8]| bytes.iter_mut().for_each(|byte| *byte = rng.below(256) as u8);
        match self {
            Self::Meta => noise(&mut bytes[..META]),
            Self::Middle => {
                let pages = bytes.len() / PAGE;
                noise(&mut bytes[pages / 3 * PAGE..pages * 2 / 3 * PAGE]);
            }
            Self::Truncated => bytes.truncate(META + rng.below((bytes.len() / 2) as u64) as usize),
            Self::Emptied => bytes.clear(),
            Self::Deleted => return fs::remove_file(&file).context("it stays"),
            Self::Lost => return fs::remove_dir_all(slice).context("it stays"),
        }
        fs::write(&file, bytes).context("it stays as it is")
    }
}

/// The directory of the slice of an index, and those of the others, of a stopped node.
fn directories(data: &Path, id: &str) -> Result<(PathBuf, Vec<PathBuf>)> {
    let shown = json_of(&["slice", "dump", "--data-dir", &data.to_string_lossy()], 0)?;
    let slices = shown["slices"].as_array().context("no slices")?;
    let of = |slice: &&Value| slice["index_id"] == id;
    let one = slices.iter().find(of).and_then(|slice| slice["at"].as_str()).with_context(|| shown.to_string())?;
    let one = PathBuf::from(one);
    let others = files::slices(data)?.into_iter().filter(|slice| *slice != one).collect();
    Ok((one, others))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_slice_is_built_again_while_the_others_serve() -> Result<()> {
    let mut rng = Rng::seeded("damaged files");
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let indexes = documents::indexes(1);
            let source = load::indexed(&client, BUCKET, FIRST, &indexes, &mut rng, WITHIN).await?;
            let data = cluster.data_dir(INDEXER);
            let kinds =
                [Damage::Meta, Damage::Middle, Damage::Truncated, Damage::Emptied, Damage::Deleted, Damage::Lost];
            for damage in kinds {
                ask::each(&client, &source, &indexes).await?;
                let hurt = &indexes[rng.below(indexes.len() as u64) as usize];
                let listed = client.index(BUCKET, &hurt.name).await?;
                cluster.stop(INDEXER).await?;
                let (slice, others) = directories(&data, listed["id"].as_str().context("no id")?)?;
                ensure!(others.len() == indexes.len() - 1, "{others:?}");
                println!("{damage:?} of {}", hurt.name);
                damage.inflict(&slice, &mut rng)?;
                let before = builds(&client).await?.len();
                // The build cannot end before the others have answered.
                let held = Deleting::start(cluster.url(), CATCHUP).await?;
                cluster.start_node(INDEXER).await?;
                load::write(&source, 200, &mut rng).await?;
                let unhurt: Vec<Index> = indexes.iter().filter(|index| index.name != hurt.name).cloned().collect();
                let served = ask::each_again(&client, &source, &unhurt, WITHIN).await;
                served.with_context(|| format!("{damage:?} of another slice"))?;
                let built = until("it is built again", WITHIN, async || {
                    let builds = builds(&client).await.map_err(|error| format!("{error:#}"))?;
                    if builds.len() > before { Ok(builds) } else { Err("no session was opened".into()) }
                })
                .await?;
                let refused = client.count(&json!({"bucket": BUCKET, "index": hurt.name, "consistency": "any"})).await;
                ensure!(refused.is_err_and(|refused| refused.retry), "{} was answered while it is built", hurt.name);
                held.stop().await?;
                let served = ask::each_again(&client, &source, &indexes, WITHIN).await;
                served.with_context(|| format!("{damage:?}"))?;
                let number = built[before].clone();
                for slices in &builds(&client).await?[before..] {
                    ensure!(slices.len() == 1 && *slices == number, "others were built again too: {slices:?}");
                }
                ensure!(others.iter().all(|slice| slice.exists()), "another slice has other files: {others:?}");
            }
            Ok(())
        })
        .await
}

/// The slices of every build so far, by their index's number.
async fn builds(client: &Client) -> Result<Vec<Vec<u32>>> {
    let changes = history::changes(client).await?;
    let built = changes.into_iter().filter_map(|change| match change {
        Change::SessionOpened { slices, kind: SessionKind::Build, .. } => {
            Some(slices.iter().map(|slice| slice.index).collect())
        }
        _ => None,
    });
    Ok(built.collect())
}
