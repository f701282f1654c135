//! A private authority with certificates of a server, one of them expired, and of a client, in files.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

/// Certificates of one authority, which the files' folder goes with.
pub struct Certificates {
    folder: TempDir,
}

impl Certificates {
    /// The server's is for these names and addresses.
    pub fn of_server(names: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).expect("a file");
        let own_key = KeyPair::generate().expect("a key");
        let mut own = CertificateParams::default();
        own.distinguished_name.push(DnType::CommonName, "authority");
        own.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        write("ca.pem", own.self_signed(&own_key).expect("a certificate").pem());
        let issuer = Issuer::new(own, own_key);
        for (kind, names) in [("server", names), ("expired", names), ("client", &["client"])] {
            let key = KeyPair::generate().expect("a key");
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let mut certificate = CertificateParams::new(names).expect("names");
            certificate.distinguished_name.push(DnType::CommonName, kind);
            if kind == "expired" {
                certificate.not_after = rcgen::date_time_ymd(2020, 1, 1);
            }
            write(&format!("{kind}.pem"), certificate.signed_by(&key, &issuer).expect("a certificate").pem());
            write(&format!("{kind}.key"), key.serialize_pem());
        }
        Self { folder }
    }

    /// What `redis-server` is told: to prove itself, and to have its clients do so.
    pub fn redis_options(&self) -> [(&'static str, String); 4] {
        [
            ("tls-cert-file", self.path("server.pem")),
            ("tls-key-file", self.path("server.key")),
            ("tls-ca-cert-file", self.path("ca.pem")),
            ("tls-auth-clients", "yes".to_owned()),
        ]
    }

    /// The keys of a table of the configuration.
    pub fn client_keys(&self) -> String {
        let [ca, cert, key] = ["ca.pem", "client.pem", "client.key"].map(|name| self.path(name));
        format!("ca = \"{ca}\"\ncert = \"{cert}\"\nkey = \"{key}\"")
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}
