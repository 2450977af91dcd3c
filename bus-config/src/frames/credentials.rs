//! What a connection proves itself with, in the form that both the client library and our own connection take.

use crate::{connect::ConnectSettings, error::BusError};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use nkeys::KeyPair;
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};

/// One way to log in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    None,
    Password {
        user: String,
        password: String,
    },
    Token(String),
    /// A seed.
    Nkey(String),
    /// The text of a credentials file.
    File {
        text: String,
        jwt: String,
        seed: String,
    },
}

impl Credentials {
    /// Of the settings; when these give none, of the first URL that carries a user.
    pub(crate) fn of(settings: &ConnectSettings) -> Result<Self, BusError> {
        if let (Some(user), Some(password)) = (&settings.user, &settings.password) {
            return Ok(Self::Password { user: user.clone(), password: password.clone() });
        }
        if let Some(token) = &settings.token {
            return Ok(Self::Token(token.clone()));
        }
        if let Some(seed) = &settings.nkey {
            return match KeyPair::from_seed(seed) {
                Ok(_) => Ok(Self::Nkey(seed.clone())),
                Err(_) => {
                    Err(BusError::Settings("the nkey seed is damaged: it begins with SU and has 58 characters".into()))
                }
            };
        }
        if let Some(path) = &settings.creds {
            let text = std::fs::read_to_string(path)
                .map_err(|e| BusError::Settings(format!("cannot read credentials file {}: {e}", path.display())))?;
            return file(&text)
                .map_err(|why| BusError::Settings(format!("credentials file {} is damaged: {why}", path.display())));
        }
        Ok(settings.url.split(',').find_map(in_url).unwrap_or(Self::None))
    }

    /// Fills the fields of a `CONNECT` that answers the server's nonce.
    pub(crate) fn prove(&self, nonce: &str, connect: &mut Map<String, Value>) -> Result<(), String> {
        let mut set = |name: &str, value: String| _ = connect.insert(name.into(), Value::String(value));
        let signed = |seed: &str| -> Result<(KeyPair, String), String> {
            let pair = KeyPair::from_seed(seed).map_err(|e| e.to_string())?;
            let signature = pair.sign(nonce.as_bytes()).map_err(|e| e.to_string())?;
            Ok((pair, URL_SAFE_NO_PAD.encode(signature)))
        };
        match self {
            Self::None => {}
            Self::Password { user, password } => {
                set("user", user.clone());
                set("pass", password.clone());
            }
            Self::Token(token) => set("auth_token", token.clone()),
            Self::Nkey(seed) => {
                let (pair, signature) = signed(seed)?;
                set("nkey", pair.public_key());
                set("sig", signature);
            }
            Self::File { jwt, seed, .. } => {
                set("jwt", jwt.clone());
                set("sig", signed(seed)?.1);
            }
        }
        Ok(())
    }
}

/// User and password of a URL; a user alone is a token, as NATS clients take it.
fn in_url(url: &str) -> Option<Credentials> {
    let address = url.trim().parse::<async_nats::ServerAddr>().ok()?.into_inner();
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    match (address.username(), address.password()) {
        ("", _) => None,
        (user, Some(password)) => Some(Credentials::Password { user: decoded(user), password: decoded(password) }),
        (token, None) => Some(Credentials::Token(decoded(token))),
    }
}

/// A credentials file holds a JWT and a seed, each between a line that begins it and one that ends it, both of dashes.
fn file(text: &str) -> Result<Credentials, String> {
    let dashed = |line: &str, word: &str| line.starts_with("---") && line.contains(word);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let mut held = lines.windows(3).filter(|w| dashed(w[0], "BEGIN") && dashed(w[2], "END")).map(|w| w[1]);
    let jwt = held.next().ok_or("it holds no JWT")?;
    let seed = held.next().ok_or("it holds no nkey seed")?;
    KeyPair::from_seed(seed).map_err(|e| format!("its nkey seed: {e}"))?;
    Ok(Credentials::File { text: text.into(), jwt: jwt.into(), seed: seed.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> ConnectSettings {
        ConnectSettings { url: url.into(), ..ConnectSettings::default() }
    }

    #[test]
    fn a_url_may_carry_a_user_or_a_token() {
        let of = |url: &str| Credentials::of(&settings(url)).unwrap();
        let ada = Credentials::Password { user: "ada".into(), password: "p@ss".into() };
        assert_eq!(of("nats://ada:p%40ss@127.0.0.1:4222"), ada);
        assert_eq!(of("nats://127.0.0.1:4222, nats://ada:p%40ss@127.0.0.1:4223"), ada);
        assert_eq!(of("nats://s3cret@127.0.0.1"), Credentials::Token("s3cret".into()));
        assert_eq!(of("127.0.0.1:4222"), Credentials::None);
        let given = ConnectSettings { token: Some("t".into()), ..settings("nats://ada:p@127.0.0.1") };
        assert_eq!(Credentials::of(&given).unwrap(), Credentials::Token("t".into()));
    }

    #[test]
    fn a_credentials_file_is_read_and_a_damaged_one_refused() {
        let pair = KeyPair::new_user();
        let seed = pair.seed().unwrap();
        let text = format!(
            "-----BEGIN NATS USER JWT-----\r\neyJ0.e30.c2ln\r\n------END NATS USER JWT------\r\n\r\n*** IMPORTANT ***\r\n\r\n\
             -----BEGIN USER NKEY SEED-----\r\n{seed}\r\n------END USER NKEY SEED------\r\n"
        );
        let credentials = file(&text).unwrap();
        let mut connect = Map::new();
        credentials.prove("nonce", &mut connect).unwrap();
        let signature = URL_SAFE_NO_PAD.decode(connect["sig"].as_str().unwrap()).unwrap();
        assert!(pair.verify(b"nonce", &signature).is_ok());
        assert_eq!(connect["jwt"], "eyJ0.e30.c2ln");
        for damaged in ["", &text[..60], &text.replace(&seed, "SUAA")] {
            assert!(file(damaged).is_err(), "{damaged}");
        }
    }
}
