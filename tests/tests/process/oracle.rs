//! Whatever is written, every index answers what a naive evaluation of the documents answers.

use highwater_tests::prelude::*;

const BUILT_WITHIN: Duration = Duration::from_secs(30);

/// How a run looks.
struct Shape {
    streams: usize,
    ids: u64,
    rounds: u64,
    /// The most writes between two looks at the indexes.
    burst: u64,
    partitions: u32,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_value_bucket_is_indexed_as_the_oracle_says() -> Result<()> {
    let mut rng = Rng::seeded("key-value bucket");
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value(&client, "people").await?;
            let shape = Shape { streams: 1, ids: 400, rounds: 40, burst: 400, partitions: 3 };
            follow(&client, &source, &shape, &mut rng).await
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_of_four_streams_is_indexed_as_the_oracle_says() -> Result<()> {
    let mut rng = Rng::seeded("four streams");
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::keyed_streams(&client, "orders", 4).await?;
            let shape = Shape { streams: 4, ids: 150, rounds: 40, burst: 400, partitions: 3 };
            follow(&client, &source, &shape, &mut rng).await
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_on_two_nodes_make_one_index() -> Result<()> {
    let mut rng = Rng::seeded("two nodes");
    let nodes = ["coordinator-1", "projector-1", "indexer-1", "indexer-2", "catalog-1"];
    Cluster::start_nodes(&nodes)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value(&client, "people").await?;
            let shape = Shape { streams: 1, ids: 400, rounds: 30, burst: 300, partitions: 4 };
            follow(&client, &source, &shape, &mut rng).await?;
            let request = json!({"bucket": "people", "index": "by_city_parted"});
            let described = client.request("hw.query.describe", &request).await?;
            for node in ["indexer-1", "indexer-2"] {
                let hosts = described["hosts"].as_array().context("no hosts")?;
                ensure!(hosts.iter().any(|host| host == node), "{node} hosts no partition: {described}");
            }
            Ok(())
        })
        .await
}

/// Writes in bursts of random length and looks at the indexes between them; one index comes and one goes on the way.
async fn follow(client: &Client, source: &Source, shape: &Shape, rng: &mut Rng) -> Result<()> {
    let bucket = &source.bucket;
    let mut indexes = documents::indexes(shape.partitions);
    // Half of the indexes are there before the documents are.
    let later = indexes.split_off(2);
    let leaving = documents::passing("leaving");
    for index in indexes.iter().chain([&leaving]) {
        client.create_index(&index.definition(bucket)).await?;
    }
    burst(source, shape, shape.burst, rng).await?;
    for index in &later {
        client.create_index(&index.definition(bucket)).await?;
    }
    indexes.extend(later);
    indexes.push(leaving);
    burst(source, shape, shape.burst, rng).await?;
    for index in &indexes {
        client.wait_active(bucket, &index.name, BUILT_WITHIN).await?;
    }
    for round in 0..shape.rounds {
        let length = 1 + rng.below(shape.burst);
        if round == shape.rounds / 4 {
            let arriving = documents::passing("arriving");
            let definition = arriving.definition(bucket);
            let (written, created) =
                tokio::join!(burst(source, shape, length * 4, rng), client.create_index(&definition));
            written?;
            created?;
            client.wait_active(bucket, "arriving", BUILT_WITHIN).await?;
            indexes.push(arriving);
        } else if round == shape.rounds / 2 {
            let (written, dropped) =
                tokio::join!(burst(source, shape, length * 4, rng), client.drop_index(bucket, "leaving"));
            written?;
            dropped?;
            indexes.retain(|index| index.name != "leaving");
        } else {
            burst(source, shape, length, rng).await?;
        }
        // The first look follows the last acknowledgement at once.
        let index = rng.pick(&indexes).clone();
        ask::random(client, source, &index, rng).await?;
        for index in &indexes {
            ask::whole(client, source, index).await?;
        }
        for _ in 0..3 {
            let index = rng.pick(&indexes).clone();
            ask::random(client, source, &index, rng).await?;
        }
    }
    // Nothing was compared with nothing.
    let documents = source.log().now();
    for index in &indexes {
        ensure!(index.rows(&documents).len() > 10, "{} is nearly empty", index.name);
    }
    println!("{} writes, {} rounds", source.log().complete().iter().sum::<u64>(), shape.rounds);
    Ok(())
}

async fn burst(source: &Source, shape: &Shape, length: u64, rng: &mut Rng) -> Result<()> {
    let writes: Vec<Write> = (0..length).map(|_| documents::write(rng, shape.streams, shape.ids)).collect();
    source.write(writes).await
}
