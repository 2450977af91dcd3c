//! Rules of Cargo.toml files: components meet only on the bus, versions and lints live in the workspace's.

use super::SourceFile;

/// The one service crate that may depend on the others: it starts them.
const STARTER: &str = "services/highwater/";
/// Manifests of workspaces: they hold versions and lints.
const ROOTS: [&str; 2] = ["Cargo.toml", "fuzz/Cargo.toml"];
/// Crates that services share.
const SHARED: [&str; 2] = ["highwater-schemas", "highwater-bus"];
/// What is compiled before a newcomer sees the first line, and all that it may depend on.
const FIRST: (&str, [&str; 3]) = ("xtask/Cargo.toml", ["anyhow", "clap", "serde_json"]);

/// Checks one manifest.
pub fn check(file: &SourceFile, offences: &mut Vec<String>) {
    let service = file.path.starts_with("services/") && !file.path.starts_with(STARTER);
    let member = !ROOTS.contains(&file.path.as_str());
    if member && !file.text.contains("[lints]\nworkspace = true") {
        offences.push(format!("{}: must take the workspace's lints ([lints] workspace = true)", file.path));
    }
    let mut section = String::new();
    for (number, line) in file.text.lines().enumerate() {
        let line = line.trim();
        if line.starts_with('[') {
            line.trim_matches(['[', ']']).clone_into(&mut section);
            continue;
        }
        if line.is_empty() || line.starts_with('#') || !section.ends_with("dependencies") {
            continue;
        }
        if member && !line.contains("workspace = true") {
            offences.push(format!("{}:{}: versions live in the workspace's Cargo.toml: {line}", file.path, number + 1));
        }
        let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
        if file.path == FIRST.0 && section == "dependencies" && (!FIRST.1.contains(&name) || line.contains("derive")) {
            offences.push(format!("{}:{}: {line}: whoever has just cloned waits for it", file.path, number + 1));
        }
        if !service {
            continue;
        }
        if name.starts_with("highwater") && !SHARED.contains(&name) {
            offences.push(format!("{}:{}: {name}: services meet only on the bus", file.path, number + 1));
        }
        if name == "async-nats" {
            offences.push(format!("{}:{}: async-nats: bus-config alone uses it", file.path, number + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_do_not_depend_on_one_another() {
        let text = "[lints]\nworkspace = true\n[dependencies]\nhighwater-indexer.workspace = true\n";
        let mut offences = Vec::new();
        check(&SourceFile { path: "services/catalog/Cargo.toml".into(), text: text.into() }, &mut offences);
        assert_eq!(offences.len(), 1, "{offences:?}");
        offences.clear();
        check(&SourceFile { path: "services/highwater/Cargo.toml".into(), text: text.into() }, &mut offences);
        assert!(offences.is_empty(), "{offences:?}");
    }

    #[test]
    fn what_is_compiled_first_is_small() {
        let head = "[lints]\nworkspace = true\n[dependencies]\nanyhow.workspace = true\n";
        for (line, offending) in [
            ("serde_json.workspace = true", 0),
            ("tokio.workspace = true", 1),
            ("clap = { workspace = true, features = [\"derive\"] }", 1),
            ("[dev-dependencies]\ntempfile.workspace = true", 0),
        ] {
            let mut offences = Vec::new();
            check(&SourceFile { path: FIRST.0.into(), text: format!("{head}{line}\n") }, &mut offences);
            assert_eq!(offences.len(), offending, "{line}: {offences:?}");
        }
    }

    #[test]
    fn versions_and_lints_live_in_the_workspace() {
        let mut offences = Vec::new();
        let text = "[dependencies]\nserde = \"1\"\n";
        check(&SourceFile { path: "schemas/Cargo.toml".into(), text: text.into() }, &mut offences);
        assert_eq!(offences.len(), 2, "{offences:?}");
    }
}
