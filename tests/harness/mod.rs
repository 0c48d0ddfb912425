//! What the integration tests stand on: a real Apache Kafka, the finlake binary as a process that
//! can be killed and paused, and the engines that read the tables.
//!
//! `mod harness;` in a test brings it in. Nothing here outlives the test: every process is on a
//! leash (leash.sh) and dies with the test process, however that ends. Everything a test needs is
//! prepared by `scripts/test-env.sh`, which `./test` runs; what is missing makes the test a loud
//! skip, and a failure where `CI=true`.
//!
//! ```ignore
//! let Some(kafka) = Kafka::start() else { return };
//! let finlake = Finlake::new().bootstrap(&kafka).arg("run").spawn();
//! finlake.wait_for_log("running", secs(30));
//! finlake.kill9();
//! ```
// Each test uses its own part of this.
#![allow(dead_code, unused_imports)]

mod finlake;
mod kafka;
mod process;
mod readers;

pub use finlake::{Finlake, FinlakeProcess, Ran};
pub use kafka::{Kafka, KafkaSetup, kafka_tools};
pub use process::Process;
pub use readers::{Read, Reader, Readers};

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Seconds, for timeouts.
pub const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Says that the running test cannot run, and notes it for the count of `./test`. Under `CI=true`
/// it panics: there nothing may be missing. The caller returns right after it.
pub fn skip(what: &str, remedy: &str) {
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    let text = format!("SKIPPED {test}: {what} is not available; {remedy}");
    eprintln!("\n*** {text}\n");
    if let Some(path) = std::env::var_os("TEST_SKIPS") {
        let file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(path);
        if let Ok(mut file) = file {
            // One write, so that lines of parallel tests do not mix.
            let _ = file.write_all(format!("{text}\n").as_bytes());
        }
    }
    assert!(
        std::env::var_os("CI").is_none_or(|ci| ci != "true"),
        "CI must have it: {text}"
    );
}

/// The project's root folder.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A part of the environment: from its variable, else from where scripts/test-env.sh puts it.
fn prepared(variable: &str, in_cache: &str) -> Option<PathBuf> {
    let path = match std::env::var_os(variable) {
        Some(path) => PathBuf::from(path),
        None => cache()?.join(in_cache),
    };
    path.exists().then_some(path)
}

fn cache() -> Option<PathBuf> {
    let of = |name| std::env::var_os(name).map(PathBuf::from);
    of("FINLAKE_CACHE")
        .or_else(|| of("XDG_CACHE_HOME").map(|p| p.join("finlake")))
        .or_else(|| of("HOME").map(|p| p.join(".cache/finlake")))
}

/// The Java runtime, 17 or newer.
pub fn java() -> PathBuf {
    std::env::var_os("TEST_JAVA").map_or_else(|| PathBuf::from("java"), PathBuf::from)
}

/// Ports on 127.0.0.1 that are free right now.
pub fn free_ports(n: usize) -> Vec<u16> {
    // All held at once, so that they differ.
    let held: Vec<_> = (0..n)
        .map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"))
        .collect();
    held.iter()
        .map(|l| l.local_addr().expect("has an address").port())
        .collect()
}

/// All that a server on this machine answers to a request (`GET /metrics`), head and body; `body`
/// is JSON, or empty.
pub fn http(address: &str, request: &str, body: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(secs(5)))?;
    let length = body.len();
    write!(
        stream,
        "{request} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Calls `check` until it gives a value; panics with `what` after `timeout`.
pub fn eventually<T>(what: &str, timeout: Duration, mut check: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(
            start.elapsed() < timeout,
            "not within {} s: {what}",
            timeout.as_secs()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}
