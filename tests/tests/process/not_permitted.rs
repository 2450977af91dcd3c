//! Who lacks a permission is told of which subject, at once.

use highwater_tests::{cli, cluster::SERVICES, prelude::*, stated};

const WITHIN: Duration = Duration::from_secs(60);

/// A server with a user of each name, whose password is that name too, and what it may and may not.
fn configuration(users: &[(&str, &str)]) -> String {
    let user = |(name, permissions): &(&str, &str)| {
        format!("{{ user: {name}, password: {name}, permissions: {{ {permissions} }} }}")
    };
    let users: Vec<String> = users.iter().map(user).collect();
    format!("jetstream: enabled\nauthorization {{ timeout: 30, users: [ {} ] }}\n", users.join(", "))
}

/// Runs a command as a user: its exit code, and what it said.
fn run(cluster: &Cluster, user: &str, arguments: &[&str]) -> Result<(Option<i32>, String)> {
    let login = ["--nats-url", cluster.url(), "--nats-user", user, "--nats-password", user];
    let (code, out, err) = cli::highwater(&[arguments, &login[..]].concat())?;
    Ok((code, out + &err))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_names_the_subject_instead_of_waiting() -> Result<()> {
    let users = [
        ("all", ""),
        ("no_queries", "publish: { deny: \"hw.query.>\" }"),
        ("no_api", "publish: { deny: \"$JS.API.>\" }"),
        ("no_inbox", "subscribe: { allow: \">\", deny: \"_INBOX.>\" }"),
    ];
    let all = async_nats::ConnectOptions::with_user_and_password("all".into(), "all".into());
    let access = ["--nats-user", "all", "--nats-password", "all"].map(str::to_owned).to_vec();
    Cluster::configured(&configuration(&users))?
        .with_options(all)
        .with_access(access)
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let list = ["index", "list"];
            for (user, arguments, subject) in [
                ("no_queries", &list[..], "publish to hw.query.list"),
                ("no_api", &["ping", "--nats"], "publish to $JS.API.INFO"),
                ("no_inbox", &list, "subscribe to _INBOX."),
                ("no_inbox", &["ping", "--nats"], "subscribe to _INBOX."),
            ] {
                let (code, said) = run(cluster, user, arguments)?;
                ensure!(code == Some(1) && said.contains(subject), "{user} {arguments:?}: {code:?} {said}");
                println!("{user}: {}", said.trim());
            }
            // With inboxes elsewhere the same user is answered.
            let (code, said) = run(cluster, "no_inbox", &["index", "list", "--inbox-prefix", "mine"])?;
            ensure!(code == Some(0), "{code:?} {said}");
            Ok(())
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_lacks_a_permission_says_which() -> Result<()> {
    let users = [
        ("all", ""),
        (
            "service",
            "publish: { deny: [\"$JS.API.CONSUMER.MSG.NEXT.KV_people.>\", \"$JS.API.CONSUMER.CREATE.KV_men\"] }",
        ),
        ("deaf", "subscribe: { allow: \">\", deny: \"_INBOX.>\" }"),
    ];
    let all = async_nats::ConnectOptions::with_user_and_password("all".into(), "all".into());
    let access = ["--nats-user", "service", "--nats-password", "service"].map(str::to_owned).to_vec();
    Cluster::configured(&configuration(&users))?
        .with_options(all)
        .with_access(access)
        .with_nodes(&SERVICES)
        .await?
        .run(async |cluster| {
            let client = cluster.client().await?;
            for (bucket, subject) in
                [("people", "$JS.API.CONSUMER.MSG.NEXT.KV_people."), ("men", "$JS.API.CONSUMER.CREATE.KV_men")]
            {
                let source = Source::key_value(&client, bucket).await?;
                source.write([Write::put(0, "d", &json!({"n": 1}))]).await?;
                client.create_index(&json!({"bucket": bucket, "name": "by_n", "keys": ["n"]})).await?;
                // What is tried again and again says it, beside the permission itself.
                let read = |stated: &stated::Stated| {
                    stated.what.contains(&format!("KV_{bucket}"))
                        && stated.says("does not permit")
                        && stated.says(subject)
                };
                stated::is_stated(&client, subject, WITHIN, read).await?;
                let permission =
                    |stated: &stated::Stated| stated.what.starts_with(&format!("permission to publish to {subject}"));
                stated::is_stated(&client, subject, WITHIN, permission).await?;
            }
            // Who cannot hear any answer does not start.
            let data = cluster.data_dir("deaf");
            let (code, said) =
                run(cluster, "deaf", &["catalog", "--node-id", "deaf", "--data-dir", &data.to_string_lossy()])?;
            ensure!(code == Some(1) && said.contains("subscribe to _INBOX."), "{code:?} {said}");
            Ok(())
        })
        .await
}
