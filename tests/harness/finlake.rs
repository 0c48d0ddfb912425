//! The finlake binary, as its user runs it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::{Kafka, Process, secs};

/// A command line of finlake in the making. The environment is the machine's less every `FINLAKE_…`
/// variable, so that a test means the same everywhere.
pub struct Finlake {
    command: Command,
    name: String,
    /// Where output files go; a temporary folder unless set.
    work: Work,
}

enum Work {
    Temporary(tempfile::TempDir),
    Given(PathBuf),
}

/// A command that has ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Panics with everything it said unless it ended well.
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{}\n{}", self.stdout, self.stderr);
        self
    }

    /// Standard output as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("not JSON ({e}):\n{}\n{}", self.stdout, self.stderr))
    }
}

impl Finlake {
    pub fn new() -> Self {
        let mut command = Command::new(binary());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("FINLAKE_") {
                command.env_remove(name);
            }
        }
        command.env("NO_COLOR", "1");
        Self {
            command,
            name: "finlake".into(),
            work: Work::Temporary(tempfile::tempdir().expect("a temporary folder")),
        }
    }

    /// A name for the log files and messages, where a test runs several.
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    /// Where the output files go; kept after the process.
    pub fn work(mut self, dir: &Path) -> Self {
        self.work = Work::Given(dir.to_path_buf());
        self
    }

    pub fn arg(mut self, arg: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub fn args<S: AsRef<std::ffi::OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    pub fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub fn dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// `--data DIR`
    pub fn data(self, dir: &Path) -> Self {
        self.arg("--data").arg(dir)
    }

    /// `--bootstrap`
    pub fn bootstrap(self, kafka: &Kafka) -> Self {
        self.arg("--bootstrap").arg(kafka.bootstrap())
    }

    /// `--set key=value`
    pub fn set(self, key: &str, value: impl std::fmt::Display) -> Self {
        self.arg("--set").arg(format!("{key}={value}"))
    }

    /// Runs it to its end.
    pub fn run(self, timeout: Duration) -> Ran {
        let (mut process, _work) = self.start();
        let code = process.wait(timeout);
        Ran {
            code,
            stdout: process.stdout(),
            stderr: process.log(),
        }
    }

    /// Runs a command that answers at once.
    pub fn quick(self) -> Ran {
        self.run(secs(60))
    }

    /// Starts it and lets it run.
    pub fn spawn(self) -> FinlakeProcess {
        let (process, work) = self.start();
        FinlakeProcess {
            process,
            _work: work,
        }
    }

    fn start(self) -> (Process, Work) {
        let dir = match &self.work {
            Work::Temporary(dir) => dir.path(),
            Work::Given(dir) => dir,
        };
        let process = Process::spawn(&self.name, dir, &self.command);
        (process, self.work)
    }
}

/// A running finlake; see [`Process`] for what can be done to it.
pub struct FinlakeProcess {
    // Before the folder its output lies in.
    process: Process,
    _work: Work,
}

impl std::ops::Deref for FinlakeProcess {
    type Target = Process;
    fn deref(&self) -> &Process {
        &self.process
    }
}

impl std::ops::DerefMut for FinlakeProcess {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// The binary under test: the one just built, or an installed one named by `TEST_FINLAKE`.
fn binary() -> std::path::PathBuf {
    std::env::var_os("TEST_FINLAKE")
        .map_or_else(|| env!("CARGO_BIN_EXE_finlake").into(), Into::into)
}
