//! The lines of `tests/data/foreign`, whose README tells what they mean.

use anyhow::{Context, Result, bail, ensure};
use std::{fs, path::Path};

/// The columns of every line of a file; each line has so many.
pub fn lines(file: &str, columns: usize) -> Result<Vec<Vec<String>>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/foreign").join(file);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut all = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let cells: Vec<String> = line.split('|').map(|cell| cell.trim().to_owned()).collect();
        ensure!(cells.len() == columns, "{file}, line {number} has {} columns, not {columns}", cells.len());
        all.push(cells);
    }
    ensure!(!all.is_empty(), "{file} is empty");
    Ok(all)
}

/// The bytes that a column stands for.
pub fn bytes(cell: &str) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut rest = cell;
    while let Some(at) = rest.find('\\') {
        out.extend_from_slice(&rest.as_bytes()[..at]);
        rest = &rest[at + 1..];
        let kind = rest.chars().next().with_context(|| format!("{cell:?} ends with a backslash"))?;
        if let Some(inner) = rest.strip_prefix("rep{") {
            let (times, text) = inner.split_once(',').context("\\rep{TIMES,TEXT}")?;
            let end = text.find('}').context("\\rep without an end")?;
            out.extend(bytes(&text[..end])?.repeat(times.parse()?));
            rest = &text[end + 1..];
            continue;
        }
        rest = &rest[kind.len_utf8()..];
        match kind {
            'r' => out.push(b'\r'),
            'n' => out.push(b'\n'),
            't' => out.push(b'\t'),
            's' => out.push(b' '),
            '\\' => out.push(b'\\'),
            'x' => {
                out.push(u8::from_str_radix(rest.get(..2).context("\\xHH")?, 16)?);
                rest = &rest[2..];
            }
            'u' => {
                let (code, after) = rest.strip_prefix('{').and_then(|r| r.split_once('}')).context("\\u{HEX}")?;
                let character = char::from_u32(u32::from_str_radix(code, 16)?).context("no such character")?;
                out.extend_from_slice(character.to_string().as_bytes());
                rest = after;
            }
            _ => bail!("\\{kind} in {cell:?}"),
        }
    }
    out.extend_from_slice(rest.as_bytes());
    Ok(out)
}

/// A header block: None where there is none.
pub fn headers(cell: &str) -> Result<Option<Vec<u8>>> {
    Ok(match cell {
        "" => None,
        r"\0" => Some(Vec::new()),
        _ => Some(bytes(cell)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_for_bytes() -> Result<()> {
        let cell = r"a\r\n\s\xff\u{e9}\\\rep{3,b\x00}\x7c";
        assert_eq!(bytes(cell)?, b"a\r\n \xff\xc3\xa9\\b\0b\0b\0|");
        assert_eq!((headers("")?, headers(r"\0")?), (None, Some(Vec::new())));
        for bad in [r"\", r"\q", r"\x", r"\xzz", r"\u{d800}", r"\u{", r"\rep{3}", r"\rep{3,a", r"\rep{x,a}"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
        Ok(())
    }
}
