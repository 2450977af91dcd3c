//! What nodes state to fail, as `highwater status` shows it.

use crate::{client::Client, wait::until};
use anyhow::Result;
use serde_json::Value;
use std::time::Duration;

/// Something that fails, or failed a short while ago.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stated {
    pub node: String,
    pub what: String,
    pub error: String,
}

impl Stated {
    /// It is of this node, called that, and these words are in what is said of it, in capitals or not.
    pub fn is(&self, node: &str, what: &str, words: &str) -> bool {
        self.node == node && self.what == what && self.says(words)
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
            let (node, what, error) = (text(&member["node"]), text(&trouble["what"]), text(&trouble["error"]));
            all.push(Stated { node, what, error });
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
