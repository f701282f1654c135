//! Lua scripts: sent by their hash, whole to a server that does not know them yet.

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

    /// Runs it on a key.
    pub(super) async fn run<R: FromValue>(
        &self,
        client: &WithOptions<Client>,
        key: &str,
        arguments: Vec<Value>,
    ) -> Result<R, Error> {
        self.run_on(client, vec![key.to_owned()], arguments).await
    }

    /// Runs it on keys, which in a cluster must share a slot.
    pub(super) async fn run_on<R: FromValue>(
        &self,
        client: &WithOptions<Client>,
        keys: Vec<String>,
        arguments: Vec<Value>,
    ) -> Result<R, Error> {
        // fred heeds an offset of the key in none of these commands, only the slot itself.
        let slot = keys.first().map_or(ClusterHash::Random, |key| ClusterHash::from(key.as_str()));
        let count = Value::from(keys.len().to_string());
        let words: Vec<Value> =
            std::iter::once(count).chain(keys.into_iter().map(Value::from)).chain(arguments).collect();
        match call(client, "EVALSHA", &self.hash, &slot, words.clone()).await {
            Err(error) if error.details().starts_with("NOSCRIPT") => {
                call(client, "EVAL", self.text, &slot, words).await
            }
            outcome => outcome,
        }
    }
}

async fn call<R: FromValue>(
    client: &WithOptions<Client>,
    command: &'static str,
    script: &str,
    slot: &ClusterHash,
    mut words: Vec<Value>,
) -> Result<R, Error> {
    words.insert(0, Value::from(script));
    client.custom(CustomCommand::new_static(command, slot.clone(), false), words).await
}
