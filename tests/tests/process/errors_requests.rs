//! Bad requests are refused with a code, both headers and a message that names the culprit, and nothing changes.

use highwater_tests::prelude::*;

const ACTIVE_WITHIN: Duration = Duration::from_secs(60);
const SCAN: &str = "hw.query.scan";
const COUNT: &str = "hw.query.count";
const CREATE: &str = "hw.admin.index.create";

/// A request, and what refuses it: the code, its number, and words that the message must have.
struct Case {
    subject: &'static str,
    payload: Vec<u8>,
    code: &'static str,
    number: &'static str,
    words: &'static [&'static str],
}

fn raw(
    subject: &'static str,
    payload: impl Into<Vec<u8>>,
    code: &'static str,
    number: &'static str,
    words: &'static [&'static str],
) -> Case {
    Case { subject, payload: payload.into(), code, number, words }
}

/// A request with `changes` over `base`.
fn with(
    subject: &'static str,
    base: &Value,
    changes: Value,
    code: &'static str,
    number: &'static str,
    words: &'static [&'static str],
) -> Case {
    let mut request = base.clone();
    if let (Some(fields), Value::Object(changes)) = (request.as_object_mut(), changes) {
        fields.extend(changes);
    }
    raw(subject, request.to_string(), code, number, words)
}

fn scan(changes: Value, code: &'static str, number: &'static str, words: &'static [&'static str]) -> Case {
    with(SCAN, &json!({"bucket": "people", "index": "by_age"}), changes, code, number, words)
}

fn create(changes: Value, code: &'static str, number: &'static str, words: &'static [&'static str]) -> Case {
    with(CREATE, &json!({"bucket": "people", "name": "new", "keys": ["age"]}), changes, code, number, words)
}

/// Runs `test` on a cluster with one bucket of 20 documents and the indexes `by_age` and `by_both` (`age`, `city DESC`).
async fn on_people(test: impl AsyncFnOnce(&Client) -> Result<()>) -> Result<()> {
    Cluster::start()
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            let source = Source::key_value(&client, "people").await?;
            let person = |i| Write::put(0, format!("p{i}"), &json!({"age": i, "city": format!("c{i}")}));
            source.write((0..20).map(person)).await?;
            client.create_index(&json!({"bucket": "people", "name": "by_age", "keys": ["age"]})).await?;
            client.create_index(&json!({"bucket": "people", "name": "by_both", "keys": ["age", "city DESC"]})).await?;
            client.wait_active("people", "by_age", ACTIVE_WITHIN).await?;
            client.wait_active("people", "by_both", ACTIVE_WITHIN).await?;
            test(&client).await
        })
        .await
}

/// What must be the same before and after: every index with its definition and state, and the buckets.
async fn everything(client: &Client) -> Result<Value> {
    let buckets = client.request("hw.admin.bucket.list", &json!({})).await?;
    let mut listed = client.request("hw.query.list", &json!({})).await?;
    for index in listed["indexes"].as_array_mut().context("no indexes")? {
        // Only these may move by themselves.
        for figure in ["bytes", "items", "docs_done", "docs_pending", "progress"] {
            index.as_object_mut().context("an index is no object")?.remove(figure);
        }
    }
    Ok(json!([buckets, listed]))
}

async fn all_refused(client: &Client, cases: Vec<Case>) -> Result<()> {
    let before = everything(client).await?;
    let tried = cases.len();
    for case in cases {
        let shown = String::from_utf8_lossy(&case.payload[..case.payload.len().min(300)]).into_owned();
        let what = format!("{} {shown}", case.subject);
        let refused = match client.request_raw(case.subject, case.payload).await {
            Ok(reply) => bail!("{what} was not refused: {reply}"),
            Err(refused) => refused,
        };
        ensure!(refused.code == case.code, "{what}: expected {}, got {refused}", case.code);
        ensure!(!refused.retry, "{what}: {refused} asks to try again");
        let headers = (Some(case.code.to_owned()), Some(case.number.to_owned()));
        ensure!(refused.headers == headers, "{what}: headers {:?}", refused.headers);
        for word in case.words {
            ensure!(refused.message.contains(word), "{what}: {refused} does not name {word}");
        }
    }
    let after = everything(client).await?;
    ensure!(before == after, "something changed:\n{before}\n{after}");
    println!("{tried} requests were refused, and nothing changed");
    let count = client.count(&json!({"bucket": "people", "index": "by_age", "consistency": "request_plus"})).await?;
    ensure!(count == 20, "{count} rows");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_queries_name_their_field() -> Result<()> {
    on_people(async |client| {
        let long = vec![b' '; 300 * 1024];
        let deep =
            format!(r#"{{"bucket":"people","index":"by_age","spans":{}1{}}}"#, "[".repeat(1000), "]".repeat(1000));
        all_refused(
            client,
            vec![
                raw(SCAN, "", "malformed_request", "400", &["bucket"]),
                raw(SCAN, "{", "malformed_request", "400", &["JSON"]),
                raw(SCAN, "[]", "malformed_request", "400", &["object"]),
                raw(SCAN, "null", "malformed_request", "400", &["object"]),
                raw(SCAN, b"\xff\xfe\x00".to_vec(), "malformed_request", "400", &["JSON"]),
                raw(COUNT, "{\"bucket\":\"people\"", "malformed_request", "400", &["JSON"]),
                raw(SCAN, long, "malformed_request", "400", &["307200 bytes"]),
                raw(SCAN, deep, "malformed_request", "400", &[]),
                raw("hw.query.list", "7", "malformed_request", "400", &["object"]),
                raw("hw.query.describe", r#"{"bucket":"people"}"#, "malformed_request", "400", &["index"]),
                raw(SCAN, r#"{"bucket":7,"index":"by_age"}"#, "malformed_request", "400", &["bucket", "7"]),
                scan(json!({"limti": 1}), "unknown_field", "400", &["limti"]),
                scan(json!({"filter": "age > 1"}), "unknown_field", "400", &["filter"]),
                scan(json!({"distinct": true}), "unknown_field", "400", &["distinct"]),
                scan(json!({"hold": true}), "unknown_field", "400", &["hold"]),
                scan(json!({"fields": ["age"]}), "unknown_field", "400", &["fields"]),
                raw("hw.query.list", r#"{"buckets":"x"}"#, "unknown_field", "400", &["buckets"]),
                scan(json!({"limit": "ten"}), "malformed_request", "400", &["limit", "ten"]),
                scan(json!({"limit": -1}), "malformed_request", "400", &["limit", "-1"]),
                scan(json!({"limit": 1.5}), "malformed_request", "400", &["limit", "1.5"]),
                scan(json!({"limit": {}}), "malformed_request", "400", &["limit"]),
                scan(json!({"offset": "x"}), "malformed_request", "400", &["offset"]),
                scan(json!({"page_size": 0}), "malformed_request", "400", &["page_size"]),
                scan(json!({"reverse": "yes"}), "malformed_request", "400", &["reverse"]),
                scan(json!({"timeout_ms": 0}), "malformed_request", "400", &["timeout_ms"]),
                scan(json!({"timeout_ms": 86_400_000}), "malformed_request", "400", &["timeout_ms"]),
                with(
                    COUNT,
                    &json!({"bucket": "people", "index": "by_age"}),
                    json!({"limit": 1}),
                    "malformed_request",
                    "400",
                    &["limit"],
                ),
            ],
        )
        .await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_and_bad_names_are_said() -> Result<()> {
    on_people(async |client| {
        let drop = "hw.admin.index.drop";
        all_refused(
            client,
            vec![
                scan(json!({"bucket": "a.b"}), "bad_name", "400", &["bucket", "a.b"]),
                scan(json!({"index": ">"}), "bad_name", "400", &["index", ">"]),
                scan(json!({"index": "x".repeat(65)}), "bad_name", "400", &["index"]),
                scan(json!({"bucket": "nowhere"}), "bucket_not_found", "404", &["nowhere"]),
                scan(json!({"index": "nothing"}), "index_not_found", "404", &["nothing", "people"]),
                raw("hw.query.list", r#"{"bucket":"nowhere"}"#, "bucket_not_found", "404", &["nowhere"]),
                raw("hw.query.describe", r#"{"bucket":"people","index":"no"}"#, "index_not_found", "404", &["no"]),
                create(json!({"name": ""}), "bad_name", "400", &["index"]),
                create(json!({"name": "a b"}), "bad_name", "400", &["a b"]),
                create(json!({"bucket": "*"}), "bad_name", "400", &["bucket", "*"]),
                create(json!({"bucket": "nowhere"}), "bucket_not_found", "404", &["nowhere"]),
                create(json!({"name": "by_age"}), "index_exists", "409", &["by_age", "people"]),
                create(json!({"name": "by_age", "keys": ["other"]}), "index_exists", "409", &["by_age"]),
                raw(drop, r#"{"bucket":"people","name":"no"}"#, "index_not_found", "404", &["no", "people"]),
                raw(drop, r#"{"bucket":"nowhere","name":"no"}"#, "bucket_not_found", "404", &["nowhere"]),
                raw(drop, r#"{"bucket":"people","name":"*"}"#, "bad_name", "400", &["index", "*"]),
                raw("hw.admin.index.build", r#"{"bucket":"people","names":["no"]}"#, "index_not_found", "404", &["no"]),
                raw("hw.admin.bucket.remove", r#"{"name":"people"}"#, "bucket_in_use", "409", &["people"]),
                raw("hw.admin.bucket.remove", r#"{"name":"nowhere"}"#, "bucket_not_found", "404", &["nowhere"]),
                raw("hw.admin.rebalance.plan", "{}", "not_supported", "501", &["rebalance.plan"]),
            ],
        )
        .await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_definitions_say_where() -> Result<()> {
    on_people(async |client| {
        let source = |source: Value| json!({"name": "new", "source": source}).to_string();
        let streams = |name: &str| source(json!({"streams": [{"name": name, "strip_prefix": "other."}]}));
        let mirror = json!({"name": "MIRROR", "storage": "memory", "mirror": {"name": "KV_people"}});
        let made: Value = client.js.request("STREAM.CREATE.MIRROR".to_owned(), &mirror).await.context("no stream")?;
        ensure!(made["error"].is_null(), "{made}");
        all_refused(
            client,
            vec![
                raw(CREATE, "{", "malformed_request", "400", &[]),
                raw(CREATE, "", "malformed_request", "400", &["bucket"]),
                create(json!({"kyes": []}), "unknown_field", "400", &["kyes"]),
                create(json!({"partition_by": "age"}), "unknown_field", "400", &["partition_by"]),
                create(json!({"keys": [""]}), "bad_expression", "400", &["keys[0]", "column 1"]),
                create(json!({"keys": ["age", "city +"]}), "bad_expression", "400", &["keys[1]", "column 6"]),
                create(json!({"keys": ["age DESC DESC"]}), "bad_expression", "400", &["keys[0]", "column 10"]),
                create(json!({"keys": ["tags[*]"]}), "bad_expression", "400", &["keys[0]", "column 5"]),
                create(json!({"keys": ["lower(city)"]}), "bad_expression", "400", &["keys[0]", "lower"]),
                create(json!({"where": "age ="}), "bad_expression", "400", &["where", "column 6"]),
                create(json!({"where": "age = 1 AND"}), "bad_expression", "400", &["where", "column 12"]),
                create(json!({"where": "age = 1; DROP"}), "bad_expression", "400", &["where", "column 8"]),
                create(json!({"where": "("}), "bad_expression", "400", &["where", "column 2"]),
                create(json!({"where": "(".repeat(9000)}), "bad_expression", "400", &["where", "9000 bytes"]),
                create(json!({"include": ["city", "a."]}), "bad_expression", "400", &["include[1]", "column 3"]),
                create(json!({"keys": (["a"; 17])}), "bad_definition", "400", &["keys", "17"]),
                create(json!({"include": ([["a"; 11]; 3].concat())}), "bad_definition", "400", &["include", "33"]),
                create(
                    json!({"include": ["a.\"$serde_json::private::RawValue\""]}),
                    "bad_definition",
                    "400",
                    &["include[0]"],
                ),
                create(json!({"where": "age = 10L"}), "bad_expression", "400", &["where", "column 7"]),
                create(json!({"num_partition": 0}), "bad_definition", "400", &["num_partition", "0"]),
                create(json!({"num_partition": 65}), "bad_definition", "400", &["num_partition", "65"]),
                create(json!({"num_replica": 1}), "not_supported", "501", &["num_replica"]),
                raw("hw.admin.bucket.add", source(json!({})), "bad_definition", "400", &["source"]),
                raw("hw.admin.bucket.add", source(json!({"streams": []})), "bad_definition", "400", &["streams"]),
                raw(
                    "hw.admin.bucket.add",
                    source(json!({"kv": "nowhere"})),
                    "source_not_found",
                    "404",
                    &["KV_nowhere"],
                ),
                raw("hw.admin.bucket.add", streams("NOWHERE"), "source_not_found", "404", &["NOWHERE"]),
                raw("hw.admin.bucket.add", streams("MIRROR"), "bad_source", "400", &["MIRROR", "$KV.people.>"]),
                raw("hw.admin.bucket.add", streams(&"s".repeat(256)), "bad_definition", "400", &["streams[0].name"]),
                raw("hw.admin.bucket.add", streams("a\tb"), "bad_definition", "400", &["streams[0].name"]),
                raw("hw.admin.bucket.add", streams("HW_STATE"), "bad_definition", "400", &["HW_STATE"]),
                raw(
                    "hw.admin.bucket.add",
                    source(json!({"streams": [{"name": "KV_people", "strip_prefix": "other."}]})),
                    "bad_source",
                    "400",
                    &["KV_people", "other."],
                ),
                raw(
                    "hw.admin.bucket.add",
                    json!({"name": "people", "source": {"kv": "others"}}).to_string(),
                    "bucket_exists",
                    "409",
                    &["people"],
                ),
            ],
        )
        .await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_that_are_no_range_are_refused() -> Result<()> {
    on_people(async |client| {
        let both = |span: Value, code, words| {
            let request = json!({"bucket": "people", "index": "by_both"});
            with(SCAN, &request, json!({"spans": [{"equal": [1]}, span]}), code, "400", words)
        };
        all_refused(
            client,
            vec![
                both(json!({"low": [9], "high": [1]}), "span_inverted", &["spans[1]"]),
                both(json!({"low": ["a"], "high": [1]}), "span_inverted", &["spans[1]"]),
                both(json!({"low": [1, "b"], "high": [1, "a"]}), "span_inverted", &["spans[1]"]),
                both(json!({"low": [1, "a"], "high": [2, "b"]}), "span_not_contiguous", &["spans[1]"]),
                both(json!({"low": [1, 2, 3]}), "bad_span", &["spans[1]", "low", "3"]),
                both(json!({"equal": [1, 2, 3]}), "bad_span", &["spans[1]", "equal"]),
                both(json!({"equal": [1], "low": [1]}), "bad_span", &["spans[1]", "equal"]),
                both(json!({"equal": [1], "inclusion": "low"}), "bad_span", &["spans[1]", "inclusion"]),
                both(json!({"lo": [1]}), "unknown_field", &["spans[1]", "lo"]),
                both(json!({"low": 1}), "malformed_request", &["spans[1]"]),
                both(json!({"inclusion": "left"}), "malformed_request", &["spans[1]", "left"]),
                both(json!("all"), "malformed_request", &["spans[1]"]),
                scan(json!({"spans": {"low": [1]}}), "malformed_request", "400", &["spans"]),
                scan(json!({"spans": vec![json!({}); 10_001]}), "malformed_request", "400", &["spans", "10001"]),
            ],
        )
        .await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consistencies_that_cannot_be_are_refused() -> Result<()> {
    on_people(async |client| {
        let consistency = |value: Value, words| scan(json!({"consistency": value}), "bad_consistency", "400", words);
        let branch = json!({"at_plus": {"KV_people": {"vbuuid": "00000000000000ff", "seqno": 3}}});
        all_refused(
            client,
            vec![
                consistency(json!("strong"), &["consistency", "strong"]),
                consistency(json!(7), &["consistency", "7"]),
                consistency(json!({}), &["consistency"]),
                consistency(json!({"at_plus": -1}), &["at_plus"]),
                consistency(json!({"at_plus": "x"}), &["at_plus"]),
                consistency(json!({"at_plus": {"KV_other": 3}}), &["KV_other", "KV_people"]),
                consistency(json!({"at_plus": {"KV_people": {"vbuuid": "?", "seqno": 3}}}), &["at_plus", "KV_people"]),
                consistency(json!({"at_plus": 1, "at_snapshot": 1}), &["consistency"]),
                consistency(json!({"at_snapshot": 0}), &["at_snapshot"]),
                consistency(json!({"at_snapshot": "x"}), &["at_snapshot"]),
                consistency(json!({"at_least": 1}), &["at_least"]),
                scan(json!({"consistency": branch}), "branch_lost", "410", &["KV_people", "3"]),
            ],
        )
        .await?;
        // What only is not there yet is waited for, and then may be asked for again.
        for consistency in [json!({"at_plus": 4_000}), json!({"at_snapshot": 4_000_000})] {
            let patient = json!({"bucket": "people", "index": "by_age", "consistency": consistency});
            let mut request = patient.clone();
            request["timeout_ms"] = json!(200);
            // Asked first, it waits for as long as who does not say: the other's own time is up before.
            let refused = tokio::select! {
                biased;
                answer = client.request(SCAN, &patient) => bail!("{patient} was answered before {request}: {answer:?}"),
                answer = client.request(SCAN, &request) => answer.err().context("not refused")?,
            };
            ensure!(["timeout", "snapshot_expired"].contains(&refused.code.as_str()) && refused.retry, "{refused}");
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_token_serves_its_own_request_only() -> Result<()> {
    on_people(async |client| {
        let request = json!({"bucket": "people", "index": "by_age", "page_size": 5, "spans": [{"low": [2]}]});
        let first = client.request(SCAN, &request).await?;
        let token = first["page_token"].as_str().context("no page token")?.to_owned();
        let page = |changes: Value, words| {
            let mut base = request.clone();
            base["page_token"] = json!(token);
            with(SCAN, &base, changes, "bad_page_token", "400", words)
        };
        let mut flipped = token.clone().into_bytes();
        let middle = flipped.len() / 2;
        flipped[middle] = if flipped[middle] == b'0' { b'1' } else { b'0' };
        let flipped = String::from_utf8(flipped)?;
        all_refused(
            client,
            vec![
                page(json!({"page_token": ""}), &["page_token"]),
                page(json!({"page_token": "next, please"}), &["page_token"]),
                page(json!({"page_token": flipped}), &["page_token", "damaged"]),
                page(json!({"page_token": &token[..token.len() - 2]}), &["page_token", "damaged"]),
                page(json!({"page_token": token.repeat(2)}), &["page_token", "damaged"]),
                page(json!({"index": "by_both"}), &["page_token", "another request"]),
                page(json!({"spans": [{"low": [3]}]}), &["page_token", "another request"]),
                page(json!({"reverse": true}), &["page_token", "another request"]),
                page(json!({"limit": 3}), &["page_token", "another request"]),
                page(json!({"consistency": "request_plus"}), &["page_token", "another request"]),
            ],
        )
        .await?;
        // Made anew under the same name, it is another index.
        client.drop_index("people", "by_age").await?;
        client.create_index(&json!({"bucket": "people", "name": "by_age", "keys": ["age"]})).await?;
        client.wait_active("people", "by_age", ACTIVE_WITHIN).await?;
        all_refused(client, vec![page(json!({}), &["page_token"])]).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deferred_index_says_that_it_is_not_active() -> Result<()> {
    on_people(async |client| {
        let definition = json!({"bucket": "people", "name": "later", "keys": ["age"], "defer_build": true});
        client.create_index(&definition).await?;
        let request = json!({"bucket": "people", "index": "later"});
        let refused = client.request(SCAN, &request).await.err().context("not refused")?;
        ensure!(refused.code == "index_not_active" && refused.retry, "{refused}");
        ensure!(refused.message.contains("later") && refused.message.contains("created"), "{refused}");
        ensure!(refused.headers.1.as_deref() == Some("409"), "{:?}", refused.headers);
        client.request("hw.admin.index.build", &json!({"bucket": "people", "names": ["later"]})).await?;
        client.wait_active("people", "later", ACTIVE_WITHIN).await?;
        let count = client.count(&json!({"bucket": "people", "index": "later", "consistency": "request_plus"})).await?;
        ensure!(count == 20, "{count}");
        Ok(())
    })
    .await
}
