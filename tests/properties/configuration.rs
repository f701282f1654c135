//! Configuration files: what is accepted prints as a file that is accepted, and means the same.

use aside::config::parse_resolved;

#[allow(dead_code, reason = "the fuzzer has seeds of its own")]
pub const SEEDS: &[&[u8]] = &[
    include_bytes!("../../config/example.toml"),
    include_bytes!("../conformance/aside.toml"),
    b"[upstream.api]\nurl = \"http://a.test:3000/base\"\n[[route]]\npath = \"/a/{id}\"\nttl = \"1m30s\"\n\
      [route.key]\nquery = { deny = [\"tracking\", \"x\"] }\nheaders = [{ name = \"accept-language\", choices = [\"en\", \"de\"], default = \"en\" }]\n",
    b"[upstream.\"a b\"]\nurls = [\"http://10.0.0.1:1\", \"https://b.test\"]\nhost = \"preserve\"\n\
      [profile.p]\nttl = \"5m\"\nstatus_ttl = { 404 = \"10s\" }\nkey = { sort_query = false }\n[[route]]\npath = \"/{*rest}\"\nuse = \"p\"\n",
    b"[redis]\nurl = \"redis-cluster://a:1?node=b:2\"\n[upstream.api]\nurl = \"http://a\"\n[[route]]\npath = \"/\"\n\
      host = \"A.example\"\nrequest_headers = { set = { x-a = \"1\\\"\\\\\" }, remove = [\"x-b\"] }\ncollapse = \"cluster\"\nbypass = [{ header = \"x\" }]\n",
];

/// The input is a file's text.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // A secret that is read from a file or the environment is no business of a fuzzer's.
    if ["file:", "env:", "ca", "cert", "key =", "access"].iter().any(|word| text.contains(word)) && !is_known(data) {
        return;
    }
    let Ok((resolved, _)) = parse_resolved("f", text) else { return };
    let again = parse_resolved("f", &resolved);
    let (again, _) = again.unwrap_or_else(|problems| panic!("refused: {problems:#?}\n{resolved}"));
    assert_eq!(values(&again), values(&resolved));
}

fn is_known(data: &[u8]) -> bool {
    SEEDS.contains(&data)
}

/// Without the comments that say where each value came from.
fn values(resolved: &str) -> Vec<&str> {
    resolved.lines().map(|line| line.rsplit_once("  # ").map_or(line, |(value, _)| value)).collect()
}
