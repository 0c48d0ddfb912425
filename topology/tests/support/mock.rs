//! A Kafka in memory: logs with transactions and markers, a group whose
//! rebalances the test commands, and faults at every step of a commit. It
//! panics where a client breaks the protocol.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use finlake_topology::broker::{Bounds, Clock, ClusterFacts, TopicFacts};
use finlake_topology::output::Output;
use finlake_topology::state::StoreId;
use finlake_topology::{Broker, Error, Event, PollLimits, RecordBatch, TopicIdx};

use super::toy;

/// What a log holds at an offset.
#[derive(Debug, Clone)]
enum Entry {
    Data {
        key: Option<Vec<u8>>,
        value: Option<Vec<u8>>,
        /// `None`: not transactional.
        txn: Option<u64>,
    },
    Marker,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Open,
    Committed,
    Aborted,
}

#[derive(Debug, Default)]
struct Txn {
    offsets: BTreeMap<(String, i32), i64>,
    touched: BTreeSet<(String, i32)>,
}

/// What goes wrong at the next call of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A record is not acknowledged.
    NotDelivered,
    /// The generation is stale.
    StaleGeneration,
    /// EndTxn times out and was applied.
    UnknownCommitted,
    /// The outcome is unknown, and the commit reaches the offsets at once, but
    /// the logs only later: their markers are still on the way.
    LateMarkers,
    /// EndTxn times out and was not applied.
    UnknownOpen,
    /// The broker has aborted on a timeout: the producer is fenced.
    TimedOutByBroker,
    /// The process dies before the call.
    CrashBefore,
    /// The process dies after the call took effect.
    CrashAfter,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    Begin,
    Send,
    Flush,
    Offsets,
    Commit,
    Abort,
    Renew,
    Committed,
    Restore,
}

#[derive(Debug, Default)]
struct Member {
    owned: BTreeSet<i32>,
    events: VecDeque<Event>,
    /// Was thrown out and has not noticed.
    lost: bool,
    /// A process with the same id has taken its place.
    replaced: bool,
    joined: bool,
}

/// When, which transaction, in which partitions.
type Late = (i64, u64, BTreeSet<(String, i32)>);

pub struct Cluster {
    pub partitions: i32,
    pub id: String,
    logs: BTreeMap<(String, i32), Vec<Entry>>,
    outcomes: BTreeMap<u64, Outcome>,
    txns: BTreeMap<u64, Txn>,
    next_txn: u64,
    /// transactional id → (epoch, open transaction)
    producers: BTreeMap<String, (u32, Option<u64>)>,
    committed: BTreeMap<(String, i32), i64>,
    members: BTreeMap<String, Member>,
    /// Committed transactions whose markers are due at an instant.
    late: Vec<Late>,
    /// Waits for a release: partition → member that gets it.
    moving: BTreeMap<i32, String>,
    pub faults: BTreeMap<(String, Op), VecDeque<Fault>>,
    pub now: i64,
    pub topic_ids: BTreeMap<String, u8>,
    /// Log starts, where not 0.
    pub starts: BTreeMap<(String, i32), i64>,
}

#[derive(Clone)]
pub struct Kafka(Arc<Mutex<Cluster>>);

impl Kafka {
    pub fn new(partitions: i32) -> Self {
        Self(Arc::new(Mutex::new(Cluster {
            partitions,
            id: "cluster-1".into(),
            logs: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            txns: BTreeMap::new(),
            next_txn: 1,
            producers: BTreeMap::new(),
            committed: BTreeMap::new(),
            members: BTreeMap::new(),
            late: Vec::new(),
            moving: BTreeMap::new(),
            faults: BTreeMap::new(),
            now: 1_767_225_600_000_000,
            topic_ids: BTreeMap::new(),
            starts: BTreeMap::new(),
        })))
    }

    pub fn lock(&self) -> MutexGuard<'_, Cluster> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub fn broker(&self, id: &str) -> MockBroker {
        self.lock().members.insert(id.into(), Member::default());
        MockBroker {
            kafka: self.clone(),
            id: id.into(),
            epoch: 0,
            reading: BTreeMap::new(),
            restoring: BTreeMap::new(),
            sent: 0,
            delivered: BTreeMap::new(),
            flushed: true,
            dead: false.into(),
        }
    }

    pub fn clock(&self) -> MockClock {
        MockClock(self.clone())
    }

    /// A record outside of any transaction.
    pub fn produce(&self, topic: &str, partition: i32, key: &str, value: &str) -> i64 {
        let data = Entry::Data {
            key: Some(key.into()),
            value: Some(value.into()),
            txn: None,
        };
        self.lock().append(topic, partition, data)
    }

    /// An input producer's marker: an offset without a record.
    pub fn marker(&self, topic: &str, partition: i32) {
        self.lock().append(topic, partition, Entry::Marker);
    }

    pub fn advance(&self, us: i64) {
        self.lock().now += us;
    }

    pub fn fail(&self, id: &str, op: Op, fault: Fault) {
        let mut c = self.lock();
        c.faults
            .entry((id.into(), op))
            .or_default()
            .push_back(fault);
    }

    /// Command the group: `partition` goes to `to`, after its owner released it.
    pub fn move_to(&self, partition: i32, to: &str) {
        let mut c = self.lock();
        let owner = c
            .members
            .iter()
            .find(|(_, m)| m.owned.contains(&partition))
            .map(|(id, _)| id.clone());
        match owner {
            Some(owner) if owner == to => {}
            Some(owner) => {
                if c.moving.insert(partition, to.into()).is_none() {
                    let m = c.members.get_mut(&owner).unwrap();
                    m.events.push_back(Event::Revoked(vec![partition]));
                }
            }
            None => c.give(partition, to),
        }
    }

    /// The session of `id` ends: its partitions go to `to` at once.
    pub fn lose(&self, id: &str, to: &str) {
        let mut c = self.lock();
        let m = c.members.get_mut(id).unwrap();
        let owned: Vec<i32> = std::mem::take(&mut m.owned).into_iter().collect();
        // One that has not noticed its first loss yet notices both at once.
        let first = match m.events.pop_front() {
            Some(Event::Lost(first)) if m.lost => first,
            _ => Vec::new(),
        };
        m.lost = true;
        m.events.clear();
        let all = owned.iter().chain(&first).copied();
        m.events.push_back(Event::Lost(all.collect()));
        for p in owned {
            c.moving.remove(&p);
            c.give(p, to);
        }
    }

    /// Another process joins under the id of this one.
    pub fn replace(&self, id: &str) {
        let mut c = self.lock();
        c.members.get_mut(id).unwrap().replaced = true;
        c.fence(id);
    }

    /// The process is gone; its partitions stay with its id (static member).
    pub fn died(&self, id: &str) {
        let mut c = self.lock();
        if let Some(m) = c.members.get_mut(id) {
            m.events.clear();
        }
    }

    /// Partitions of `id`, to be handed to its successor process.
    pub fn owned(&self, id: &str) -> Vec<i32> {
        let c = self.lock();
        let m = c.members.get(id);
        m.map_or(Vec::new(), |m| m.owned.iter().copied().collect())
    }

    /// The successor of `id` joins: it gets what its id owned, and what was
    /// moving away from it.
    pub fn rejoin(&self, id: &str) -> MockBroker {
        let owned = self.owned(id);
        let broker = self.broker(id);
        let mut c = self.lock();
        for p in owned {
            let to = c.moving.remove(&p).unwrap_or(id.into());
            c.give(p, &to);
        }
        drop(c);
        broker
    }

    /// Transactions that stay open too long are aborted by the broker.
    pub fn expire_transactions(&self) {
        let mut c = self.lock();
        let ids: Vec<String> = c
            .producers
            .iter()
            .filter(|(_, (_, open))| open.is_some())
            .map(|(id, _)| id.clone())
            .collect();
        for id in ids {
            c.fence(&id);
        }
    }

    /// What a read_committed consumer reads: offset, key, value.
    pub fn read(&self, topic: &str, partition: i32) -> Vec<(i64, Vec<u8>, Option<Vec<u8>>)> {
        let topic = match topic {
            "sums-changelog" => "toy-sums-changelog",
            topic => topic,
        };
        let c = self.lock();
        let log = c.logs.get(&(topic.to_owned(), partition));
        let all = log.map_or(Vec::new(), |log| log.iter().enumerate().collect());
        all.into_iter()
            .filter_map(|(at, e)| match e {
                Entry::Data { key, value, txn } if c.visible(*txn) => {
                    Some((at as i64, key.clone().unwrap_or_default(), value.clone()))
                }
                _ => None,
            })
            .collect()
    }

    pub fn committed_offset(&self, topic: &str, partition: i32) -> Option<i64> {
        let c = self.lock();
        c.committed.get(&(topic.to_owned(), partition)).copied()
    }

    pub fn set_committed(&self, topic: &str, partition: i32, at: i64) {
        let mut c = self.lock();
        c.committed.insert((topic.to_owned(), partition), at);
    }

    pub fn end(&self, topic: &str, partition: i32) -> i64 {
        self.lock().end(topic, partition)
    }
}

impl Cluster {
    fn append(&mut self, topic: &str, partition: i32, entry: Entry) -> i64 {
        let log = self.logs.entry((topic.to_owned(), partition)).or_default();
        log.push(entry);
        log.len() as i64 - 1
    }

    fn end(&self, topic: &str, partition: i32) -> i64 {
        let log = self.logs.get(&(topic.to_owned(), partition));
        log.map_or(0, |l| l.len() as i64)
    }

    fn visible(&self, txn: Option<u64>) -> bool {
        txn.is_none_or(|t| self.outcomes[&t] == Outcome::Committed)
    }

    /// First offset of the first open transaction, else the end.
    fn stable_end(&self, topic: &str, partition: i32) -> i64 {
        let key = (topic.to_owned(), partition);
        let Some(log) = self.logs.get(&key) else {
            return 0;
        };
        let open = log.iter().position(|e| match e {
            Entry::Data { txn: Some(t), .. } => self.outcomes[t] == Outcome::Open,
            _ => false,
        });
        open.unwrap_or(log.len()) as i64
    }

    fn give(&mut self, partition: i32, to: &str) {
        let m = self.members.get_mut(to).unwrap();
        m.owned.insert(partition);
        m.events.push_back(Event::Assigned(vec![partition]));
    }

    fn end_txn(&mut self, txn: u64, outcome: Outcome) {
        self.outcomes.insert(txn, outcome);
        let t = self.txns.remove(&txn).unwrap();
        if outcome == Outcome::Committed {
            self.committed.extend(t.offsets);
        }
        for (topic, partition) in t.touched {
            self.append(&topic, partition, Entry::Marker);
        }
    }

    /// Commit for the group, not yet for the logs.
    fn commit_late(&mut self, txn: u64) {
        let t = self.txns.remove(&txn).unwrap();
        self.committed.extend(t.offsets);
        self.late.push((self.now + 700_000, txn, t.touched));
    }

    /// Write the markers that are due.
    fn settle(&mut self) {
        let now = self.now;
        for (_, txn, touched) in self.late.extract_if(.., |l| l.0 <= now).collect::<Vec<_>>() {
            self.outcomes.insert(txn, Outcome::Committed);
            for (topic, partition) in touched {
                self.append(&topic, partition, Entry::Marker);
            }
        }
    }

    /// Bump the epoch of a transactional id and abort what it had open.
    fn fence(&mut self, id: &str) -> u32 {
        let (epoch, open) = self.producers.entry(id.to_owned()).or_default();
        *epoch += 1;
        let (epoch, open) = (*epoch, open.take());
        if let Some(txn) = open {
            self.end_txn(txn, Outcome::Aborted);
        }
        epoch
    }
}

pub struct MockClock(Kafka);

impl Clock for MockClock {
    fn now_us(&mut self) -> i64 {
        self.0.lock().now
    }
}

pub struct MockBroker {
    kafka: Kafka,
    pub id: String,
    epoch: u32,
    /// partition → (next offset, paused) per input
    reading: BTreeMap<i32, Vec<(i64, bool, bool)>>,
    /// (partition, store) → (next offset, consumed)
    restoring: BTreeMap<(i32, StoreId), (i64, bool)>,
    sent: u64,
    delivered: BTreeMap<(i32, StoreId), i64>,
    flushed: bool,
    /// The process has crashed: nothing it calls has an effect any more.
    dead: std::cell::Cell<bool>,
}

/// The message of a simulated crash; the harness restarts the process.
pub const CRASH: &str = "crash";

impl MockBroker {
    fn crash(&self) -> Error {
        self.dead.set(true);
        Error::Fatal(CRASH.into())
    }

    fn changelog(store: StoreId) -> String {
        let names = toy::topology();
        names.changelogs(toy::APP)[store].clone()
    }

    fn fault(&self, op: Op) -> Option<Fault> {
        let mut c = self.kafka.lock();
        let queue = c.faults.get_mut(&(self.id.clone(), op))?;
        queue.pop_front()
    }

    /// Checks epoch; the open transaction.
    fn open(&self) -> Result<u64, Error> {
        let c = self.kafka.lock();
        let (epoch, open) = c.producers.get(&self.id).copied().unwrap_or_default();
        if epoch != self.epoch {
            return Err(Error::Fenced("producer fenced".into()));
        }
        Ok(open.expect("a transaction is open"))
    }

    fn append(
        &mut self,
        topic: &str,
        partition: i32,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
    ) -> Result<i64, Error> {
        match self.fault(Op::Send) {
            Some(Fault::CrashBefore | Fault::CrashAfter) => return Err(self.crash()),
            Some(Fault::TimedOutByBroker) => {
                self.kafka.lock().fence(&self.id);
            }
            _ => {}
        }
        let txn = self.open()?;
        let mut c = self.kafka.lock();
        let t = c.txns.get_mut(&txn).unwrap();
        t.touched.insert((topic.to_owned(), partition));
        self.flushed = false;
        self.sent += 1;
        let entry = Entry::Data {
            key: key.map(<[u8]>::to_vec),
            value: value.map(<[u8]>::to_vec),
            txn: Some(txn),
        };
        Ok(c.append(topic, partition, entry))
    }
}

impl Broker for MockBroker {
    fn facts(&mut self) -> Result<ClusterFacts, Error> {
        let c = self.kafka.lock();
        let t = toy::topology();
        let names = t.inputs().iter().map(|t| t.to_string());
        let names = names.chain(t.outputs().map(|(t, _)| t.to_owned()));
        let names = names.chain(t.changelogs(toy::APP));
        Ok(ClusterFacts {
            cluster_id: c.id.clone(),
            topics: names
                .map(|name| TopicFacts {
                    id: [c.topic_ids.get(&name).copied().unwrap_or(1); 16],
                    name,
                    partitions: c.partitions,
                })
                .collect(),
        })
    }

    fn renew_producer(&mut self) -> Result<(), Error> {
        match self.fault(Op::Renew) {
            Some(Fault::CrashBefore | Fault::CrashAfter) => return Err(self.crash()),
            Some(_) => return Err(Error::Retry("no coordinator".into())),
            None => {}
        }
        let mut c = self.kafka.lock();
        if c.members[&self.id].replaced {
            return Err(Error::Fatal("another process bears this id".into()));
        }
        self.epoch = c.fence(&self.id);
        self.flushed = true;
        Ok(())
    }

    fn subscribe(&mut self) -> Result<(), Error> {
        let mut c = self.kafka.lock();
        c.members.get_mut(&self.id).unwrap().joined = true;
        Ok(())
    }

    fn unsubscribe(&mut self) -> Result<(), Error> {
        let mut c = self.kafka.lock();
        let m = c.members.get_mut(&self.id).unwrap();
        let owned = m.owned.iter().copied().collect();
        m.events.push_back(Event::Revoked(owned));
        Ok(())
    }

    fn poll(
        &mut self,
        batch: &mut RecordBatch,
        limits: PollLimits,
        timeout: Duration,
    ) -> Result<Option<Event>, Error> {
        let mut c = self.kafka.lock();
        c.settle();
        let m = c.members.get_mut(&self.id).unwrap();
        assert!(m.joined, "polled before subscribing");
        if m.replaced {
            return Err(Error::Fatal("another process bears this id".into()));
        }
        for (&partition, inputs) in &mut self.reading {
            for (topic, (next, paused, consumed)) in inputs.iter_mut().enumerate() {
                if *paused {
                    continue;
                }
                let name = toy::SOURCES[topic];
                let end = c.stable_end(name, partition);
                while *next < end && batch.len() < limits.records {
                    let log = &c.logs[&(name.to_owned(), partition)];
                    if let Entry::Data { key, value, .. } = &log[*next as usize] {
                        let idx = TopicIdx(topic as u16);
                        let ms = c.now / 1000;
                        let (k, v) = (key.as_deref(), value.as_deref());
                        assert!(batch.push(idx, partition, *next, ms, k, v));
                    }
                    *next += 1;
                    *consumed = true;
                }
            }
        }
        let event = c.members.get_mut(&self.id).unwrap().events.pop_front();
        if batch.is_empty() && event.is_none() {
            c.now += timeout.as_micros() as i64;
        }
        c.now += 100;
        Ok(event)
    }

    fn accept_assigned(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn start(&mut self, partition: i32, positions: &[i64]) -> Result<(), Error> {
        let c = self.kafka.lock();
        let m = &c.members[&self.id];
        assert!(
            m.owned.contains(&partition) || m.lost,
            "{} started {partition} without owning it",
            self.id
        );
        let inputs = positions.iter().map(|&at| (at, false, false)).collect();
        self.reading.insert(partition, inputs);
        Ok(())
    }

    fn hold(&mut self, partition: i32) -> Result<(), Error> {
        let inputs = self.reading.get_mut(&partition);
        for input in inputs.into_iter().flatten() {
            input.1 = true;
        }
        Ok(())
    }

    fn hold_input(&mut self, topic: TopicIdx, partition: i32) -> Result<(), Error> {
        self.reading.get_mut(&partition).unwrap()[topic.index()].1 = true;
        Ok(())
    }

    fn start_input(&mut self, topic: TopicIdx, partition: i32, at: i64) -> Result<(), Error> {
        self.reading.get_mut(&partition).unwrap()[topic.index()] = (at, false, false);
        Ok(())
    }

    fn release(&mut self, partitions: &[i32]) -> Result<(), Error> {
        let mut c = self.kafka.lock();
        for p in partitions {
            self.reading.remove(p);
            let m = c.members.get_mut(&self.id).unwrap();
            if m.lost {
                continue;
            }
            m.owned.remove(p);
            if let Some(to) = c.moving.remove(p) {
                c.give(*p, &to);
            }
        }
        c.members.get_mut(&self.id).unwrap().lost = false;
        Ok(())
    }

    fn positions(&mut self, partition: i32, out: &mut Vec<Option<i64>>) -> Result<(), Error> {
        out.clear();
        let inputs = self.reading.get(&partition).cloned().unwrap_or_default();
        out.extend(inputs.iter().map(|(at, _, seen)| seen.then_some(*at)));
        out.resize(toy::SOURCES.len(), None);
        Ok(())
    }

    fn input_bounds(&mut self, partition: i32) -> Result<Vec<Bounds>, Error> {
        let c = self.kafka.lock();
        let bounds = toy::SOURCES.iter().map(|t| Bounds {
            low: *c.starts.get(&(t.to_string(), partition)).unwrap_or(&0),
            high: c.end(t, partition),
        });
        Ok(bounds.collect())
    }

    fn committed(&mut self, partition: i32) -> Result<Vec<Option<i64>>, Error> {
        if self.fault(Op::Committed).is_some() {
            return Err(self.crash());
        }
        let c = self.kafka.lock();
        let pending = c
            .txns
            .values()
            .any(|t| t.offsets.keys().any(|(_, p)| *p == partition));
        if pending {
            return Err(Error::Retry("offsets are pending".into()));
        }
        let all = toy::SOURCES
            .iter()
            .map(|t| c.committed.get(&(t.to_string(), partition)).copied());
        Ok(all.collect())
    }

    fn changelog_bounds(&mut self, partition: i32) -> Result<Vec<Bounds>, Error> {
        let c = self.kafka.lock();
        let all = toy::topology().changelogs(toy::APP);
        let bounds = all.iter().map(|t| Bounds {
            low: *c.starts.get(&(t.clone(), partition)).unwrap_or(&0),
            high: c.end(t, partition),
        });
        Ok(bounds.collect())
    }

    fn restore_start(&mut self, partition: i32, from: &[Option<i64>]) -> Result<(), Error> {
        for (store, from) in from.iter().enumerate() {
            if let Some(from) = from {
                self.restoring.insert((partition, store), (*from, false));
            }
        }
        Ok(())
    }

    fn restore_poll(&mut self, batch: &mut RecordBatch, _: Duration) -> Result<(), Error> {
        if self.fault(Op::Restore).is_some() {
            return Err(self.crash());
        }
        let mut c = self.kafka.lock();
        c.now += 1000;
        for (&(partition, store), (next, consumed)) in &mut self.restoring {
            let topic = Self::changelog(store);
            let end = c.stable_end(&topic, partition);
            // A few at a time, so that a restore takes several turns.
            for _ in 0..3 {
                if *next >= end {
                    break;
                }
                let log = &c.logs[&(topic.clone(), partition)];
                if let Entry::Data { key, value, txn } = &log[*next as usize]
                    && c.visible(*txn)
                {
                    let (k, v) = (key.as_deref(), value.as_deref());
                    let idx = TopicIdx(store as u16);
                    assert!(batch.push(idx, partition, *next, 0, k, v));
                }
                *next += 1;
                *consumed = true;
            }
        }
        Ok(())
    }

    fn restore_position(&mut self, partition: i32, store: StoreId) -> Result<Option<i64>, Error> {
        let at = self.restoring.get(&(partition, store));
        Ok(at.and_then(|(at, consumed)| consumed.then_some(*at)))
    }

    fn restore_stop(&mut self, partition: i32) {
        self.restoring.retain(|(p, _), _| *p != partition);
    }

    fn begin(&mut self) -> Result<(), Error> {
        if self.fault(Op::Begin).is_some() {
            return Err(self.crash());
        }
        let mut c = self.kafka.lock();
        let (epoch, open) = c.producers.get(&self.id).copied().unwrap_or_default();
        if epoch != self.epoch {
            return Err(Error::Fenced("producer fenced".into()));
        }
        assert_eq!(open, None, "a transaction is open already");
        let txn = c.next_txn;
        c.next_txn += 1;
        c.outcomes.insert(txn, Outcome::Open);
        c.txns.insert(txn, Txn::default());
        c.producers.insert(self.id.clone(), (epoch, Some(txn)));
        self.delivered.clear();
        self.sent = 0;
        self.flushed = true;
        Ok(())
    }

    fn send_output(&mut self, partition: i32, output: &Output<'_>) -> Result<(), Error> {
        let topic = toy::SINKS[output.sink.index()];
        self.append(topic, partition, output.key, output.value)
            .map(drop)
    }

    fn send_changelog(
        &mut self,
        partition: i32,
        store: StoreId,
        key: &[u8],
        value: Option<&[u8]>,
    ) -> Result<(), Error> {
        let topic = Self::changelog(store);
        let at = self.append(&topic, partition, Some(key), value)?;
        self.delivered.insert((partition, store), at + 1);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        match self.fault(Op::Flush) {
            Some(Fault::CrashBefore | Fault::CrashAfter) => return Err(self.crash()),
            Some(Fault::TimedOutByBroker) => {
                self.kafka.lock().fence(&self.id);
            }
            Some(_) => return Err(Error::Retry("not delivered".into())),
            None => {}
        }
        self.open()?;
        self.flushed = true;
        Ok(())
    }

    fn delivered(&self, partition: i32, store: StoreId) -> Option<i64> {
        self.delivered.get(&(partition, store)).copied()
    }

    fn send_offsets(&mut self, positions: &[(i32, Vec<i64>)]) -> Result<(), Error> {
        assert!(self.flushed, "offsets before the deliveries are known");
        let fault = self.fault(Op::Offsets);
        match fault {
            Some(Fault::CrashBefore) => return Err(self.crash()),
            Some(Fault::StaleGeneration) => {
                return Err(Error::Rejoin("illegal generation".into()));
            }
            _ => {}
        }
        let txn = self.open()?;
        let mut c = self.kafka.lock();
        let m = &c.members[&self.id];
        if m.lost {
            return Err(Error::Rejoin("unknown member".into()));
        }
        for (partition, at) in positions {
            assert!(
                m.owned.contains(partition),
                "{} commits {partition} without owning it",
                self.id
            );
            assert_eq!(at.len(), toy::SOURCES.len(), "positions of all inputs");
        }
        let t = c.txns.get_mut(&txn).unwrap();
        for (partition, at) in positions {
            for (topic, at) in toy::SOURCES.iter().zip(at) {
                t.offsets.insert((topic.to_string(), *partition), *at);
            }
        }
        match fault {
            Some(Fault::CrashAfter) => Err(self.crash()),
            _ => Ok(()),
        }
    }

    fn commit(&mut self) -> Result<(), Error> {
        let fault = self.fault(Op::Commit);
        match fault {
            Some(Fault::CrashBefore) => return Err(self.crash()),
            Some(Fault::UnknownOpen) => return Err(Error::Renew("EndTxn timed out".into())),
            Some(Fault::TimedOutByBroker) => {
                self.kafka.lock().fence(&self.id);
            }
            _ => {}
        }
        let txn = self.open()?;
        let mut c = self.kafka.lock();
        assert!(self.flushed);
        match fault {
            Some(Fault::LateMarkers) => c.commit_late(txn),
            _ => c.end_txn(txn, Outcome::Committed),
        }
        c.producers.insert(self.id.clone(), (self.epoch, None));
        match fault {
            Some(Fault::CrashAfter) => Err(self.crash()),
            Some(Fault::UnknownCommitted | Fault::LateMarkers) => {
                Err(Error::Renew("EndTxn timed out".into()))
            }
            _ => Ok(()),
        }
    }

    fn abort(&mut self) -> Result<(), Error> {
        if self.dead.get() {
            return Err(self.crash());
        }
        match self.fault(Op::Abort) {
            Some(Fault::CrashBefore | Fault::CrashAfter) => return Err(self.crash()),
            Some(_) => return Err(Error::Renew("abort timed out".into())),
            None => {}
        }
        let mut c = self.kafka.lock();
        let (epoch, open) = c.producers.get(&self.id).copied().unwrap_or_default();
        if epoch != self.epoch {
            return Err(Error::Fenced("producer fenced".into()));
        }
        if let Some(txn) = open {
            c.end_txn(txn, Outcome::Aborted);
            c.producers.insert(self.id.clone(), (epoch, None));
        }
        Ok(())
    }
}
