//! Tables and numbers for people.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde_json::Value;
use time::OffsetDateTime;

/// A table with a header; the columns in `right` are numbers.
pub(super) fn table(header: &[&str], right: &[usize], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in right {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|l| l.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// 34006 → 34,006.
pub(super) fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// Bytes in the unit that fits.
pub(super) fn bytes(n: u64) -> String {
    match n {
        0..1_024 => format!("{n} B"),
        1_024..1_048_576 => format!("{:.1} KiB", n as f64 / 1_024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", n as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", n as f64 / 1_073_741_824.0),
    }
}

/// A value in a cell: strings without quotes.
pub(super) fn cell(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

/// A time given in milliseconds since the epoch. It is of the machine that noted it, so it is not compared with the clock here.
pub(crate) fn time(at: u64) -> String {
    let time = i64::try_from(at / 1_000).ok().and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok());
    let Some(time) = time else { return format!("{at} ms after 1970") };
    let (hour, minute, second) = time.to_hms();
    format!("{} {hour:02}:{minute:02}:{second:02} UTC", time.date())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        for (n, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (34_006, "34,006"), (1_234_567, "1,234,567")] {
            assert_eq!(thousands(n), text);
        }
        assert_eq!(bytes(1_536), "1.5 KiB");
    }

    #[test]
    fn times_are_shown_as_they_were_noted() {
        assert_eq!(time(1_700_000_000_999), "2023-11-14 22:13:20 UTC");
        assert_eq!(time(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(time(u64::MAX), "18446744073709551615 ms after 1970");
    }
}
