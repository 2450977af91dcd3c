//! Every saved input of every fuzz target runs, and so do random mutations of it.

use anyhow::{Context, Result, bail, ensure};
use highwater_fuzz_targets::{TARGETS, Target};
use highwater_tests::rng::{Rng, SEED};
use std::{
    fs,
    panic::catch_unwind,
    path::{Path, PathBuf},
};

/// How many mutations of each input are tried.
const VARIABLE: &str = "HIGHWATER_MUTATIONS";
const MUTATIONS: u64 = 1_000;
/// Changes in one mutation at most.
const CHANGES: u64 = 4;
/// A mutated input has so many bytes at most.
const LONGEST: usize = 64 * 1024;
/// Bytes that mean something in one of the formats.
const TELLING: [u8; 16] = [0, 1, 2, 6, 8, 10, 12, 0x7f, 0x80, 0xff, 0xfe, b'"', b'\\', b'[', b'}', b'-'];

fn corpus(target: &str) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/corpus").join(target);
    let entries = fs::read_dir(&directory).with_context(|| format!("no corpus in {}", directory.display()))?;
    let mut paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    paths.sort();
    paths.into_iter().map(|path| Ok((path.clone(), fs::read(path)?))).collect()
}

fn mutations() -> Result<u64> {
    match std::env::var(VARIABLE) {
        Ok(text) => text.parse().with_context(|| format!("{VARIABLE} is not a number: {text}")),
        Err(_) => Ok(MUTATIONS),
    }
}

/// Runs a target; when it panics, says how to see it again.
fn run(name: &str, target: Target, input: &[u8], what: &str) -> Result<()> {
    if catch_unwind(|| target(input)).is_err() {
        let digit = |n: u8| char::from_digit(u32::from(n), 16);
        let hexadecimal: String = input.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).flatten().collect();
        bail!("{name} fails on {what}; in hexadecimal: {hexadecimal}");
    }
    Ok(())
}

/// Changes some bytes, takes some out, repeats some, or brings in a part of another input.
fn mutate(input: &[u8], others: &[(PathBuf, Vec<u8>)], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=rng.below(CHANGES) {
        let part = |rng: &mut Rng, len: usize| {
            let from = rng.below(len as u64 + 1) as usize;
            from..from + rng.below((len - from) as u64 + 1).min(rng.next() % 64) as usize
        };
        let at = rng.below(bytes.len() as u64 + 1) as usize;
        match (rng.below(6), bytes.get_mut(at)) {
            (0, Some(byte)) => *byte ^= 1 << rng.below(8),
            (1, Some(byte)) => *byte = *rng.pick(&TELLING),
            (2, Some(byte)) => *byte = byte.wrapping_add(rng.below(9) as u8).wrapping_sub(4),
            (3, _) => drop(bytes.drain(part(rng, bytes.len()))),
            (4, _) => {
                let copied = bytes[part(rng, bytes.len())].to_vec();
                bytes.splice(at..at, copied);
            }
            _ => {
                let other = &rng.pick(others).1;
                let brought = other[part(rng, other.len())].to_vec();
                bytes.splice(at..at, brought);
            }
        }
    }
    bytes.truncate(LONGEST);
    bytes
}

#[test]
fn saved_inputs_and_mutations_of_them_break_no_promise() -> Result<()> {
    let mut rng = Rng::seeded("corpus");
    let mutations = mutations()?;
    for (name, target) in TARGETS {
        let inputs = corpus(name)?;
        ensure!(inputs.len() >= 20, "the corpus of {name} has {} inputs only", inputs.len());
        for (path, input) in &inputs {
            run(name, target, input, &path.display().to_string())?;
            for i in 0..mutations {
                let mutated = mutate(input, &inputs, &mut rng);
                run(name, target, &mutated, &format!("mutation {i} of {} ({SEED} is above)", path.display()))?;
            }
        }
    }
    Ok(())
}
