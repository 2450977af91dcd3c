//! The commands of docs/connecting.md are run as they stand there, each against a server as its section describes it.

use highwater_tests::{
    binaries,
    made::{Authority, Operator, key},
    nats::NatsServer,
    prelude::*,
};
use nkeys::KeyPairType;
use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

const DOCUMENT: &str = include_str!("../../../docs/connecting.md");
/// Stands in the document for the server of a section.
const ADDRESS: &str = "nats.example.com:4222";
const WITH_PASSWORD: &str = "authorization { user: ada, password: \"p@ss/word\", timeout: 30 }\n";

/// A command, and the beginnings of the lines that it prints.
struct Line<'a> {
    command: &'a str,
    printed: Vec<&'a str>,
}

/// The sections of the document that have commands, by their titles.
fn sections() -> Vec<(&'static str, Vec<Line<'static>>)> {
    let mut all: Vec<(&str, Vec<Line>)> = Vec::new();
    let mut inside = false;
    for line in DOCUMENT.lines() {
        match (line.strip_prefix("## "), line.strip_prefix("$ ")) {
            (Some(title), _) if !inside => all.push((title, Vec::new())),
            _ if line.starts_with("```") => inside = line == "```console",
            (_, command) if inside => {
                let Some((_, lines)) = all.last_mut() else { continue };
                if let Some(command) = command {
                    lines.push(Line { command, printed: Vec::new() });
                } else if let Some(last) = lines.last_mut() {
                    last.printed.push(line);
                }
            }
            _ => {}
        }
    }
    all.retain(|(_, lines)| !lines.is_empty());
    all
}

/// The server of a section, whose files are in the directory of the commands.
fn server(title: &str, home: &Path) -> Result<Vec<NatsServer>> {
    let authority = Authority::new(home, "ours")?;
    for (file, name) in [
        (&authority.file, "ca.pem"),
        (&authority.client_certificate, "client.pem"),
        (&authority.client_key, "client-key.pem"),
    ] {
        fs::copy(file, home.join(name))?;
    }
    let user = key(KeyPairType::User, 4)?;
    fs::write(home.join("user.nk"), user.seed()?)?;
    let configuration = match title {
        "User and password" => WITH_PASSWORD.to_owned(),
        "Token" => "authorization { token: s3cr3t, timeout: 30 }\n".to_owned(),
        "Nkey" => format!("authorization {{ users: [ {{ nkey: {} }} ], timeout: 30 }}\n", user.public_key()),
        "Credentials file" => {
            let operator = Operator::new(home)?;
            for (file, user) in [("highwater.creds", user), ("next.creds", key(KeyPairType::User, 5)?)] {
                fs::write(home.join(file), operator.credentials(&user, &user.seed()?)?)?;
            }
            operator.configuration
        }
        "TLS" => authority.configuration(""),
        "Certificates of clients" => authority.mutual(),
        "TLS first" => authority.configuration(", handshake_first: true"),
        "Contexts" => format!("{WITH_PASSWORD}{}", authority.configuration("")),
        "A leaf node" => {
            let (hub, leaf) = NatsServer::start_leaf(&home.join("servers"))?;
            return Ok(vec![leaf, hub]);
        }
        "JetStream of another account" => "accounts {\n  HUB { jetstream: enabled, users: [ { user: hub, password: hub } ], exports: [ { service: \
             \"$JS.API.>\" } ] }\n  ADA { users: [ { user: ada, password: password } ], imports: [ { service: { account: \
             HUB, subject: \"$JS.API.>\" }, to: \"js.hub.>\" } ] }\n}\n"
            .to_owned(),
        "Inboxes elsewhere" => "authorization { users: [ { user: ada, password: password, permissions: { subscribe: { allow: \
             \">\", deny: \"_INBOX.>\" } } } ], timeout: 30 }\n"
            .to_owned(),
        other => bail!("there is no server for the section {other}"),
    };
    let file = home.join("nats.conf");
    fs::write(&file, format!("jetstream: enabled\n{configuration}"))?;
    Ok(vec![NatsServer::start_with(&home.join("nats"), &["-c", &file.to_string_lossy()])?])
}

/// Runs a line of a shell in its directory, with nothing of this environment.
fn run(line: &str, home: &Path) -> Result<String> {
    let path = format!("{}:/usr/bin:/bin", home.join("bin").display());
    let mut shell = Command::new("sh");
    shell.args(["-c", line]).current_dir(home).env_clear().env("PATH", path).env("HOME", home);
    let output = shell.output().context("sh does not start")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(output.status.success(), "{line}: {}\n{}{}", output.status, text(&output.stdout), text(&output.stderr));
    Ok(text(&output.stdout))
}

#[test]
fn every_way_to_connect_works_as_it_is_written_down() -> Result<()> {
    let sections = sections();
    ensure!(sections.len() >= 10, "{} sections have commands", sections.len());
    for (title, lines) in sections {
        let home = tempfile::tempdir()?;
        fs::create_dir(home.path().join("bin"))?;
        fs::create_dir(home.path().join("servers"))?;
        symlink(binaries::highwater()?, home.path().join("bin/highwater"))?;
        let servers = server(title, home.path()).with_context(|| title.to_owned())?;
        let url = servers.first().context("no server")?.url();
        let (_, address) = url.split_once("://").context("no address")?;
        for line in lines {
            let command = line.command.replace(ADDRESS, address);
            let said = run(&command, home.path()).with_context(|| title.to_owned())?;
            let mut said_lines = said.lines();
            for printed in &line.printed {
                let found = said_lines.any(|line| line.starts_with(printed));
                ensure!(found, "{title}: {command}\nprints {said:?}, not {printed:?}");
            }
            println!("{title}: {}", line.command);
        }
    }
    Ok(())
}
