//! A Kafka, a registry, folders, and finlake processes whose metrics and CPU can be read.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use finlake_devkafka::DevKafka;
use finlake_schemas::Codec;
use finlake_schemas::registry::{RegistryConfig, Subject};

use crate::harness::{Finlake, FinlakeProcess, Kafka, KafkaSetup, secs};
use crate::meter::{Scrape, Usage, scrape, usage};

/// What a benchmark runs in; gone when dropped.
pub struct World {
    pub kafka: Kafka,
    registry: DevKafka,
    dir: tempfile::TempDir,
    pub codec: Codec,
    pub partitions: i32,
    settings: Vec<(&'static str, String)>,
}

impl World {
    /// A fresh broker with these partitions; `None`, after a loud word, where Kafka is not available.
    pub fn start(partitions: i32) -> Option<World> {
        let kafka = Kafka::start_with(KafkaSetup {
            heap: "1g".into(),
            // The whole compiler: what is measured is not the start.
            jvm: vec!["-XX:TieredStopAtLevel=4".into()],
            ..KafkaSetup::default()
        })?;
        let registry = DevKafka::start(finlake_devkafka::Config::default()).unwrap();
        let url = registry.registry_url().unwrap();
        let codec = Codec::connect(RegistryConfig::new(&url), &Subject::all()).unwrap();
        Some(World {
            kafka,
            registry,
            dir: tempfile::tempdir().unwrap(),
            codec,
            partitions,
            settings: Vec::new(),
        })
    }

    /// A setting for every process started from here on.
    pub fn set(&mut self, key: &'static str, value: impl std::fmt::Display) {
        self.settings.push((key, value.to_string()));
    }

    /// The lakehouse's folder.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("lake")
    }

    /// A folder for whatever else.
    pub fn dir(&self) -> PathBuf {
        self.dir.path().to_path_buf()
    }

    /// A command of an instance: own state folder, shared tables.
    pub fn finlake(&self, instance: &str) -> Finlake {
        let state = self.dir.path().join(format!("state-{instance}"));
        let mut finlake = Finlake::new()
            .name(&format!("finlake-{instance}"))
            .data(&self.data())
            .bootstrap(&self.kafka)
            .set("registry.url", self.registry.registry_url().unwrap())
            .set("kafka.partitions", self.partitions)
            .set("kafka.instance_id", instance)
            .set("state.dir", state.display())
            .set("serve.listen", "127.0.0.1:0");
        for (key, value) in &self.settings {
            finlake = finlake.set(key, value);
        }
        finlake
    }

    pub fn create_topics(&self) {
        let create = self.finlake("setup").args(["topics", "create"]);
        create.run(secs(60)).ok();
    }

    /// `finlake run --roles …`, and where its metrics are.
    pub fn run(&self, instance: &str, roles: &str) -> Instance {
        let command = self.finlake(instance).name(&format!("{instance}-{roles}"));
        let mut process = command.args(["run", "--roles", roles]).spawn();
        let line = process.wait_for_log("metrics http://", secs(60));
        let address = line.split("http://").nth(1).unwrap();
        let address = address.split('/').next().unwrap().to_owned();
        Instance { process, address }
    }

    /// Runs roles until all that is there is processed; what it cost in all.
    pub fn until_caught_up(&self, instance: &str, roles: &str) -> Usage {
        let command = self.finlake(instance).name(&format!("{instance}-{roles}"));
        let mut process = command
            .args(["run", "--roles", roles, "--until-caught-up"])
            .spawn();
        let mut last = Usage::default();
        while process.is_running() {
            last = usage(process.pid()).unwrap_or(last);
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(process.code(), Some(0), "{}", process.tail());
        last
    }
}

/// A running finlake.
pub struct Instance {
    pub process: FinlakeProcess,
    address: String,
}

impl Instance {
    pub fn usage(&self) -> Usage {
        usage(self.process.pid()).expect("the process runs")
    }

    pub fn metrics(&self) -> Scrape {
        scrape(&self.address)
    }

    /// Waits until the sum of a metric reaches `goal`; when it was first above 0 and when the goal was seen, each
    /// with the process's usage then.
    pub fn until(
        &mut self,
        metric: &str,
        goal: f64,
        patience: Duration,
    ) -> [(Instant, Usage, f64); 2] {
        let by = Instant::now() + patience;
        let mut first = None;
        loop {
            let value = self.metrics().sum(metric);
            let now = (Instant::now(), self.usage(), value);
            if value > 0.0 && first.is_none() {
                first = Some(now);
            }
            if value >= goal {
                return [first.unwrap_or(now), now];
            }
            assert!(self.process.is_running(), "{}", self.process.tail());
            assert!(
                Instant::now() < by,
                "{metric} is {value} of {goal}: {}",
                self.process.tail()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn stop(mut self) {
        let code = self.process.stop(secs(120));
        assert_eq!(code, 0, "{}", self.process.tail());
    }
}

/// A size from the environment.
pub fn size(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |v| v.parse().expect("a number"))
}
