//! A real Apache Kafka (KRaft) of one or three nodes, on free ports, with data in a temporary
//! folder. Nodes can be killed and started again on their data.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use futures::executor::block_on;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::{Process, eventually, free_ports, java, prepared, root, secs, skip};

/// How a cluster is set up.
#[derive(Debug, Clone)]
pub struct KafkaSetup {
    /// 1 or 3. With three, replication is 3 and a write needs two in-sync replicas.
    pub nodes: usize,
    /// Lines added to every node's properties, such as `("log.retention.ms", "1000")`.
    pub properties: Vec<(String, String)>,
    /// Heap of each node.
    pub heap: String,
    /// Further arguments for the Java machine; the last of one kind counts.
    pub jvm: Vec<String>,
}

impl Default for KafkaSetup {
    fn default() -> Self {
        Self {
            nodes: 1,
            properties: Vec::new(),
            heap: "256m".into(),
            jvm: Vec::new(),
        }
    }
}

/// A running cluster; gone when dropped.
pub struct Kafka {
    // Processes before the folder they write into.
    nodes: Vec<Mutex<Option<Process>>>,
    ports: Vec<u16>,
    setup: KafkaSetup,
    libs: PathBuf,
    dir: tempfile::TempDir,
}

impl Kafka {
    /// One node; `None`, after a loud word, where Kafka is not available.
    pub fn start() -> Option<Self> {
        Self::start_with(KafkaSetup::default())
    }

    /// One node for all tests of this binary, which keep apart by topic and application names.
    pub fn shared() -> Option<&'static Self> {
        // Never dropped; the leash ends it with the test process.
        static SHARED: OnceLock<Option<Kafka>> = OnceLock::new();
        SHARED.get_or_init(Self::start).as_ref()
    }

    pub fn start_with(setup: KafkaSetup) -> Option<Self> {
        let Some(libs) = prepared("TEST_KAFKA_LIBS", "kafka-4.4.0") else {
            skip("Apache Kafka", "run ./test, or scripts/test-env.sh kafka");
            return None;
        };
        let dir = tempfile::Builder::new()
            .prefix("finlake-kafka-")
            .tempdir()
            .expect("a temporary folder");
        let ports = free_ports(setup.nodes * 2);
        let kafka = Self {
            nodes: (0..setup.nodes).map(|_| Mutex::new(None)).collect(),
            ports,
            setup,
            libs,
            dir,
        };
        for node in 0..kafka.setup.nodes {
            kafka.format(node);
        }
        for node in 0..kafka.setup.nodes {
            kafka.launch(node);
        }
        kafka.wait_ready(secs(90));
        Some(kafka)
    }

    /// `host:port` of every node, for clients.
    pub fn bootstrap(&self) -> String {
        let all: Vec<_> = (0..self.setup.nodes)
            .map(|n| format!("127.0.0.1:{}", self.port(n)))
            .collect();
        all.join(",")
    }

    fn port(&self, node: usize) -> u16 {
        self.ports[node * 2]
    }

    /// A client's configuration with nothing but the brokers.
    pub fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", self.bootstrap())
            .set("broker.address.family", "v4");
        config
    }

    pub fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.client().create().expect("a valid configuration")
    }

    /// Creates a topic and waits until every partition has a leader.
    pub fn create_topic(&self, name: &str, partitions: i32, configs: &[(&str, &str)]) {
        let replicas = if self.setup.nodes == 1 { 1 } else { 3 };
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(replicas));
        for (key, value) in configs {
            topic = topic.set(key, value);
        }
        let made = block_on(self.admin().create_topics(&[topic], &AdminOptions::new()));
        let made = made.expect("the broker answers");
        assert!(made.iter().all(Result::is_ok), "{made:?}");
        let watcher: BaseConsumer = self.client().create().expect("a valid configuration");
        eventually("the topic has leaders", secs(30), || {
            let metadata = watcher.fetch_metadata(Some(name), secs(5)).ok()?;
            let topic = metadata.topics().first()?;
            let led = topic.partitions().iter().filter(|p| p.leader() >= 0);
            (led.count() == partitions as usize).then_some(())
        });
    }

    /// Gives a topic more partitions.
    pub fn grow_topic(&self, name: &str, partitions: usize) {
        let wish = NewPartitions::new(name, partitions);
        let done = block_on(
            self.admin()
                .create_partitions(&[wish], &AdminOptions::new()),
        );
        let done = done.expect("the broker answers");
        assert!(done.iter().all(Result::is_ok), "{done:?}");
    }

    pub fn delete_topic(&self, name: &str) {
        let done = block_on(self.admin().delete_topics(&[name], &AdminOptions::new()));
        let done = done.expect("the broker answers");
        assert!(done.iter().all(Result::is_ok), "{done:?}");
    }

    /// `kill -9` of a node.
    pub fn kill9(&self, node: usize) {
        self.with(node, Process::kill9);
    }

    pub fn pause(&self, node: usize) {
        self.with(node, |p| p.pause());
    }

    pub fn resume(&self, node: usize) {
        self.with(node, |p| p.resume());
    }

    /// Starts a killed node again on its data, and waits until the cluster answers.
    pub fn restart(&self, node: usize) {
        self.with(node, Process::kill9);
        self.launch(node);
        self.wait_ready(secs(90));
    }

    fn with<R>(&self, node: usize, f: impl FnOnce(&mut Process) -> R) -> R {
        // A test that panicked elsewhere must not keep this one from its node.
        let mut slot = self.nodes[node]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        f(slot.as_mut().expect("the node was started"))
    }

    fn properties(&self, node: usize) -> PathBuf {
        self.dir.path().join(format!("node-{node}.properties"))
    }

    /// Writes the node's properties and formats its storage.
    fn format(&self, node: usize) {
        let template = root().join("tests/harness/kafka/node.properties");
        let mut text = std::fs::read_to_string(template).expect("the template is in the tree");
        let (port, controller) = (self.ports[node * 2], self.ports[node * 2 + 1]);
        let voters: Vec<_> = (0..self.setup.nodes)
            .map(|n| format!("{}@127.0.0.1:{}", n + 1, self.ports[n * 2 + 1]))
            .collect();
        let (replicas, in_sync) = if self.setup.nodes == 1 {
            (1, 1)
        } else {
            (3, 2)
        };
        let mut add = |key: &str, value: &dyn std::fmt::Display| {
            text.push_str(&format!("{key}={value}\n"));
        };
        add("node.id", &(node + 1));
        add("controller.quorum.voters", &voters.join(","));
        let here = format!("PLAINTEXT://127.0.0.1:{port}");
        add(
            "listeners",
            &format!("{here},CONTROLLER://127.0.0.1:{controller}"),
        );
        add("advertised.listeners", &here);
        add("log.dirs", &self.data(node).display());
        for topic in ["offsets.topic", "transaction.state.log"] {
            add(&format!("{topic}.replication.factor"), &replicas);
        }
        add(
            "share.coordinator.state.topic.replication.factor",
            &replicas,
        );
        add("share.coordinator.state.topic.min.isr", &in_sync);
        add("transaction.state.log.min.isr", &in_sync);
        add("default.replication.factor", &replicas);
        add("min.insync.replicas", &in_sync);
        for (key, value) in &self.setup.properties {
            add(key, value);
        }
        std::fs::write(self.properties(node), text).expect("the work folder is writable");
        // Any id of 16 bytes in base64 will do, but not one that starts with a dash.
        let cluster = format!("FinLakeTest{:011}", self.ports[0]);
        let formatted = self
            .java("128m")
            .args(["kafka.tools.StorageTool", "format", "-t", &cluster, "-c"])
            .arg(self.properties(node))
            .stdin(Stdio::null())
            .output()
            .expect("java starts");
        assert!(
            formatted.status.success(),
            "Kafka's storage could not be formatted:\n{}{}",
            String::from_utf8_lossy(&formatted.stdout),
            String::from_utf8_lossy(&formatted.stderr)
        );
    }

    fn data(&self, node: usize) -> PathBuf {
        self.dir.path().join(format!("data-{node}"))
    }

    fn java(&self, heap: &str) -> Command {
        let log4j = root().join("tests/harness/kafka/log4j2.xml");
        let mut command = Command::new(java());
        command
            .arg(format!("-Xmx{heap}"))
            .args(["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
            .args(&self.setup.jvm)
            .arg(format!("-Dlog4j2.configurationFile={}", log4j.display()))
            .arg("-cp")
            .arg(format!("{}/*", self.libs.display()));
        command
    }

    fn launch(&self, node: usize) {
        let mut command = self.java(&self.setup.heap);
        command.arg("kafka.Kafka").arg(self.properties(node));
        let process = Process::spawn(&format!("kafka-{node}"), self.work(), &command);
        let mut slot = self.nodes[node]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *slot = Some(process);
    }

    fn work(&self) -> &Path {
        self.dir.path()
    }

    /// Waits until all nodes stand in the metadata.
    fn wait_ready(&self, timeout: Duration) {
        let watcher: BaseConsumer = self
            .client()
            .set_log_level(rdkafka::config::RDKafkaLogLevel::Emerg)
            .create()
            .expect("a valid configuration");
        eventually("all Kafka nodes answer", timeout, || {
            for node in 0..self.setup.nodes {
                self.with(node, |p| {
                    assert!(p.is_running(), "Kafka ended by itself:\n{}", p.tail());
                });
            }
            let metadata = watcher.fetch_metadata(None, secs(2)).ok()?;
            (metadata.brokers().len() == self.setup.nodes).then_some(())
        });
    }
}

/// The folder of the jars of Apache Kafka's tools and client; `None`, after a loud word, where it is not available.
pub fn kafka_tools() -> Option<PathBuf> {
    let jars = prepared("TEST_KAFKA_TOOLS", "kafka-tools-4.1.1");
    if jars.is_none() {
        skip(
            "Kafka's console tools",
            "run ./test, or scripts/test-env.sh kafka",
        );
    }
    jars
}
