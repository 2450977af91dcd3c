//! The decoders of the data path: any bytes are refused or read whole, and nothing read is larger than what was sent.

use highwater_schemas::wire::{
    Batch, BatchView, HighWatermark, KeyVersions, Message, Missed, ScanReply, ScanRequest, Stability, Sync, VERSION,
    Want, WireError, decode, encode,
};

const HEADER: usize = 8;
/// A copy is packed as its sender may not have packed it, but it holds nothing that was not sent.
const PADDING: usize = 64;

/// Takes the bytes as a message of every kind: as they are, and with a header that fits.
pub fn batch_decoder(data: &[u8]) {
    every_kind(|_| data.to_vec());
    let body = if data.starts_with(b"HW") { data.get(HEADER..).unwrap_or_default() } else { data };
    every_kind(|kind| with_header(kind, body));
}

/// The bytes behind a good header.
pub fn with_header(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut message = vec![b'H', b'W', VERSION, kind];
    message.extend_from_slice(&(body.len() as u32).to_le_bytes());
    message.extend_from_slice(body);
    message
}

/// An owned copy; it encodes to a message that reads the same and is no larger.
macro_rules! copy {
    ($decode:expr, $bytes:expr) => {{
        let bytes: &[u8] = $bytes;
        let copy = $decode(bytes).ok();
        if let Some(copy) = &copy {
            let again = encode(copy);
            assert!(again.len() <= bytes.len() + PADDING, "{} bytes hold {}", bytes.len(), again.len());
            assert_eq!($decode(&again).as_ref(), Ok(copy));
        }
        copy
    }};
}

fn every_kind(message: impl Fn(u8) -> Vec<u8>) {
    batch(&message(Batch::KIND as u8));
    reply(&message(ScanReply::KIND as u8));
    copy!(decode::<Sync>, &message(Sync::KIND as u8));
    copy!(decode::<Stability>, &message(Stability::KIND as u8));
    copy!(decode::<Missed>, &message(Missed::KIND as u8));
    copy!(decode::<Want>, &message(Want::KIND as u8));
    copy!(decode::<HighWatermark>, &message(HighWatermark::KIND as u8));
    copy!(decode::<ScanRequest>, &message(ScanRequest::KIND as u8));
}

fn batch(bytes: &[u8]) {
    let copy = copy!(decode::<Batch>, bytes);
    let bucket = copy.as_ref().map_or("people", |batch| &batch.bucket);
    let view = match BatchView::parse(bucket, bytes) {
        Ok(view) => view,
        Err(error) => {
            let decoded = matches!(error, WireError::Content(_));
            assert_eq!(decoded, copy.is_some(), "only its content can speak against what can be copied: {error}");
            if let Some(batch) = copy {
                // Unchecked columns: reading them must end and stay within them.
                walk(&batch.versions);
            }
            return;
        }
    };
    let batch = copy.expect("what is viewed can be copied");
    assert!(view.from.le(view.to) && view.covered <= view.to.seqno);
    assert_eq!((view.docs, view.size()), (batch.versions.len(), bytes.len()));
    let versions = view.versions().expect("the bytes have not changed");
    let mut again = KeyVersions::default();
    for doc in versions.docs() {
        assert!(doc.seqno > view.from.seqno && doc.seqno <= view.to.seqno);
        again.push_view(&doc, |_| true);
    }
    assert_eq!(again, batch.versions, "every document and every key is read");
    assert_eq!(walk(&batch.versions), bytes_of(&again), "no byte is left over");
    let mut twice = again.clone();
    twice.append(&again);
    assert_eq!(walk(&twice), 2 * bytes_of(&again));
}

/// Bytes that the documents hold, read through a view.
fn walk(versions: &KeyVersions) -> usize {
    let docs = versions.view().docs();
    docs.map(|doc| doc.docid.len() + doc.keys().map(|key| key.key.len() + key.include.len()).sum::<usize>()).sum()
}

/// Bytes that the documents hold, by the rule of [`KeyVersions::size`].
fn bytes_of(versions: &KeyVersions) -> usize {
    let keys: usize = versions.view().docs().map(|doc| doc.keys().count()).sum();
    versions.size() - versions.len() * 17 - keys * 13
}

fn reply(bytes: &[u8]) {
    let Some(ScanReply::Page(page)) = copy!(decode::<ScanReply>, bytes) else { return };
    let rows: usize = page.rows.iter().map(|row| row.key.len() + row.include.len()).sum();
    if page.rows.check().is_ok() {
        assert_eq!(page.rows.iter().count(), page.rows.len(), "every row is read");
        assert_eq!(rows + page.rows.len() * 8, page.rows.size(), "no byte is left over");
    }
}
