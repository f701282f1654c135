//! The client's errors in plain words.

use fred::error::{Error, ErrorKind};

/// The bound on what is repeated of an answer, in characters.
const QUOTED_MAX: usize = 160;

/// What fred says of a server that does not tell its role.
const ROLE_UNREAD: &str = "Could not read redis server role.";

/// What fred's texts of system and TLS errors hold, and what it means.
const MEANINGS: &[(&str, &str)] = &[
    ("ConnectionRefused", "connection refused"),
    ("HostUnreachable", "the host cannot be reached"),
    ("NetworkUnreachable", "the network cannot be reached"),
    ("failed to lookup address", "the name cannot be resolved"),
    (
        "UnknownIssuer",
        "its TLS certificate is not trusted: unknown issuer; expected one that `ca` or the system vouches for",
    ),
    ("NotValidForName", "its TLS certificate is for another name"),
    ("Expired", "its TLS certificate has expired"),
    ("CertificateRequired", "it wants a client certificate; expected `cert` and `key`"),
    ("InvalidCertificate", "its TLS certificate is not trusted"),
    ("InvalidContentType", "it does not speak TLS; expected redis:// instead of rediss://"),
    ("TimedOut", "no answer in time"),
    ("ConnectionReset", "it closed the connection"),
    ("UnexpectedEof", "it closed the connection"),
    ("BrokenPipe", "it closed the connection"),
    ("kind: NotFound", "there is no such socket"),
    ("PermissionDenied", "permission denied"),
];

/// Why, for people. Only the server's own words are repeated, never a credential.
pub(super) fn plain(error: &Error) -> String {
    let details = error.details();
    if *error.kind() == ErrorKind::Timeout {
        return "no answer in time".to_owned();
    }
    if details.starts_with("WRONGPASS") {
        return "wrong user name or password".to_owned();
    }
    if details.starts_with("NOAUTH") {
        return "it wants a password".to_owned();
    }
    if details.starts_with("ERR unknown command") && details.contains("HELLO") {
        return "it does not know HELLO: older than Redis 6; expected 7.0 or newer".to_owned();
    }
    let is_spoken = matches!(error.kind(), ErrorKind::IO | ErrorKind::Tls | ErrorKind::Canceled);
    if let Some((_, meaning)) = MEANINGS.iter().find(|(sign, _)| is_spoken && details.contains(sign)) {
        return (*meaning).to_owned();
    }
    match error.kind() {
        ErrorKind::Canceled => "it closed the connection".to_owned(),
        ErrorKind::Protocol | ErrorKind::Parse => format!("it does not speak as Redis does: {}", quoted(details)),
        _ => quoted(details.strip_prefix("NOPERM ").unwrap_or(details).trim_end_matches('.')),
    }
}

/// Whether the user may not do it.
pub(super) fn is_refusal(error: &Error) -> bool {
    error.details().starts_with("NOPERM")
}

/// The command that the user may not run, as rules name it.
pub(super) fn refused_command(error: &Error) -> Option<&str> {
    let details = error.details();
    // fred's own words, where the server that sentinels name does not tell its role.
    if details == ROLE_UNREAD {
        return Some("role");
    }
    let (_, rest) = details.split_once(" to run the '").filter(|_| is_refusal(error))?;
    rest.split('\'').next()
}

/// The first of it, on one line.
fn quoted(text: &str) -> String {
    text.chars().take(QUOTED_MAX).map(|it| if it.is_control() { ' ' } else { it }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_plain_and_bounded() {
        let check = |kind, details: &'static str, expected: &str| {
            assert_eq!(plain(&Error::new(kind, details)), expected, "{details}");
        };
        check(
            ErrorKind::IO,
            "Os { code: 111, kind: ConnectionRefused, message: \"Connection refused\" }",
            "connection refused",
        );
        check(ErrorKind::Timeout, "Request timed out.", "no answer in time");
        check(ErrorKind::Auth, "WRONGPASS invalid username-password pair or user is disabled.", WRONG);
        check(ErrorKind::Unknown, "LOADING Redis is\r\nloading", "LOADING Redis is  loading");
        check(ErrorKind::Unknown, "ERR a key named Expired", "ERR a key named Expired");
        let long: &'static str = "x".repeat(1000).leak();
        check(ErrorKind::Unknown, long, &long[..QUOTED_MAX]);
    }

    const WRONG: &str = "wrong user name or password";
}
