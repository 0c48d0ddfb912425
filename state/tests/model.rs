//! Random operations on both backends against a plain map (INV-10: what is below the overlay is
//! what was committed, and its checkpoint says exactly how much that is).

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use finlake_state::{Budget, Checkpoint, StateDb, StoreSpec, TaskState};
use proptest::prelude::*;

type Map = BTreeMap<(usize, Vec<u8>), Vec<u8>>;

const STORES: usize = 3;

#[derive(Debug, Clone)]
enum Op {
    Put(usize, Vec<u8>, Vec<u8>),
    Delete(usize, Vec<u8>),
    Get(usize, Vec<u8>),
    Scan(usize, Vec<u8>, Option<Vec<u8>>, usize),
    Commit,
    Discard,
    Restore(Vec<(usize, Vec<u8>, Option<Vec<u8>>)>),
    Wipe,
    Flush,
    /// Close everything in order, open again.
    Reopen,
    /// The files as a kill leaves them: copied away while the store is open, then opened.
    Kill,
}

// Few and short keys, so that operations meet; empty keys and values, 0x00 and 0xFF among them.
fn key() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![Just(0u8), Just(1), Just(b'a'), Just(0xFE), Just(0xFF)];
    let short = proptest::collection::vec(byte, 0..3);
    // Longer than the stack buffer for whole keys.
    prop_oneof![9 => short, 1 => Just(vec![b'L'; 200])]
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..12)
}

fn op() -> impl Strategy<Value = Op> {
    let store = 0..STORES;
    let restored = (0..STORES, key(), proptest::option::of(value()));
    prop_oneof![
        12 => (store.clone(), key(), value()).prop_map(|(s, k, v)| Op::Put(s, k, v)),
        5 => (store.clone(), key()).prop_map(|(s, k)| Op::Delete(s, k)),
        4 => (store.clone(), key()).prop_map(|(s, k)| Op::Get(s, k)),
        4 => (store, key(), proptest::option::of(key()), 0usize..8)
            .prop_map(|(s, from, to, stop)| Op::Scan(s, from, to, stop)),
        4 => Just(Op::Commit),
        2 => Just(Op::Discard),
        1 => proptest::collection::vec(restored, 0..6).prop_map(Op::Restore),
        1 => Just(Op::Wipe),
        1 => Just(Op::Flush),
        1 => Just(Op::Reopen),
        1 => Just(Op::Kill),
    ]
}

/// A backend that can be closed and killed.
trait Host {
    fn db(&self) -> &StateDb;
    fn reopen(&mut self);
    fn kill(&mut self);
}

struct Memory(StateDb);

impl Host for Memory {
    fn db(&self) -> &StateDb {
        &self.0
    }
    fn reopen(&mut self) {}
    fn kill(&mut self) {}
}

struct Rocks {
    root: tempfile::TempDir,
    generation: u32,
    db: Option<StateDb>,
}

impl Rocks {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let mut host = Self {
            root,
            generation: 0,
            db: None,
        };
        host.open();
        host
    }

    fn path(&self) -> PathBuf {
        self.root.path().join(self.generation.to_string())
    }

    fn open(&mut self) {
        self.db = Some(StateDb::open(self.path(), Budget::default()).unwrap());
    }
}

impl Host for Rocks {
    fn db(&self) -> &StateDb {
        self.db.as_ref().unwrap()
    }
    fn reopen(&mut self) {
        self.db = None;
        self.open();
    }
    fn kill(&mut self) {
        let from = self.path();
        self.generation += 1;
        copy_files(&from, &self.path());
        self.open();
    }
}

/// Copies the files of an open store as they stand at one moment, which is what a kill leaves: taken
/// again when RocksDB's background work changed the folder meanwhile.
fn copy_files(from: &Path, to: &Path) {
    for _ in 0..1_000 {
        let before = listing(from);
        std::fs::create_dir(to).unwrap();
        let copied = before
            .iter()
            .all(|(name, ..)| std::fs::copy(from.join(name), to.join(name)).is_ok());
        if copied && listing(from) == before {
            return;
        }
        std::fs::remove_dir_all(to).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    panic!("{} never stood still", from.display());
}

fn listing(dir: &Path) -> Vec<(std::ffi::OsString, u64, Option<std::time::SystemTime>)> {
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap());
    let mut files: Vec<_> = entries
        .map(|entry| {
            // A file may have gone since it was listed.
            let data = entry.metadata().ok();
            let length = data.as_ref().map_or(0, std::fs::Metadata::len);
            let changed = data.and_then(|d| d.modified().ok());
            (entry.file_name(), length, changed)
        })
        .collect();
    files.sort();
    files
}

fn specs() -> Vec<StoreSpec> {
    ["bars", "seen", "metrics"].map(StoreSpec::new).to_vec()
}

fn checkpoint(n: i64) -> Checkpoint {
    Checkpoint {
        changelog: vec![("bars".into(), n)],
        written_at_ms: n,
        ..Checkpoint::default()
    }
}

fn scan(task: &TaskState, s: usize, from: &[u8], to: Option<&[u8]>, stop: usize) -> Vec<Pair> {
    let mut seen = Vec::new();
    task.scan(s, from, to, &mut |key, value| {
        seen.push((key.to_vec(), value.to_vec()));
        // A visitor may read the task it is visiting.
        assert_eq!(task.get(s, key).unwrap().as_deref(), Some(value));
        if seen.len() == stop {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })
    .unwrap();
    seen
}

type Pair = (Vec<u8>, Vec<u8>);

fn model_scan(map: &Map, s: usize, from: &[u8], to: Option<&[u8]>, stop: usize) -> Vec<Pair> {
    map.iter()
        .filter(|((store, key), _)| {
            *store == s && key.as_slice() >= from && to.is_none_or(|to| key.as_slice() < to)
        })
        .map(|((_, key), value)| (key.clone(), value.clone()))
        .take(if stop == 0 { usize::MAX } else { stop })
        .collect()
}

fn run(host: &mut dyn Host, ops: &[Op]) {
    const TASK: u32 = 7;
    let mut committed = Map::new();
    let mut current = Map::new();
    let mut dirty: BTreeMap<(usize, Vec<u8>), Option<Vec<u8>>> = BTreeMap::new();
    let mut commits = 0i64;
    let mut wiped = true;
    // Neighbours on both sides must never change.
    for neighbour in [TASK - 1, TASK + 1] {
        let mut task = host.db().task(neighbour, &specs()).unwrap();
        for s in 0..STORES {
            task.put(s, b"", b"mine");
            task.put(s, &[0xFF; 3], b"mine");
        }
        task.commit(&checkpoint(-1)).unwrap();
    }
    let mut task = Some(host.db().task(TASK, &specs()).unwrap());
    for op in ops {
        let t = task.as_mut().unwrap();
        match op {
            Op::Put(s, k, v) => {
                t.put(*s, k, v);
                current.insert((*s, k.clone()), v.clone());
                dirty.insert((*s, k.clone()), Some(v.clone()));
            }
            Op::Delete(s, k) => {
                t.delete(*s, k);
                current.remove(&(*s, k.clone()));
                dirty.insert((*s, k.clone()), None);
            }
            Op::Get(s, k) => {
                let want = current.get(&(*s, k.clone()));
                assert_eq!(t.get(*s, k).unwrap().as_ref(), want);
                let mut out = b"old".to_vec();
                assert_eq!(t.get_into(*s, k, &mut out).unwrap(), want.is_some());
                assert_eq!(&out, want.unwrap_or(&Vec::new()));
            }
            Op::Scan(s, from, to, stop) => {
                let got = scan(t, *s, from, to.as_deref(), *stop);
                assert_eq!(got, model_scan(&current, *s, from, to.as_deref(), *stop));
            }
            Op::Commit => {
                commits += 1;
                t.commit(&checkpoint(commits)).unwrap();
                committed.clone_from(&current);
                dirty.clear();
                wiped = false;
            }
            Op::Discard => {
                t.discard();
                current.clone_from(&committed);
                dirty.clear();
            }
            Op::Restore(records) => {
                if !dirty.is_empty() {
                    assert!(t.restore(0, b"k", None).is_err());
                    continue;
                }
                for (s, k, v) in records {
                    t.restore(*s, k, v.as_deref()).unwrap();
                    match v {
                        Some(v) => committed.insert((*s, k.clone()), v.clone()),
                        None => committed.remove(&(*s, k.clone())),
                    };
                }
                if !records.is_empty() {
                    assert!(t.commit(&checkpoint(0)).is_err());
                }
                commits += 1;
                t.finish_restore(&checkpoint(commits)).unwrap();
                current.clone_from(&committed);
                wiped = false;
            }
            Op::Wipe => {
                t.wipe().unwrap();
                committed.clear();
                current.clear();
                dirty.clear();
                wiped = true;
            }
            Op::Flush => host.db().flush().unwrap(),
            Op::Reopen | Op::Kill => {
                if matches!(op, Op::Kill) {
                    // The copy is taken while the task is open and dirty.
                    host.kill();
                }
                drop(task.take());
                if matches!(op, Op::Reopen) {
                    host.reopen();
                }
                task = Some(host.db().task(TASK, &specs()).unwrap());
                current.clone_from(&committed);
                dirty.clear();
            }
        }
        let t = task.as_ref().unwrap();
        let got: Vec<_> = t
            .dirty()
            .map(|(s, k, v)| ((s, k.to_vec()), v.map(<[u8]>::to_vec)))
            .collect();
        let want: Vec<_> = dirty.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        assert_eq!(got, want, "dirty, in order of store and key");
        assert_eq!(t.dirty_len(), dirty.len());
        let want = (!wiped).then(|| checkpoint(commits));
        assert_eq!(t.checkpoint(), want.as_ref());
    }
    let t = task.as_ref().unwrap();
    for s in 0..STORES {
        assert_eq!(
            scan(t, s, b"", None, 0),
            model_scan(&current, s, b"", None, 0)
        );
    }
    for neighbour in [TASK - 1, TASK + 1] {
        let t = host.db().task(neighbour, &specs()).unwrap();
        for s in 0..STORES {
            let mine = |k: &[u8]| (k.to_vec(), b"mine".to_vec());
            assert_eq!(scan(&t, s, b"", None, 0), [mine(b""), mine(&[0xFF; 3])]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn memory_equals_the_model(ops in proptest::collection::vec(op(), 1..60)) {
        run(&mut Memory(StateDb::memory()), &ops);
    }
}

proptest! {
    // Each case opens RocksDB a few times, some 10 ms each.
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn rocks_equals_the_model(ops in proptest::collection::vec(op(), 1..60)) {
        run(&mut Rocks::new(), &ops);
    }
}
