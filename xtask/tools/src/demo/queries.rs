//! The demo's questions; every answer is compared with the documents themselves.

use super::{BUCKET, cities::City};
use crate::{
    client::Highwater,
    term::{bold, dim, green, group, time},
};
use anyhow::{Context, Result, bail, ensure};
use async_nats::jetstream::kv;
use comfy_table::{Cell, CellAlignment, Table, presets};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

pub type Cities = BTreeMap<String, City>;

const COUNTRY: &str = "JP";
const ZONE: &str = "Europe/Berlin";
const TOP: usize = 5;
const RANGE: (u64, u64) = (10_000_000, 20_000_000);
/// What the updated city is said to have.
const GROWN: u64 = 40_000_000;

/// A scan, a range and a count.
pub async fn ask(highwater: &Highwater, cities: &Cities) -> Result<()> {
    let (rows, took) = largest(highwater, "any").await?;
    same(&ids(&rows), &expected_largest(cities))?;
    present("The five largest cities of Japan", &largest_request("any"), took);
    print_table(&["city", "population"], rows.iter().map(|row| vec![name(row), number(&row["key"][1])]));

    let (low, high) = RANGE;
    let request = format!(
        r#"{{"bucket":"{BUCKET}","index":"million","spans":[{{"low":[{low}],"high":[{high}]}}],"reverse":true}}"#
    );
    let (reply, took) = timed(highwater, "hw.query.scan", &request).await?;
    let rows = rows_of(reply)?;
    let inside = cities.values().filter(|city| (RANGE.0..=RANGE.1).contains(&city.population)).count();
    ensure!(rows.len() == inside, "the range has {} cities, the documents {inside}", rows.len());
    present("Cities of 10 to 20 million, from a partial index that covers the answer", &request, took);
    let cells = |row: &Value| vec![name(row), text(&row["include"]["country"]), number(&row["key"][0])];
    print_table(&["city", "country", "population"], rows.iter().map(cells));

    let request = format!(r#"{{"bucket":"{BUCKET}","index":"by_timezone","spans":[{{"equal":["{ZONE}"]}}]}}"#);
    let (reply, took) = timed(highwater, "hw.query.count", &request).await?;
    let count = reply["count"].as_u64().context("the reply has no count")?;
    let inside = cities.values().filter(|city| city.timezone == ZONE).count() as u64;
    ensure!(count == inside, "the count is {count}, the documents say {inside}");
    println!("\n  {}", bold("Cities on Berlin's clock"));
    println!("  {}", dim(&format!("hw.query.count {request}")));
    println!("    {}   {}", bold(&group(count)), dim(&format!("in {}", time(took))));
    println!("\n  {} the three answers are those of a plain loop over the documents", green("✓"));
    Ok(())
}

/// Updates a document and deletes another; `request_plus` sees both at once.
pub async fn change(highwater: &Highwater, bucket: &kv::Store, cities: &mut Cities) -> Result<()> {
    let order = expected_largest(cities);
    let (first, second) = (order[0].clone(), order[1].clone());

    let city = cities.get_mut(&second).context("the second city is gone")?;
    city.population = GROWN;
    println!(
        "  put {} with a population of {}, {}",
        bold(&city.name),
        group(GROWN),
        dim("a plain put of any NATS client")
    );
    let payload = serde_json::to_vec(city).context("a city does not serialize")?;
    bucket.put(second.as_str(), payload.into()).await.context("cannot put a city")?;
    seen(highwater, cities).await?;

    let gone = cities.remove(&first).context("the first city is gone")?;
    println!("\n  delete {}", bold(&gone.name));
    bucket.delete(first.as_str()).await.context("cannot delete a city")?;
    seen(highwater, cities).await
}

async fn seen(highwater: &Highwater, cities: &Cities) -> Result<()> {
    let (rows, took) = largest(highwater, "request_plus").await?;
    same(&ids(&rows), &expected_largest(cities))?;
    println!("  {}", dim(&format!("hw.query.scan {}", largest_request("request_plus"))));
    print_table(&["city", "population"], rows.iter().map(|row| vec![name(row), number(&row["key"][1])]));
    println!("  {} request_plus sees it, {} after the write was acknowledged", green("✓"), time(took));
    Ok(())
}

/// Text, so that it is shown in the order in which people write it.
fn largest_request(consistency: &str) -> String {
    format!(
        r#"{{"bucket":"{BUCKET}","index":"by_country","spans":[{{"equal":["{COUNTRY}"]}}],"limit":{TOP},"consistency":"{consistency}"}}"#
    )
}

async fn largest(highwater: &Highwater, consistency: &str) -> Result<(Vec<Value>, Duration)> {
    let (reply, took) = timed(highwater, "hw.query.scan", &largest_request(consistency)).await?;
    Ok((rows_of(reply)?, took))
}

fn expected_largest(cities: &Cities) -> Vec<String> {
    let mut inside: Vec<&City> = cities.values().filter(|city| city.country == COUNTRY).collect();
    inside.sort_by(|a, b| b.population.cmp(&a.population).then_with(|| a.id.cmp(&b.id)));
    inside.iter().take(TOP).map(|city| city.id.clone()).collect()
}

async fn timed(highwater: &Highwater, subject: &'static str, request: &str) -> Result<(Value, Duration)> {
    let since = Instant::now();
    let reply = highwater.call(subject, &request).await?;
    Ok((reply, since.elapsed()))
}

fn rows_of(mut reply: Value) -> Result<Vec<Value>> {
    match reply["rows"].take() {
        Value::Array(rows) => Ok(rows),
        _ => bail!("the reply has no rows: {reply}"),
    }
}

fn same(answer: &[String], expected: &[String]) -> Result<()> {
    ensure!(answer == expected, "the index answers {answer:?}, the documents {expected:?}");
    Ok(())
}

fn ids(rows: &[Value]) -> Vec<String> {
    rows.iter().map(|row| text(&row["id"])).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn name(row: &Value) -> String {
    text(&row["include"]["name"])
}

fn number(value: &Value) -> String {
    group(value)
}

fn present(title: &str, request: &str, took: Duration) {
    println!("\n  {}   {}", bold(title), dim(&format!("in {}", time(took))));
    println!("  {}", dim(&format!("hw.query.scan {request}")));
}

fn print_table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED).set_header(head);
    for row in rows {
        let cells = row.into_iter().enumerate().map(|(i, cell)| match head[i] {
            "population" => Cell::new(cell).set_alignment(CellAlignment::Right),
            _ => Cell::new(cell),
        });
        table.add_row(cells);
    }
    for line in table.to_string().lines() {
        println!("    {line}");
    }
}
