//! Processes over the mock: start, turn, crash, check what remains.

use std::collections::BTreeMap;

use finlake_topology::faults::Faults;
use finlake_topology::state::StateDb;
use finlake_topology::thread::{Control, Hooks, StreamThread, ThreadConfig};
use finlake_topology::{Error, SchemaGate};

use super::mock::{CRASH, Kafka, MockBroker};
use super::toy::{self, APP, LedgerLine, SINKS, SOURCES, Toy};

/// One process: an id, a state folder that outlives crashes, a thread if up.
pub struct Process {
    pub kafka: Kafka,
    pub id: String,
    pub db: StateDb,
    pub thread: Option<StreamThread<Toy, MockBroker>>,
    pub control: Control,
    pub faults: Faults,
    /// Taken by the next start.
    pub gate: Option<Box<dyn SchemaGate>>,
}

pub fn config() -> ThreadConfig {
    ThreadConfig::new(APP)
}

impl Process {
    pub fn new(kafka: &Kafka, id: &str) -> Self {
        Self {
            kafka: kafka.clone(),
            id: id.into(),
            db: StateDb::memory(),
            thread: None,
            control: Control::default(),
            faults: Faults::default(),
            gate: None,
        }
    }

    /// Start, or start again after a crash.
    pub fn up(&mut self) -> Result<(), Error> {
        if self.thread.is_some() {
            return Ok(());
        }
        let broker = self.kafka.rejoin(&self.id);
        let hooks = Hooks {
            clock: Box::new(self.kafka.clock()),
            gate: self.gate.take(),
            ..Hooks::default()
        };
        let t = toy::topology();
        let mut config = config();
        config.task.faults = self.faults;
        let mut thread = StreamThread::new(&t, broker, self.db.clone(), config, hooks);
        thread.start()?;
        self.thread = Some(thread);
        Ok(())
    }

    /// One turn; a simulated crash takes the process down.
    pub fn turn(&mut self) -> Result<bool, Error> {
        let Some(thread) = &mut self.thread else {
            return Ok(false);
        };
        let turned = thread.turn_or_recover(&self.control);
        match turned {
            Err(Error::Fatal(why)) if why.contains(CRASH) => {
                self.crash();
                Ok(false)
            }
            other => other,
        }
    }

    pub fn turns(&mut self, n: usize) {
        for _ in 0..n {
            self.turn().unwrap();
        }
    }

    /// Turn until `done` or too often.
    pub fn until(&mut self, what: &str, done: impl Fn(&Kafka, &Self) -> bool) {
        for _ in 0..5_000 {
            if done(&self.kafka, self) {
                return;
            }
            self.turn().unwrap();
        }
        panic!("{}: {what} never happened", self.id);
    }

    pub fn crash(&mut self) {
        self.thread = None;
        self.kafka.died(&self.id);
    }

    /// The state folder is lost as well.
    pub fn lose_disk(&mut self) {
        self.crash();
        self.db = StateDb::memory();
    }

    pub fn running(&self) -> Vec<i32> {
        let thread = self.thread.as_ref();
        thread.map_or(Vec::new(), |t| t.running().map(|(p, _)| p).collect())
    }
}

/// A record as read: offset, key, value.
pub type Entry = (i64, Vec<u8>, Option<Vec<u8>>);

/// Topics of the toy as a read_committed consumer sees them, without prefix.
pub trait Logs {
    fn read(&self, topic: &str, partition: i32) -> Vec<Entry>;
    fn prefix(&self) -> String;
}

impl Logs for Kafka {
    fn read(&self, topic: &str, partition: i32) -> Vec<Entry> {
        Kafka::read(self, topic, partition)
    }
    fn prefix(&self) -> String {
        String::new()
    }
}

/// Fold of a partition's input: sums per key, and the poison.
pub fn expected(kafka: &dyn Logs, partition: i32) -> (BTreeMap<Vec<u8>, i64>, Vec<String>, usize) {
    let (mut sums, mut echoes, mut poison) = (BTreeMap::new(), Vec::new(), 0);
    for topic in SOURCES {
        for (offset, key, value) in kafka.read(topic, partition) {
            let value = value.unwrap_or_default();
            match std::str::from_utf8(&value).unwrap().parse::<i64>() {
                Ok(n) => {
                    *sums.entry(key).or_insert(0) += n;
                    echoes.push(format!("{}{topic}@{offset}", kafka.prefix()));
                }
                Err(_) => poison += 1,
            }
        }
    }
    echoes.sort();
    (sums, echoes, poison)
}

/// Everything that exactly-once promises about one partition that is drained.
pub fn check_partition(kafka: &dyn Logs, partition: i32) {
    let (sums, echoes, poison) = expected(kafka, partition);
    // Every record exactly once.
    let echo = kafka.read("echo", partition).into_iter();
    let mut echo: Vec<String> = echo
        .map(|(_, k, _)| String::from_utf8(k).unwrap())
        .collect();
    echo.sort();
    assert_eq!(echo, echoes, "echo/{partition}");
    assert_eq!(kafka.read(SINKS[0], partition).len(), poison);
    // The last version of each sum, in the output and in the changelog.
    for topic in ["counts", "sums-changelog"] {
        let mut last = BTreeMap::new();
        for (_, key, value) in kafka.read(topic, partition) {
            last.insert(key, toy::number(&value.unwrap()));
        }
        assert_eq!(last, sums, "{topic}/{partition}");
    }
    // INV-12, and system time moves on.
    let lines = kafka.read("ledger", partition).into_iter();
    let lines: Vec<LedgerLine> = lines
        .map(|(_, _, v)| LedgerLine::parse(&v.unwrap()))
        .collect();
    let mut ends = vec![0; SOURCES.len()];
    let mut before = i64::MIN;
    for (n, line) in lines.iter().enumerate() {
        assert_eq!(line.commit, n as i64 + 1, "INV-12: commit numbers");
        assert!(line.system_time > before);
        before = line.system_time;
        for (end, [from, to, ..]) in ends.iter_mut().zip(&line.inputs) {
            assert_eq!(*from, *end, "INV-12: positions");
            *end = *to;
        }
    }
    assert_eq!(
        finlake_topology::inv::violations(),
        [],
        "no invariant broke"
    );
    let read: i64 = lines.iter().flat_map(|l| &l.inputs).map(|i| i[2]).sum();
    assert_eq!(read as usize, echoes.len() + poison, "INV-11");
}

/// The running task's store equals the fold of the input (INV-10 and more).
pub fn check_store(process: &Process, partition: i32) {
    let (sums, ..) = expected(&process.kafka, partition);
    let thread = process.thread.as_ref().unwrap();
    let (_, task) = thread.running().find(|(p, _)| *p == partition).unwrap();
    let mut stored = BTreeMap::new();
    task.state()
        .scan(1, &[], None, &mut |k, v| {
            stored.insert(k.to_vec(), toy::number(v));
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(stored, sums, "store of task {partition}");
    for (topic, at) in SOURCES.iter().enumerate() {
        let position = task.positions().nth(topic).unwrap();
        assert_eq!(position, process.kafka.end(at, partition));
        assert_eq!(
            process.kafka.committed_offset(at, partition),
            Some(position)
        );
    }
}
