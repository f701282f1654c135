//! Configuration files: what is accepted prints as a file that is accepted, and means the same.

use aside::config::parse_resolved;

/// The input is a file's text.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // A secret out of a file or the environment is another one for each machine.
    if ["file:", "env:"].iter().any(|kind| text.contains(kind)) {
        return;
    }
    let Ok((resolved, _)) = parse_resolved("f", text) else { return };
    let again = parse_resolved("f", &resolved);
    let (again, _) = again.unwrap_or_else(|problems| panic!("refused: {problems:#?}\n{resolved}"));
    assert_eq!(values(&again), values(&resolved));
}

/// Without the comments that say where each value came from.
fn values(resolved: &str) -> Vec<&str> {
    resolved.lines().map(|line| line.rsplit_once("  # ").map_or(line, |(value, _)| value)).collect()
}
