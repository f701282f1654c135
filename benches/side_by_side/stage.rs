//! One contender, with the origin and the Redis that it needs, all fresh.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::options::Options;
use super::process::{Process, Words, find, free_port, words};
use super::servers::COUNT_PATH;

/// How long a cache may take until it answers by itself.
const WARM_MAX: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    /// hyper, answering a constant.
    Hyper,
    /// `aside` with what is on by default.
    Aside(Setting),
    /// nginx with `proxy_cache` on tmpfs.
    Nginx,
}

/// How `aside` is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Whether responses are kept in memory.
    pub memory: bool,
    /// Whether there is a Redis.
    pub redis: bool,
    /// Routes in the file beside the one that is asked for.
    pub further_routes: usize,
    /// Workers, each on a CPU of its own.
    pub workers: usize,
}

/// Memory alone, one route, one worker.
pub const PLAIN: Setting = Setting { memory: true, redis: false, further_routes: 0, workers: 1 };

impl Contender {
    /// What the table calls it.
    pub fn name(self) -> String {
        match self {
            Self::Hyper => "hyper".to_owned(),
            Self::Nginx => "nginx".to_owned(),
            Self::Aside(Setting { memory: false, .. }) => "aside, Redis alone".to_owned(),
            Self::Aside(Setting { redis: true, .. }) => "aside, both tiers".to_owned(),
            Self::Aside(Setting { further_routes: 0, .. }) => "aside".to_owned(),
            Self::Aside(Setting { further_routes, .. }) => format!("aside, {further_routes} routes more"),
        }
    }
}

/// A contender that listens.
pub struct Stage<'a> {
    /// The options of the run.
    pub options: &'a Options,
    /// Where HTTP/1.1 is spoken.
    pub port: u16,
    /// Where HTTP/2 is spoken.
    pub http2_port: u16,
    /// The contender.
    pub process: Process,
    /// What it asks, which runs as long.
    _origin: Process,
    /// Where it stores.
    pub redis: Option<Process>,
    /// Removed at the end.
    pub folder: TempDir,
    origin_port: u16,
    caches: bool,
}

impl<'a> Stage<'a> {
    /// Starts all; `length` is what the constant answer of hyper has.
    pub fn set(contender: Contender, length: usize, options: &'a Options) -> Result<Self, String> {
        let folder = folder()?;
        let (port, mut http2_port, origin_port) = (free_port()?, free_port()?, free_port()?);
        let origin = part(&["origin", &origin_port.to_string()])?;
        let log = |name: &str| folder.path().join(format!("{name}.log"));
        let origin = Process::listening(origin, &options.load_cpu, origin_port, &log("origin"))?;
        let (mut redis, mut cpus) = (None, options.cpu.clone());
        let words = match contender {
            Contender::Hyper => part(&["hyper", &port.to_string(), &length.to_string()])?,
            Contender::Nginx => nginx(folder.path(), port, http2_port, origin_port)?,
            Contender::Aside(setting) => {
                let redis_port = free_port()?;
                if setting.redis {
                    let words = redis_server(folder.path(), redis_port);
                    redis = Some(Process::listening(words, &options.load_cpu, redis_port, &log("redis"))?);
                }
                if setting.workers > 1 {
                    cpus = format!("{cpus},{}", options.load_cpu);
                }
                aside(folder.path(), port, origin_port, redis_port, setting, &options.binary)?
            }
        };
        let process = Process::listening(words, &cpus, port, &log("contender"))?;
        if contender != Contender::Nginx {
            http2_port = port;
        }
        let caches = contender != Contender::Hyper;
        Ok(Self { options, port, http2_port, process, _origin: origin, redis, folder, origin_port, caches })
    }

    /// How many requests the origin was asked so far.
    pub fn asked(&self) -> Result<f64, String> {
        let text = get(self.origin_port, COUNT_PATH)?;
        String::from_utf8_lossy(&text).parse().map_err(|_| format!("the origin tells {text:?}"))
    }

    /// Asks until the cache answers by itself.
    pub fn warm(&self, path: &str) -> Result<(), String> {
        let begun = Instant::now();
        while begun.elapsed() < WARM_MAX {
            let before = self.asked()?;
            get(self.port, path)?;
            if !self.caches || self.asked()? == before {
                return Ok(());
            }
            sleep(PAUSE);
        }
        Err(format!("never a hit for {path}"))
    }
}

/// The command line of this program in another part.
pub fn part(arguments: &[&str]) -> Result<Words, String> {
    let own = std::env::current_exe().map_err(|error| format!("this program: {error}"))?;
    Ok(std::iter::once(own.into_os_string()).chain(arguments.iter().map(Into::into)).collect())
}

fn get(port: u16, path: &str) -> Result<Vec<u8>, String> {
    use super::clients::{Connection, run};
    run(async { Connection::open(port).await?.get(path).await }).map_err(|error| format!("{path}: {error}"))
}

/// On tmpfs, where there is one: nginx keeps what it caches in it, and the logs go there.
fn folder() -> Result<TempDir, String> {
    let builder = || tempfile::Builder::new();
    let folder = builder().prefix("aside-bench-").tempdir_in("/dev/shm").or_else(|_| builder().tempdir());
    folder.map_err(|error| format!("no folder: {error}"))
}

fn redis_server(folder: &Path, port: u16) -> Words {
    let port = port.to_string();
    words!["redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", folder]
}

fn nginx(folder: &Path, port: u16, http2_port: u16, origin_port: u16) -> Result<Words, String> {
    find(&"nginx".into())?;
    let mut text = include_str!("nginx.conf").replace("@FOLDER@", &folder.to_string_lossy());
    for (name, number) in [("@PORT@", port), ("@HTTP2@", http2_port), ("@ORIGIN@", origin_port)] {
        text = text.replace(name, &number.to_string());
    }
    let file = written(folder.join("nginx.conf"), &text)?;
    Ok(words!["nginx", "-e", "stderr", "-p", folder, "-c", file])
}

/// The defaults, but for what the measurement itself would run into: room for all that is asked for, and one client
/// with all connections.
fn aside(folder: &Path, port: u16, origin: u16, redis: u16, setting: Setting, binary: &Path) -> Result<Words, String> {
    let memory = if setting.memory { "1 GiB" } else { "0" };
    let mut text = format!(
        "[server]\nlisten = \"127.0.0.1:{port}\"\nthreads = {}\n\
         [server.limits]\nconnections = 20000\nconnections_per_address = 0\n\
         [log]\naccess = \"{}/access.log\"\n[memory]\nmax_size = \"{memory}\"\n\
         [upstream.api]\nurl = \"http://127.0.0.1:{origin}\"\n\
         [[route]]\npath = \"/v1/{{wait}}/{{length}}/{{name}}\"\n",
        setting.workers,
        folder.display(),
    );
    for at in 0..setting.further_routes {
        text += &format!("[[route]]\npath = \"/v1/shop{at}/products/{{id}}\"\n");
    }
    if setting.redis {
        text += &format!("[redis]\nurl = \"redis://127.0.0.1:{redis}\"\n");
    }
    let file = written(folder.join("aside.toml"), &text)?;
    Ok(words![binary, "serve", "--config", file])
}

fn written(path: PathBuf, text: &str) -> Result<PathBuf, String> {
    std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(path)
}
