//! Values that meet the limits of numbers and of readers: as keys, as included fields, as bounds, and on the command line.

use highwater_tests::{
    cli::{highwater, json_of},
    prelude::*,
};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;
use std::{
    collections::{BTreeMap, HashSet},
    fmt,
};

const ACTIVE_WITHIN: Duration = Duration::from_secs(60);
const SCAN: &str = "hw.query.scan";
/// The deepest that readers of JSON take unless they are told otherwise.
const DEEPEST: usize = 64;
/// The longest number that all of them take, bytes.
const LONGEST_NUMBER: usize = 1_000;

/// A value in a document, and what is seen of it.
#[derive(Deserialize)]
pub(crate) struct Case {
    /// Its JSON text in parts, each repeated.
    text: Vec<(String, usize)>,
    /// The row's key; none: the document is not indexed by it.
    pub(crate) key: Option<String>,
    pub(crate) reason: Option<String>,
    /// How it is seen as an included field, if not as it is written. What is no value is left out.
    include: Option<String>,
    /// A condition of a partial index over the field `v`; what is seen of this value and of all others under it is computed.
    #[serde(rename = "where")]
    pub(crate) condition: String,
}

impl Case {
    pub(crate) fn text(&self) -> String {
        self.text.iter().map(|(part, times)| part.repeat(*times)).collect()
    }

    fn include(&self) -> Option<String> {
        let is_value = !matches!(self.reason.as_deref(), Some("bad_value" | "too_deep"));
        is_value.then(|| self.include.clone().unwrap_or_else(|| self.text()))
    }
}

pub(crate) fn cases() -> Result<Vec<Case>> {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../../data/values.json"))?;
    ensure!(cases.iter().all(|case| case.key.is_some() != case.reason.is_some()), "a case says nothing or too much");
    Ok(cases)
}

pub(crate) fn id(number: usize) -> String {
    format!("v{number:03}")
}

/// Anything that every reader takes: names that differ, bounded nesting. What serde_json refuses it refuses itself.
struct Strict {
    /// Levels of arrays and objects.
    depth: usize,
}

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Strict;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON with names that differ")
            }
            fn visit_unit<E>(self) -> Result<Strict, E> {
                Ok(Strict { depth: 0 })
            }
            fn visit_bool<E>(self, _: bool) -> Result<Strict, E> {
                Ok(Strict { depth: 0 })
            }
            fn visit_u64<E>(self, _: u64) -> Result<Strict, E> {
                Ok(Strict { depth: 0 })
            }
            fn visit_i64<E>(self, _: i64) -> Result<Strict, E> {
                Ok(Strict { depth: 0 })
            }
            fn visit_f64<E>(self, _: f64) -> Result<Strict, E> {
                Ok(Strict { depth: 0 })
            }
            fn visit_str<E>(self, _: &str) -> Result<Strict, E> {
                Ok(Strict { depth: 0 })
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Strict, A::Error> {
                let mut depth = 0;
                while let Some(element) = elements.next_element::<Strict>()? {
                    depth = depth.max(element.depth);
                }
                Ok(Strict { depth: depth + 1 })
            }
            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Strict, A::Error> {
                let (mut depth, mut names) = (0, HashSet::new());
                while let Some((name, value)) = fields.next_entry::<String, Strict>()? {
                    depth = depth.max(value.depth);
                    if !names.insert(name.clone()) {
                        return Err(serde::de::Error::custom(format!("{name} is there twice")));
                    }
                }
                Ok(Strict { depth: depth + 1 })
            }
        }
        json.deserialize_any(Any)
    }
}

fn check_strict(text: &[u8]) -> Result<()> {
    let shown = || String::from_utf8_lossy(text).chars().take(2_000).collect::<String>();
    let strict: Strict = serde_json::from_slice(text).with_context(shown)?;
    ensure!(strict.depth <= DEEPEST, "nested {} deep: {}", strict.depth, shown());
    let mut numbers = text.split(|b| !matches!(b, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'));
    ensure!(numbers.all(|number| number.len() <= LONGEST_NUMBER), "a very long number: {}", shown());
    Ok(())
}

#[derive(Deserialize)]
struct Reply<'a> {
    ok: bool,
    unindexed: u64,
    #[serde(borrow)]
    rows: Vec<Row<'a>>,
    page_token: Option<String>,
}

#[derive(Deserialize)]
struct Row<'a> {
    id: String,
    #[serde(borrow)]
    key: &'a RawValue,
    #[serde(borrow)]
    include: Option<BTreeMap<String, &'a RawValue>>,
}

/// The very bytes of a reply.
async fn bytes(client: &Client, subject: &str, request: &str) -> Result<Vec<u8>> {
    let reply = client.nats.request(subject.to_owned(), request.to_owned().into()).await?.payload.to_vec();
    check_strict(&reply)?;
    Ok(reply)
}

/// Id → key and the included field `v`, over small pages; and how many documents are not indexed.
pub(crate) async fn rows(
    client: &Client,
    index: &str,
    spans: &str,
) -> Result<(Vec<(String, String, Option<String>)>, u64)> {
    let (mut rows, mut token) = (Vec::new(), String::new());
    loop {
        let request = format!(
            r#"{{"bucket":"docs","index":"{index}","page_size":9,"consistency":"request_plus","spans":[{spans}]{token}}}"#
        );
        let bytes = bytes(client, SCAN, &request).await?;
        let reply: Reply<'_> = serde_json::from_slice(&bytes)
            .with_context(|| format!("{index} {spans:.200}: {}", String::from_utf8_lossy(&bytes)))?;
        ensure!(reply.ok);
        let text = |raw: &&RawValue| raw.get().to_owned();
        rows.extend(reply.rows.iter().map(|row| {
            let include = row.include.as_ref().and_then(|fields| fields.get("v")).map(text);
            (row.id.clone(), row.key.get().to_owned(), include)
        }));
        match reply.page_token {
            Some(next) => token = format!(r#","page_token":"{next}""#),
            None => return Ok((rows, reply.unindexed)),
        }
    }
}

async fn create(client: &Client, name: &str, keys: &[&str], include: &[&str]) -> Result<()> {
    client.create_index(&json!({"bucket": "docs", "name": name, "keys": keys, "include": include})).await?;
    client.wait_active("docs", name, ACTIVE_WITHIN).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_value_is_an_exact_key_or_a_reason_and_every_reply_is_strict_json() -> Result<()> {
    let cases = cases()?;
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value(&client, "docs").await?;
            source.write([Write::put(0, "w", &json!({"n": -1, "v": "w"}))]).await?;
            create(&client, "by_v", &["v"], &[]).await?;
            create(&client, "by_n", &["n", "v DESC"], &["n"]).await?;
            create(&client, "with_v", &["n"], &["v", "v", "n"]).await?;
            let document = |(number, case): (usize, &Case)| Write {
                vb: 0,
                id: id(number),
                op: Op::Put(format!(r#"{{"n":{number},"v":{}}}"#, case.text()).into()),
            };
            source.write(cases.iter().enumerate().map(document)).await?;
            create(&client, "built", &["v"], &[]).await?;

            keys(&client, &cases).await?;
            included(&client, &cases).await?;
            bounds(&client, &cases).await?;
            let url = cluster.url().to_owned();
            command_line(&client, &url).await
        })
        .await
}

/// What is changed live and what is built have the same rows, and list the same documents.
async fn keys(client: &Client, cases: &[Case]) -> Result<()> {
    let refused = cases.iter().filter(|case| case.reason.is_some()).count() as u64;
    for index in ["by_v", "built", "by_n"] {
        let (rows, unindexed) = rows(client, index, "{}").await?;
        ensure!(unindexed == refused, "{index}: {unindexed} of {refused}");
        ensure!(rows.len() as u64 == cases.len() as u64 + 1 - refused, "{index}: {} rows", rows.len());
        for (number, case) in cases.iter().enumerate() {
            let row = rows.iter().find(|row| row.0 == id(number));
            let expected = case.key.as_ref().map(|key| match index {
                "by_n" => format!("[{number},{}", &key[1..]),
                _ => key.clone(),
            });
            ensure!(row.map(|row| &row.1) == expected.as_ref(), "{index}: {:.80}: {row:?}", case.text());
        }
        let request = json!({"bucket": "docs", "index": index}).to_string();
        let described: Value = serde_json::from_slice(&bytes(client, "hw.query.describe", &request).await?)?;
        let listed = described["unindexed"].as_array().context("no list")?;
        for (number, case) in cases.iter().enumerate() {
            let reason = listed.iter().find(|d| d["id"] == id(number)).and_then(|d| d["reason"].as_str());
            ensure!(reason == case.reason.as_deref(), "{index}: {:.80}: {reason:?}", case.text());
        }
        ensure!(described["index"]["language"] == 2, "{described}");
    }
    Ok(())
}

/// An included field concerns its own row only.
async fn included(client: &Client, cases: &[Case]) -> Result<()> {
    let (rows, unindexed) = rows(client, "with_v", "{}").await?;
    ensure!(unindexed == 0 && rows.len() == cases.len() + 1, "{unindexed} {}", rows.len());
    for (number, case) in cases.iter().enumerate() {
        let row = rows.iter().find(|row| row.0 == id(number)).context("no row")?;
        let expected = case.include();
        ensure!(row.2 == expected, "{:.80}: {:?}", case.text(), row.2);
    }
    Ok(())
}

/// A key sent back as a bound finds the rows that show it, and a value that is no key is refused as a bound.
async fn bounds(client: &Client, cases: &[Case]) -> Result<()> {
    for (number, case) in cases.iter().enumerate() {
        let text = case.text();
        match &case.key {
            Some(key) => {
                let (found, _) = rows(client, "by_v", &format!(r#"{{"equal":{key}}}"#)).await?;
                let alike = cases.iter().enumerate().filter(|(_, other)| other.key.as_ref() == Some(key));
                let expected: Vec<String> = alike.map(|(other, _)| id(other)).collect();
                let found: Vec<&String> = found.iter().map(|row| &row.0).collect();
                ensure!(found == expected.iter().collect::<Vec<_>>(), "{key}: {found:?}");
                // The same by the value's own text; objects of one field that begins with a dollar apart.
                if !text.contains('$') && !text.contains("\\u0024") {
                    let (by_text, _) = rows(client, "by_v", &format!(r#"{{"low":[{text}],"high":[{text}]}}"#)).await?;
                    ensure!(by_text.iter().map(|row| &row.0).eq(&expected), "{text:.80}: {by_text:?}");
                }
            }
            None => {
                for name in ["low", "high", "equal"] {
                    let request =
                        format!(r#"{{"bucket":"docs","index":"by_n","spans":[{{}},{{"{name}":[{number},{text}]}}]}}"#);
                    for subject in [SCAN, "hw.query.count"] {
                        let reply: Value = serde_json::from_slice(&bytes(client, subject, &request).await?)?;
                        let message = reply["error"]["message"].as_str().unwrap_or_default();
                        ensure!(reply["error"]["code"] == "bad_span", "{text:.80}: {reply:.500}");
                        ensure!(message.starts_with(&format!("spans[1]: {name}[1]: ")), "{message}");
                    }
                }
            }
        }
    }
    // Missing is no value of a document.
    let (found, _) = rows(client, "by_v", r#"{"equal":[{"$missing":true}]}"#).await?;
    ensure!(found.is_empty(), "{found:?}");
    Ok(())
}

/// What is printed is what came; what looks like a number and is none is a usage error.
async fn command_line(client: &Client, url: &str) -> Result<()> {
    let at = ["--nats-url", url];
    let scan = |more: &[&str]| highwater(&[&["scan", "docs", "by_n", "--all"][..], more, &at].concat());
    let printed = scan(&["--json"])?.1;
    let came = bytes(client, SCAN, r#"{"bucket":"docs","index":"by_n"}"#).await?;
    // All but the timestamp, which may have moved on.
    let rows_of = |text: &[u8]| -> Result<String> {
        let text = std::str::from_utf8(text)?;
        Ok(text.split_once(r#","rows":"#).context("no rows")?.1.to_owned())
    };
    ensure!(printed.ends_with('\n') && printed.matches('\n').count() == 1, "{printed}");
    ensure!(rows_of(printed.trim_end().as_bytes())? == rows_of(&came)?, "{printed}");
    for (bound, ids) in [
        ("9007199254740993", &["v012", "v013"][..]),
        ("[9007199254740992]", &["v011"]),
        ("1e2", &["v002", "v003"]),
        ("\"w\"", &["w"]),
        ("w", &["w"]),
        ("-9223372036854775808", &["v017", "v059"]),
        (r#"{"$$missing":true}"#, &["v043", "v068"]),
        ("-9223372036854775808.0", &["v017", "v059"]),
        ("-1e-99", &[]),
        ("1E+19", &["v058"]),
    ] {
        for equal in [&["--equal", bound][..], &["--low", bound, "--high", bound]] {
            let found = json_of(&[&["scan", "docs", "by_v"][..], equal, &at].concat(), 0)?;
            let found: Vec<_> = found["rows"].as_array().context("no rows")?.iter().map(|row| &row["id"]).collect();
            ensure!(found == ids, "{equal:?}: {found:?}");
        }
    }
    for option in ["--equal", "--low", "--high"] {
        for bound in [
            "01", "+5", "1_000", "-1_000", "0x10", "-0x10", ".5", "-.5", "-NaN", "5.", "1e", "NaN", "12ab", "[1,", "{",
            "{a:1}", "\"a", "True",
        ] {
            for command in ["scan", "count"] {
                let (code, out, err) = highwater(&[&[command, "docs", "by_v", option, bound][..], &at].concat())?;
                ensure!(code == Some(2) && out.is_empty(), "{option} {bound}: {code:?} {out}");
                ensure!(err.contains(option) && err.contains("is none"), "{option} {bound}: {err}");
            }
        }
    }
    // What is JSON goes to the catalog, in all its digits.
    for bound in ["18446744073709551617", "1e400", r#""\ud800""#] {
        let (code, out, err) = highwater(&[&["count", "docs", "by_v", "--low", bound, "--json"][..], &at].concat())?;
        ensure!(code == Some(1) && err.contains("bad_span"), "{bound}: {code:?} {err}");
        let refusal: Value = serde_json::from_str(&out).with_context(|| format!("{bound}: {out}"))?;
        ensure!(refusal["ok"] == false && refusal["error"]["code"] == "bad_span", "{bound}: {out}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_definition_with_a_number_that_nothing_equals_is_refused() -> Result<()> {
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            Source::key_value(&client, "docs").await?;
            for (condition, column) in [
                ("n = 18446744073709551617", "column 5"),
                ("n = 1 OR n IN (2, -9223372036854775809)", "column 19"),
                ("n BETWEEN 0 AND 0.1000000000000000055511151231257827", "column 17"),
                ("n < 1e400", "column 5"),
            ] {
                let definition = json!({"bucket": "docs", "name": "some", "keys": ["n"], "where": condition});
                let refused = client.request("hw.admin.index.create", &definition).await;
                let Err(refused) = refused else { bail!("{condition} was taken") };
                ensure!(refused.code == "bad_expression", "{condition}: {refused}");
                ensure!(refused.message.starts_with("where: ") && refused.message.contains(column), "{refused}");
            }
            Ok(())
        })
        .await
}
