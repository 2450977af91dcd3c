//! Rules of Rust files.

use super::SourceFile;

/// The longest a file may be; past it, ask which two things it is.
const MAX_LINES: usize = 500;
/// Where async-nats may be used: the bus, and what stands outside as a foreign client would.
const NATS_USERS: [&str; 4] = ["bus-config/", "xtask/", "tests/", "compose/writer/"];
/// Files whose first line says what the module is.
const HEADS: [&str; 3] = ["lib.rs", "mod.rs", "main.rs"];

/// A text that must not appear, and why.
struct Forbidden {
    text: &'static str,
    why: &'static str,
}

const EVERYWHERE: [Forbidden; 7] = [
    Forbidden { text: concat!("todo", "!("), why: "finish it or leave it out" },
    Forbidden { text: concat!("unimplemented", "!("), why: "finish it or leave it out" },
    Forbidden { text: concat!("dbg", "!("), why: "left over from debugging" },
    Forbidden { text: concat!("#[ig", "nore"), why: "a test that is not run promises nothing" },
    Forbidden { text: concat!("unbounded", "_channel"), why: "every queue has a named limit" },
    Forbidden { text: concat!("mpsc::", "channel()"), why: "every queue has a named limit" },
    Forbidden { text: concat!("mpsc::", "unbounded"), why: "every queue has a named limit" },
];

const IN_CORES: [Forbidden; 4] = [
    Forbidden { text: concat!("SystemTime::", "now"), why: "a core is given the time" },
    Forbidden { text: concat!("Instant::", "now"), why: "a core is given the time" },
    Forbidden { text: concat!("thread_", "rng"), why: "a core is given its randomness" },
    Forbidden { text: concat!("tokio::", "spawn"), why: "a core has no task of its own" },
];

/// What starts something whose end nobody need hear of, or keeps a panic to itself.
const STARTS: [&str; 10] = [
    concat!("tokio::", "spawn("),
    concat!("task::", "spawn("),
    concat!("spawn_", "blocking("),
    concat!("spawn_", "local("),
    concat!("Join", "Set"),
    concat!("thread::", "spawn("),
    concat!("thread::", "Builder"),
    concat!("thread::", "scope("),
    concat!("Handle::current()", ".spawn("),
    concat!("catch_", "unwind("),
];
/// Who may start tasks and threads otherwise, and why.
const STARTERS: [(&str, &str); 7] = [
    ("bus-config/src/supervise.rs", "what everybody else starts them with"),
    ("services/indexer/src/store/build.rs", "a scope, which waits for its one thread and hands its error on"),
    (
        "services/indexer/src/stopped.rs",
        "the command line: a panic is reported as damage of the one slice that is looked into",
    ),
    ("tests/", "tests and what they share: a panic fails the test that waits for it"),
    ("xtask/", "tools, not services"),
    ("compose/writer/", "a client, as users write them"),
    ("fuzz/", "fuzz targets"),
];

/// Tasks, threads and jobs are started by what hears their ends; tests of a crate may start what they like.
fn check_starts(file: &SourceFile, offences: &mut Vec<String>) {
    let exempt = STARTERS.iter().any(|(path, _)| file.path.starts_with(path));
    let tests = ["/tests/", "/examples/", "/benches/"].iter().any(|part| file.path.contains(part));
    if exempt || tests || file.path.ends_with("/tests.rs") {
        return;
    }
    for (number, line) in file.text.lines().enumerate() {
        if line.starts_with("#[cfg(test)]") {
            return;
        }
        let code = line.split("//").next().unwrap_or_default();
        for start in STARTS.iter().filter(|start| code.contains(*start)) {
            offences.push(format!(
                "{}:{}: {start}: tasks, threads and jobs are started by highwater_bus::supervise, which hears their ends",
                file.path,
                number + 1
            ));
        }
    }
}

/// Checks one file.
pub fn check(file: &SourceFile, offences: &mut Vec<String>) {
    let lines = file.text.lines().count();
    if lines > MAX_LINES {
        offences.push(format!("{}: {lines} lines; {MAX_LINES} are the limit", file.path));
    }
    let name = file.path.rsplit('/').next().unwrap_or_default();
    if HEADS.contains(&name) && !file.text.starts_with("//!") {
        offences.push(format!("{}:1: must begin with //! and say what it is", file.path));
    }
    check_starts(file, offences);
    let core = name == "core.rs" || file.path.contains("/core/");
    let nats = NATS_USERS.iter().any(|user| file.path.starts_with(user));
    for (number, line) in file.text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        let rules = EVERYWHERE.iter().chain(if core { IN_CORES.as_slice() } else { &[] });
        for rule in rules.filter(|rule| code.contains(rule.text)) {
            offences.push(format!("{}:{}: {}: {}", file.path, number + 1, rule.text, rule.why));
        }
        if !nats && code.contains("async_nats") {
            offences.push(format!("{}:{}: async_nats: bus-config alone uses it", file.path, number + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offences(path: &str, text: &str) -> Vec<String> {
        let mut out = Vec::new();
        check(&SourceFile { path: path.into(), text: text.into() }, &mut out);
        out
    }

    #[test]
    fn a_module_head_is_asked_for() {
        assert_eq!(offences("a/src/lib.rs", "mod b;\n").len(), 1);
        assert!(offences("a/src/lib.rs", "//! What it is.\n").is_empty());
        assert!(offences("a/src/b.rs", "fn b() {}\n").is_empty());
    }

    #[test]
    fn a_file_has_a_length() {
        assert!(offences("a/src/b.rs", &"\n".repeat(500)).is_empty());
        assert_eq!(offences("a/src/b.rs", &"\n".repeat(501)).len(), 1);
    }

    #[test]
    fn clocks_are_refused_in_cores_only() {
        let text = concat!("let t = Instant::", "now();\n");
        assert_eq!(offences("services/a/src/core.rs", text).len(), 1);
        assert_eq!(offences("services/a/src/core/plan.rs", text).len(), 1);
        assert!(offences("services/a/src/service.rs", text).is_empty());
    }

    #[test]
    fn what_is_started_is_heard_of() {
        let start = concat!("use tokio::task;\nfn a() { task::", "spawn(async {}); }\n");
        assert_eq!(offences("services/catalog/src/service.rs", start).len(), 1);
        let after = concat!("fn a() {}\n#[cfg(test)]\nmod tests { fn b() { std::thread::", "spawn(|| {}); } }\n");
        assert!(offences("services/catalog/src/service.rs", after).is_empty(), "a test");
        for start in STARTS {
            let text = format!("let x = {start}work);\n");
            assert!(!offences("services/indexer/src/jobs.rs", &text).is_empty(), "{start}");
            assert!(!offences("bus-config/src/heart.rs", &text).is_empty(), "{start}");
            for (exempt, _) in STARTERS {
                let path = if exempt.ends_with('/') { format!("{exempt}a.rs") } else { exempt.to_owned() };
                assert!(offences(&path, &text).is_empty(), "{path}: {start}");
            }
        }
        assert!(offences("services/a/src/b.rs", "// Not tokio::spawn(\nchild.spawn()\n").is_empty());
    }

    #[test]
    fn async_nats_stays_on_the_bus() {
        let text = "use async_nats::Client;\n";
        assert_eq!(offences("services/catalog/src/service.rs", text).len(), 1);
        assert!(offences("bus-config/src/lib.rs", "//! The bus.\nuse async_nats::Client;\n").is_empty());
        assert!(offences("services/catalog/src/service.rs", "// not async_nats\n").is_empty());
    }
}
