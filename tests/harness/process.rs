//! A process on a leash: can be killed, paused, waited for; its output is kept; it dies with the
//! test.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{eventually, root, secs};

/// A running (or ended) program.
pub struct Process {
    name: String,
    /// The leash, whose standard input is ours to close.
    leash: Child,
    pid: u32,
    stdout: PathBuf,
    stderr: PathBuf,
    code: Option<i32>,
}

impl Process {
    /// Starts `command`; `NAME.out`, `NAME.err` and `NAME.pid` go into `dir`.
    pub fn spawn(name: &str, dir: &Path, command: &Command) -> Self {
        let file = |end: &str| dir.join(format!("{name}.{end}"));
        let (stdout, stderr, pidfile) = (file("out"), file("err"), file("pid"));
        let _ = std::fs::remove_file(&pidfile);
        let mut leash = Command::new("bash");
        leash
            .arg(root().join("tests/harness/leash.sh"))
            .arg(&pidfile)
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(Stdio::piped())
            .stdout(File::create(&stdout).expect("the work folder is writable"))
            .stderr(File::create(&stderr).expect("the work folder is writable"));
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => leash.env(key, value),
                None => leash.env_remove(key),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            leash.current_dir(folder);
        }
        let leash = leash.spawn().expect("bash is there");
        let pid = eventually("the leash reports a process", secs(20), || {
            std::fs::read_to_string(&pidfile).ok()?.trim().parse().ok()
        });
        Self {
            name: name.to_owned(),
            leash,
            pid,
            stdout,
            stderr,
            code: None,
        }
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal by name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([format!("-{name}"), self.pid.to_string()])
            .stderr(Stdio::null())
            .status();
        assert!(status.is_ok(), "'kill' is not there");
    }

    /// SIGKILL, and waits for the end.
    pub fn kill9(&mut self) {
        if self.code().is_none() {
            self.signal("KILL");
            self.wait(secs(20));
        }
    }

    /// SIGTERM: the graceful stop. Gives the exit code.
    pub fn stop(&mut self, timeout: Duration) -> i32 {
        self.signal("TERM");
        self.wait(timeout)
    }

    /// SIGSTOP: a zombie in the making.
    pub fn pause(&self) {
        self.signal("STOP");
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.signal("CONT");
    }

    /// The exit code if it has ended; 128 + n if signal n ended it.
    pub fn code(&mut self) -> Option<i32> {
        if self.code.is_none() {
            let status = self.leash.try_wait().expect("the leash is our child");
            self.code = status.map(|s| s.code().unwrap_or(-1));
        }
        self.code
    }

    pub fn is_running(&mut self) -> bool {
        self.code().is_none()
    }

    /// Waits for the end and gives the exit code; panics with the log when it takes too long.
    pub fn wait(&mut self, timeout: Duration) -> i32 {
        let start = Instant::now();
        loop {
            if let Some(code) = self.code() {
                return code;
            }
            if start.elapsed() > timeout {
                panic!(
                    "{} still runs after {} s; its log ends:\n{}",
                    self.name,
                    timeout.as_secs(),
                    self.tail()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn stdout(&self) -> String {
        lossy(&self.stdout)
    }

    /// Standard error, where logs go.
    pub fn log(&self) -> String {
        lossy(&self.stderr)
    }

    /// Waits until `text` stands in either output, and gives the line; panics when the process ends
    /// first or `timeout` passes.
    pub fn wait_for_log(&mut self, text: &str, timeout: Duration) -> String {
        let start = Instant::now();
        loop {
            // Asked before reading: what it wrote before it ended is read below.
            let running = self.is_running();
            let found = [self.log(), self.stdout()]
                .iter()
                .find_map(|log| log.lines().find(|l| l.contains(text)).map(str::to_owned));
            if let Some(line) = found {
                return line;
            }
            if !running || start.elapsed() > timeout {
                let how = if running {
                    "has not said"
                } else {
                    "ended without saying"
                };
                panic!(
                    "{} {how} {text:?}; its log ends:\n{}",
                    self.name,
                    self.tail()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The ends of both outputs.
    pub fn tail(&self) -> String {
        let end = |text: String| {
            let lines: Vec<_> = text.lines().collect();
            lines[lines.len().saturating_sub(40)..].join("\n")
        };
        format!("{}\n{}", end(self.stdout()), end(self.log()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "--- {}, pid {}, log ends:\n{}",
                self.name,
                self.pid,
                self.tail()
            );
        }
        // A paused process does not mind SIGKILL, nor does closing the leash depend on `kill`.
        drop(self.leash.stdin.take());
        let _ = self.leash.wait();
    }
}

fn lossy(path: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(mut file) = File::open(path) {
        let _ = file.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
