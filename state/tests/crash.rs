//! A child process commits as fast as it can and is killed with SIGKILL in the middle of it. After
//! each kill, data and checkpoint must tell the same story: commit n, whole, and nothing of n + 1;
//! and no commit that the child reported as done may be missing (INV-10, one batch per commit).

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use finlake_state::{Budget, Checkpoint, StateDb, StoreSpec, TaskState};

const CHILD: &str = "FINLAKE_STATE_CRASH_DIR";
const KEYS: u64 = 40;
const KILLS: u64 = 25;

fn open(path: &Path) -> (StateDb, TaskState) {
    // Small buffers: flushes and compactions run in the middle of the kills too.
    let budget = Budget {
        block_cache: 1 << 20,
        write_buffers: 3 << 18,
        ..Budget::default()
    };
    let db = StateDb::open(path, budget).unwrap();
    let task = db
        .task(3, &[StoreSpec::new("a"), StoreSpec::new("b")])
        .unwrap();
    (db, task)
}

fn checkpoint(n: i64) -> Checkpoint {
    Checkpoint {
        changelog: vec![("a".into(), n * KEYS as i64), ("b".into(), n)],
        inputs: vec![("market.ticks".into(), n * 1_000)],
        cluster_id: "cluster".into(),
        topic_ids: Vec::new(),
        written_at_ms: n,
    }
}

fn committed(task: &TaskState) -> i64 {
    task.checkpoint().map_or(0, |cp| cp.written_at_ms)
}

/// Commit n writes n under every key of `a`, and the key n (only) into `b`.
fn write_commit(task: &mut TaskState, n: i64) {
    let mut value = vec![0u8; 300];
    value[..8].copy_from_slice(&n.to_be_bytes());
    for key in 0..KEYS {
        task.put(0, &key.to_be_bytes(), &value);
    }
    task.delete(1, &(n - 1).to_be_bytes());
    task.put(1, &n.to_be_bytes(), b"");
    task.commit(&checkpoint(n)).unwrap();
}

/// The child's whole life; as a test of its own it does nothing.
#[test]
fn child() {
    let Ok(dir) = std::env::var(CHILD) else {
        return;
    };
    let (_db, mut task) = open(Path::new(&dir));
    let mut n = committed(&task);
    let mut out = std::io::stdout();
    loop {
        n += 1;
        write_commit(&mut task, n);
        // Reported only after commit returned.
        writeln!(out, "done {n}").unwrap();
        out.flush().unwrap();
        // And dirt that must never be seen.
        task.put(0, &0u64.to_be_bytes(), b"uncommitted");
        task.discard();
        task.put(1, b"uncommitted", b"");
        task.delete(1, b"uncommitted");
    }
}

#[test]
fn data_and_checkpoint_agree_after_every_kill() {
    let dir = tempfile::tempdir().unwrap();
    let mut last = 0;
    for round in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Let it commit a while, another while each round, then kill it where it stands.
        let mut done = last;
        let mut take = |lines: &mut dyn Iterator<Item = std::io::Result<String>>| {
            let line = lines.next()?.ok()?;
            // libtest may print its own words before the first report on a line.
            let n = line.rsplit("done ").next()?.parse::<i64>().ok();
            done = n.unwrap_or(done);
            Some(())
        };
        for _ in 0..3 + round * 7 {
            assert!(take(&mut lines).is_some(), "the child died by itself");
        }
        std::thread::sleep(Duration::from_micros(round * 137));
        child.kill().unwrap();
        child.wait().unwrap();
        while take(&mut lines).is_some() {}

        let (_db, task) = open(dir.path());
        let n = committed(&task);
        assert!(n == done || n == done + 1, "reported {done}, found {n}");
        assert!(n > last);
        assert_eq!(task.checkpoint(), Some(&checkpoint(n)));
        for key in 0..KEYS {
            let value = task.get(0, &key.to_be_bytes()).unwrap().unwrap();
            assert_eq!(value[..8], n.to_be_bytes(), "a torn commit");
        }
        let mut keys = Vec::new();
        task.scan(1, b"", None, &mut |key, _| {
            keys.push(key.to_vec());
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(keys, [n.to_be_bytes().to_vec()]);
        last = n;
    }
}
