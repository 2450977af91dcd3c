//! Paths as people write them in settings.

use std::{
    env,
    path::{Path, PathBuf},
};

/// Stands in for `~` at the beginning, and for variables of the environment, as the nats CLI does: one that is not set is empty.
pub(crate) fn expanded(path: &Path) -> PathBuf {
    let Some(text) = path.to_str() else { return path.to_path_buf() };
    expand(text, |variable| env::var(variable).unwrap_or_default(), home().as_deref())
}

/// The user's directory.
pub(crate) fn home() -> Option<PathBuf> {
    env::home_dir().filter(|home| !home.as_os_str().is_empty())
}

fn expand(text: &str, variable: impl Fn(&str) -> String, home: Option<&Path>) -> PathBuf {
    let text = text.strip_prefix("file://").unwrap_or(text);
    let home = || home.and_then(Path::to_str);
    shellexpand::full_with_context_no_errors(text, home, |name| Some(variable(name))).into_owned().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn home_and_variables_are_put_in() {
        let variable = |name: &str| if name == "KEYS" { "/keys".to_owned() } else { String::new() };
        let of = |text: &str| expand(text, variable, Some(Path::new("/home/ada")));
        for (text, path) in [
            ("~/a.creds", "/home/ada/a.creds"),
            ("$KEYS/a.creds", "/keys/a.creds"),
            ("${KEYS}/a.creds", "/keys/a.creds"),
            ("$NOWHERE/a.creds", "/a.creds"),
            ("/~/a.creds", "/~/a.creds"),
            ("file:///x/a.creds", "/x/a.creds"),
            ("a.creds", "a.creds"),
        ] {
            assert_eq!(of(text), Path::new(path), "{text}");
        }
    }
}
