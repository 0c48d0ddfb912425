//! Client settings: what exactly-once demands is fixed, the rest is passed on.

use std::collections::BTreeMap;

use rdkafka::ClientConfig;

use crate::error::Error;

/// How one stream thread (or sink) reaches Kafka.
#[derive(Clone, Debug)]
pub struct KafkaConfig {
    /// `host:port`, comma-separated.
    pub bootstrap: String,
    /// Application id: the consumer group, and the prefix of everything else.
    pub app_id: String,
    /// Name of this process among the application's instances, stable over
    /// restarts.
    pub instance: String,
    /// Number of the thread within the process.
    pub thread: usize,
    /// Passed to every client: `security.protocol`, `sasl.*`, `ssl.*`, …
    pub properties: BTreeMap<String, String>,
    /// The broker aborts a transaction open for longer; milliseconds (10 s).
    pub transaction_timeout_ms: u32,
    /// The group gives a silent member's partitions away; milliseconds (20 s).
    pub session_timeout_ms: u32,
    /// A thread that does not poll for so long leaves the group; milliseconds
    /// (5 min).
    pub max_poll_interval_ms: u32,
    /// The broker holds an answer back for so long while there are few records:
    /// milliseconds (0: it answers at once). Every answer costs a request, whatever
    /// it holds; a fraction of the commit interval is lost in it.
    pub fetch_wait_ms: u32,
}

/// Bytes that are worth an answer before `fetch_wait_ms` is over.
const FETCH_MIN_BYTES: &str = "262144";

/// Settings that the protocol depends on and that properties may not override.
const FIXED: [&str; 13] = [
    "group.id",
    "group.instance.id",
    "transactional.id",
    "isolation.level",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.idempotence",
    "auto.offset.reset",
    "partition.assignment.strategy",
    "transaction.timeout.ms",
    "session.timeout.ms",
    "message.timeout.ms",
    "socket.timeout.ms",
];

impl KafkaConfig {
    /// Defaults for thread 0 of an application's instance.
    pub fn new(bootstrap: &str, app_id: &str, instance: &str) -> Self {
        Self {
            bootstrap: bootstrap.to_owned(),
            app_id: app_id.to_owned(),
            instance: instance.to_owned(),
            thread: 0,
            properties: BTreeMap::new(),
            transaction_timeout_ms: 10_000,
            session_timeout_ms: 20_000,
            max_poll_interval_ms: 300_000,
            fetch_wait_ms: 0,
        }
    }

    /// `group.instance.id` and `transactional.id`: stable over restarts, so that
    /// a restarted thread takes up its partitions and fences its dead self.
    pub fn id(&self) -> String {
        format!("{}-{}-{}", self.app_id, self.instance, self.thread)
    }

    /// Refuse settings under which the protocol does not hold.
    pub fn check(&self) -> Result<(), Error> {
        if self.transaction_timeout_ms >= self.session_timeout_ms {
            return Err(Error::Fatal(format!(
                "transaction timeout ({} ms) must be below the session timeout ({} ms): a dead \
                 member's transaction has to end before its partitions move. Lower the first or \
                 raise the second",
                self.transaction_timeout_ms, self.session_timeout_ms
            )));
        }
        if self.session_timeout_ms > self.max_poll_interval_ms {
            return Err(Error::Fatal(format!(
                "max poll interval ({} ms) must not be below the session timeout ({} ms)",
                self.max_poll_interval_ms, self.session_timeout_ms
            )));
        }
        if let Some(key) = FIXED.iter().find(|k| self.properties.contains_key(**k)) {
            return Err(Error::Fatal(format!(
                "Kafka property `{key}` cannot be set: the exactly-once protocol fixes it"
            )));
        }
        Ok(())
    }

    /// What all clients share; `role` ends up in the broker's logs.
    pub(crate) fn base(&self, role: &str) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.bootstrap)
            .set("client.id", format!("{}-{role}", self.id()))
            .set("allow.auto.create.topics", "false")
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "1000")
            .set("topic.metadata.refresh.fast.interval.ms", "100");
        for (key, value) in &self.properties {
            config.set(key, value);
        }
        config
    }

    /// A consumer that never stores or commits an offset by itself and never
    /// chooses where to begin.
    pub(crate) fn consumer(&self, role: &str, group: &str) -> ClientConfig {
        let mut config = self.base(role);
        let unset = |key: &str| !self.properties.contains_key(key);
        if unset("fetch.queue.backoff.ms") {
            // The default sleeps up to a second whenever the queue is full.
            config.set("fetch.queue.backoff.ms", "2");
        }
        if unset("queued.max.messages.kbytes") {
            config.set("queued.max.messages.kbytes", "16384");
        }
        config
            .set("group.id", group)
            .set("isolation.level", "read_committed")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error");
        config
    }

    /// The group's consumer.
    pub(crate) fn group_consumer(&self, group: &str) -> ClientConfig {
        let mut config = self.consumer("consumer", group);
        let unset = |key: &str| !self.properties.contains_key(key);
        if self.fetch_wait_ms > 0 && unset("fetch.wait.max.ms") && unset("fetch.min.bytes") {
            config
                .set("fetch.wait.max.ms", self.fetch_wait_ms.to_string())
                .set("fetch.min.bytes", FETCH_MIN_BYTES);
        }
        config
            .set("group.instance.id", self.id())
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", self.session_timeout_ms.to_string())
            .set(
                "heartbeat.interval.ms",
                (self.session_timeout_ms / 10).max(100).to_string(),
            )
            .set(
                "max.poll.interval.ms",
                self.max_poll_interval_ms.to_string(),
            );
        config
    }

    /// The transactional producer.
    pub(crate) fn producer(&self) -> ClientConfig {
        let timeout = self.transaction_timeout_ms.to_string();
        let mut config = self.base("producer");
        if !self.properties.contains_key("queue.buffering.max.messages") {
            config.set("queue.buffering.max.messages", "1000000");
        }
        config
            .set("transactional.id", self.id())
            .set("linger.ms", "0")
            .set("transaction.timeout.ms", &timeout)
            .set("message.timeout.ms", &timeout)
            .set("socket.timeout.ms", &timeout);
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_the_protocol_cannot_bear() {
        let good = KafkaConfig::new("localhost:9092", "app", "a");
        assert_eq!(good.check(), Ok(()));
        assert_eq!(good.id(), "app-a-0");
        let mut bad = good.clone();
        bad.transaction_timeout_ms = 20_000;
        assert!(bad.check().is_err());
        let mut bad = good;
        let key = "isolation.level".to_owned();
        bad.properties.insert(key, "read_uncommitted".to_owned());
        let error = bad.check().map_err(|e| e.to_string());
        assert!(error.is_err_and(|e| e.contains("isolation.level")));
    }
}
