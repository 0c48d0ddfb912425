//! Every metric of the process: name, unit and help in one place, and the observers that move them.
//!
//! Names follow the Prometheus conventions; `docs/metrics.md` lists them, and a test keeps the two equal. Nothing here
//! is on the path of a record: observers are told once per commit.

use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use finlake_lakehouse::{Outcome, Table};
use finlake_topology::{CommitStats, Error, Observer};
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use crate::sink::SinkObserver;

const LATENCY: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
const END_TO_END: &[f64] = &[
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 300.0, 3600.0,
];

/// A metric as the documentation lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    pub name: String,
    pub kind: &'static str,
    pub labels: String,
    pub help: String,
}

/// All metrics and the registry they are in.
pub struct Metrics {
    pub registry: Registry,
    /// All of them, in the order of their registration; a metric without a value yet is not in the registry's output.
    pub described: Vec<Described>,
    records: IntCounterVec,
    outputs: IntCounterVec,
    counted: IntCounterVec,
    rejected: IntCounterVec,
    lag: IntGaugeVec,
    commits: IntCounterVec,
    commit_seconds: HistogramVec,
    state_bytes: IntGaugeVec,
    restore_records: IntCounterVec,
    restoring: IntGaugeVec,
    running: IntGaugeVec,
    held: IntCounterVec,
    failures: IntCounterVec,
    sink_rows: IntCounterVec,
    sink_closed: IntCounterVec,
    sink_commits: IntCounterVec,
    sink_seconds: HistogramVec,
    sink_files: IntGaugeVec,
    sink_hot: IntGaugeVec,
    sink_conflicts: IntCounterVec,
    sink_retries: IntCounterVec,
    audit_entries: IntCounterVec,
    audit_commit: IntGaugeVec,
    audit_findings: IntCounterVec,
    audit_difference: IntGaugeVec,
    audit_active: IntGaugeVec,
    frontier_seconds: IntGauge,
    end_to_end: Histogram,
}

impl Metrics {
    /// Registers everything.
    ///
    /// # Errors
    /// Two metrics of one name, which is a defect.
    pub fn new() -> Result<Metrics, prometheus::Error> {
        let registry = Registry::new();
        let described = RefCell::new(Vec::new());
        let note = |kind: &'static str, name: &str, help: &str, labels: &[&str]| {
            described.borrow_mut().push(Described {
                name: name.to_owned(),
                kind,
                labels: labels.join(", "),
                help: help.to_owned(),
            });
        };
        let counter = |name: &str, help: &str, labels: &[&str]| {
            note("counter", name, help, labels);
            let c = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(c.clone()))?;
            Ok::<_, prometheus::Error>(c)
        };
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            note("gauge", name, help, labels);
            let g = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(g.clone()))?;
            Ok::<_, prometheus::Error>(g)
        };
        let histogram = |name: &str, help: &str, labels: &[&str]| {
            note("histogram", name, help, labels);
            let opts = HistogramOpts::new(name, help).buckets(LATENCY.to_vec());
            let h = HistogramVec::new(opts, labels)?;
            registry.register(Box::new(h.clone()))?;
            Ok::<_, prometheus::Error>(h)
        };
        let name = "finlake_frontier_timestamp_seconds";
        let help = "System time up to which all tables are whole, seconds since 1970; time() minus it is the frontier's age.";
        note("gauge", name, help, &[]);
        let frontier_seconds = IntGauge::new(name, help)?;
        registry.register(Box::new(frontier_seconds.clone()))?;
        let name = "finlake_end_to_end_seconds";
        let help = "From a record's Kafka timestamp to the snapshot that holds it; oldest and newest record of each table commit.";
        note("histogram", name, help, &[]);
        let end_to_end =
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(END_TO_END.to_vec()))?;
        registry.register(Box::new(end_to_end.clone()))?;
        Ok(Metrics {
            records: counter(
                "finlake_stream_records_total",
                "Input records of committed transactions.",
                &["topic"],
            )?,
            outputs: counter(
                "finlake_stream_outputs_total",
                "Records produced to counted topics by committed transactions.",
                &["topic"],
            )?,
            counted: counter(
                "finlake_stream_trades_total",
                "Trades by outcome: accepted, duplicates; corrections counts closed bars emitted again.",
                &["outcome"],
            )?,
            rejected: counter(
                "finlake_stream_rejected_total",
                "Records sent to the dead-letter topic, by class.",
                &["class"],
            )?,
            lag: gauge(
                "finlake_stream_lag_records",
                "Records between a task's position and the end of its input.",
                &["topic", "partition"],
            )?,
            commits: counter(
                "finlake_stream_commits_total",
                "Kafka transactions committed.",
                &["thread"],
            )?,
            commit_seconds: histogram(
                "finlake_stream_commit_seconds",
                "Time of one commit: preparation, transaction, state store.",
                &["thread"],
            )?,
            state_bytes: gauge(
                "finlake_state_bytes",
                "Estimated size of a task's state stores on disk.",
                &["partition"],
            )?,
            restore_records: counter(
                "finlake_restore_records_total",
                "Changelog records replayed into state stores.",
                &["partition"],
            )?,
            restoring: gauge(
                "finlake_restore_progress_records",
                "Changelog records replayed by the restore that is under way; 0 when none is.",
                &["partition"],
            )?,
            running: gauge(
                "finlake_task_running",
                "1 while this process runs the task of the partition.",
                &["partition"],
            )?,
            held: counter(
                "finlake_stream_held_total",
                "Times an input was held back because the schema registry did not answer.",
                &["topic"],
            )?,
            failures: counter(
                "finlake_stream_failures_total",
                "Failures that a stream thread recovered from, by what it did.",
                &["action"],
            )?,
            sink_rows: counter(
                "finlake_sink_rows_total",
                "Rows that became visible in a table.",
                &["table"],
            )?,
            sink_closed: counter(
                "finlake_sink_rows_closed_total",
                "Rows closed by a newer version.",
                &["table"],
            )?,
            sink_commits: counter(
                "finlake_sink_commits_total",
                "Snapshots committed.",
                &["table"],
            )?,
            sink_seconds: histogram(
                "finlake_sink_commit_seconds",
                "Time of one table commit.",
                &["table"],
            )?,
            sink_files: gauge("finlake_sink_files", "Live data files.", &["table"])?,
            sink_hot: gauge(
                "finlake_sink_hot_rows",
                "Rows held in memory because they are likely to be superseded soon.",
                &["table"],
            )?,
            sink_conflicts: counter(
                "finlake_sink_commit_conflicts_total",
                "Swaps lost to another writer and re-attached.",
                &["table"],
            )?,
            sink_retries: counter(
                "finlake_sink_retries_total",
                "Failures after which the sink read the tables again.",
                &[],
            )?,
            audit_entries: counter(
                "finlake_audit_entries_total",
                "Ledger entries checked.",
                &[],
            )?,
            audit_commit: gauge(
                "finlake_audit_commit",
                "Number of the last ledger entry checked.",
                &["partition"],
            )?,
            audit_findings: counter(
                "finlake_audit_findings_total",
                "New findings of the audit; any is worth a page.",
                &["kind", "layer"],
            )?,
            audit_difference: gauge(
                "finlake_audit_rows_difference",
                "Rows in a table minus the rows that the ledger says, at the table's position; 0 is right.",
                &["table"],
            )?,
            audit_active: gauge(
                "finlake_audit_active",
                "1 while this instance does the audit, 0 while it stands by for another that does.",
                &[],
            )?,
            frontier_seconds,
            end_to_end,
            described: described.take(),
            registry,
        })
    }

    /// The listener of one stream thread.
    pub fn stream_observer(self: &std::sync::Arc<Self>, thread: &str) -> Box<dyn Observer> {
        Box::new(StreamObserver {
            metrics: self.clone(),
            thread: thread.to_owned(),
        })
    }

    /// The audit has checked so many entries more.
    pub fn audit_read(&self, entries: u64) {
        let none: [&str; 0] = [];
        self.audit_entries.with_label_values(&none).inc_by(entries);
    }

    /// Number of the last entry of a partition that the audit has checked.
    pub fn audit_commit(&self, partition: i32, commit: i64) {
        let partition = partition.to_string();
        self.audit_commit
            .with_label_values(&[&partition])
            .set(commit);
    }

    /// The audit has found something new.
    pub fn audit_finding(&self, kind: &str, layer: &str) {
        self.audit_findings.with_label_values(&[kind, layer]).inc();
    }

    /// The audit has compared a table's rows with the ledger.
    pub fn audit_table(&self, table: &str, difference: i64) {
        self.audit_difference
            .with_label_values(&[table])
            .set(difference);
    }

    /// Whether this instance does the audit now. If it does not, what it last saw is no longer shown.
    pub fn audit_active(&self, active: bool) {
        let none: [&str; 0] = [];
        self.audit_active
            .with_label_values(&none)
            .set(i64::from(active));
        if !active {
            self.audit_commit.reset();
            self.audit_difference.reset();
        }
    }

    /// The listener of the sink.
    pub fn sink_observer(self: &std::sync::Arc<Self>) -> Box<dyn SinkObserver> {
        Box::new(SinkListener(self.clone()))
    }
}

struct StreamObserver {
    metrics: std::sync::Arc<Metrics>,
    thread: String,
}

fn count(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

impl Observer for StreamObserver {
    fn restoring(&mut self, task: i32, replayed: u64) {
        let gauge = self
            .metrics
            .restoring
            .with_label_values(&[&task.to_string()]);
        gauge.set(i64::try_from(replayed).unwrap_or(i64::MAX));
    }

    fn restored(&mut self, task: i32, replayed: u64, _took: i64) {
        let task = task.to_string();
        self.metrics.restoring.with_label_values(&[&task]).set(0);
        self.metrics
            .restore_records
            .with_label_values(&[&task])
            .inc_by(replayed);
        self.metrics.running.with_label_values(&[&task]).set(1);
    }

    fn released(&mut self, task: i32) {
        self.metrics
            .running
            .with_label_values(&[&task.to_string()])
            .set(0);
    }

    fn committed(&mut self, _task: i32, stats: &CommitStats, rejected: &[(String, i64)]) {
        let m = &self.metrics;
        for input in &stats.inputs {
            m.records
                .with_label_values(&[&input.topic])
                .inc_by(count(input.records));
        }
        for output in &stats.outputs {
            m.outputs
                .with_label_values(&[&output.topic])
                .inc_by(count(output.count));
        }
        for (name, n) in ["accepted", "duplicates", "corrections"]
            .iter()
            .zip(&stats.counters)
        {
            m.counted.with_label_values(&[name]).inc_by(count(*n));
        }
        for (class, n) in rejected {
            m.rejected.with_label_values(&[class]).inc_by(count(*n));
        }
    }

    fn transaction(&mut self, _tasks: usize, took: i64) {
        let m = &self.metrics;
        m.commits.with_label_values(&[&self.thread]).inc();
        m.commit_seconds
            .with_label_values(&[&self.thread])
            .observe(took as f64 / 1e6);
    }

    fn lag(&mut self, task: i32, topic: &str, records: i64) {
        self.metrics
            .lag
            .with_label_values(&[topic, &task.to_string()])
            .set(records);
    }

    fn state_size(&mut self, task: i32, bytes: u64) {
        let gauge = self
            .metrics
            .state_bytes
            .with_label_values(&[&task.to_string()]);
        gauge.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    fn held(&mut self, _task: i32, topic: &str, _why: &str) {
        self.metrics.held.with_label_values(&[topic]).inc();
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

struct SinkListener(std::sync::Arc<Metrics>);

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

impl SinkObserver for SinkListener {
    fn committed(&mut self, table: Table, outcome: &Outcome, took: Duration) {
        let m = &self.0;
        let label = table.to_string();
        let label = [label.as_str()];
        m.sink_rows.with_label_values(&label).inc_by(outcome.opened);
        m.sink_closed
            .with_label_values(&label)
            .inc_by(outcome.closed);
        m.sink_conflicts
            .with_label_values(&label)
            .inc_by(u64::from(outcome.lost_swaps));
        if outcome.snapshot.is_some() {
            m.sink_commits.with_label_values(&label).inc();
            m.sink_seconds
                .with_label_values(&label)
                .observe(took.as_secs_f64());
        }
    }

    fn whole(&mut self, oldest_ms: i64, newest_ms: i64, _rows: usize) {
        let now = now_ms();
        for at in [oldest_ms, newest_ms] {
            self.0.end_to_end.observe((now - at).max(0) as f64 / 1e3);
        }
    }

    fn shape(&mut self, table: Table, files: usize, hot_rows: usize) {
        let label = table.to_string();
        let label = [label.as_str()];
        self.0
            .sink_files
            .with_label_values(&label)
            .set(i64::try_from(files).unwrap_or(i64::MAX));
        self.0
            .sink_hot
            .with_label_values(&label)
            .set(i64::try_from(hot_rows).unwrap_or(i64::MAX));
    }

    fn frontier(&mut self, at: i64) {
        self.0.frontier_seconds.set(at / 1_000_000);
    }

    fn retried(&mut self, _why: &str) {
        let none: [&str; 0] = [];
        self.0.sink_retries.with_label_values(&none).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGIN: &str = "<!-- metrics: begin (made from src/serve) -->\n\n";
    const END: &str = "<!-- metrics: end -->";

    fn table(described: &[Described]) -> String {
        let mut text =
            String::from("| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n");
        for d in described {
            let labels = if d.labels.is_empty() {
                "–"
            } else {
                &d.labels
            };
            text.push_str(&format!(
                "| `{}` | {} | {labels} | {} |\n",
                d.name, d.kind, d.help
            ));
        }
        text.push('\n');
        text
    }

    #[test]
    fn the_documentation_lists_every_metric() {
        let mut described = Metrics::new().unwrap().described;
        described.extend(crate::serve::process_metrics());
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
        let doc = std::fs::read_to_string(path).unwrap();
        let (head, rest) = doc.split_once(BEGIN).expect("marker missing");
        let (old, tail) = rest.split_once(END).expect("marker missing");
        if old != table(&described) {
            if std::env::var_os("UPDATE_DOCS").is_some() {
                std::fs::write(
                    path,
                    format!("{head}{BEGIN}{}{END}{tail}", table(&described)),
                )
                .unwrap();
                return;
            }
            panic!("docs/metrics.md is old: run this test with UPDATE_DOCS=1");
        }
    }

    /// Prometheus' naming: a prefix, base units, `_total` for counters and for nothing else.
    #[test]
    fn names_follow_the_conventions() {
        let metrics = Metrics::new().unwrap();
        assert!(metrics.described.len() > 20);
        for d in &metrics.described {
            assert!(d.name.starts_with("finlake_"), "{}", d.name);
            assert_eq!(
                d.kind == "counter",
                d.name.ends_with("_total"),
                "{}",
                d.name
            );
            assert!(
                !d.name.contains("_ms") && !d.name.contains("millis"),
                "{}",
                d.name
            );
            assert!(d.help.ends_with('.'), "{}", d.name);
            if d.kind == "histogram" {
                assert!(
                    d.name.ends_with("_seconds") || d.name.ends_with("_bytes"),
                    "{}",
                    d.name
                );
            }
        }
    }
}
