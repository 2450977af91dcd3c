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

    /// Started things that tests break without naming them: file, name as the code writes it, and the fault's place.
    const BROKEN_AS: [(&str, &str, &str); 7] = [
        ("services/indexer/src/jobs.rs", "name", "jobs"),
        ("services/indexer/src/jobs.rs", "what", "persist"),
        ("services/indexer/src/service/workers.rs", "of.to_string()", "worker"),
        ("services/indexer/src/worker/stores.rs", "&what", "verify"),
        ("services/projector/src/service.rs", "key.clone()", "vbucket"),
        ("services/router/src/lane.rs", "sending", "acknowledgement"),
        ("services/indexer/src/service.rs", "reading session ", "feed"),
    ];
    /// Started things that no test breaks: file, name as the code writes it, and the reason.
    const NOT_BROKEN: [(&str, &str, &str); 10] = [
        ("bus-config/src/connect.rs", "the keeper of the NATS client", "it hears how another ends, which is broken"),
        ("services/catalog/src/service.rs", "a request", "what it does to answer is caught in it, and broken there"),
        ("services/cluster-manager/src/service.rs", "what", "whoever calls it names it"),
        ("services/coordinator/src/service/mod.rs", "what", "whoever calls it names it"),
        ("services/highwater/src/serve/dev.rs", "kind.as_str()", "the services are broken as processes of their own"),
        ("services/indexer/src/read_threads.rs", "READS", "every job is caught in it; a test beside it panics in some"),
        ("services/indexer/src/service/requests.rs", "refusing a request", "it sends an answer and does nothing else"),
        ("services/indexer/src/service/requests.rs", "refusing a scan", "it sends an answer and does nothing else"),
        ("services/indexer/src/service/workers.rs", "of", "it hears how a worker's thread ends, which is broken"),
        ("services/indexer/src/store/build.rs", "|| -> io::Result<()> {", "a scope, which hands its thread's end on"),
    ];
    /// What starts a task, a thread or a job, or catches its panic, and the place of the name among its arguments.
    const STARTS: [(&str, usize); 7] = [
        (".spawn(", 0),
        (".spawn_job(", 0),
        ("supervise::task(", 1),
        ("supervise::job(", 1),
        ("supervise::thread(", 1),
        ("supervise::caught(", 1),
        ("supervise::caught_now(", 1),
    ];
    const STARTER: &str = "bus-config/src/supervise.rs";
    /// A test names a started thing at most this many lines from the place that breaks it.
    const NEAR: usize = 4;

    fn root() -> Result<&'static Path> {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no workspace")
    }

    /// Every Rust file below a directory, by its path in the workspace.
    fn files(directory: &str) -> Result<Vec<(String, String)>> {
        let (root, mut found) = (root()?, Vec::new());
        let mut open = vec![root.join(directory)];
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(&directory).with_context(|| format!("{}", directory.display()))? {
                let path = entry?.path();
                if path.is_dir() {
                    open.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let text = fs::read_to_string(&path)?;
                    found.push((path.strip_prefix(root)?.to_string_lossy().into_owned(), text));
                }
            }
        }
        Ok(found)
    }

    /// The code of the bus and of the services.
    fn code() -> Result<Vec<(String, String)>> {
        Ok([files("services")?, files("bus-config/src")?].concat())
    }

    /// The tests that break something.
    fn breaking() -> Result<Vec<String>> {
        let tests = files("tests/tests/process")?.into_iter().map(|(_, text)| text);
        Ok(tests.filter(|text| text.contains("panic_at(")).collect())
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

    fn all_places() -> Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        // What defines the fault names none; its own test does.
        for (_, text) in code()?.iter().filter(|(_, text)| !text.contains("pub fn fault(")) {
            places(text, &mut found)?;
        }
        Ok(found)
    }

    /// Whether a test breaks this place.
    fn is_broken(place: &str, test: &str) -> bool {
        test.contains("panic_at(") && names_place(test, place)
    }

    /// Whether a part of a test names this place as what it breaks: alone, or after a node.
    fn names_place(test: &str, place: &str) -> bool {
        let after = |start: &str| {
            let named = format!("{start}\"{place}");
            test.match_indices(&named).any(|(at, _)| test[at + named.len()..].starts_with(['"', '.']))
        };
        after("(") || after("-1\", ")
    }

    /// What a started thing is called: in full, how it begins, or how that is written in the code.
    #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
    enum Name {
        Whole(String),
        Beginning(String),
        Written(String),
    }

    impl Name {
        fn text(&self) -> &str {
            match self {
                Self::Whole(text) | Self::Beginning(text) | Self::Written(text) => text,
            }
        }

        /// Whether a test that breaks something names it near a place that it breaks. The place of an errand is its name behind
        /// `errand.`.
        fn is_broken_by(&self, test: &str, places: &BTreeSet<String>) -> bool {
            let lines: Vec<&str> = test.lines().collect();
            let near = |at: usize| lines[at.saturating_sub(NEAR)..lines.len().min(at + NEAR + 1)].join("\n");
            let has_place =
                |part: &str| part.contains("\"errand.") || places.iter().any(|place| names_place(part, place));
            (0..lines.len()).any(|at| self.is_in(lines[at]) && has_place(&near(at)))
        }

        /// Whether a line names it, alone or as the place of an errand.
        fn is_in(&self, line: &str) -> bool {
            match self {
                Self::Whole(name) => ["", "errand."].iter().any(|of| line.contains(&format!("\"{of}{name}\""))),
                Self::Beginning(name) => !name.is_empty() && line.contains(&format!("\"{name}")),
                Self::Written(_) => false,
            }
        }

        /// Of an argument that is or makes a text.
        fn of(argument: &str) -> Option<Self> {
            let (before, rest) = argument.split_once('"')?;
            let text = rest.split('"').next().unwrap_or_default();
            let beginning = text.split('{').next().unwrap_or_default();
            let whole = before.is_empty() && beginning == text;
            Some(if whole { Self::Whole(text.into()) } else { Self::Beginning(beginning.into()) })
        }
    }

    /// One argument of a call, as it is written; the text begins behind the parenthesis.
    fn argument(call: &str, number: usize) -> &str {
        let (mut depth, mut quoted, mut begin, mut passed) = (0, false, 0, 0);
        for (at, c) in call.char_indices() {
            match c {
                '"' => quoted = !quoted,
                _ if quoted => {}
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' if depth > 0 => depth -= 1,
                ',' if depth == 0 && passed < number => (begin, passed) = (at + 1, passed + 1),
                ',' | ')' if depth == 0 => return call[begin..at].trim(),
                _ => {}
            }
        }
        ""
    }

    /// What a file starts outside of its tests. A process of the system has no name there.
    fn started(text: &str) -> BTreeSet<Name> {
        let tests = text.find("\n#[cfg(test)]").unwrap_or(text.len());
        let lines = text[..tests].lines().filter(|line| !line.trim_start().starts_with("//"));
        let code: String = lines.flat_map(|line| [line, "\n"]).collect();
        let mut found = BTreeSet::new();
        for (start, number) in STARTS {
            for (at, call) in code.match_indices(start) {
                let written = argument(&code[at + call.len()..], number);
                let written = written.lines().next().unwrap_or_default();
                // The function up to there.
                let before = code[..at].rsplit("fn ").next().unwrap_or_default();
                let made = format!("let {} = ", written.trim_start_matches('&'));
                let made = before.rsplit_once(made.as_str());
                let made = made.and_then(|(_, made)| Name::of(made.split(';').next().unwrap_or_default()));
                let name = if written.contains('"') { Name::of(written) } else { made };
                if !written.is_empty() {
                    found.insert(name.unwrap_or_else(|| Name::Written(written.into())));
                }
            }
        }
        found
    }

    #[test]
    fn a_test_breaks_every_place() -> Result<()> {
        let (mut found, broken) = (all_places()?, breaking()?);
        ensure!(found.contains("persist") && found.contains("session"), "these places were not found: {found:?}");
        found.retain(|place| !broken.iter().any(|test| is_broken(place, test)));
        ensure!(found.is_empty(), "no test breaks these places: {found:?}");
        Ok(())
    }

    /// Whatever is started has a name, which a test that breaks something has near a place that it breaks; but for what is listed
    /// above. Whether that place breaks just this is not looked at here.
    #[test]
    fn a_test_breaks_whatever_is_started() -> Result<()> {
        let (broken, places) = (breaking()?, all_places()?);
        let mut listed: BTreeSet<(&str, &str)> = BTreeSet::new();
        listed.extend(NOT_BROKEN.map(|(file, name, _)| (file, name)));
        for (file, name, place) in BROKEN_AS {
            let is_one = places.contains(place) && broken.iter().any(|test| is_broken(place, test));
            ensure!(is_one, "{file}: {name}: no test breaks {place}");
            listed.insert((file, name));
        }
        let (mut met, mut left) = (BTreeSet::new(), Vec::new());
        let mut names = BTreeSet::new();
        for (file, text) in code()? {
            let tests = ["/tests/", "/examples/"].iter().any(|part| file.contains(part)) || file.ends_with("/tests.rs");
            if tests || file == STARTER {
                continue;
            }
            for name in started(&text) {
                match listed.iter().find(|(of, listed)| *of == file && *listed == name.text()) {
                    Some(entry) => _ = met.insert(*entry),
                    None if broken.iter().any(|test| name.is_broken_by(test, &places)) => {}
                    None => left.push(format!("{file}: {name:?}")),
                }
                names.insert(name);
            }
        }
        for known in ["writing the lease", "reading the log", "what purges catchup topics", "replies to heartbeats"] {
            ensure!(names.contains(&Name::Whole(known.into())), "{known} was not found: {names:?}");
        }
        ensure!(left.is_empty(), "no test breaks these: {left:#?}");
        ensure!(met == listed, "nothing of that name is started there: {:?}", listed.difference(&met));
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

    #[test]
    fn what_is_started_is_found_by_its_name() {
        let code = r#"
            fn a() {
                // tasks.spawn("a comment", x)
                tasks.spawn(
                    "one (1), so",
                    async {},
                );
                let what = format!("part {n} of it");
                supervise::task(&f(a, b), &what, x);
                errands.spawn_job(what("two of"), || ());
                command.spawn();
            }
            fn b(what: &str) { supervise::caught_now(&incidents, what, x) }
            "#;
        let tests = "\n#[cfg(test)]\nmod tests { fn c() { tasks.spawn(\"three\", x) } }";
        let found = started(&format!("{code}{tests}"));
        let expected = [
            Name::Whole("one (1), so".into()),
            Name::Beginning("part ".into()),
            Name::Beginning("two of".into()),
            Name::Written("what".into()),
        ];
        assert_eq!(found.into_iter().collect::<Vec<_>>(), expected);
        assert!(Name::Whole("a b".into()).is_in("(\"x\", \"errand.a b\")"));
        assert!(Name::Beginning("a b".into()).is_in("\"a b c\""));
        assert!(!Name::Whole("a b".into()).is_in("\"a b c\"") && !Name::Beginning("b".into()).is_in("\"a b\""));
    }

    #[test]
    fn what_is_broken_is_named_near_its_place() {
        let (place, other) = (BTreeSet::from(["one".to_owned()]), BTreeSet::from(["two".to_owned()]));
        let name = Name::Whole("a b".into());
        let test = |lines: usize| format!("(\"n-1\", \"one\",{}\"a b\")", "\n".repeat(lines));
        assert!([0, 1, NEAR].iter().all(|lines| name.is_broken_by(&test(*lines), &place)));
        assert!(!name.is_broken_by(&test(NEAR + 1), &place), "too far away");
        assert!(!name.is_broken_by(&test(0), &other), "no place");
        assert!(name.is_broken_by("(MANAGER, \"errand.a b\")", &other), "its place has its name");
        assert!(name.is_broken_by("let place = format!(\"errand.{what}\");\n\"a b\"", &other), "and here");
        assert!(!name.is_broken_by("\"a b\"", &other));
    }
}
