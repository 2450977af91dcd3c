//! No password, token or seed is shown: not in what a process says or logs, not in its help, and not in its command line.

use highwater_tests::{binaries, child::Child, nats::NatsServer, prelude::*};
use std::{fs, path::Path, process::Command};

const SECRET: &str = "zq7vkx";
const WITHIN: Duration = Duration::from_secs(30);

/// Of the environment: its name and its value.
type Variable<'a> = Option<(&'a str, &'a str)>;

/// A service and a command, with these arguments and this variable.
fn runs(directory: &Path, arguments: &[&str], variable: Variable) -> Result<Vec<Command>> {
    let data = directory.join("data");
    let data = data.to_string_lossy().into_owned();
    let mut all = Vec::new();
    for words in
        [&["coordinator", "--node-id", "c1", "--data-dir", &data][..], &["status", "--json"], &["ping", "--nats"]]
    {
        let mut command = binaries::command()?;
        command.args(words).args(arguments).envs(variable).env("HIGHWATER_LOG", "trace");
        all.push(command);
    }
    Ok(all)
}

/// Everything that is shown of a process while and after it runs.
async fn shown(command: Command, directory: &Path) -> Result<String> {
    let mut child = Child::start("shown", command, directory)?;
    until("it ends", WITHIN, || std::future::ready(child.exited().ok_or_else(|| "it runs".to_owned()))).await?;
    let shown = child.log() + &child.stdout();
    fs::remove_file(directory.join("shown.log"))?;
    Ok(shown)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_is_not_shown() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("nats.conf");
    fs::write(&file, "jetstream: enabled\nauthorization { user: ada, password: right, timeout: 30 }\n")?;
    let server = NatsServer::start_with(&directory.path().join("nats"), &["-c", &file.to_string_lossy()])?;
    let address = server.url().split_once("://").context("no address")?.1.to_owned();
    let url = |before: &str| format!("nats://{before}@{address}");
    let urls = [
        url("ada:zq7vkx"),
        url("zq7vkx"),
        url("ada:12,zq7vkx"),
        url("ada:zq7/vkx"),
        url("ada:zq7vkx%zz%FF"),
        format!("http://ada:zq7vkx@{address}"),
        format!("{},nats://ada:zq7vkx@127.0.0.1:1", server.url()),
        "nats://ada:zq7vkx".to_owned(),
    ];
    let mut tried: Vec<(Vec<&str>, Variable)> = Vec::new();
    for url in &urls {
        tried.push((vec!["--nats-url", url], None));
        tried.push((vec![], Some(("NATS_URL", url))));
    }
    let at = |arguments: &[&'static str]| [&["--nats-url", server.url()][..], arguments].concat();
    tried.extend([
        (at(&["--nats-user", "ada", "--nats-password", SECRET]), None),
        (at(&["--user", "ada", "--password=zq7vkx"]), None),
        (at(&["--nats-token", SECRET]), None),
        (at(&["--nats-user", SECRET]), None),
        (at(&["--nkey", "SUzq7vkx"]), None),
        (at(&["--nats-user", "ada"]), Some(("NATS_PASSWORD", SECRET))),
        (at(&[]), Some(("NATS_TOKEN", SECRET))),
        (at(&[]), Some(("NATS_NKEY", "SUzq7vkx"))),
    ]);
    for (arguments, variable) in tried {
        for command in runs(directory.path(), &arguments, variable)? {
            let shown = shown(command, directory.path()).await?;
            ensure!(shown.contains("highwater: "), "{arguments:?} {variable:?} is no error: {shown}");
            let secret = [SECRET, "zq7", "vkx"].iter().any(|secret| shown.contains(secret));
            ensure!(!secret, "{arguments:?} {variable:?}: {shown}");
        }
        let mut help = binaries::command()?;
        help.args(["status", "--help"]).envs(variable);
        let help = shown(help, directory.path()).await?;
        ensure!(help.contains("NATS_PASSWORD") && !help.contains(SECRET), "{help}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_process_does_not_show_its_password() -> Result<()> {
    let configuration = "jetstream: enabled\nauthorization { user: ada, password: zq7vkx, timeout: 30 }\n";
    let cluster = Cluster::configured(configuration)?;
    let url = cluster.url().replace("nats://", "nats://ada:zq7vkx@");
    for (name, arguments) in [
        ("flags", vec!["--nats-url", cluster.url(), "--nats-user", "ada", "--nats-password", SECRET]),
        ("url", vec!["--nats-url", &url]),
    ] {
        let mut command = binaries::command()?;
        command.args(["dev", "--data-dir"]).arg(cluster.data_dir(name)).args(&arguments);
        let mut dev = Child::start(name, command, cluster.path())?;
        let said = dev.wait_said("highwater ready", WITHIN).await?;
        ensure!(said.ends_with(cluster.url()), "{said}");
        let line = fs::read(format!("/proc/{}/cmdline", dev.id()))?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        ensure!(line.contains("dev --data-dir") && line.contains(cluster.url()) && !line.contains(SECRET), "{line}");
    }
    Ok(())
}
