//! Faults inside of services, at places that they name: panics and standstills.

use crate::{cluster::Cluster, wait::until};
use anyhow::{Context, Result};
use std::{fs, path::PathBuf, time::Duration};

/// Names the directory to the services.
const ENVIRONMENT: &str = "HIGHWATER_TEST_FAULTS";
/// By then a service that has work passes every place that it has.
const HIT_WITHIN: Duration = Duration::from_secs(30);

impl Cluster {
    /// The environment of a node's process: where it looks for faults.
    pub(crate) fn faults_of(&self, node: &str) -> (&'static str, PathBuf) {
        (ENVIRONMENT, self.path().join("faults").join(node))
    }

    /// Has a node panic where it passes this place next; see `highwater_bus::fault` for their names.
    pub fn panic_at(&self, node: &str, place: &str) -> Result<()> {
        self.break_at(node, place, "panic")
    }

    /// Has a node stand still there, the thread with it.
    pub fn hang_at(&self, node: &str, place: &str) -> Result<()> {
        self.break_at(node, place, "hang")
    }

    /// Lets a node go on that stands still there.
    pub fn release(&self, node: &str, place: &str) -> Result<()> {
        fs::remove_file(self.faults_of(node).1.join(format!("{place}.taken"))).context("it does not stand still")
    }

    fn break_at(&self, node: &str, place: &str, fault: &str) -> Result<()> {
        let directory = self.faults_of(node).1;
        fs::create_dir_all(&directory).context("no directory for faults")?;
        let taken = directory.join(format!("{place}.taken"));
        if taken.exists() {
            fs::remove_file(taken).context("the fault before it stays")?;
        }
        // Complete when it gets its name.
        let written = directory.join("next");
        fs::write(&written, fault).and_then(|()| fs::rename(&written, directory.join(place))).context("no fault")
    }

    /// Whether a node has met the fault that it was to meet.
    pub fn is_hit(&self, node: &str, place: &str) -> bool {
        self.faults_of(node).1.join(format!("{place}.taken")).exists()
    }

    /// Waits until a node has met the fault that it was to meet.
    pub async fn hit(&self, node: &str, place: &str) -> Result<()> {
        until(&format!("{node} passes {place}"), HIT_WITHIN, async || {
            self.is_hit(node, place).then_some(()).ok_or_else(|| "it has not passed yet".to_owned())
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{bail, ensure};
    use std::{collections::BTreeSet, path::Path};

    /// The text of every Rust file below a directory.
    fn texts(directory: &Path, out: &mut Vec<String>) -> Result<()> {
        for entry in fs::read_dir(directory).with_context(|| format!("{}", directory.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                texts(&path, out)?;
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                out.push(fs::read_to_string(&path)?);
            }
        }
        Ok(())
    }

    /// The places that code passes. Each is named where it is passed, so that it is found here.
    fn places(code: &str, found: &mut BTreeSet<String>) -> Result<()> {
        for line in code.lines().map(|line| line.split("//").next().unwrap_or_default()) {
            let calls = line.match_indices("fault(").filter(|(at, _)| {
                !line[..*at].ends_with(|before: char| before.is_alphanumeric() || before == '_')
                    && !line[..*at].ends_with("fn ")
            });
            for (at, call) in calls {
                let named = line[at + call.len()..].strip_prefix('"').and_then(|rest| rest.split_once('"'));
                let Some((place, _)) = named else { bail!("a place that is not named where it is passed: {line}") };
                found.insert(place.to_owned());
            }
        }
        Ok(())
    }

    /// Whether a test names this place as what it breaks: alone, or after a node.
    fn is_broken(place: &str, test: &str) -> bool {
        let after = |start: &str| {
            let named = format!("{start}\"{place}");
            test.match_indices(&named).any(|(at, _)| test[at + named.len()..].starts_with(['"', '.']))
        };
        test.contains("panic_at(") && (after("(") || after("-1\", "))
    }

    #[test]
    fn a_test_breaks_every_place() -> Result<()> {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = tests.parent().context("no workspace")?;
        let (mut code, mut broken) = (Vec::new(), Vec::new());
        texts(&root.join("services"), &mut code)?;
        texts(&root.join("bus-config/src"), &mut code)?;
        texts(&tests.join("tests/process"), &mut broken)?;
        let mut found = BTreeSet::new();
        // What defines the fault names none; its own test does.
        for text in code.iter().filter(|text| !text.contains("pub fn fault(")) {
            places(text, &mut found)?;
        }
        ensure!(found.contains("persist") && found.contains("session"), "these places were not found: {found:?}");
        found.retain(|place| !broken.iter().any(|test| is_broken(place, test)));
        ensure!(found.is_empty(), "no test breaks these places: {found:?}");
        Ok(())
    }

    /// What services do beside their loops passes one place; each of these is named where it begins.
    #[test]
    fn a_test_breaks_every_errand() -> Result<()> {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
        let (mut code, mut broken) = (Vec::new(), Vec::new());
        texts(&tests.join("../services"), &mut code)?;
        texts(&tests.join("tests/process"), &mut broken)?;
        let mut found = BTreeSet::new();
        for text in &code {
            let begun = text.split("self.spawn(\"").skip(1);
            found.extend(begun.filter_map(|rest| rest.split_once('"')).map(|(what, _)| what));
        }
        ensure!(
            found.contains("writing the lease") && found.contains("reading the log"),
            "these are not all: {found:?}"
        );
        let is_broken = |what: &str, test: &String| {
            let named = test.contains(&format!("\"{what}\"")) || test.contains(&format!("\"errand.{what}\""));
            named && test.contains("panic_at(")
        };
        found.retain(|what| !broken.iter().any(|test| is_broken(what, test)));
        ensure!(found.is_empty(), "no test breaks these errands: {found:?}");
        Ok(())
    }

    #[test]
    fn places_and_what_breaks_them_are_found() -> Result<()> {
        let mut found = BTreeSet::new();
        places("fault(\"one\", x);\n|| fault(\"two\", \"\") // fault(x)\ndefault(x); fn fault(x)", &mut found)?;
        assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), ["one", "two"]);
        assert!(places("fault(place, x)", &mut found).is_err());
        let test = "for x in [(\"one.of\", 1), (\"n-1\", \"two\")] { panic_at(x) } x[\"three\"]; f(\"fourth\")";
        assert!(is_broken("one", test) && is_broken("two", test));
        assert!(["three", "four", "on", "of"].iter().all(|place| !is_broken(place, test)));
        assert!(!is_broken("one", "(\"one\", 1)"), "nothing panics in it");
        Ok(())
    }
}
