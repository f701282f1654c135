//! Programs under measurement: started on a CPU of their own, and ended with the benchmark.

use std::ffi::OsString;
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a program may take until it listens.
const START_MAX: Duration = Duration::from_secs(20);
/// How long one may take to end before it is killed.
const STOP_MAX: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(10);

/// A running program, ended when dropped.
pub struct Process {
    child: Child,
}

/// A command line.
pub type Words = Vec<OsString>;

/// The words of a command line, each of what a path or text can be.
macro_rules! words {
    ($($word:expr),* $(,)?) => { vec![$(std::ffi::OsString::from($word)),*] };
}
pub(crate) use words;

impl Process {
    /// Starts a program that is to listen on a port, on these CPUs.
    pub fn listening(words: Words, cpus: &str, port: u16, log: &Path) -> Result<Self, String> {
        let out = File::create(log).and_then(|out| Ok((out.try_clone()?, out)));
        let (out, err) = out.map_err(|error| format!("{}: {error}", log.display()))?;
        let name = words[0].to_string_lossy().into_owned();
        let child = pinned(words, cpus)?.stdout(out).stderr(err).spawn();
        let mut process = Self { child: child.map_err(|error| format!("{name}: {error}"))? };
        let begun = Instant::now();
        while begun.elapsed() < START_MAX && process.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return Ok(process);
            }
            sleep(PAUSE);
        }
        let told = std::fs::read_to_string(log).unwrap_or_default();
        Err(format!("{name} does not listen: {}", told.lines().last().unwrap_or("it says nothing")))
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // nginx takes its workers along when it is asked to end, not when it is killed.
        // The shell's own kill: there is none beside it in a small image.
        let _ = Command::new("sh").args(["-c", "kill $0"]).arg(self.id().to_string()).status();
        let begun = Instant::now();
        while begun.elapsed() < STOP_MAX {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            sleep(PAUSE);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command on these CPUs, with as many open files as it may have, that ends when this process does.
pub fn pinned(words: Words, cpus: &str) -> Result<Command, String> {
    find(&words[0])?;
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n \"$(ulimit -H -n)\"; exec \"$@\"", "sh", "setpriv", "--pdeathsig", "TERM"]);
    command.args(["taskset", "-c", cpus]).args(words).stdin(Stdio::null());
    Ok(command)
}

/// Whether a program is there: by its path, or in `PATH`.
pub fn find(program: &OsString) -> Result<(), String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Where Debian has nginx; not in everybody's PATH.
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
    let is_there = folders.map(|folder| folder.join(program)).any(|path| path.is_file());
    if is_there { Ok(()) } else { Err(format!("{} is not installed", program.display())) }
}

/// A port that nobody listens on.
pub fn free_port() -> Result<u16, String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let address = listener.and_then(|listener| listener.local_addr());
    address.map(|address| address.port()).map_err(|error| format!("no free port: {error}"))
}
