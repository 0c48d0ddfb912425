//! A real client against a broker: devkafka in this process, or the Kafka that
//! `FINLAKE_KAFKA_BOOTSTRAP` names.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use finlake_devkafka::{Config, DevKafka};
use finlake_topology::broker::{Bounds, ClusterFacts};
use finlake_topology::output::Output;
use finlake_topology::state::{StateDb, StoreId};
use finlake_topology::thread::{Control, Hooks, StreamThread, ThreadConfig};
use finlake_topology::{
    Broker, Error, Event, KafkaBroker, KafkaConfig, PollLimits, RecordBatch, TopicIdx,
};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

use super::harness::{Entry, Logs};
use super::toy::{self, Toy};

pub const PARTITIONS: i32 = 4;
/// For a call that is answered at once, on a machine that may stand still for a while.
const CALL: Duration = Duration::from_secs(60);

pub struct Cluster {
    pub dev: Option<DevKafka>,
    bootstrap: String,
    /// Application id and prefix of every topic.
    pub app: String,
    producer: BaseProducer,
    plain: BaseConsumer,
    group: BaseConsumer,
    reader: BaseConsumer,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Cluster {
    /// A cluster with the toy's topics, all its own.
    pub fn new() -> Self {
        let external = std::env::var("FINLAKE_KAFKA_BOOTSTRAP").ok();
        let dev = external.is_none().then(|| {
            DevKafka::start(Config {
                initial_rebalance_delay_ms: 200,
                txn_scan_interval_ms: 500,
                ..Config::default()
            })
            .unwrap()
        });
        let bootstrap = match &dev {
            Some(dev) => dev.bootstrap(),
            None => external.unwrap(),
        };
        let app = format!(
            "t{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &bootstrap)
            .set("linger.ms", "1")
            .set("reconnect.backoff.max.ms", "300");
        let client = |group: &str, isolation: &str| -> BaseConsumer {
            ClientConfig::new()
                .set("bootstrap.servers", &bootstrap)
                .set("reconnect.backoff.max.ms", "300")
                .set("enable.auto.commit", "false")
                .set("group.id", group)
                .set("isolation.level", isolation)
                .set("fetch.wait.max.ms", "10")
                .create()
                .unwrap()
        };
        let this = Self {
            dev,
            producer: config.create().unwrap(),
            plain: client(&format!("{app}-plain"), "read_uncommitted"),
            group: client(&app, "read_uncommitted"),
            reader: client(&format!("{app}-check"), "read_committed"),
            bootstrap,
            app,
        };
        let t = this.topology();
        let names: Vec<String> = t
            .inputs()
            .iter()
            .map(|t| t.to_string())
            .chain(t.outputs().map(|(t, _)| t.to_owned()))
            .chain(t.changelogs(&this.app))
            .collect();
        for name in &names {
            this.create(name, PARTITIONS);
        }
        this
    }

    /// devkafka only: faults can be commanded.
    pub fn faulty() -> Option<Self> {
        if std::env::var("FINLAKE_KAFKA_BOOTSTRAP").is_ok() {
            println!("skipped: faults need devkafka");
            return None;
        }
        Some(Self::new())
    }

    pub fn topology(&self) -> finlake_topology::Topology<Toy> {
        toy::topology_of(&format!("{}-", self.app))
    }

    pub fn create(&self, name: &str, partitions: i32) {
        let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .create()
            .unwrap();
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        let topic = topic.set("min.insync.replicas", "1");
        let created = admin.create_topics([&topic], &AdminOptions::new());
        for result in futures::executor::block_on(created).unwrap() {
            result.unwrap();
        }
    }

    /// Plain records to `topic` (without prefix).
    pub fn produce(&self, topic: &str, partition: i32, key: &str, value: &str) {
        let name = self.name(topic);
        loop {
            let record = BaseRecord::to(&name)
                .partition(partition)
                .key(key)
                .payload(value);
            match self.producer.send(record) {
                Ok(()) => return,
                Err(_) => self.producer.poll(Duration::from_millis(10)),
            }
        }
    }

    pub fn flush(&self) {
        self.producer.flush(Duration::from_secs(20)).unwrap();
    }

    /// `n` records to every partition of both inputs, some of them poison.
    pub fn feed(&self, n: i64) {
        for i in 0..n {
            for p in 0..PARTITIONS {
                let key = format!("k{}", i % 7);
                let value = match i % 50 {
                    49 => "?".to_owned(),
                    _ => i.to_string(),
                };
                self.produce("in", p, &key, &value);
                if i % 10 == 0 {
                    self.produce("aux", p, &key, "1");
                }
            }
        }
        self.flush();
    }

    /// Records in a transaction: they leave a marker. A fault that was meant for the thread may hit
    /// this client, so it gives up a request that is not answered well before its calls end.
    pub fn feed_transaction(&self, abort: bool) {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set("transactional.id", format!("{}-feeder", self.app))
            .set("socket.timeout.ms", "2000")
            .set("reconnect.backoff.max.ms", "300")
            .create()
            .unwrap();
        let timeout = CALL;
        producer.init_transactions(timeout).unwrap();
        producer.begin_transaction().unwrap();
        let name = self.name("in");
        for p in 0..PARTITIONS {
            let record = BaseRecord::to(&name).partition(p).key("t").payload("1");
            producer.send(record).map_err(|(e, _)| e).unwrap();
        }
        producer.flush(timeout).unwrap();
        match abort {
            true => producer.abort_transaction(timeout).unwrap(),
            false => producer.commit_transaction(timeout).unwrap(),
        }
    }

    fn name(&self, topic: &str) -> String {
        format!("{}-{topic}", self.app)
    }

    pub fn config(&self, instance: &str) -> KafkaConfig {
        KafkaConfig {
            transaction_timeout_ms: 3_000,
            session_timeout_ms: 6_000,
            max_poll_interval_ms: 8_000,
            ..KafkaConfig::new(&self.bootstrap, &self.app, instance)
        }
    }

    pub fn broker(&self, instance: &str) -> Result<KafkaBroker, Error> {
        KafkaBroker::new(&self.topology(), self.config(instance))
    }

    /// A thread ready to run.
    pub fn thread(&self, instance: &str, db: &StateDb) -> StreamThread<Toy, Crashing> {
        let broker = Crashing::new(self.broker(instance).unwrap());
        let mut config = ThreadConfig::new(&self.app);
        config.commit_interval_us = 20_000;
        config.fence_wait_us = 1_500_000;
        let t = self.topology();
        StreamThread::new(&t, broker, db.clone(), config, Hooks::default())
    }

    /// Ends of the inputs as the group must have committed them.
    pub fn input_ends(&self) -> BTreeMap<(String, i32), i64> {
        let mut ends = BTreeMap::new();
        let plain = &self.plain;
        for topic in toy::SOURCES {
            for p in 0..PARTITIONS {
                let marks = plain.fetch_watermarks(&self.name(topic), p, CALL);
                ends.insert((self.name(topic), p), marks.unwrap().1);
            }
        }
        ends
    }

    pub fn committed(&self) -> BTreeMap<(String, i32), i64> {
        let mut list = TopicPartitionList::new();
        for topic in toy::SOURCES {
            list.add_partition_range(&self.name(topic), 0, PARTITIONS - 1);
        }
        let all = self.group.committed_offsets(list, CALL);
        let all = all.unwrap();
        let found = all.elements().into_iter().filter_map(|e| {
            let at = e.offset().to_raw().filter(|at| *at >= 0)?;
            Some(((e.topic().to_owned(), e.partition()), at))
        });
        found.collect()
    }

    pub fn caught_up(&self) -> bool {
        self.committed() == self.input_ends()
    }

    pub fn wait_caught_up(&self, within: Duration) {
        let by = Instant::now() + within;
        while !self.caught_up() {
            assert!(
                Instant::now() < by,
                "not caught up: {:?} of {:?}",
                self.committed(),
                self.input_ends()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    pub fn check(&self) {
        for p in 0..PARTITIONS {
            super::harness::check_partition(self, p);
        }
    }
}

impl Logs for Cluster {
    fn read(&self, topic: &str, partition: i32) -> Vec<Entry> {
        let name = self.name(topic);
        let reader = &self.reader;
        let (low, high) = reader.fetch_watermarks(&name, partition, CALL).unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&name, partition, Offset::Offset(low))
            .unwrap();
        reader.fetch_metadata(Some(&name), CALL).unwrap();
        reader.assign(&list).unwrap();
        let mut all = Vec::new();
        let by = Instant::now() + Duration::from_secs(30);
        loop {
            let position = reader.position().unwrap();
            let at = position.find_partition(&name, partition).unwrap().offset();
            let at = at.to_raw().unwrap_or(-1);
            if at >= high || high == low {
                reader.unassign().unwrap();
                return all;
            }
            assert!(
                Instant::now() < by,
                "{name}/{partition} stands at {at} of {high}"
            );
            // Errors are of the connection; the client makes a new one.
            if let Some(Ok(m)) = reader.poll(Duration::from_millis(20)) {
                let key = m.key().unwrap_or_default().to_vec();
                all.push((m.offset(), key, m.payload().map(<[u8]>::to_vec)));
            }
        }
    }

    fn prefix(&self) -> String {
        format!("{}-", self.app)
    }
}

/// Runs a thread in the background.
pub struct Runner {
    pub control: Arc<Control>,
    handle: std::thread::JoinHandle<Result<(), Error>>,
}

impl Runner {
    pub fn start(mut thread: StreamThread<Toy, Crashing>) -> Self {
        let control = Arc::new(Control::default());
        let c = control.clone();
        let handle = std::thread::spawn(move || thread.run(&c));
        Self { control, handle }
    }

    pub fn stop(self) {
        self.control.stop.store(true, Ordering::Relaxed);
        self.handle.join().unwrap().unwrap();
    }

    pub fn leave(self) {
        self.control.leave.store(true, Ordering::Relaxed);
        self.stop();
    }

    /// Wait for its own end.
    pub fn join(self) -> Result<(), Error> {
        self.handle.join().unwrap()
    }

    pub fn ended(&self) -> bool {
        self.handle.is_finished()
    }
}

/// The step after or before which a process dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    AfterSend,
    AfterFlush,
    AfterOffsets,
    BeforeCommit,
    AfterCommit,
    /// Stands still for so many ms before the offsets.
    Pause(u64),
}

/// The real broker, with deaths on command.
pub struct Crashing {
    inner: KafkaBroker,
    pub death: Arc<parking_lot::Mutex<Option<Death>>>,
    dead: bool,
}

pub const KILLED: &str = "killed by the test";

impl Crashing {
    pub fn new(inner: KafkaBroker) -> Self {
        Self {
            inner,
            death: Arc::default(),
            dead: false,
        }
    }

    fn die(&mut self, at: Death) -> Result<(), Error> {
        if *self.death.lock() == Some(at) {
            self.dead = true;
        }
        match self.dead {
            true => Err(Error::Fatal(KILLED.into())),
            false => Ok(()),
        }
    }
}

impl Broker for Crashing {
    fn facts(&mut self) -> Result<ClusterFacts, Error> {
        self.inner.facts()
    }
    fn renew_producer(&mut self) -> Result<(), Error> {
        self.inner.renew_producer()
    }
    fn subscribe(&mut self) -> Result<(), Error> {
        self.inner.subscribe()
    }
    fn unsubscribe(&mut self) -> Result<(), Error> {
        self.inner.unsubscribe()
    }
    fn poll(
        &mut self,
        batch: &mut RecordBatch,
        limits: PollLimits,
        timeout: Duration,
    ) -> Result<Option<Event>, Error> {
        self.inner.poll(batch, limits, timeout)
    }
    fn accept_assigned(&mut self) -> Result<(), Error> {
        self.inner.accept_assigned()
    }
    fn start(&mut self, partition: i32, positions: &[i64]) -> Result<(), Error> {
        self.inner.start(partition, positions)
    }
    fn hold(&mut self, partition: i32) -> Result<(), Error> {
        self.inner.hold(partition)
    }
    fn hold_input(&mut self, topic: TopicIdx, partition: i32) -> Result<(), Error> {
        self.inner.hold_input(topic, partition)
    }
    fn start_input(&mut self, topic: TopicIdx, partition: i32, at: i64) -> Result<(), Error> {
        self.inner.start_input(topic, partition, at)
    }
    fn release(&mut self, partitions: &[i32]) -> Result<(), Error> {
        self.inner.release(partitions)
    }
    fn positions(&mut self, partition: i32, out: &mut Vec<Option<i64>>) -> Result<(), Error> {
        self.inner.positions(partition, out)
    }
    fn input_bounds(&mut self, partition: i32) -> Result<Vec<Bounds>, Error> {
        self.inner.input_bounds(partition)
    }
    fn known_end(&mut self, topic: TopicIdx, partition: i32) -> Option<i64> {
        self.inner.known_end(topic, partition)
    }
    fn committed(&mut self, partition: i32) -> Result<Vec<Option<i64>>, Error> {
        self.inner.committed(partition)
    }
    fn changelog_bounds(&mut self, partition: i32) -> Result<Vec<Bounds>, Error> {
        self.inner.changelog_bounds(partition)
    }
    fn restore_start(&mut self, partition: i32, from: &[Option<i64>]) -> Result<(), Error> {
        self.inner.restore_start(partition, from)
    }
    fn restore_poll(&mut self, batch: &mut RecordBatch, timeout: Duration) -> Result<(), Error> {
        self.inner.restore_poll(batch, timeout)
    }
    fn restore_position(&mut self, partition: i32, store: StoreId) -> Result<Option<i64>, Error> {
        self.inner.restore_position(partition, store)
    }
    fn restore_stop(&mut self, partition: i32) {
        self.inner.restore_stop(partition)
    }
    fn begin(&mut self) -> Result<(), Error> {
        self.inner.begin()
    }
    fn send_output(&mut self, partition: i32, output: &Output<'_>) -> Result<(), Error> {
        self.inner.send_output(partition, output)
    }
    fn send_changelog(
        &mut self,
        partition: i32,
        store: StoreId,
        key: &[u8],
        value: Option<&[u8]>,
    ) -> Result<(), Error> {
        self.inner.send_changelog(partition, store, key, value)?;
        self.die(Death::AfterSend)
    }
    fn flush(&mut self) -> Result<(), Error> {
        self.inner.flush()?;
        self.die(Death::AfterFlush)
    }
    fn delivered(&self, partition: i32, store: StoreId) -> Option<i64> {
        self.inner.delivered(partition, store)
    }
    fn send_offsets(&mut self, positions: &[(i32, Vec<i64>)]) -> Result<(), Error> {
        let death = *self.death.lock();
        if let Some(Death::Pause(ms)) = death {
            *self.death.lock() = None;
            std::thread::sleep(Duration::from_millis(ms));
        }
        self.inner.send_offsets(positions)?;
        self.die(Death::AfterOffsets)
    }
    fn commit(&mut self) -> Result<(), Error> {
        self.die(Death::BeforeCommit)?;
        self.inner.commit()?;
        self.die(Death::AfterCommit)
    }
    fn abort(&mut self) -> Result<(), Error> {
        match self.dead {
            true => Err(Error::Fatal(KILLED.into())),
            false => self.inner.abort(),
        }
    }
}
