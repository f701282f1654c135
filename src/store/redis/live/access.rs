//! What the user lacks of the rights that `aside` needs: told by `ACL DRYRUN` where that is allowed, else tried.

use fred::error::{Error, ErrorKind};
use fred::types::Value;

use super::{Caller, reason};

/// Stand for the scratch key and the scratch channel.
const KEY: &str = "{key}";
const CHANNEL: &str = "{channel}";
/// How long the scratch key lives, should it not be removed: in milliseconds.
const SCRATCH_MILLIS: &str = "10000";
/// The digest of no script.
const NO_SCRIPT: &str = "0000000000000000000000000000000000000000";

/// A command that `aside` sends.
struct Need {
    name: &'static str,
    /// A form that does no harm.
    form: &'static [&'static str],
    when: When,
}

/// When a command is needed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    Always,
    /// Towards a cluster.
    Cluster,
    /// Towards what is none.
    NoCluster,
    /// It is sent, but nothing is lost without.
    Never,
}

const fn always(name: &'static str, form: &'static [&'static str]) -> Need {
    Need { name, form, when: When::Always }
}

const fn only(when: When, name: &'static str, form: &'static [&'static str]) -> Need {
    Need { name, form, when }
}

/// All of them, in an order in which they can be tried on the scratch key. SUBSCRIBE must be the last: see
/// [`try_subscribe`].
const NEEDS: &[Need] = &[
    always("PING", &["PING"]),
    only(When::Never, "CLIENT ID", &["CLIENT", "ID"]),
    only(When::Cluster, "CLUSTER INFO", &["CLUSTER", "INFO"]),
    only(When::Cluster, "CLUSTER SLOTS", &["CLUSTER", "SLOTS"]),
    always("SET", &["SET", KEY, "1", "NX", "PX", SCRATCH_MILLIS, "GET"]),
    always("GET", &["GET", KEY]),
    always("GETRANGE", &["GETRANGE", KEY, "0", "0"]),
    only(When::NoCluster, "MGET", &["MGET", KEY, KEY]),
    always("SETRANGE", &["SETRANGE", KEY, "0", "1"]),
    always("TIME", &["TIME"]),
    always("STRLEN", &["STRLEN", KEY]),
    always("PEXPIRE", &["PEXPIRE", KEY, SCRATCH_MILLIS]),
    always("EVAL", &["EVAL", "return 1", "1", KEY]),
    always("EVALSHA", &["EVALSHA", NO_SCRIPT, "1", KEY]),
    always("UNLINK", &["UNLINK", KEY]),
    always("PUBLISH", &["PUBLISH", CHANNEL, "1"]),
    always("SUBSCRIBE", &["SUBSCRIBE", CHANNEL]),
];

/// What a user may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// The user.
    pub user: String,
    /// How it was found out.
    pub means: Means,
    /// What is refused, in a fixed order.
    pub denials: Vec<Denial>,
    /// Commands that failed otherwise, and why.
    pub failures: Vec<(&'static str, String)>,
    /// The command that gives the user what it lacks; none when it lacks nothing.
    pub remedy: Option<String>,
}

/// How rights are found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    /// `ACL DRYRUN`.
    DryRun,
    /// By trying harmless forms on a scratch key.
    Trial,
}

/// A command that is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denial {
    /// Its name.
    pub command: &'static str,
    /// What of it.
    pub what: Denied,
    /// Whether `aside` cannot do without it.
    pub is_needed: bool,
}

/// What is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// The command itself.
    Command,
    /// It, on keys with the prefix.
    Key,
    /// It, on channels with the prefix.
    Channel,
}

/// What one command came to.
enum Outcome {
    Allowed,
    Denied(Denied),
    Failed(Error),
}

/// Finds out what the user may do with keys and channels that begin with `prefix`; `login`: the user as configured.
pub(super) async fn probe(caller: &Caller, key: &str, prefix: &str, login: &str) -> Access {
    let told = caller.call(&["ACL", "WHOAMI"]).await.ok().and_then(|user| user.as_string());
    let user = told.unwrap_or_else(|| login.to_owned());
    let means = if dry_run(caller, &user, &["PING"]).await.is_ok() { Means::DryRun } else { Means::Trial };
    let channel = format!("{prefix}:check");
    let mut outcomes = Vec::with_capacity(NEEDS.len());
    let other = if caller.node.is_some() { When::NoCluster } else { When::Cluster };
    for need in NEEDS.iter().filter(|need| need.when != other) {
        let words: Vec<&str> = need.form.iter().map(|word| filled_in(word, key, &channel)).collect();
        let outcome = match means {
            Means::DryRun => dry_run(caller, &user, &words).await.unwrap_or_else(Outcome::Failed),
            Means::Trial if need.name == "SUBSCRIBE" => tried(try_subscribe(caller, &words).await),
            Means::Trial => tried(caller.call(&words).await),
        };
        let is_lost = matches!(&outcome, Outcome::Failed(error) if is_lost(error));
        outcomes.push((need, outcome));
        if is_lost {
            break;
        }
    }
    let remedy = remedy(&outcomes, &user, prefix);
    let mut access = Access { user, means, denials: Vec::new(), failures: Vec::new(), remedy };
    for (need, outcome) in outcomes {
        match outcome {
            Outcome::Allowed => {}
            Outcome::Denied(what) => {
                access.denials.push(Denial { command: need.name, what, is_needed: need.when != When::Never });
            }
            Outcome::Failed(error) => access.failures.push((need.name, reason::plain(&error))),
        }
    }
    access
}

fn filled_in<'a>(word: &'a str, key: &'a str, channel: &'a str) -> &'a str {
    match word {
        KEY => key,
        CHANNEL => channel,
        other => other,
    }
}

/// Whether nothing more will be answered.
fn is_lost(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Timeout | ErrorKind::IO | ErrorKind::Canceled)
}

/// `Err` where `ACL DRYRUN` itself is refused, unknown (before Redis 7.0) or not answered.
async fn dry_run(caller: &Caller, user: &str, words: &[&str]) -> Result<Outcome, Error> {
    let verdict = caller.call(&[&["ACL", "DRYRUN", user][..], words].concat()).await?.as_string().unwrap_or_default();
    Ok(if verdict == "OK" { Outcome::Allowed } else { Outcome::Denied(denied(&verdict)) })
}

fn tried(answer: Result<Value, Error>) -> Outcome {
    match answer {
        Ok(_) => Outcome::Allowed,
        Err(error) if reason::is_refusal(&error) => Outcome::Denied(denied(error.details())),
        // There is no such script; a replica says so of its role.
        Err(error) if ["NOSCRIPT", "READONLY"].iter().any(|it| error.details().starts_with(it)) => Outcome::Allowed,
        Err(error) => Outcome::Failed(error),
    }
}

/// fred does not wait for the answer to its own SUBSCRIBE, so that a refusal would be lost. As a command of our own it
/// is answered by its refusal; else, the confirmation being no answer to fred, by that of the command behind it, HELLO,
/// which is open to every user. After that the connection's answers are out of step.
async fn try_subscribe(caller: &Caller, words: &[&str]) -> Result<Value, Error> {
    let behind = async {
        // It has no answer of its own any more.
        let _ = caller.call(&["HELLO"]).await;
        std::future::pending().await
    };
    tokio::select! {
        biased;
        answer = caller.call(words) => answer,
        never = behind => never,
    }
}

/// What a refusal is about, in the words of `NOPERM` and `ACL DRYRUN` of any version, which may hold the names of user,
/// key and channel.
fn denied(text: &str) -> Denied {
    if text.contains(" to run the '") {
        Denied::Command
    } else if text.ends_with(" channel") || text.contains("one of the channels used as arguments") {
        Denied::Channel
    } else {
        Denied::Key
    }
}

/// One line with all that is refused. Of a command that is refused as such, whether it may use the key is not known:
/// the pattern is given unless another command shows that it is there.
fn remedy(outcomes: &[(&Need, Outcome)], user: &str, prefix: &str) -> Option<String> {
    let is_about = |need: &Need, word: &str| need.form.contains(&word);
    let lacks = |word: &str, what: Denied| {
        let about = || outcomes.iter().filter(|(need, _)| is_about(need, word));
        let is_denied = about().any(|(_, outcome)| matches!(outcome, Outcome::Denied(denied) if *denied == what));
        let is_unseen = about().all(|(_, outcome)| matches!(outcome, Outcome::Denied(_)));
        is_denied || (is_unseen && about().next().is_some())
    };
    let commands = outcomes.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Denied(Denied::Command)));
    let mut rules: Vec<String> =
        commands.map(|(need, _)| format!("+{}", need.name.to_lowercase().replace(' ', "|"))).collect();
    let pattern = escaped(prefix);
    rules.extend(lacks(KEY, Denied::Key).then(|| format!("~{pattern}:*")));
    rules.extend(lacks(CHANNEL, Denied::Channel).then(|| format!("&{pattern}:*")));
    (!rules.is_empty()).then(|| granting(user, &rules))
}

/// The command that adds rules to a user's.
pub(super) fn granting(user: &str, rules: &[String]) -> String {
    let quoted = |rule: &String| if rule.contains(' ') { format!("'{rule}'") } else { rule.clone() };
    format!("ACL SETUSER {user} {}", rules.iter().map(quoted).collect::<Vec<_>>().join(" "))
}

/// A prefix as part of a pattern that matches it alone.
fn escaped(prefix: &str) -> String {
    let mut pattern = String::with_capacity(prefix.len());
    for it in prefix.chars() {
        if "*?[]\\".contains(it) {
            pattern.push('\\');
        }
        pattern.push(it);
    }
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_every_version_are_told_apart() {
        let check = |text: &str, expected| assert_eq!(denied(text), expected, "{text}");
        check("NOPERM this user has no permissions to run the 'script|load' command", Denied::Command);
        check("NOPERM User channel has no permissions to run the 'get' command", Denied::Command);
        check("NOPERM this user has no permissions to access one of the keys used as arguments", Denied::Key);
        check("NOPERM No permissions to access a key", Denied::Key);
        check("This user has no permissions to access the 'a channel:check' key", Denied::Key);
        check("NOPERM this user has no permissions to access one of the channels used as arguments", Denied::Channel);
        check("NOPERM No permissions to access a channel", Denied::Channel);
        check("User one has no permissions to access the 'a:check' channel", Denied::Channel);
    }

    /// All commands but these, which are refused so.
    fn outcomes(refused: &[(&str, Denied)]) -> Vec<(&'static Need, Outcome)> {
        let outcome = |need: &Need| match refused.iter().find(|(name, _)| *name == need.name) {
            Some((_, what)) => Outcome::Denied(*what),
            None => Outcome::Allowed,
        };
        NEEDS.iter().map(|need| (need, outcome(need))).collect()
    }

    #[test]
    fn the_remedy_is_what_is_missing_and_no_more() {
        let check = |refused: &[(&str, Denied)], prefix: &str, expected: Option<&str>| {
            let expected = expected.map(|rules| format!("ACL SETUSER bob {rules}"));
            assert_eq!(remedy(&outcomes(refused), "bob", prefix), expected);
        };
        check(&[], "aside", None);
        check(&[("CLIENT ID", Denied::Command)], "aside", Some("+client|id"));
        check(&[("GET", Denied::Command), ("SET", Denied::Key)], "a b*", Some("+get '~a b\\*:*'"));
        let both = [("PUBLISH", Denied::Command), ("SUBSCRIBE", Denied::Command)];
        check(&both, "aside", Some("+publish +subscribe &aside:*"));
        check(&both[..1], "aside", Some("+publish"));
    }
}
