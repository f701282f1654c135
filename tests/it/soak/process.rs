//! `aside` as a process of its own, and what the system tells of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The running process; ended when dropped.
pub struct Aside {
    process: Child,
    log: PathBuf,
}

/// What a process takes.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    pub rss_kib: u64,
    pub descriptors: usize,
    pub threads: u64,
}

impl Aside {
    /// Serves a configuration; `SOAK_ASIDE` names the program, else it is the tests' own.
    pub fn serve(file: &Path, log: PathBuf) -> Self {
        let program = std::env::var("SOAK_ASIDE").unwrap_or_else(|_| env!("CARGO_BIN_EXE_aside").to_owned());
        let errors = fs::File::create(&log).expect("a file");
        let process = Command::new(&program)
            .args(["serve", "--config"])
            .arg(file)
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        Self { process, log }
    }

    pub fn reload(&self) {
        let status = Command::new("kill").args(["-HUP", &self.process.id().to_string()]).status();
        assert!(status.expect("kill").success());
    }

    pub fn usage(&self) -> Usage {
        let of = |path: &str| format!("/proc/{}/{path}", self.process.id());
        let status = fs::read_to_string(of("status")).expect("it runs");
        let figure = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.trim().split(' ').next()?.parse().ok()).expect("a figure")
        };
        Usage {
            rss_kib: figure("VmRSS:"),
            descriptors: fs::read_dir(of("fd")).expect("it runs").count(),
            threads: figure("Threads:"),
        }
    }

    /// The end of what it logged.
    pub fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
