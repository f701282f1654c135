//! Which hosts a TLS connection may be asked for (RFC 9110 §7.4).

use rustls::ServerConnection;
use rustls::client::verify_server_name;
use rustls::server::ParsedCertificate;
use rustls_pki_types::{CertificateDer, ServerName};

/// The name that a client asked for in its handshake, and what it was shown. Who names nobody (SNI) is not held to a
/// name: it has verified an address, or nothing.
#[derive(Debug)]
pub struct Vouched {
    name: Box<str>,
    certificate: CertificateDer<'static>,
}

impl Vouched {
    /// Of a connection whose handshake is done.
    pub fn of(connection: &ServerConnection, certificate: &CertificateDer<'static>) -> Option<Self> {
        let name = connection.server_name()?.into();
        Some(Self { name, certificate: certificate.clone() })
    }

    /// Whether requests for a host may come over the connection: the one it was made for, and every other that the
    /// certificate is valid for, as clients of HTTP/2 share a connection among those (RFC 9113 §9.1.1).
    pub fn covers(&self, host: &str) -> bool {
        self.name.trim_end_matches('.').eq_ignore_ascii_case(host) || self.is_valid_for(host).unwrap_or(false)
    }

    fn is_valid_for(&self, host: &str) -> Option<bool> {
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let name = ServerName::try_from(host).ok()?;
        let certificate = ParsedCertificate::try_from(&self.certificate).ok()?;
        Some(verify_server_name(&certificate, &name).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_asked_for_and_what_the_certificate_names_are_covered() {
        let names = ["a.test", "*.b.test", "192.0.2.1", "2001:db8::1"].map(str::to_owned);
        let certificate = rcgen::generate_simple_self_signed(names).unwrap().cert.der().clone();
        let check = |name: &str, host: &str, expected| {
            let vouched = Vouched { name: name.into(), certificate: certificate.clone() };
            assert_eq!(vouched.covers(host), expected, "{host} over {name}");
        };
        check("a.test", "a.test", true);
        check("A.Test.", "a.test", true);
        check("a.test", "x.b.test", true);
        check("a.test", "192.0.2.1", true);
        check("a.test", "[2001:db8::1]", true);
        check("a.test", "c.test", false);
        check("a.test", "b.test", false);
        check("a.test", "x.y.b.test", false);
        check("a.test", "192.0.2.2", false);
        // A client that takes a certificate without its name knows why.
        check("c.test", "c.test", true);
        check("c.test", "d.test", false);
    }
}
