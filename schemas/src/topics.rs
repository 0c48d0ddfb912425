//! Names and settings of the topics. The partition count is the application's, the replication
//! factor the cluster's: neither stands here.

/// Input: trades.
pub const TICKS: &str = "market.ticks";
/// Input: vendor bars, corporate actions, assertions.
pub const BARS: &str = "market.bars";
/// Rejected records, as received.
pub const DLQ: &str = "market.ticks.dlq";
/// Silver: the bar versions that become table rows.
pub const OHLCV: &str = "market.ohlcv";
/// Gold: the metrics versions that become table rows.
pub const METRICS: &str = "market.metrics";
/// The latest state of every bar, forming ones too.
pub const LIVE: &str = "market.ohlcv.live";
/// One entry per task and commit.
pub const LEDGER: &str = "finlake.ledger";
/// Silver: corporate actions with their factors.
pub const ACTIONS: &str = "market.actions";
/// The exchange's own klines; outside the ledger.
pub const KLINES: &str = "market.klines";
/// Breaks found by reconciliation.
pub const BREAKS: &str = "quality.breaks";

const DAY_7: (&str, &str) = ("retention.ms", "604800000");
const DAY_30: (&str, &str) = ("retention.ms", "2592000000");
const FOR_EVER: (&str, &str) = ("retention.ms", "-1");
const DELETE: (&str, &str) = ("cleanup.policy", "delete");
const COMPACT: (&str, &str) = ("cleanup.policy", "compact");
const APPEND_TIME: (&str, &str) = ("message.timestamp.type", "LogAppendTime");
/// How long a reader that was away still sees deletions; a store older than half of this is
/// rebuilt from its changelog's start.
const TOMBSTONES_7_DAYS: (&str, &str) = ("delete.retention.ms", "604800000");

/// A topic as it is to be created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicSpec {
    pub name: &'static str,
    /// Topic-level settings, in the broker's spelling.
    pub config: &'static [(&'static str, &'static str)],
}

/// Every topic but the changelogs, inputs first.
pub const ALL: &[TopicSpec] = &[
    // Input retention bounds how far a lost table can be refilled from Kafka.
    spec(TICKS, &[DELETE, DAY_30, APPEND_TIME]),
    spec(BARS, &[DELETE, FOR_EVER, APPEND_TIME]),
    spec(DLQ, &[DELETE, DAY_30]),
    // Outputs that are table rows are kept: a table can be rebuilt from them (INV-7).
    spec(OHLCV, &[DELETE, FOR_EVER]),
    spec(METRICS, &[DELETE, FOR_EVER]),
    spec(ACTIONS, &[DELETE, FOR_EVER]),
    spec(LEDGER, &[DELETE, FOR_EVER]),
    spec(LIVE, &[COMPACT]),
    spec(KLINES, &[DELETE, DAY_7]),
    spec(BREAKS, &[COMPACT]),
];

/// Settings of a changelog topic.
pub const CHANGELOG: &[(&str, &str)] = &[COMPACT, TOMBSTONES_7_DAYS];

const fn spec(name: &'static str, config: &'static [(&'static str, &'static str)]) -> TopicSpec {
    TopicSpec { name, config }
}

/// Settings of a named topic, none for one that is not FinLake's.
pub fn config(name: &str) -> &'static [(&'static str, &'static str)] {
    ALL.iter()
        .find(|topic| topic.name == name)
        .map_or(&[], |topic| topic.config)
}

/// `<app>-<store>-changelog`.
pub fn changelog(app_id: &str, store: &str) -> String {
    format!("{app_id}-{store}-changelog")
}

/// The registry subject of a topic's values.
pub fn value_subject(topic: &str) -> String {
    format!("{topic}-value")
}
