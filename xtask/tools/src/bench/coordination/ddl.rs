//! The round trip of DDL on empty buckets: from the request to the acknowledgement, and to an active index.

use super::{Cluster, Created, Sources, WITHIN};
use crate::{
    bench::report::{Report, Spread},
    fleet::SMALLEST,
    term::step,
};
use anyhow::Result;
use serde_json::json;
use std::time::Instant;

/// Creates before the clock counts.
const WARM_UP: u64 = 3;
const BUCKET: &str = "known";

pub(super) async fn measure(sources: &Sources<'_>, creates: u64, report: &mut Report) -> Result<()> {
    let cluster = Cluster::start(sources, SMALLEST, &[]).await?;
    let began = Instant::now();
    cluster.make_bucket(BUCKET).await?;
    let mut further = Vec::new();
    for n in 0..WARM_UP + creates {
        let name = format!("i{n}");
        further.push(cluster.create(BUCKET, &name).await?);
        cluster.drop_index(BUCKET, &name).await?;
    }
    show("an index of a declared bucket", &further, began);
    report.ddl("of a declared bucket", &acknowledged(&further), &active(&further));

    let began = Instant::now();
    let mut first = Vec::new();
    for n in 0..WARM_UP + creates {
        let (bucket, name) = (format!("new{n}"), "only");
        cluster.make_bucket(&bucket).await?;
        first.push(cluster.create(&bucket, name).await?);
        cluster.drop_index(&bucket, name).await?;
        cluster.highwater.insist("hw.admin.bucket.remove", &json!({"name": bucket}), WITHIN).await?;
    }
    show("the first index of a new bucket", &first, began);
    report.ddl("of a new bucket", &acknowledged(&first), &active(&first));
    Ok(())
}

/// Without those before the clock counts.
pub(super) fn acknowledged(created: &[Created]) -> Spread {
    Spread::of(created.iter().skip(WARM_UP as usize).map(|c| c.acknowledged).collect())
}

/// Likewise.
pub(super) fn active(created: &[Created]) -> Spread {
    Spread::of(created.iter().skip(WARM_UP as usize).map(|c| c.active).collect())
}

fn show(what: &str, created: &[Created], began: Instant) {
    step(&format!("{what}: acknowledged {}; active {}", acknowledged(created), active(created)), began.elapsed());
}
