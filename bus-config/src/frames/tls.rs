//! TLS settings of a connection. Files are read at each connection, so that others can be put in their place.

use crate::{
    error::BusError,
    faults::fault,
    paths::expanded,
    settings::ConnectSettings,
    supervise::{self, Incidents},
};
use std::{
    fs,
    path::{Path, PathBuf},
};
use tokio_rustls::rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

/// What is trusted, and what the client shows of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tls {
    /// Certificates of authorities, in place of those that the system trusts.
    pub(crate) ca: Option<PathBuf>,
    /// The client's certificate and its key.
    pub(crate) pair: Option<(PathBuf, PathBuf)>,
    /// The connection is encrypted before the server says anything.
    pub(crate) first: bool,
}

impl Tls {
    pub(crate) fn of(settings: &ConnectSettings) -> Result<Self, BusError> {
        let pair = match (&settings.tls_cert, &settings.tls_key) {
            (Some(certificate), Some(key)) => Some((expanded(certificate), expanded(key))),
            (None, None) => None,
            (Some(_), None) => return Err(BusError::Settings("there is a TLS certificate, but no key for it".into())),
            (None, Some(_)) => return Err(BusError::Settings("there is a TLS key, but no certificate for it".into())),
        };
        Ok(Self { ca: settings.tls_ca.as_deref().map(expanded), pair, first: settings.tls_first })
    }

    /// Whether a connection is encrypted in any case: who names an authority or a certificate wants no other.
    pub(crate) fn wanted(&self) -> bool {
        self.first || self.ca.is_some() || self.pair.is_some()
    }

    /// Reads the files, away from the async threads.
    ///
    /// # Errors
    /// One of them cannot be used.
    pub(crate) async fn config(&self, incidents: &Incidents) -> Result<ClientConfig, String> {
        let tls = self.clone();
        let read = supervise::job(incidents, "reading certificates", move || tls.read());
        read.await.done().map_err(|e| e.to_string())?
    }

    fn read(&self) -> Result<ClientConfig, String> {
        fault("certificates", "");
        let mut roots = RootCertStore::empty();
        if let Some(path) = &self.ca {
            for certificate in certificates("certificate authority", path)? {
                let unusable = |e| format!("certificate authority {} cannot be used: {e}", path.display());
                roots.add(certificate).map_err(unusable)?;
            }
        } else {
            let found = rustls_native_certs::load_native_certs();
            if found.certs.is_empty() {
                let why = found.errors.first().map_or_else(|| "there are none".into(), ToString::to_string);
                return Err(format!("the certificates that the system trusts cannot be read: {why}"));
            }
            roots.add_parsable_certificates(found.certs);
        }
        let builder = ClientConfig::builder().with_root_certificates(roots);
        let Some((certificate, key)) = &self.pair else { return Ok(builder.with_no_client_auth()) };
        let chain = certificates("TLS certificate", certificate)?;
        let read = fs::read(key).map_err(|e| format!("cannot read TLS key {}: {e}", key.display()))?;
        // What is wrong with it may show some of it.
        let read = PrivateKeyDer::from_pem_slice(&read)
            .map_err(|_| format!("TLS key {} is damaged: it holds no private key", key.display()))?;
        let unusable = |e| format!("TLS certificate {} and key {}: {e}", certificate.display(), key.display());
        builder.with_client_auth_cert(chain, read).map_err(unusable)
    }
}

fn certificates(what: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = fs::read(path).map_err(|e| format!("cannot read {what} {}: {e}", path.display()))?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read).collect();
    let all = all.map_err(|e| format!("{what} {} is damaged: {e}", path.display()))?;
    if all.is_empty() {
        return Err(format!("{what} {} holds no certificate", path.display()));
    }
    Ok(all)
}
