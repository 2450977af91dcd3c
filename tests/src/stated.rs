//! What nodes state to fail, as `highwater status` shows it.

use crate::{client::Client, wait::until};
use anyhow::Result;
use serde_json::Value;
use std::time::Duration;

/// The cluster manager says by then what is stated.
const TOLD_WITHIN: Duration = Duration::from_secs(20);

/// Something that fails, or failed a short while ago.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stated {
    pub node: String,
    pub what: String,
    pub error: String,
    /// When it failed first, milliseconds since the epoch.
    pub since: u64,
    /// How often it has failed since then.
    pub times: u64,
}

impl Stated {
    /// It is of this node, and is called `what`.
    pub fn is(&self, node: &str, what: &str) -> bool {
        self.node == node && self.what == what
    }

    /// It panicked, and the error names the line of code.
    fn is_panic(&self) -> bool {
        self.says("panicked") && self.says(".rs:")
    }

    /// These words are in what is said of it, in capitals or not.
    pub fn says(&self, words: &str) -> bool {
        self.error.to_lowercase().contains(&words.to_lowercase())
    }
}

/// All that is stated now.
pub async fn stated(client: &Client) -> Result<Vec<Stated>, String> {
    let members = client.members().await.map_err(|refused| refused.to_string())?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut all = Vec::new();
    for member in members["members"].as_array().into_iter().flatten() {
        for trouble in member["troubles"].as_array().into_iter().flatten() {
            let number = |name: &str| trouble[name].as_u64().filter(|number| *number > 0);
            let (Some(since), Some(times)) = (number("since"), number("times")) else {
                return Err(format!("since when, and how often? {trouble}"));
            };
            let (node, what, error) = (text(&member["node"]), text(&trouble["what"]), text(&trouble["error"]));
            all.push(Stated { node, what, error, since, times });
        }
    }
    Ok(all)
}

/// Waits until something like that is stated.
pub async fn is_stated(client: &Client, what: &str, within: Duration, wanted: impl Fn(&Stated) -> bool) -> Result<()> {
    until(&format!("it is stated: {what}"), within, async || {
        let stated = stated(client).await?;
        if stated.iter().any(&wanted) { Ok(()) } else { Err(format!("{stated:?}")) }
    })
    .await
}

/// What a node states of this by now, if anything.
pub async fn so_far(client: &Client, node: &str, what: &str) -> Result<Option<Stated>> {
    let all = until("what is stated so far", TOLD_WITHIN, async || stated(client).await).await?;
    Ok(all.into_iter().find(|stated| stated.is(node, what)))
}

/// Waits until a node states this otherwise than [`so_far`]: for the first time, anew or once more.
pub async fn is_stated_anew(
    client: &Client,
    node: &str,
    what: &str,
    so_far: Option<&Stated>,
    within: Duration,
) -> Result<()> {
    let wanted = |stated: &Stated| stated.is(node, what) && Some(stated) != so_far;
    is_stated(client, &format!("{what:?} of {node}, otherwise than {so_far:?}"), within, wanted).await
}

/// How often something of a node has panicked, as far as it is stated.
pub async fn panics(client: &Client, node: &str, what: &str) -> Result<u64> {
    let so_far = so_far(client, node, what).await?;
    Ok(so_far.filter(Stated::is_panic).map_or(0, |stated| stated.times))
}

/// Waits until a node states that something panicked.
pub async fn panicked(client: &Client, node: &str, what: &str, within: Duration) -> Result<()> {
    panicked_after(client, node, what, 0, within).await
}

/// Waits until a node states that something panicked more often than so many [`panics`]: a panic is stated for ten minutes.
pub async fn panicked_after(client: &Client, node: &str, what: &str, before: u64, within: Duration) -> Result<()> {
    let wanted = |stated: &Stated| stated.is(node, what) && stated.is_panic() && stated.times > before;
    is_stated(client, &format!("{what:?} of {node} panicked, after {before} times"), within, wanted).await
}
