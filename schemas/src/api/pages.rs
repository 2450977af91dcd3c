//! Pages of lists that may not fit one message.

use serde::Serialize;

/// Maximum JSON size of a list's items in one reply, bytes. Two such lists and the rest of a reply are smaller than the least
/// `max_payload` ([`crate::lane::LEAST_PAYLOAD`]).
pub const PAGE_BYTES: usize = 384 * 1024;

/// Takes items while their JSON fits [`PAGE_BYTES`], at least one; answers them, and whether items are left.
pub fn page<T: Serialize>(items: impl IntoIterator<Item = T>) -> (Vec<T>, bool) {
    let (mut fitting, mut size) = (Vec::new(), 0);
    for item in items {
        size += json_size(&item) + 1;
        if size > PAGE_BYTES && !fitting.is_empty() {
            return (fitting, true);
        }
        fitting.push(item);
    }
    (fitting, false)
}

/// Size of a value as JSON, bytes.
pub fn json_size(value: &impl Serialize) -> usize {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // Counting does not fail, and what has no JSON takes no room.
    let _ = serde_json::to_writer(&mut count, value);
    count.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lane::LEAST_PAYLOAD;

    #[test]
    fn a_page_is_as_long_as_fits_and_pages_hold_everything() {
        let (fitting, more) = page(Vec::<u64>::new());
        assert!(fitting.is_empty() && !more);
        // With the quotes and a comma, 1,024 bytes each.
        let item = "x".repeat(1_021);
        let all: Vec<&str> = vec![&item; PAGE_BYTES / 1_024];
        assert_eq!(page(all.clone()), (all.clone(), false), "at the bound");
        let (fitting, more) = page(all.iter().copied().chain(["y"]));
        assert!(fitting == all && more, "beyond it");
        assert!(json_size(&fitting) <= PAGE_BYTES + 2 && 2 * PAGE_BYTES <= LEAST_PAYLOAD * 3 / 4);
        let large = "z".repeat(2 * PAGE_BYTES);
        assert_eq!(page([&large, &large]), (vec![&large], true), "one at least");
        let mut rest: Vec<u64> = (0..200_000).collect();
        let mut seen = Vec::new();
        loop {
            let (fitting, more) = page(rest.iter().copied());
            rest.drain(..fitting.len());
            seen.extend(fitting);
            if !more {
                break;
            }
        }
        assert!(rest.is_empty() && seen.is_sorted() && seen.len() == 200_000);
    }
}
