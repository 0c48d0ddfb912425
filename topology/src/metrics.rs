//! All metrics of the engine: name, unit, help in one place; one [`Observer`]
//! per stream thread feeds them. The registry is handed in.

use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry,
};

use crate::Micros;
use crate::builder::Topology;
use crate::error::Error;
use crate::inv;
use crate::observer::Observer;
use crate::processor::Domain;
use crate::stats::CommitStats;

/// The engine's metrics; cheap to clone, shared by all threads of a process.
#[derive(Clone)]
pub struct Metrics {
    records: IntCounterVec,
    skipped: IntCounterVec,
    outputs: IntCounterVec,
    dead_letters: IntCounterVec,
    counts: Vec<IntCounter>,
    heartbeats: IntCounter,
    transactions: IntCounter,
    transaction_seconds: Histogram,
    lag: IntGaugeVec,
    last_commit: IntGaugeVec,
    state_bytes: IntGaugeVec,
    tasks: IntGaugeVec,
    restored: IntCounterVec,
    restore_seconds: Histogram,
    held: IntCounterVec,
    failures: IntCounterVec,
    violations: IntGaugeVec,
}

/// A transaction takes some 5 ms; beyond a second something is wrong.
const SECONDS: [f64; 14] = [
    0.001, 0.002, 0.004, 0.006, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 20.0,
];

impl Metrics {
    /// Create the metrics and register them with `registry`, counters of
    /// `topology` included.
    pub fn register<D: Domain>(
        registry: &Registry,
        topology: &Topology<D>,
    ) -> Result<Self, prometheus::Error> {
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let made = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(made.clone()))?;
            Ok::<_, prometheus::Error>(made)
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let made = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(made.clone()))?;
            Ok::<_, prometheus::Error>(made)
        };
        let counter = |name: &str, help: &str| {
            let made = IntCounter::new(name, help)?;
            registry.register(Box::new(made.clone()))?;
            Ok::<_, prometheus::Error>(made)
        };
        let seconds = HistogramOpts::new(
            "finlake_transaction_seconds",
            "From the preparation of a commit to the stores' write",
        );
        let transaction_seconds = Histogram::with_opts(seconds.buckets(SECONDS.to_vec()))?;
        registry.register(Box::new(transaction_seconds.clone()))?;
        let seconds = HistogramOpts::new(
            "finlake_restore_seconds",
            "From a task's assignment to its first record",
        );
        let restore_seconds = Histogram::with_opts(seconds.buckets(SECONDS.to_vec()))?;
        registry.register(Box::new(restore_seconds.clone()))?;
        let counts = topology.counters().iter().map(|(name, help)| {
            let clean = |c: char| match c.is_ascii_alphanumeric() {
                true => c.to_ascii_lowercase(),
                false => '_',
            };
            let name: String = name.chars().map(clean).collect();
            counter(&format!("finlake_{name}_total"), help)
        });
        Ok(Self {
            counts: counts.collect::<Result<_, _>>()?,
            records: counters(
                "finlake_input_records_total",
                "Input records in committed transactions",
                &["topic", "partition"],
            )?,
            skipped: counters(
                "finlake_input_skipped_total",
                "Input offsets without a record (markers, compaction)",
                &["topic", "partition"],
            )?,
            outputs: counters(
                "finlake_output_records_total",
                "Records produced to counted topics in committed transactions",
                &["topic", "partition"],
            )?,
            dead_letters: counters(
                "finlake_dead_letters_total",
                "Records sent to the dead-letter topic, by class",
                &["class"],
            )?,
            heartbeats: counter(
                "finlake_heartbeats_total",
                "Commits of a task that read and produced nothing",
            )?,
            transactions: counter("finlake_transactions_total", "Committed transactions")?,
            transaction_seconds,
            lag: gauges(
                "finlake_input_lag_records",
                "Records between a task's position and the end of its input, as last heard",
                &["topic", "partition"],
            )?,
            last_commit: gauges(
                "finlake_last_commit_timestamp_microseconds",
                "System time of a task's last commit",
                &["partition"],
            )?,
            state_bytes: gauges(
                "finlake_state_bytes",
                "Bytes of a task's stores on disk, roughly",
                &["partition"],
            )?,
            tasks: gauges(
                "finlake_tasks",
                "Tasks by state: restoring, running",
                &["thread", "state"],
            )?,
            restored: counters(
                "finlake_restored_records_total",
                "Changelog records replayed by catch-ups that have ended",
                &["partition"],
            )?,
            restore_seconds,
            held: counters(
                "finlake_input_held_total",
                "Times an input was held back because a schema could not be resolved",
                &["topic", "partition"],
            )?,
            failures: counters(
                "finlake_failures_total",
                "Failures of stream threads, by what was done about them",
                &["action"],
            )?,
            violations: gauges(
                "finlake_invariant_violations",
                "Violated invariants, by id; anything but 0 is a defect",
                &["invariant"],
            )?,
        })
    }

    /// The observer of one thread.
    pub fn observer(&self, thread: &str) -> Box<dyn Observer> {
        Box::new(ThreadMetrics {
            metrics: self.clone(),
            thread: thread.to_owned(),
        })
    }
}

struct ThreadMetrics {
    metrics: Metrics,
    thread: String,
}

/// Counts of records are not negative.
fn count(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

impl Observer for ThreadMetrics {
    fn restored(&mut self, task: i32, replayed: u64, took: Micros) {
        let partition = task.to_string();
        let restored = self.metrics.restored.with_label_values(&[&*partition]);
        restored.inc_by(replayed);
        self.metrics.restore_seconds.observe(took as f64 / 1e6);
    }

    fn tasks(&mut self, restoring: usize, running: usize) {
        let tasks = &self.metrics.tasks;
        let set = |state: &str, n: usize| {
            let gauge = tasks.with_label_values(&[&*self.thread, state]);
            gauge.set(i64::try_from(n).unwrap_or(i64::MAX));
        };
        set("restoring", restoring);
        set("running", running);
    }

    fn released(&mut self, task: i32) {
        let partition = task.to_string();
        // A gauge of a task that is elsewhere now would mislead.
        let _ = self.metrics.state_bytes.remove_label_values(&[&*partition]);
        let _ = self.metrics.last_commit.remove_label_values(&[&*partition]);
    }

    fn committed(&mut self, task: i32, stats: &CommitStats, rejected: &[(String, i64)]) {
        let partition = task.to_string();
        let m = &self.metrics;
        for input in &stats.inputs {
            let labels = [&*input.topic, &*partition];
            m.records
                .with_label_values(&labels)
                .inc_by(count(input.records));
            m.skipped
                .with_label_values(&labels)
                .inc_by(count(input.skipped));
        }
        for output in &stats.outputs {
            let labels = [&*output.topic, &*partition];
            m.outputs
                .with_label_values(&labels)
                .inc_by(count(output.count));
        }
        for (class, n) in rejected {
            m.dead_letters
                .with_label_values(&[&**class])
                .inc_by(count(*n));
        }
        for (metric, n) in m.counts.iter().zip(&stats.counters) {
            metric.inc_by(count(*n));
        }
        if stats.heartbeat {
            m.heartbeats.inc();
        }
        let last = m.last_commit.with_label_values(&[&*partition]);
        last.set(stats.system_time);
    }

    fn transaction(&mut self, _tasks: usize, took: Micros) {
        self.metrics.transactions.inc();
        self.metrics.transaction_seconds.observe(took as f64 / 1e6);
        for (id, n) in inv::violations() {
            let violations = &self.metrics.violations;
            let id = id.to_string();
            violations.with_label_values(&[&*id]).set(n as i64);
        }
    }

    fn lag(&mut self, task: i32, topic: &str, records: i64) {
        let partition = task.to_string();
        let lag = self.metrics.lag.with_label_values(&[topic, &*partition]);
        lag.set(records);
    }

    fn state_size(&mut self, task: i32, bytes: u64) {
        let partition = task.to_string();
        let size = self.metrics.state_bytes.with_label_values(&[&*partition]);
        size.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    fn held(&mut self, task: i32, topic: &str, _why: &str) {
        let partition = task.to_string();
        self.metrics
            .held
            .with_label_values(&[topic, &*partition])
            .inc();
    }

    fn failed(&mut self, error: &Error) {
        let action = match error {
            Error::Retry(_) => "retry",
            Error::Rejoin(_) => "rejoin",
            Error::Renew(_) => "renew",
            Error::Fenced(_) => "fenced",
            Error::Rebuild(_) => "rebuild",
            Error::Fatal(_) => "fatal",
        };
        self.metrics.failures.with_label_values(&[action]).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Context;
    use crate::processor::{Failure, Forward, Processor};
    use crate::record::Record;
    use crate::{TestDriver, TopologyBuilder};

    struct Toy;
    impl Domain for Toy {
        type Msg<'a> = Record<'a>;
        fn source(r: Record<'_>) -> Record<'_> {
            r
        }
    }
    struct Twos(crate::Counter);
    impl Processor<Toy> for Twos {
        fn process(
            &mut self,
            ctx: &mut Context<'_>,
            r: Record<'_>,
            _: &mut dyn Forward<Toy>,
        ) -> Result<(), Failure> {
            match r.value {
                Some(b"2") => ctx.count(self.0, 1),
                _ => return Err(Failure::reject("odd", "not a two")),
            }
            Ok(())
        }
        fn reset(&mut self) {}
    }

    #[test]
    fn a_commit_shows_up() -> Result<(), Box<dyn std::error::Error>> {
        let mut b = TopologyBuilder::<Toy>::new();
        let source = b.source("in");
        b.dlq("in.dlq");
        let twos = b.counter("twos", "Twos seen");
        b.process("twos", &[source]).with(move || Twos(twos));
        let topology = b.build()?;
        let registry = Registry::new();
        let metrics = Metrics::register(&registry, &topology)?;
        let mut observer = metrics.observer("0");
        let mut d = TestDriver::new(&topology, "app")?;
        for value in [b"2", b"2", b"3"] {
            d.pipe("in", None, Some(value))?;
        }
        let stats = d.commit()?.clone();
        observer.committed(0, &stats, &[("odd".into(), 1)]);
        observer.tasks(0, 1);
        observer.failed(&Error::Renew(String::new()));
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather())?;
        for line in [
            "finlake_twos_total 2",
            "finlake_input_records_total{partition=\"0\",topic=\"in\"} 3",
            "finlake_dead_letters_total{class=\"odd\"} 1",
            "finlake_tasks{state=\"running\",thread=\"0\"} 1",
            "finlake_failures_total{action=\"renew\"} 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        Ok(())
    }
}
