//! Writes the inputs of the corpora that are made, not found: `cargo run -p highwater-fuzz-targets --example seeds`.

use anyhow::Result;
use highwater_schemas::{
    collation::{encode_entry_suffix, encode_raw},
    language::Language,
    timestamp::{Asked, Position, StVb, StabilityTimestamp},
    wire::{
        Batch, ByteRange, DocOp, HighWatermark, KeyVersions, Missed, Removal, Rows, ScanMode, ScanPage, ScanReply,
        ScanRequest, StChoice, Stability, Sync, SyncVb, Unindexable, Want, encode,
    },
};
use std::{fs, path::Path};

/// Components that meet the encoding's special cases.
const COMPONENTS: [&str; 24] = [
    "null",
    "true",
    "-0.0",
    "9007199254740993",
    "-9223372036854775808",
    "18446744073709551615",
    "1e19",
    "-5e-324",
    "1e400",
    r#""Oslo""#,
    r#""\u0000\u0001\u0002é\"\\\ud83d\ude00""#,
    r#"[1,[null,"a"],{}]"#,
    r#"{"b":1,"a":{"":[false]},"b":3}"#,
    r#"{"$serde_json::private::RawValue":"[1,2]"}"#,
    r#"{"$serde_json::private::Number":"1"}"#,
    r#"[{"$missing":true},0.1,-1e300]"#,
    "[18446744073709551616,18446744073709551617,18446744073709551615.0,-9223372036854775809]",
    "[9007199254740993.0,9007199254740992,9007199254740993.5,0.1000000000000000055511151231257827]",
    "[0.1000000000000000055511151231257827021181583404541015625,0.10000000000000001,1E+2,100,-0.0,1e-400]",
    "[1.7976931348623157e308,1e309,123456789012345678901234567890e-20,5e-324]",
    r#"{"a":"\ud800","b":[{"a":1,"\u0061":2}],"$":{"$$":1}}"#,
    r#""\ud83d\ude00\udc00""#,
    r#"{"$$missing":true}"#,
    "1.000000000000000000000000000000000000000000000000000000000000e00001",
];

/// Two rows of three components behind a digit whose bits are the directions.
const ROWS: [&str; 6] = [
    "0[1,2,3,1.0,2,4]",
    r#"5["a","b",[],"a","b",[0]]"#,
    r#"7[{"a":1},null,9007199254740992,{"a":1},null,9007199254740993]"#,
    r#"2[18446744073709551615,-1,"x",18446744073709551616,-1,"x"]"#,
    r#"6["\u0000","\u0001","","\u0000\u0000","\u0001",""]"#,
    r#"3[{"b":1},{"a":2,"b":1},[[[[1]]]],{"c":0},{"a":2,"c":0},[[[[1,0]]]]]"#,
];

/// Requests of clients, good ones and others.
const REQUESTS: [&str; 24] = [
    r#"{"bucket":"people","index":"age"}"#,
    r#"{"bucket":"people","index":"age","spans":[{"low":[30],"high":[40],"inclusion":"low"}],"limit":10}"#,
    r#"{"bucket":"people","index":"age","spans":[{"equal":[null]},{"equal":[33]},{"low":["a"]}],"reverse":true}"#,
    r#"{"bucket":"people","index":"age","spans":[{"low":[40],"high":[30]}]}"#,
    r#"{"bucket":"people","index":"age","spans":[{"low":[1],"high":[5]},{"low":[5],"high":[9],"inclusion":"neither"}]}"#,
    r#"{"bucket":"people","index":"age","spans":[{"equal":[1],"low":[1]}]}"#,
    r#"{"bucket":"people","index":"age","spans":[{"equal":[{"$missing":true}]}],"consistency":"request_plus"}"#,
    r#"{"bucket":"people","index":"new","spans":[{"low":["2024"],"high":["2025"],"inclusion":"high"}],"offset":5}"#,
    r#"{"bucket":"people","index":"new","spans":[{"high":[1e300]},{"low":[-1e300],"inclusion":"high"}]}"#,
    r#"{"bucket":"people","index":"mixed","spans":[{"low":[30,"A"],"high":[30,"M"]}],"page_size":7}"#,
    r#"{"bucket":"people","index":"mixed","spans":[{"low":[30,"A"],"high":[31,"M"]}]}"#,
    r#"{"bucket":"people","index":"mixed","spans":[{"equal":[30,"Oslo","x"]},{"equal":[30,"Oslo"]}]}"#,
    r#"{"bucket":"people","index":"mixed","spans":[{"low":[1,2,3,4]}]}"#,
    r#"{"bucket":"people","index":"all","spans":[{"low":["u1"],"high":["u2"]}]}"#,
    r#"{"bucket":"people","index":"all","spans":[{"low":[7]}]}"#,
    r#"{"bucket":"people","index":"all","consistency":{"at_plus":34006}}"#,
    r#"{"bucket":"people","index":"all","consistency":{"at_plus":{"KV_people":{"vbuuid":"0000000000000001","seqno":40}}}}"#,
    r#"{"bucket":"people","index":"all","consistency":{"at_plus":{"KV_people":60}},"timeout_ms":100}"#,
    r#"{"bucket":"people","index":"all","consistency":{"at_snapshot":812},"page_token":"00"}"#,
    r#"{"bucket":"people","index":"none"}"#,
    r#"{"bucket":"people","index":"age","index":"age"}"#,
    r#"{"bucket":"people","index":"age","spans":[{"low":[{"$serde_json::private::RawValue":"[1]"}]}]}"#,
    r#"{"bucket":"people","index":"age","limit":18446744073709551616,"timeout_ms":-1}"#,
    r#"[{"bucket":"people"}]"#,
];

fn main() -> Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/corpus");
    save(&corpus.join("key_encoding"), &keys())?;
    save(&corpus.join("batch_decoder"), &messages())?;
    save(&corpus.join("scan_request"), &requests())?;
    save(&corpus.join("frames"), &frames())
}

/// What servers send, and what none does.
fn frames() -> Vec<Vec<u8>> {
    let blocks: [&[u8]; 12] = [
        b"NATS/1.0\r\n\r\n",
        b"NATS/1.0\r\nX-Note: a\rb\r\n\r\n",
        b"NATS/1.0\r\nFilename: r\xe9sum\xe9.pdf\r\n\r\n",
        b"NATS/1.0\r\nna me: x\r\nno colon\r\n\r\n",
        b"NATS/1.0\r\nKV-Operation: DEL\r\n\r\n",
        b"NATS/1.0\r\nNats-Batch-Id: b\r\nNats-Batch-Sequence: 7\r\nNats-Batch-Commit: 1\r\n\r\n",
        b"NATS/1.0 503\r\n\r\n",
        b"NATS/1.0 409 Message Size Exceeds MaxBytes\r\nNats-Pending-Messages: 1\r\nNats-Pending-Bytes: 2\r\n\r\n",
        b"\xff\x00",
        b"",
        b"\r\n\r\n\r\n",
        b"NATS/1.0",
    ];
    let mut inputs: Vec<Vec<u8>> = Vec::new();
    for block in blocks {
        let line =
            format!("HMSG orders.2 1 $JS.ACK.S.c.1.17.4.1700000000000000000.9 {} {}\r\n", block.len(), block.len() + 2);
        inputs.push([line.as_bytes(), block, b"{}\r\n"].concat());
    }
    let lines: [&[u8]; 12] = [
        b"MSG orders.\xff 1 2\r\n{}\r\n",
        "MSG orders.a\u{2003}b 1 r\u{3000} 2\r\n{}\r\n".as_bytes(),
        b"MSG a 1 0\r\n\r\nPING\r\nPONG\r\n+OK\r\n",
        b"INFO {\"server_id\":\"N\",\"max_payload\":1048576}\r\n-ERR 'Slow Consumer'\r\n",
        b"MSG a 1 r s 2\r\n{}\r\n",
        b"MSG a 1 99999999999\r\n",
        b"HMSG a 1 9 4\r\n",
        b"MSG a 18446744073709551615 2\r\n{}\r\n",
        b"MSG  a\t1  2\r\n{}\r\n",
        b"MSG a 1 2\r\n{}xx",
        b"ping\r\nmsg a 1 1\r\nx\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ];
    inputs.extend(lines.iter().map(|line| line.to_vec()));
    inputs
}

fn save(directory: &Path, inputs: &[Vec<u8>]) -> Result<()> {
    fs::create_dir_all(directory)?;
    for (number, input) in inputs.iter().enumerate() {
        fs::write(directory.join(format!("made-{number:02}")), input)?;
    }
    println!("{}: {} inputs", directory.display(), inputs.len());
    Ok(())
}

fn keys() -> Vec<Vec<u8>> {
    let mut inputs: Vec<Vec<u8>> = COMPONENTS.iter().map(|text| format!("1{text}").into_bytes()).collect();
    inputs.extend(ROWS.iter().map(|text| text.as_bytes().to_vec()));
    for (number, descending) in [false, true].into_iter().enumerate() {
        let mut key = Vec::new();
        for text in COMPONENTS.iter().skip(number).step_by(3) {
            // What cannot be a key is left out.
            let _ = encode_raw(Some(text), descending, Language::NEWEST, &mut key);
        }
        let _ = encode_raw(None, descending, Language::NEWEST, &mut key);
        inputs.push(key.clone());
        encode_entry_suffix("u\0\u{1}é", 513, &mut key);
        inputs.push(key);
    }
    for (nesting, end) in [(126, "1"), (127, ""), (128, "")] {
        inputs.push(["1", &"[".repeat(nesting), end, &"]".repeat(nesting)].concat().into_bytes());
        inputs.push([vec![10; nesting], vec![0; nesting]].concat());
    }
    inputs.push(nested_in_text());
    inputs
}

/// A text that nests deeper than it shows, to those who read serde_json's private names as serde_json does.
fn nested_in_text() -> Vec<u8> {
    let deep = |inner: &str| ["[".repeat(100), inner.into(), "]".repeat(100)].concat();
    let quoted = serde_json::Value::String(deep("")).to_string();
    format!("1{}", deep(&format!(r#"{{"$serde_json::private::RawValue":{quoted}}}"#))).into_bytes()
}

fn versions() -> KeyVersions {
    let mut versions = KeyVersions::default();
    versions.push_doc(11, "u1", DocOp::Put);
    versions.push_key(
        1,
        |out| encode_raw(Some("33"), false, Language::NEWEST, out).map_err(|_| Unindexable::NotJson),
        |_| {},
    );
    versions.push_key(2, |_| Err(Unindexable::KeyTooLong), |_| {});
    versions.push_doc(12, "u2", DocOp::Delete);
    versions.push_doc(13, "ü3", DocOp::Unindexable(Unindexable::TooDeep));
    versions.push_doc(14, "", DocOp::Put);
    let include = br#"{"city":"Oslo"}"#;
    versions.push_key(
        7,
        |out| encode_raw(Some("[null]"), true, Language::NEWEST, out).map_err(|_| Unindexable::NotJson),
        |out| {
            out.extend_from_slice(include);
        },
    );
    versions
}

fn batch() -> Batch {
    Batch {
        bucket: "people".into(),
        vb: 1,
        vbuuid: 5,
        generation: 3,
        topology: 2,
        session: 0,
        from: Position::new(10, 0),
        to: Position::new(14, 1),
        covered: 13,
        server_time: -4,
        hash: 6,
        attempt: 0,
        floor: 0,
        reconciled: 0,
        removal: None,
        only: Vec::new(),
        versions: versions(),
    }
}

fn timestamp() -> StabilityTimestamp {
    let vb = StVb {
        vbuuid: 5,
        generation: 3,
        position: Position::new(14, 1),
        covered: 13,
        server_time: 9,
        hash: 6,
        created: 1,
        asked: vec![Asked { catalog: 3, seq: 9 }],
        floor: 4,
        reconciled: 2,
    };
    StabilityTimestamp { number: 812, term: 2, wanted: true, persist: false, vbs: vec![vb.clone(), vb] }
}

fn messages() -> Vec<Vec<u8>> {
    let empty = KeyVersions::default();
    let batches = [
        batch(),
        Batch { versions: empty.clone(), from: Position::new(14, 1), ..batch() },
        Batch { removal: Some(Removal::Below(9)), session: 4, ..batch() },
        Batch { removal: Some(Removal::Listed { session: 1, upto: 9 }), versions: empty, ..batch() },
        Batch { removal: Some(Removal::Named { session: 1 }), from: batch().to, ..batch() },
        Batch { bucket: "a bucket with quite a long name".into(), ..batch() },
        Batch { from: Position::new(11, 0), ..batch() },
        Batch { covered: 15, ..batch() },
        Batch { from: Position::new(10, 2), ..batch() },
    ];
    let mut messages: Vec<Vec<u8>> = batches.iter().map(encode).collect();
    let st = timestamp();
    let state = st.vbs[0].clone();
    messages.push(encode(&Sync {
        bucket: "people".into(),
        vbs: vec![SyncVb { vb: 0, state, source_last: 20, bookmark: None }],
    }));
    messages.push(encode(&Stability { bucket: "people".into(), st: st.clone(), wanted: vec![st.number - 1] }));
    messages.push(encode(&Missed { bucket: "people".into(), term: 3, numbers: vec![7, 9] }));
    messages.push(encode(&Want { bucket: "people".into(), catalog: 3, seq: 9 }));
    messages.push(encode(&HighWatermark {
        bucket: "people".into(),
        node: "a node with a long name".into(),
        incarnation: 7,
        hwt: vec![Position::new(14, 1); 2],
        held: (800, 812),
        durable: 790,
        queued: 4_096,
    }));
    let mut rows = Rows::default();
    rows.push(b"\x06\xc0@\x80\0\0\0\0\0u1\0\0\0", b"");
    rows.push(b"\x08Oslo\0u2\0\0\0", br#"{"city":"Oslo"}"#);
    let page = ScanPage { st, unindexed: 1, rows, count: 0, skipped: 2, more: true };
    messages.push(encode(&ScanReply::Page(page.clone())));
    messages.push(encode(&ScanReply::Page(ScanPage { rows: Rows::default(), ..page })));
    messages.push(encode(&ScanReply::Refused { code: "timeout".into(), message: "took longer than asked".into() }));
    messages.extend(scans().iter().map(encode));
    let good = messages[0].clone();
    // A wrong header in each of its parts, and no message at all.
    messages.extend((0..5).map(|at| [&good[..at], &[good[at] ^ 9], &good[at + 1..]].concat()));
    messages.extend([good[..7].to_vec(), good[..good.len() - 1].to_vec(), Vec::new()]);
    // Every relative pointer and every length once out of range.
    let spread = (1..9).map(|i| good.len() - i * 8).filter(|&at| at > 8);
    messages.extend(spread.map(|at| [&good[..at], &[0xff; 4], &good[at + 4..]].concat()));
    messages
}

fn scans() -> [ScanRequest; 4] {
    let range = |low: &[u8], high: Option<&[u8]>| ByteRange { low: low.into(), high: high.map(Into::into) };
    let scan = ScanRequest {
        bucket: "people".into(),
        index: 1,
        partition: 0,
        at: StChoice::AtLeast(800),
        ranges: vec![range(b"\x06\xc0@", Some(b"\x06\xc0A")), range(b"\x08", None)],
        reverse: false,
        after: None,
        skip: 0,
        limit: 10,
        page_bytes: 1 << 20,
        mode: ScanMode::Rows,
        lease_ms: 0,
        timeout_ms: 5_000,
    };
    [
        scan.clone(),
        ScanRequest {
            at: StChoice::Exactly(812),
            after: Some(b"\x06\xc0@\x80u1".to_vec()),
            reverse: true,
            ..scan.clone()
        },
        ScanRequest { mode: ScanMode::Count, ranges: Vec::new(), ..scan.clone() },
        ScanRequest { ranges: vec![range(b"\x09", Some(b"\x02"))], limit: u64::MAX, page_bytes: u32::MAX, ..scan },
    ]
}

fn requests() -> Vec<Vec<u8>> {
    let mut inputs: Vec<Vec<u8>> = REQUESTS.iter().map(|text| text.as_bytes().to_vec()).collect();
    let long = "x".repeat(2_100);
    inputs.push(
        format!(r#"{{"bucket":"people","index":"age","spans":[{{"low":["{long}"],"high":["{long}y"]}}]}}"#).into(),
    );
    inputs.push(format!(r#"{{"bucket":"people","index":"new","spans":[{{"equal":["{long}"]}}]}}"#).into());
    inputs.extend(scans().iter().map(encode));
    inputs.extend(scans().iter().map(|scan| encode(scan)[8..].to_vec()));
    inputs
}
