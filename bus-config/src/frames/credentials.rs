//! What a connection proves itself with. Files are read at each connection, so that others can be put in their place.

use super::servers::Login;
use crate::{error::BusError, paths::expanded, settings::ConnectSettings};
use nkeys::KeyPair;
use std::path::{Path, PathBuf};

/// One way to log in.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    None,
    Password {
        user: String,
        password: String,
    },
    Token(String),
    /// A seed.
    Nkey(String),
    /// A file with a seed.
    NkeyFile(PathBuf),
    /// A file with a JWT and a seed.
    File(PathBuf),
    /// A JWT, with the seed of its user unless it is for whoever bears it.
    Jwt {
        jwt: String,
        seed: Option<String>,
    },
}

/// What is sent to a server, as an answer to its nonce.
#[derive(Default)]
pub(crate) struct Proof {
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
    pub(crate) token: Option<String>,
    pub(crate) nkey: Option<String>,
    pub(crate) jwt: Option<String>,
    pub(crate) signature: Option<Vec<u8>>,
}

impl Credentials {
    /// Of the settings; when these give none, of the URL.
    pub(crate) fn of(settings: &ConnectSettings, login: Option<Login>) -> Result<Self, BusError> {
        match (&settings.user, &settings.password) {
            (Some(user), Some(password)) => {
                return Ok(Self::Password { user: user.clone(), password: password.clone() });
            }
            // As the nats CLI takes it.
            (Some(token), None) => return Ok(Self::Token(token.clone())),
            (None, Some(_)) if login.is_none() => {
                return Err(BusError::Settings("a password is given, and no user".into()));
            }
            (None, _) => {}
        }
        if let (Some(password), Some(Login { user, password: None })) = (&settings.password, &login) {
            return Ok(Self::Password { user: user.clone(), password: password.clone() });
        }
        if let Some(path) = &settings.creds {
            return Ok(Self::File(expanded(path)));
        }
        if let Some(nkey) = &settings.nkey {
            return nkey_of(nkey);
        }
        if let Some(jwt) = &settings.user_jwt {
            if let Some(seed) = &settings.user_seed {
                pair(seed).map_err(|why| BusError::Settings(format!("user_seed: {why}")))?;
            }
            return Ok(Self::Jwt { jwt: jwt.clone(), seed: settings.user_seed.clone() });
        }
        if let Some(token) = &settings.token {
            return Ok(Self::Token(token.clone()));
        }
        Ok(match login {
            Some(Login { user, password: Some(password) }) => Self::Password { user, password },
            Some(Login { user: token, password: None }) => Self::Token(token),
            None => Self::None,
        })
    }

    /// Answers the server's nonce.
    ///
    /// # Errors
    /// A file cannot be read, or is damaged.
    pub(crate) async fn prove(&self, nonce: &str) -> Result<Proof, String> {
        let proof = Proof::default();
        Ok(match self {
            Self::None => proof,
            Self::Password { user, password } => {
                Proof { user: Some(user.clone()), password: Some(password.clone()), ..proof }
            }
            Self::Token(token) => Proof { token: Some(token.clone()), ..proof },
            Self::Nkey(seed) => by_nkey(seed, nonce)?,
            Self::NkeyFile(path) => {
                let text = read("nkey file", path).await?;
                let seed = text.split_whitespace().find(|word| pair(word).is_ok());
                by_nkey(seed.ok_or_else(|| format!("nkey file {} holds no seed of an nkey", path.display()))?, nonce)?
            }
            Self::File(path) => {
                let text = read("credentials file", path).await?;
                let damaged = |why: String| format!("credentials file {} is damaged: {why}", path.display());
                let (jwt, seed) = jwt_and_seed(&text).map_err(damaged)?;
                by_jwt(jwt, Some(seed), nonce)?
            }
            Self::Jwt { jwt, seed } => by_jwt(jwt, seed.as_deref(), nonce)?,
        })
    }
}

/// What is no seed is the path of a file.
fn nkey_of(nkey: &str) -> Result<Credentials, BusError> {
    let nkey = nkey.trim();
    // A damaged seed must not be shown as a path that does not exist: none of a file's usual characters is in one.
    let may_be_seed = !nkey.contains(['/', '.']) && (nkey.starts_with("SU") || nkey.len() >= 40);
    match pair(nkey) {
        Ok(_) => Ok(Credentials::Nkey(nkey.into())),
        Err(why) if may_be_seed => Err(BusError::Settings(why)),
        Err(_) => Ok(Credentials::NkeyFile(expanded(Path::new(nkey)))),
    }
}

fn pair(seed: &str) -> Result<KeyPair, String> {
    KeyPair::from_seed(seed).map_err(|_| "the nkey seed is damaged: it begins with SU and has 58 characters".into())
}

fn signed(pair: &KeyPair, nonce: &str) -> Result<Vec<u8>, String> {
    pair.sign(nonce.as_bytes()).map_err(|e| e.to_string())
}

fn by_nkey(seed: &str, nonce: &str) -> Result<Proof, String> {
    let pair = pair(seed)?;
    Ok(Proof { nkey: Some(pair.public_key()), signature: Some(signed(&pair, nonce)?), ..Proof::default() })
}

fn by_jwt(jwt: &str, seed: Option<&str>, nonce: &str) -> Result<Proof, String> {
    let signature = seed.map(|seed| signed(&pair(seed)?, nonce)).transpose()?;
    Ok(Proof { jwt: Some(jwt.into()), signature, ..Proof::default() })
}

async fn read(what: &str, path: &Path) -> Result<String, String> {
    tokio::fs::read_to_string(path).await.map_err(|e| format!("cannot read {what} {}: {e}", path.display()))
}

/// A credentials file holds a JWT and a seed, each between a line that begins it and one that ends it, both of dashes.
fn jwt_and_seed(text: &str) -> Result<(&str, &str), String> {
    let dashed = |line: &str, word: &str| line.starts_with("---") && line.contains(word);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let mut held = lines.windows(3).filter_map(|lines| match lines {
        [begin, held, end] if dashed(begin, "BEGIN") && dashed(end, "END") => Some(*held),
        _ => None,
    });
    let jwt = held.next().ok_or("it holds no JWT")?;
    let seed = held.next().ok_or("it holds no nkey seed")?;
    pair(seed)?;
    Ok((jwt, seed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> ConnectSettings {
        ConnectSettings::default()
    }

    #[expect(clippy::unnecessary_wraps, reason = "as settings hold it")]
    fn text(value: &str) -> Option<String> {
        Some(value.to_owned())
    }

    #[test]
    fn what_is_set_counts_more_than_the_url() {
        let login = || Some(Login { user: "ada".into(), password: text("p") });
        let of = |settings: &ConnectSettings| Credentials::of(settings, login()).unwrap();
        assert!(of(&settings()) == Credentials::Password { user: "ada".into(), password: "p".into() });
        let token = Credentials::Token("t".into());
        assert!(of(&ConnectSettings { token: text("t"), ..settings() }) == token);
        assert!(of(&ConnectSettings { user: text("t"), ..settings() }) == token, "a user alone is a token");
        let by_url = Credentials::of(&settings(), Some(Login { user: "t".into(), password: None })).unwrap();
        assert!(by_url == token);
        assert!(Credentials::of(&settings(), None).unwrap() == Credentials::None);
    }

    #[test]
    fn an_nkey_is_a_seed_or_a_file_with_one() {
        let seed = KeyPair::new_user().seed().unwrap();
        assert!(nkey_of(&seed).unwrap() == Credentials::Nkey(seed.clone()));
        assert!(nkey_of("keys/user.nk").unwrap() == Credentials::NkeyFile("keys/user.nk".into()));
        let Err(error) = nkey_of(&seed[..50]) else { panic!("a damaged seed is taken") };
        assert!(!error.to_string().contains(&seed[..10]), "{error}");
    }

    #[test]
    fn a_credentials_file_is_read_and_a_damaged_one_refused() {
        let pair = KeyPair::new_user();
        let seed = pair.seed().unwrap();
        let text = format!(
            "-----BEGIN NATS USER JWT-----\r\neyJ0.e30.c2ln\r\n------END NATS USER JWT------\r\n\r\n*** IMPORTANT ***\r\n\r\n\
             -----BEGIN USER NKEY SEED-----\r\n{seed}\r\n------END USER NKEY SEED------\r\n"
        );
        let (jwt, found) = jwt_and_seed(&text).unwrap();
        let proof = by_jwt(jwt, Some(found), "nonce").unwrap();
        assert!(pair.verify(b"nonce", &proof.signature.unwrap()).is_ok());
        assert_eq!(proof.jwt.as_deref(), Some("eyJ0.e30.c2ln"));
        for damaged in ["", &text[..60], &text.replace(&seed, "SUAA")] {
            assert!(jwt_and_seed(damaged).is_err(), "{damaged}");
        }
    }
}
