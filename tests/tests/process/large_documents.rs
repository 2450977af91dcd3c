//! However large the documents, no more of them is under way than a projector takes: the server never finds it slow, and it stays
//! within its memory.

use highwater_schemas::api::BucketStatus;
use highwater_tests::{branches::reconcile, cluster::SERVICES, memory::Memory, prelude::*};

const BUCKET: &str = "large";
const PROJECTOR: &str = "projector-1";
const CONFIGURATION: &str = "http: \"127.0.0.1:-1\"\njetstream {}\n";
/// What hangs takes longer.
const WITHIN: Duration = Duration::from_secs(60);
/// What a projector may take beside one message; of many streams each has a live reader and one of a session, with one message each.
const MEMORY: u64 = 96 << 20;
/// Bytes of a document beside its padding.
const REST: usize = 64;

/// Documents of one size, so many of them in so many streams.
#[derive(Debug, Clone, Copy)]
struct Large {
    size: usize,
    count: u64,
    streams: u64,
}

/// What was built over them, and what the projector takes since then.
struct Built {
    client: Client,
    source: Source,
    index: Index,
    memory: Memory,
}

impl Large {
    /// Writes them, and builds an index that includes these fields.
    async fn built(self, cluster: &mut Cluster, include: &[&'static str]) -> Result<Built> {
        let Self { size, count, streams } = self;
        let client = cluster.client().await?;
        let source = match streams {
            1 => Source::key_value(&client, BUCKET).await?,
            many => Source::keyed_streams(&client, BUCKET, many as usize).await?,
        };
        let padding = "x".repeat(size - REST);
        let large = |n: u64| {
            let document = json!({"age": n, "city": "Oslo", "padding": padding});
            Write::put((n % streams) as usize, format!("d{n}"), &document)
        };
        source.write((0..count).map(large)).await?;
        let memory = Memory::watch(cluster.node(PROJECTOR)?.id())?;
        let (name, keys) = ("by_age".to_owned(), vec![("age", true), ("city", false)]);
        let index = Index { name, keys, include: include.to_vec(), ..Index::default() };
        let began = Instant::now();
        client.create_indexes(BUCKET, std::slice::from_ref(&index), WITHIN).await?;
        println!("{count} documents of {size} bytes: built within {:?}", began.elapsed());
        ask::whole(&client, &source, &index).await?;
        Ok(Built { client, source, index, memory })
    }

    /// The projector has stayed within its memory, and the server has never found it slow.
    fn check(self, cluster: &mut Cluster, memory: &Memory) -> Result<()> {
        let highest = memory.highest()?;
        println!("the projector took {} MiB at most", highest >> 20);
        let messages = if self.streams == 1 { 1 } else { 2 * self.streams };
        ensure!(highest <= MEMORY + messages * self.size as u64, "the projector took {highest} bytes");
        let slow = cluster.nats().counted("slow_consumers")?;
        ensure!(slow == 0, "the server found a consumer slow {slow} times");
        Ok(())
    }
}

/// Documents are built into an index and then compared with it.
async fn built_and_compared(documents: Large) -> Result<()> {
    Cluster::configured(CONFIGURATION)?
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let Built { client, source, index, memory } = documents.built(cluster, &[]).await?;
            let before = compared(&client).await?;
            let began = Instant::now();
            reconcile(&client, BUCKET, WITHIN).await?;
            println!("compared within {:?}", began.elapsed());
            ask::whole(&client, &source, &index).await.context("after it was compared")?;
            until("every document was read again", WITHIN, async || {
                let read = compared(&client).await.map_err(|e| e.to_string())? - before;
                if read >= documents.count { Ok(()) } else { Err(format!("{read} were")) }
            })
            .await?;
            ask::whole(&client, &source, &index).await?;
            documents.check(cluster, &memory)
        })
        .await
}

/// Messages read so far to compare the index with its source.
async fn compared(client: &Client) -> Result<u64> {
    let bucket: BucketStatus = serde_json::from_value(client.bucket(BUCKET).await?)?;
    Ok(bucket.vbuckets.iter().map(|vb| vb.reads.compared).sum())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_documents_of_100_kilobytes() -> Result<()> {
    built_and_compared(Large { size: 100_000, count: 2_000, streams: 1 }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_of_nearly_the_largest_size() -> Result<()> {
    built_and_compared(Large { size: 900_000, count: 200, streams: 1 }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_of_100_kilobytes_in_64_streams() -> Result<()> {
    built_and_compared(Large { size: 100_000, count: 1_280, streams: 64 }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_of_nearly_the_largest_size_in_64_streams() -> Result<()> {
    built_and_compared(Large { size: 900_000, count: 192, streams: 64 }).await
}

/// What is published of each document is as large as the document, and is kept until NATS has acknowledged it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_includes_a_field_of_100_kilobytes_in_16_streams() -> Result<()> {
    let documents = Large { size: 100_000, count: 640, streams: 16 };
    Cluster::configured(CONFIGURATION)?
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let built = documents.built(cluster, &["padding"]).await?;
            documents.check(cluster, &built.memory)
        })
        .await
}
