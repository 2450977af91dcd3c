//! Every way to be known to NATS serves both connections of every service, the client library's and our own, also when the server
//! was away; what NATS refuses is said at once, and is not tried without pause.

use async_nats::ConnectOptions;
use highwater_tests::{
    binaries,
    child::Child,
    cluster::{SERVICES, service_of},
    load,
    made::{Authority, Operator, key},
    prelude::*,
};
use nkeys::KeyPairType;
use std::{
    fs,
    path::{Path, PathBuf},
};

const BUCKET: &str = "people";
const DOCUMENTS: u64 = 200;
/// Written later.
const FURTHER: u64 = 20;
const WITHIN: Duration = Duration::from_secs(60);
/// Of each connection, while it is refused.
const ATTEMPTS: u64 = 20;
/// So many attempts take longer; a loop without a pause makes them in a few milliseconds. The client library waits 20 ms, 40 ms
/// and so on, up to 500 ms. Our own link waits 200 ms, then half of the time for which it has failed, up to 500 ms.
const AT_LEAST: Duration = Duration::from_millis(3_500);

/// How a service reaches a server.
#[derive(Clone, Default)]
struct Access {
    /// What its URL has before the address.
    before: &'static str,
    arguments: Vec<String>,
    /// Whose certificates it trusts, if not those that the system does.
    trusts: Option<PathBuf>,
}

/// One way to be known.
struct Row {
    name: &'static str,
    /// What the server's configuration says of it.
    server: String,
    right: Access,
    wrong: Access,
    /// How the test itself connects.
    client: ConnectOptions,
    /// What is said of the wrong one.
    said: &'static str,
}

const PLAIN: &str = "nats://";
const REFUSED: &str = "refused the credentials";
const USER_AND_PASSWORD: [&str; 4] = ["--nats-user", "ada", "--nats-password", "p@ss:w/rd"];
// A busy machine may take longer than the two seconds that a server waits for credentials otherwise.
const WITH_PASSWORD: &str = "authorization { user: ada, password: \"p@ss:w/rd\", timeout: 30 }\n";
const WITH_ANOTHER: &str = "authorization { user: ada, password: \"another\", timeout: 30 }\n";
const WITH_TOKEN: &str = "authorization { token: \"s3cret\", timeout: 30 }\n";

/// The keys of a user that the server knows, and of one that it does not.
const USER: u8 = 4;
const STRANGER: u8 = 5;

/// What only the server may learn: the passwords as they are and as a URL has them, the tokens, the keys.
fn secrets() -> Result<Vec<String>> {
    let mut all = ["p@ss", "p%40ss", "guess", "s3cret"].map(str::to_owned).to_vec();
    for number in [USER, STRANGER] {
        all.push(key(KeyPairType::User, number)?.seed()?);
    }
    Ok(all)
}

fn access(before: &'static str, arguments: &[&str]) -> Access {
    let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
    Access { before, arguments, trusts: None }
}

fn by_flags(first: &[&str], more: &[String]) -> Access {
    let mut access = access(PLAIN, first);
    access.arguments.extend_from_slice(more);
    access
}

fn by_password() -> ConnectOptions {
    ConnectOptions::with_user_and_password("ada".into(), "p@ss:w/rd".into())
}

fn password() -> Row {
    Row {
        name: "user and password",
        server: WITH_PASSWORD.into(),
        right: access(PLAIN, &USER_AND_PASSWORD),
        wrong: access(PLAIN, &["--nats-user", "ada", "--nats-password", "guess"]),
        client: by_password(),
        said: REFUSED,
    }
}

/// Every way that there is; what needs files has them in this directory.
fn rows(directory: &Path) -> Result<Vec<Row>> {
    let by_token = || ConnectOptions::with_token("s3cret".into());
    let (user, stranger) = (key(KeyPairType::User, USER)?, key(KeyPairType::User, STRANGER)?);
    let (seed, other_seed) = (user.seed()?, stranger.seed()?);
    let operator = Operator::new(directory)?;
    let (good, bad) = (operator.credentials(&user, &seed)?, operator.credentials(&user, &other_seed)?);
    let file = |name: &str, text: &str| -> Result<String> {
        let path = directory.join(name);
        fs::write(&path, text)?;
        Ok(path.to_string_lossy().into_owned())
    };
    let (good_file, bad_file) = (file("good.creds", &good)?, file("bad.creds", &bad)?);
    let (authority, unknown) = (Authority::new(directory, "ours")?, Authority::new(directory, "unknown")?);
    let trusting = |of: &Authority| Access { trusts: Some(of.file.clone()), ..access(PLAIN, &USER_AND_PASSWORD) };
    Ok(vec![
        password(),
        Row {
            name: "user and password in the URL",
            server: WITH_PASSWORD.into(),
            right: access("nats://ada:p%40ss%3Aw%2Frd@", &[]),
            wrong: access("nats://ada:p%40ss@", &[]),
            client: by_password(),
            said: REFUSED,
        },
        Row {
            name: "token",
            server: WITH_TOKEN.into(),
            right: access(PLAIN, &["--nats-token", "s3cret"]),
            wrong: access(PLAIN, &["--nats-token", "guess"]),
            client: by_token(),
            said: REFUSED,
        },
        Row {
            name: "token in the URL",
            server: WITH_TOKEN.into(),
            right: access("nats://s3cret@", &[]),
            wrong: access("nats://guess@", &[]),
            client: by_token(),
            said: REFUSED,
        },
        Row {
            name: "nkey",
            server: format!("authorization {{ users: [ {{ nkey: {} }} ], timeout: 30 }}\n", user.public_key()),
            right: access(PLAIN, &["--nats-nkey", &seed]),
            wrong: access(PLAIN, &["--nats-nkey", &other_seed]),
            client: ConnectOptions::with_nkey(seed.clone()),
            said: REFUSED,
        },
        Row {
            name: "credentials file",
            server: operator.configuration.clone(),
            right: access(PLAIN, &["--nats-creds", &good_file]),
            wrong: access(PLAIN, &["--nats-creds", &bad_file]),
            client: ConnectOptions::with_credentials(&good)?,
            said: REFUSED,
        },
        Row {
            // The server demands TLS, of which the URL says nothing.
            name: "TLS by an authority of one's own, user and password",
            server: format!("{WITH_PASSWORD}{}", authority.configuration("")),
            right: trusting(&authority),
            wrong: trusting(&unknown),
            client: by_password().add_root_certificates(authority.file.clone()),
            said: "certificate",
        },
        Row {
            name: "TLS by an authority that is named",
            server: format!("{WITH_PASSWORD}{}", authority.configuration("")),
            right: by_flags(&USER_AND_PASSWORD, &authority.flags()[..2]),
            wrong: by_flags(&USER_AND_PASSWORD, &unknown.flags()[..2]),
            client: by_password().add_root_certificates(authority.file.clone()),
            said: "certificate",
        },
        Row {
            name: "TLS before a word is said",
            server: authority.configuration(", handshake_first: true"),
            right: by_flags(&["--tlsfirst"], &authority.flags()[..2]),
            wrong: by_flags(&["--tlsfirst"], &unknown.flags()[..2]),
            client: ConnectOptions::new().tls_first().add_root_certificates(authority.file.clone()),
            said: "certificate",
        },
        Row {
            name: "certificates of clients",
            server: authority.mutual(),
            right: by_flags(&[], &authority.flags()),
            wrong: by_flags(&[], &authority.flags()[..2]),
            client: authority.options(ConnectOptions::new()),
            said: "cannot reach",
        },
        Row {
            name: "nkey in a file",
            server: format!("authorization {{ users: [ {{ nkey: {} }} ], timeout: 30 }}\n", user.public_key()),
            right: access(PLAIN, &["--nkey", &file("good.nk", &seed)?]),
            wrong: access(PLAIN, &["--nkey", &file("bad.nk", &other_seed)?]),
            client: ConnectOptions::with_nkey(seed.clone()),
            said: REFUSED,
        },
    ])
}

fn configuration(of_row: &str) -> String {
    format!("jetstream: enabled\nhttp: \"127.0.0.1:-1\"\n{of_row}")
}

/// The server of a row alone.
fn server(row: &Row) -> Result<Cluster> {
    Ok(Cluster::configured(&configuration(&row.server))?.with_options(row.client.clone()))
}

/// The URL by which a service reaches the server.
fn url(cluster: &Cluster, access: &Access) -> Result<String> {
    let (_, address) = cluster.url().split_once("://").context("no address")?;
    Ok(format!("{}{address}", access.before))
}

/// The server of a row and one of each service, with the right credentials.
async fn served(row: &Row) -> Result<Cluster> {
    let mut cluster = server(row)?;
    let url = url(&cluster, &row.right)?;
    let arguments: Vec<&str> = row.right.arguments.iter().map(String::as_str).collect();
    for node in SERVICES {
        cluster = cluster.with_detour(node, &url).with_arguments(service_of(node), &arguments);
    }
    if let Some(authority) = &row.right.trusts {
        cluster = cluster.trusting(authority);
    }
    cluster.with_nodes(&SERVICES).await
}

/// Whether each service has a connection of the client library and one of our own, which tells Highwater's version.
fn connected(cluster: &mut Cluster) -> Result<(), String> {
    let told = cluster.nats().monitored("connz").map_err(|error| format!("{error:#}"))?;
    let all = told["connections"].as_array().ok_or("no connections")?;
    for node in SERVICES {
        let of_node = all.iter().filter(|c| c["name"].as_str().is_some_and(|name| name.ends_with(node)));
        let (ours, others): (Vec<&Value>, Vec<&Value>) =
            of_node.partition(|c| c["version"] == env!("CARGO_PKG_VERSION"));
        if ours.is_empty() || others.is_empty() {
            return Err(format!("{node}: ours {ours:?}, the library's {others:?}"));
        }
    }
    Ok(())
}

/// A bucket with documents, and an index that equals it.
async fn indexed(client: &Client) -> Result<(Source, Vec<Index>)> {
    let indexes = documents::indexes(1)[..1].to_vec();
    let mut rng = Rng::seeded("credentials");
    let source = load::indexed(client, BUCKET, DOCUMENTS, &indexes, &mut rng, WITHIN).await?;
    Ok((source, indexes))
}

/// Further documents are taken and found, over another connection of the test.
async fn goes_on(client: &Client, source: &Source, indexes: &[Index]) -> Result<()> {
    let source = source.over(client);
    load::write(&source, FURTHER, &mut Rng::seeded("further")).await?;
    ask::each_again(client, &source, indexes, WITHIN).await
}

/// What a process has written tells no secret that it was given.
fn keeps_secrets(child: &Child) -> Result<()> {
    let written = child.stdout() + &child.log();
    for secret in secrets()? {
        ensure!(!written.contains(&secret), "{} has written {secret}\n{}", child.name(), child.log_tail());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_every_kind_of_credentials_documents_come_and_requests_are_answered() -> Result<()> {
    let directory = tempfile::tempdir()?;
    for row in rows(directory.path())? {
        let serves = async |cluster: &mut Cluster| {
            let (source, indexes) = indexed(&cluster.client().await?).await?;
            connected(cluster).map_err(anyhow::Error::msg)?;
            // Both prove themselves anew, where there is a nonce with another one.
            cluster.nats().kill();
            cluster.nats().start_again()?;
            until("both connections are back", WITHIN, || std::future::ready(connected(cluster))).await?;
            goes_on(&cluster.client().await?, &source, &indexes).await?;
            for node in SERVICES {
                keeps_secrets(cluster.node(node)?)?;
            }
            anyhow::Ok(())
        };
        let cluster = served(&row).await.with_context(|| row.name)?;
        cluster.run(serves).await.with_context(|| row.name)?;
        println!("{}: both connections serve", row.name);
    }
    Ok(())
}

/// Runs a service that is refused to its end: what it says, and how often it has connected.
async fn refused(cluster: &mut Cluster, kind: &str, access: &Access) -> Result<(String, u64)> {
    let before = cluster.nats().counted("total_connections")?;
    let mut command = binaries::command()?;
    let (url, data) = (url(cluster, access)?, cluster.data_dir("stranger"));
    command.args([kind, "--node-id", "stranger", "--nats-url", &url, "--data-dir"]).arg(data).args(&access.arguments);
    if let Some(authority) = &access.trusts {
        command.env("SSL_CERT_FILE", authority);
    }
    let mut child = Child::start(kind, command, cluster.path())?;
    let status = child.ended(WITHIN).await?;
    keeps_secrets(&child)?;
    let log = child.log();
    let errors: Vec<&str> = log.lines().filter(|line| line.starts_with("highwater: ")).collect();
    ensure!(status.code() == Some(1) && !log.contains("panicked"), "{kind}: {status}\n{log}");
    let [error] = errors[..] else { bail!("{kind} says {} lines:\n{log}", errors.len()) };
    Ok((error.to_owned(), cluster.nats().counted("total_connections")? - before))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_credentials_are_said_at_once_by_every_service() -> Result<()> {
    let directory = tempfile::tempdir()?;
    for row in rows(directory.path())? {
        let mut cluster = server(&row)?;
        for node in SERVICES {
            let (error, attempts) = refused(&mut cluster, service_of(node), &row.wrong)
                .await
                .with_context(|| format!("{}: {node}", row.name))?;
            ensure!(error.contains(row.said), "{}: {node} says {error}", row.name);
            ensure!((1..=2).contains(&attempts), "{}: {node} has connected {attempts} times", row.name);
            println!("{}: {error}", row.name);
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_known_any_more_tries_now_and_then_and_goes_on_once_known_again() -> Result<()> {
    served(&password())
        .await?
        .run(async |cluster| {
            let (source, indexes) = indexed(&cluster.client().await?).await?;
            connected(cluster).map_err(anyhow::Error::msg)?;
            let open = cluster.nats().monitored("connz")?["num_connections"].as_u64().context("no number")?;
            let before = cluster.nats().counted("total_connections")?;
            let since = Instant::now();
            cluster.reconfigure(&configuration(WITH_ANOTHER))?;
            until("they try again and again", WITHIN, || {
                let attempts = cluster.nats().counted("total_connections").map_err(|error| format!("{error:#}"));
                let enough = |total: u64| total >= before + ATTEMPTS * open;
                std::future::ready(match attempts {
                    Ok(total) if enough(total) => Ok(()),
                    other => Err(format!("{other:?} of {before} + {ATTEMPTS} × {open}")),
                })
            })
            .await?;
            let took = since.elapsed();
            println!("{open} connections tried {ATTEMPTS} times each in {took:.1?}");
            ensure!(took >= AT_LEAST, "they try without pause: {ATTEMPTS} times each in {took:?}");
            cluster.check()?;
            cluster.reconfigure(&configuration(WITH_PASSWORD))?;
            let tested: &Cluster = cluster;
            let client = until("it is the right password again", WITHIN, async || {
                tested.client().await.map_err(|error| format!("{error:#}"))
            })
            .await?;
            until("both connections are back", WITHIN, || std::future::ready(connected(cluster))).await?;
            client.wait_formed(&SERVICES).await?;
            goes_on(&client, &source, &indexes).await?;
            for node in SERVICES {
                keeps_secrets(cluster.node(node)?)?;
            }
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_in_one_process_takes_credentials_for_a_server_of_others() -> Result<()> {
    let row = password();
    let cluster = server(&row)?;
    let mut command = binaries::command()?;
    command.args(["dev", "--nats-url", cluster.url(), "--data-dir"]).arg(cluster.data_dir("dev"));
    command.args(&row.right.arguments);
    let mut dev = Child::start("dev", command, cluster.path())?;
    dev.wait_said("highwater ready", WITHIN).await?;
    let client = cluster.client().await?;
    let (source, indexes) = indexed(&client).await.with_context(|| dev.log_tail())?;
    goes_on(&client, &source, &indexes).await.with_context(|| dev.log_tail())?;
    keeps_secrets(&dev)
}
