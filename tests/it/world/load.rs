//! Clients that ask without pause, and what they were answered.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::task::JoinHandle;

use super::{Proxy, client};

/// How many clients ask at one time.
const CLIENTS: usize = 4;

/// Clients that ask for the same paths over and over until they are stopped.
pub struct Load {
    stopping: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    wrong: Arc<Mutex<Vec<String>>>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Asks for `paths` through the proxy; an answer is right when it is a 200 with that path's body.
    #[allow(clippy::disallowed_methods, reason = "the clients are awaited when they are stopped")]
    pub fn start(proxy: &Proxy, paths: &[String]) -> Self {
        let (stopping, answered, wrong) = (Arc::default(), Arc::default(), Arc::default());
        let mut load = Self { stopping, answered, wrong, clients: Vec::new() };
        for nth in 0..CLIENTS {
            let (stopping, answered, wrong) =
                (Arc::clone(&load.stopping), Arc::clone(&load.answered), Arc::clone(&load.wrong));
            let mut paths: Vec<(String, String)> = paths.iter().map(|path| (path.clone(), proxy.url(path))).collect();
            let first = nth * paths.len() / CLIENTS;
            paths.rotate_left(first);
            load.clients.push(tokio::spawn(async move {
                let client = client();
                for (path, url) in paths.iter().cycle() {
                    if stopping.load(Ordering::Relaxed) {
                        return;
                    }
                    if let Err(what) = ask(&client, path, url).await {
                        wrong.lock().unwrap().push(what);
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
        load
    }

    /// How many answers came so far.
    pub fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits until as many answers more have come.
    pub async fn more(&self, answers: usize) {
        let enough = self.answered() + answers;
        let waiting = async {
            while self.answered() < enough {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), waiting).await.expect("answers keep coming");
    }

    /// Stops; panics if an answer was wrong.
    pub async fn stop(self) {
        self.stopping.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.expect("the client ends");
        }
        let wrong = self.wrong.lock().unwrap();
        assert!(
            wrong.is_empty(),
            "{} of {} answers were wrong: {:#?}",
            wrong.len(),
            self.answered.load(Ordering::Relaxed),
            &wrong[..wrong.len().min(5)]
        );
    }
}

async fn ask(client: &reqwest::Client, path: &str, url: &str) -> Result<(), String> {
    let response = client.get(url).send().await.map_err(|error| format!("{path}: {error:?}"))?;
    let (status, told) = (response.status(), super::field(&response, "cache-status"));
    let body = response.text().await.map_err(|error| format!("{path}: {error:?}"))?;
    // The upstream answers with the path and how often it was asked for it.
    let is_right = status == 200 && body.rsplit_once(' ').is_some_and(|(of, _)| of == path);
    if is_right { Ok(()) } else { Err(format!("{path}: {status} {body:?} ({told})")) }
}
