//! Locked, damaged, foreign and full folders: each a typed error that says what to do.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use finlake_state::{
    Budget, Checkpoint, Durability, LockHolder, StateDb, StateError, StoreSpec, TaskState,
};

fn open(path: &Path) -> Result<StateDb, StateError> {
    StateDb::open(path, Budget::default())
}

fn task(db: &StateDb) -> TaskState {
    db.task(0, &[StoreSpec::new("s")]).unwrap()
}

fn fill(db: &StateDb, keys: u32) {
    let mut task = task(db);
    for key in 0..keys {
        let key = key.wrapping_mul(2_654_435_761).to_be_bytes();
        task.put(0, &key, &key.repeat(30));
    }
    task.commit(&Checkpoint::default()).unwrap();
}

fn files(path: &Path, end: &str) -> Vec<PathBuf> {
    let mut found: Vec<_> = std::fs::read_dir(path)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.to_str().unwrap().ends_with(end))
        .collect();
    found.sort();
    found
}

fn flip(path: &Path, from: u64, bytes: usize) {
    let mut file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut buffer = vec![0; bytes];
    file.seek(SeekFrom::Start(from)).unwrap();
    file.read_exact(&mut buffer).unwrap();
    buffer.iter_mut().for_each(|b| *b ^= 0x5A);
    file.seek(SeekFrom::Start(from)).unwrap();
    file.write_all(&buffer).unwrap();
}

#[test]
fn a_second_open_names_this_process() {
    let dir = tempfile::tempdir().unwrap();
    let _db = open(dir.path()).unwrap();
    let error = open(dir.path()).err().unwrap();
    assert!(
        matches!(
            error,
            StateError::Locked {
                holder: LockHolder::ThisProcess,
                ..
            }
        ),
        "{error}"
    );
}

/// Holds a folder's lock for the test below; as a test of its own it does nothing.
#[test]
fn lock_holder() {
    let Ok(dir) = std::env::var("FINLAKE_STATE_LOCK_DIR") else {
        return;
    };
    let _db = open(Path::new(&dir)).unwrap();
    println!("locked");
    std::io::stdout().flush().unwrap();
    // Until the parent closes its end.
    let _ = std::io::stdin().read(&mut [0]);
}

#[test]
fn another_process_is_named() {
    use std::io::BufRead;
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "lock_holder", "--nocapture"])
        .env("FINLAKE_STATE_LOCK_DIR", dir.path())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|l| l.unwrap().contains("locked")));
    let error = open(dir.path()).err().unwrap();
    drop(child.stdin.take());
    child.wait().unwrap();
    let text = error.to_string();
    assert!(
        text.contains("another process uses this state folder"),
        "{text}"
    );
    assert!(text.contains("a state folder of its own"), "{text}");
    // And once it is gone, the folder is free.
    open(dir.path()).unwrap();
}

#[test]
fn damage_is_told_apart_and_can_be_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path()).unwrap();
    fill(&db, 20_000);
    db.flush().unwrap();
    drop(db);
    let tables = files(dir.path(), ".sst");
    assert!(!tables.is_empty());
    for table in &tables {
        flip(table, 4_000, 2_000);
    }
    let damaged = open(dir.path()).and_then(|db| {
        let task = task(&db);
        task.scan(
            0,
            b"",
            None,
            &mut |_, _| std::ops::ControlFlow::Continue(()),
        )
    });
    let error = damaged.unwrap_err();
    assert!(matches!(error, StateError::Corrupt { .. }), "{error}");
    assert!(error.is_rebuildable());
    assert!(error.to_string().contains("changelog"), "{error}");
    StateDb::destroy(dir.path()).unwrap();
    let db = open(dir.path()).unwrap();
    assert_eq!(task(&db).checkpoint(), None);
    assert!(db.tasks().unwrap().is_empty());
}

#[test]
fn a_missing_table_is_damage_not_silence() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path()).unwrap();
    fill(&db, 1_000);
    db.flush().unwrap();
    drop(db);
    for table in files(dir.path(), ".sst") {
        std::fs::remove_file(table).unwrap();
    }
    let error = open(dir.path()).err().unwrap();
    assert!(matches!(error, StateError::Corrupt { .. }), "{error}");
}

#[test]
fn a_torn_log_costs_whole_commits_only() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path()).unwrap();
    let mut t = task(&db);
    for n in 1..=200i64 {
        t.put(0, b"n", &n.to_be_bytes());
        t.put(0, &n.to_be_bytes(), &[0; 100]);
        let cp = Checkpoint {
            written_at_ms: n,
            ..Checkpoint::default()
        };
        t.commit(&cp).unwrap();
    }
    drop(t);
    drop(db);
    // A machine that crashed: the log's last third never reached the disk.
    let log = files(dir.path(), ".log").pop().unwrap();
    let length = std::fs::metadata(&log).unwrap().len();
    let file = std::fs::OpenOptions::new().write(true).open(&log).unwrap();
    file.set_len(length * 2 / 3).unwrap();
    drop(file);
    let db = open(dir.path()).unwrap();
    let t = task(&db);
    let n = t.checkpoint().unwrap().written_at_ms;
    assert!(n > 50 && n < 200, "{n}");
    assert_eq!(t.get(0, b"n").unwrap().unwrap(), n.to_be_bytes());
    assert!(t.get(0, &n.to_be_bytes()).unwrap().is_some());
    assert!(t.get(0, &(n + 1).to_be_bytes()).unwrap().is_none());
}

#[test]
fn a_newer_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    {
        let raw = rocksdb::DB::open_default(dir.path()).unwrap();
        raw.put([0xFF, 0xFF, 0xFF, 0xFF, 0], [9]).unwrap();
    }
    let error = open(dir.path()).err().unwrap();
    assert!(matches!(error, StateError::Format { found: 9, .. }));
    assert!(
        !error.is_rebuildable(),
        "a newer folder is nobody's to drop"
    );
}

#[test]
fn stores_keep_their_data_when_the_topology_reorders_them() {
    let dir = tempfile::tempdir().unwrap();
    let spec = |names: &[&str]| -> Vec<_> { names.iter().map(|n| StoreSpec::new(*n)).collect() };
    for names in [["a", "b", "c"], ["c", "a", "b"]] {
        let db = open(dir.path()).unwrap();
        let mut t = db.task(1, &spec(&names)).unwrap();
        for (s, name) in names.iter().enumerate() {
            let found = t.get(s, b"name").unwrap();
            assert!(found.is_none() || found.as_deref() == Some(name.as_bytes()));
            t.put(s, b"name", name.as_bytes());
        }
        t.commit(&Checkpoint::default()).unwrap();
    }
    let db = open(dir.path()).unwrap();
    let t = db.task(1, &spec(&["new", "b"])).unwrap();
    assert_eq!(t.get(0, b"name").unwrap(), None);
    assert_eq!(t.get(1, b"name").unwrap().as_deref(), Some(&b"b"[..]));
    assert_eq!(db.tasks().unwrap().len(), 1);
    let twice = db.task(2, &spec(&["x", "x"])).err().unwrap();
    assert!(matches!(twice, StateError::DuplicateStore { .. }));
}

#[test]
fn a_task_is_open_once() {
    let db = StateDb::memory();
    let first = task(&db);
    let error = db.task(0, &[StoreSpec::new("s")]).err().unwrap();
    assert!(matches!(error, StateError::TaskInUse { task: 0 }));
    drop(first);
    task(&db);
    assert!(db.task(u32::MAX, &[]).is_err());
}

#[test]
fn synced_commits_and_the_budget_hold() {
    let dir = tempfile::tempdir().unwrap();
    let db = StateDb::open_with(dir.path(), Budget::default(), Durability::PowerLoss).unwrap();
    let mut t = task(&db);
    let mut most = 0;
    // Some 50 MB through buffers of 16. A commit is one batch and goes into one buffer whole, so
    // the budget holds up to the size of a commit.
    for n in 0..200u32 {
        for key in 0..2_000u32 {
            let key = (n << 16 | key).wrapping_mul(2_654_435_761).to_be_bytes();
            t.put(0, &key, &key.repeat(30));
        }
        t.commit(&Checkpoint::default()).unwrap();
        most = most.max(db.usage().write_buffers);
    }
    drop(t);
    assert!(most > 4 << 20, "{most}");
    assert!(most <= 18 << 20, "{most}");
    let usage = db.usage();
    assert!(usage.block_cache <= 17 << 20, "{usage:?}");
    db.flush().unwrap();
    assert!(task(&db).size_estimate() > 0);
    assert!(db.usage().on_disk > 0);
}

/// Needs a file system that can be filled: a small tmpfs, which only root may mount.
#[test]
fn a_full_disk_is_named_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=48m", "tmpfs"])
        .arg(dir.path())
        .output();
    if !mount.is_ok_and(|m| m.status.success()) {
        eprintln!("SKIPPED a_full_disk_is_named_and_loses_nothing: cannot mount a tmpfs here");
        return;
    }
    struct Unmount<'a>(&'a Path);
    impl Drop for Unmount<'_> {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("-l").arg(self.0).status();
        }
    }
    let _unmount = Unmount(dir.path());
    let path = dir.path().join("state");
    // RocksDB reserves space ahead for its logs, so the disk is larger than the data.
    let ballast = dir.path().join("ballast");
    let db = open(&path).unwrap();
    std::fs::write(&ballast, vec![1; 16 << 20]).unwrap();
    let mut t = task(&db);
    let mut n = 0i64;
    let error = loop {
        n += 1;
        for key in 0..1_000u32 {
            // Does not compress.
            let mut x = (n as u64) << 32 | u64::from(key) | 1;
            let noise: Vec<u8> = (0..25)
                .flat_map(|_| {
                    x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (x ^ (x >> 29)).to_be_bytes()
                })
                .collect();
            t.put(
                0,
                &[n.to_be_bytes(), i64::from(key).to_be_bytes()].concat(),
                &noise,
            );
        }
        t.put(0, b"n", &n.to_be_bytes());
        let cp = Checkpoint {
            written_at_ms: n,
            ..Checkpoint::default()
        };
        if let Err(error) = t.commit(&cp) {
            break error;
        }
        assert!(n < 1_000, "the disk never filled");
    };
    assert!(matches!(error, StateError::DiskFull { .. }), "{error}");
    assert_eq!(t.checkpoint().unwrap().written_at_ms, n - 1);
    drop(t);
    drop(db);
    std::fs::remove_file(ballast).unwrap();
    let db = open(&path).unwrap();
    let t = task(&db);
    assert_eq!(t.checkpoint().unwrap().written_at_ms, n - 1);
    assert_eq!(t.get(0, b"n").unwrap().unwrap(), (n - 1).to_be_bytes());
    let last = |n: i64| t.get(0, &[n.to_be_bytes(), 999i64.to_be_bytes()].concat());
    assert!(last(n - 1).unwrap().is_some());
    assert!(last(n).unwrap().is_none());
}
