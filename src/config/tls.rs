//! TLS settings: certificates and keys read into what rustls takes, always with the ring provider.

use std::sync::{Arc, OnceLock};

use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::ListenTls;
use super::reader::Reader;

/// What a listener and an https upstream offer.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// A client's settings, and what of files was read for them.
pub(super) struct Client {
    pub(super) config: Arc<ClientConfig>,
    /// The bytes of the files, so that a renewed certificate is seen as a change.
    pub(super) material: Vec<u8>,
}

/// Reads `cert` and `key` of a listener's table.
pub(super) fn server(reader: &Reader<'_>) -> Option<ListenTls> {
    let (certificates, key) = own_certificate(reader, &mut Vec::new(), true)?;
    let certificate = certificates.first()?.clone();
    let built = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(certificates, key));
    match built {
        Ok(mut config) => {
            config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
            Some(ListenTls { config: Arc::new(config), certificate })
        }
        Err(error) => {
            reader.problem_here(&format!("certificate and key do not work together: {error}"));
            None
        }
    }
}

/// Reads `ca`, `cert` and `key` of a table that describes a server to be verified. `wanted`: whether it is reached by
/// TLS at all, without which the system's roots are not looked for.
pub(super) fn client(reader: &Reader<'_>, wanted: bool, alpn: bool) -> Option<Client> {
    let mut material = Vec::new();
    let roots = roots(reader, wanted, &mut material);
    let own = own_certificate(reader, &mut material, false);
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let built = builder.and_then(|builder| {
        let builder = builder.with_root_certificates(roots?);
        match own {
            Some((certificates, key)) => builder.with_client_auth_cert(certificates, key),
            None => Ok(builder.with_no_client_auth()),
        }
    });
    match built {
        Ok(mut config) => {
            if alpn {
                config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
            }
            Some(Client { config: Arc::new(config), material })
        }
        Err(error) => {
            reader.problem_here(&format!("TLS cannot be set up: {error}"));
            None
        }
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(reader: &Reader<'_>, wanted: bool, material: &mut Vec<u8>) -> Result<RootCertStore, rustls::Error> {
    let mut roots = RootCertStore::empty();
    if reader.has("ca") {
        for certificate in certificates(reader, "ca", material).unwrap_or_default() {
            roots.add(certificate)?;
        }
    } else if wanted {
        reader.record("ca", None, super::notes::Source::Default);
        roots = native_roots().clone();
        if roots.is_empty() {
            reader.problem_here("this system has no root certificates; expected `ca` with those to trust");
        }
    } else {
        reader.record("ca", None, super::notes::Source::Default);
    }
    Ok(roots)
}

/// The system's root certificates, read once.
fn native_roots() -> &'static RootCertStore {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        roots
    })
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Reads `cert` and `key`, which come together.
fn own_certificate(reader: &Reader<'_>, material: &mut Vec<u8>, required: bool) -> Option<Identity> {
    let (has_cert, has_key) = (reader.has("cert"), reader.has("key"));
    let certificates = certificates(reader, "cert", material);
    let key = private_key(reader, material);
    if has_cert != has_key || (required && !has_cert) {
        reader.problem_here("`cert` and `key` belong together; expected both");
    }
    Some((certificates?, key?))
}

fn certificates(
    reader: &Reader<'_>,
    key: &'static str,
    material: &mut Vec<u8>,
) -> Option<Vec<CertificateDer<'static>>> {
    let bytes = file(reader, key)?;
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    material.extend_from_slice(&bytes);
    match parsed {
        Ok(certificates) if !certificates.is_empty() => Some(certificates),
        Ok(_) | Err(_) => bad_pem(reader, key, "holds no certificates; expected a PEM file"),
    }
}

fn private_key(reader: &Reader<'_>, material: &mut Vec<u8>) -> Option<PrivateKeyDer<'static>> {
    let bytes = file(reader, "key")?;
    material.extend_from_slice(&bytes);
    match PrivateKeyDer::from_pem_slice(&bytes) {
        Ok(key) => Some(key),
        Err(_) => bad_pem(reader, "key", "holds no private key; expected a PEM file"),
    }
}

fn bad_pem<T>(reader: &Reader<'_>, key: &'static str, what: &str) -> Option<T> {
    if let Some(given) = reader.given(key) {
        reader.problem(key, &given, what);
    }
    None
}

fn file(reader: &Reader<'_>, key: &'static str) -> Option<Vec<u8>> {
    reader.optional(key, None, |given| {
        let path = given.text().ok_or("is not a path")?;
        std::fs::read(path).map_err(|error| format!("cannot be read: {error}"))
    })
}
