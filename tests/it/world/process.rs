//! The proxy as a process of its own, as an operator runs it.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{client, got};

/// A running `aside serve`, killed when dropped.
pub struct Process {
    pub port: u16,
    child: Child,
    folder: tempfile::TempDir,
}

impl Process {
    /// Starts with a TOML text that has neither `[server]` nor `[log]`, and waits until it has reached Redis.
    pub async fn start(toml: &str) -> Self {
        let process = Self::start_unconnected(toml);
        process.until_redis_is("up").await;
        process
    }

    /// The same without the wait.
    pub fn start_unconnected(toml: &str) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        drop(listener);
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("aside.toml");
        let server = format!("[server]\nlisten = \"127.0.0.1:{port}\"\nthreads = 1\n\n[log]\naccess = \"off\"\n\n");
        std::fs::write(&path, server + toml).expect("a file");
        let log = std::fs::File::create(folder.path().join("log")).expect("a file");
        let child = Command::new(env!("CARGO_BIN_EXE_aside"))
            .args(["serve", "--config"])
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the proxy starts");
        Self { port, child, folder }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// What it has written to its log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).expect("a log")
    }

    /// Waits until it tells this state of Redis.
    pub async fn until_redis_is(&self, state: &str) {
        let (client, url) = (client(), self.url("/cache-stats"));
        let begun = Instant::now();
        loop {
            if let Ok(response) = client.get(&url).send().await {
                let stats: serde_json::Value = serde_json::from_str(&got(response).await.body).expect("JSON");
                if stats["redis"]["state"] == state {
                    return;
                }
            }
            assert!(begun.elapsed() < Duration::from_secs(10), "redis is not {state}: {}", self.log());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SIGKILL.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
