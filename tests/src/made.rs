//! Keys, JWTs and certificates for servers of tests.

use anyhow::Result;
use async_nats::ConnectOptions;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use nkeys::{KeyPair, KeyPairType};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyUsagePurpose};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The same key in every run.
pub fn key(kind: KeyPairType, number: u8) -> Result<KeyPair> {
    Ok(KeyPair::new_from_raw(kind, [number; 32])?)
}

/// What NATS takes for a JWT: about `subject`, signed by `issuer`.
fn jwt(issuer: &KeyPair, subject: &KeyPair, name: &str, end: Option<u64>, claims: &Value) -> Result<String> {
    let encoded = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let header = json!({"typ": "JWT", "alg": "ed25519-nkey"});
    let mut body = json!({
        "jti": name, "iat": 1_700_000_000, "iss": issuer.public_key(), "name": name, "sub": subject.public_key(),
        "nats": claims,
    });
    if let Some(end) = end {
        body["exp"] = json!(end);
    }
    let signed = format!("{}.{}", encoded(&header), encoded(&body));
    let signature = issuer.sign(signed.as_bytes())?;
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

/// An operator with an account for JetStream and one for the system.
pub struct Operator {
    account: KeyPair,
    /// What a server's configuration says of it.
    pub configuration: String,
}

impl Operator {
    /// Its JWT is a file in this directory.
    pub fn new(directory: &Path) -> Result<Self> {
        let operator = key(KeyPairType::Operator, 1)?;
        let (account, system) = (key(KeyPairType::Account, 2)?, key(KeyPairType::Account, 3)?);
        let file = directory.join("operator.jwt");
        fs::write(&file, jwt(&operator, &operator, "operator", None, &json!({"type": "operator", "version": 2}))?)?;
        // The system's account may have no JetStream.
        let limits = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
        });
        let mut with_jetstream = limits.clone();
        for limit in ["mem_storage", "disk_storage", "streams", "consumer"] {
            with_jetstream[limit] = json!(-1);
        }
        let claims = |limits: &Value| json!({"limits": limits, "type": "account", "version": 2});
        let tested = jwt(&operator, &account, "tested", None, &claims(&with_jetstream))?;
        let of_system = jwt(&operator, &system, "system", None, &claims(&limits))?;
        let (account_id, system_id) = (account.public_key(), system.public_key());
        let configuration = format!(
            "operator: \"{}\"\nsystem_account: {system_id}\nresolver: MEMORY\n\
             resolver_preload {{\n  {account_id}: \"{tested}\"\n  {system_id}: \"{of_system}\"\n}}\n",
            file.display()
        );
        Ok(Self { account, configuration })
    }

    /// The text of a credentials file: a user of the account, who proves himself with this seed.
    pub fn credentials(&self, user: &KeyPair, seed: &str) -> Result<String> {
        self.credentials_until(user, seed, None)
    }

    /// The same, of a user that is none any more after that second since the epoch.
    pub fn credentials_until(&self, user: &KeyPair, seed: &str, end: Option<u64>) -> Result<String> {
        let jwt = jwt(
            &self.account,
            user,
            "user",
            end,
            &json!({
                "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1, "type": "user", "version": 2,
            }),
        )?;
        Ok(format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        ))
    }
}

/// An authority of one's own, and what it has signed: for a server on this machine, and for a client.
pub struct Authority {
    /// Its certificate, for those who trust it.
    pub file: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub client_certificate: PathBuf,
    pub client_key: PathBuf,
}

impl Authority {
    /// In files of this directory that begin with its name; another one of that name takes its place.
    pub fn new(directory: &Path, name: &str) -> Result<Self> {
        let mut of_itself = params(name, Vec::new())?;
        of_itself.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        of_itself.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority = CertifiedIssuer::self_signed(of_itself, rcgen::KeyPair::generate()?)?;
        let file = |what: &str| directory.join(format!("{name}-{what}.pem"));
        let made = Self {
            file: file("authority"),
            certificate: file("certificate"),
            key: file("key"),
            client_certificate: file("client-certificate"),
            client_key: file("client-key"),
        };
        fs::write(&made.file, authority.pem())?;
        for (whose, at, certificate, key) in [
            ("a server", vec!["127.0.0.1".to_owned()], &made.certificate, &made.key),
            ("a client", Vec::new(), &made.client_certificate, &made.client_key),
        ] {
            let pair = rcgen::KeyPair::generate()?;
            fs::write(certificate, params(whose, at)?.signed_by(&pair, &*authority)?.pem())?;
            fs::write(key, pair.serialize_pem())?;
        }
        Ok(made)
    }

    /// What the configuration of a server says that also asks clients for a certificate of this authority.
    pub fn mutual(&self) -> String {
        self.configuration(&format!(", ca_file: \"{}\", verify: true", self.file.display()))
    }

    /// The flags of a client that trusts this authority and has a certificate of it.
    pub fn flags(&self) -> Vec<String> {
        let flag = |name: &str, file: &Path| [name.to_owned(), file.to_string_lossy().into_owned()];
        [flag("--tlsca", &self.file), flag("--tlscert", &self.client_certificate), flag("--tlskey", &self.client_key)]
            .concat()
    }

    /// A test's own connection of that kind.
    pub fn options(&self, options: ConnectOptions) -> ConnectOptions {
        options
            .require_tls(true)
            .add_root_certificates(self.file.clone())
            .add_client_certificate(self.client_certificate.clone(), self.client_key.clone())
    }

    /// What the configuration of that server says of TLS.
    pub fn configuration(&self, more: &str) -> String {
        let (certificate, key) = (self.certificate.display(), self.key.display());
        format!("tls {{ cert_file: \"{certificate}\", key_file: \"{key}\", timeout: 30{more} }}\n")
    }
}

fn params(name: &str, alternatives: Vec<String>) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(alternatives)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}
