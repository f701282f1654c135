//! Lua scripts on one key.

use fred::clients::{Client, WithOptions};
use fred::error::Error;
use fred::interfaces::ClientLike;
use fred::types::{ClusterHash, CustomCommand, FromValue, Value};

/// A script, called by its hash.
pub(super) struct Script {
    text: &'static str,
    hash: String,
}

impl Script {
    pub(super) fn new(text: &'static str) -> Self {
        Self { text, hash: fred::util::sha1_hash(text) }
    }

    /// Runs it on a key; sends it whole to a server that does not know it yet.
    pub(super) async fn run<R: FromValue>(
        &self,
        client: &WithOptions<Client>,
        key: &str,
        arguments: Vec<Value>,
    ) -> Result<R, Error> {
        match call(client, "EVALSHA", &self.hash, key, arguments.clone()).await {
            Err(error) if error.details().starts_with("NOSCRIPT") => {
                call(client, "EVAL", self.text, key, arguments).await
            }
            outcome => outcome,
        }
    }
}

async fn call<R: FromValue>(
    client: &WithOptions<Client>,
    command: &'static str,
    script: &str,
    key: &str,
    arguments: Vec<Value>,
) -> Result<R, Error> {
    // fred heeds an offset of the key in none of these commands, only the slot itself.
    let command = CustomCommand::new_static(command, ClusterHash::from(key), false);
    let fixed = vec![Value::from(script), Value::from("1"), Value::from(key)];
    client.custom(command, [fixed, arguments].concat()).await
}
