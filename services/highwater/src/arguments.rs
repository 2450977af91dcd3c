//! The words of the command line, without those that are secret for all others: anybody on the machine sees the command line of a
//! running process.

use highwater_bus::without_credentials;
use std::{
    env,
    ffi::{OsStr, OsString},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        process::CommandExt,
    },
    process::Command,
};

/// Holds the words as they were given: only its user sees the environment of a process.
pub(crate) const GIVEN: &str = "HIGHWATER_ARGUMENTS";
const HIDDEN: &str = "***";
/// Flags whose values are secret; a user alone is a token.
const SECRET: [&str; 8] =
    ["--nats-user", "--user", "--nats-password", "--password", "--nats-token", "--token", "--nats-nkey", "--nkey"];
/// Flags whose values may have a user and a password in them.
const URLS: [&str; 2] = ["--nats-url", "--server"];

/// The words as they were given. Where one of them is secret, the process becomes another run of itself that does not show it.
pub(crate) fn given() -> Vec<OsString> {
    let seen: Vec<OsString> = env::args_os().collect();
    let given = env::var_os(GIVEN).map(|joined| split(&joined));
    if let Some(given) = given.filter(|given| shown(given) == seen) {
        return given;
    }
    let shown = shown(&seen);
    if let Some((name, words)) = shown.split_first().filter(|_| shown != seen) {
        // `exec` returns only when it fails.
        let failed = env::current_exe()
            .map(|program| Command::new(program).arg0(name).args(words).env(GIVEN, join(&seen)).exec());
        let (Ok(why) | Err(why)) = failed;
        eprintln!("highwater: what is secret in the command line can be seen by others: {why}");
    }
    seen
}

/// Each word behind its length: any byte may be in a password.
fn join(words: &[OsString]) -> OsString {
    let mut joined = Vec::new();
    for word in words.iter().map(|word| word.as_bytes()) {
        joined.extend_from_slice(format!("{}:", word.len()).as_bytes());
        joined.extend_from_slice(word);
    }
    OsString::from_vec(joined)
}

/// The words that were joined; none if the text was not made by [`join`].
fn split(joined: &OsStr) -> Vec<OsString> {
    let (mut rest, mut words) = (joined.as_bytes(), Vec::new());
    while let Some(colon) = rest.iter().position(|byte| *byte == b':') {
        let length = std::str::from_utf8(&rest[..colon]).ok().and_then(|digits| digits.parse::<usize>().ok());
        let Some((word, behind)) = length.and_then(|length| rest[colon + 1..].split_at_checked(length)) else { break };
        words.push(OsString::from_vec(word.to_vec()));
        rest = behind;
    }
    words
}

/// The words as they may be seen.
fn shown(words: &[OsString]) -> Vec<OsString> {
    let mut flag = None;
    words.iter().map(|word| show(word, &mut flag)).collect()
}

/// One word; `flag` is the word before.
fn show(word: &OsStr, flag: &mut Option<String>) -> OsString {
    let Some(text) = word.to_str() else {
        let hidden = flag.take().is_some_and(|flag| SECRET.contains(&flag.as_str()));
        return if hidden { HIDDEN.into() } else { word.to_owned() };
    };
    if let Some(flag) = flag.take() {
        return value(&flag, text).into();
    }
    match text.split_once('=') {
        Some((flag, text)) if is_hidden(flag) => format!("{flag}={}", value(flag, text)).into(),
        _ => {
            *flag = is_hidden(text).then(|| text.to_owned());
            word.to_owned()
        }
    }
}

fn is_hidden(flag: &str) -> bool {
    SECRET.contains(&flag) || URLS.contains(&flag)
}

fn value(flag: &str, text: &str) -> String {
    if URLS.contains(&flag) {
        without_credentials(text)
    } else if SECRET.contains(&flag) {
        HIDDEN.into()
    } else {
        text.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn what_is_secret_is_not_shown() {
        for (given, seen) in [
            ("highwater status", "highwater status"),
            ("highwater status --nats-password s3cret --json", "highwater status --nats-password *** --json"),
            ("highwater status --token=s3=cret", "highwater status --token=***"),
            ("highwater status --password --password", "highwater status --password ***"),
            ("highwater status --nats-url nats://ada:s3cret@host", "highwater status --nats-url nats://host"),
            ("highwater status --server=nats://s3cret@host", "highwater status --server=nats://host"),
            (
                "highwater status --nats-url nats://host:4222, --json",
                "highwater status --nats-url nats://host:4222, --json",
            ),
            ("highwater status --nats-password", "highwater status --nats-password"),
        ] {
            assert_eq!(shown(&words(given)), words(seen), "{given}");
            assert_eq!(shown(&shown(&words(given))), words(seen), "{given}");
            assert_eq!(split(&join(&words(given))), words(given));
        }
    }
}
