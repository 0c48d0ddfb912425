//! Topic configuration: the settings that are known, their defaults, what a value may be.
//!
//! A topic stores only what was set explicitly, as strings; [`TopicConfig`] is that, parsed. A
//! setting that is known and has no effect here (such as `compression.type`) is accepted and shown,
//! since users' scripts set it.

use std::collections::BTreeMap;

/// How a value is checked and described.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Bool,
    Int,
    Long,
    Double,
    Text,
    /// A comma-separated list of the given words.
    List(&'static [&'static str]),
    /// One of the given words.
    Word(&'static [&'static str]),
}

/// One known topic setting.
pub struct Setting {
    pub name: &'static str,
    pub default: &'static str,
    pub kind: Kind,
}

const fn setting(name: &'static str, default: &'static str, kind: Kind) -> Setting {
    Setting {
        name,
        default,
        kind,
    }
}

/// All known topic settings, by name.
pub const SETTINGS: &[Setting] = &[
    setting(
        "cleanup.policy",
        "delete",
        Kind::List(&["delete", "compact"]),
    ),
    setting("compression.gzip.level", "-1", Kind::Int),
    setting("compression.lz4.level", "9", Kind::Int),
    setting(
        "compression.type",
        "producer",
        Kind::Word(&[
            "producer",
            "uncompressed",
            "none",
            "gzip",
            "snappy",
            "lz4",
            "zstd",
        ]),
    ),
    setting("compression.zstd.level", "3", Kind::Int),
    setting("delete.retention.ms", "86400000", Kind::Long),
    setting("file.delete.delay.ms", "60000", Kind::Long),
    setting("flush.messages", "9223372036854775807", Kind::Long),
    setting("flush.ms", "9223372036854775807", Kind::Long),
    setting("follower.replication.throttled.replicas", "", Kind::Text),
    setting("index.interval.bytes", "4096", Kind::Int),
    setting("leader.replication.throttled.replicas", "", Kind::Text),
    setting("local.retention.bytes", "-2", Kind::Long),
    setting("local.retention.ms", "-2", Kind::Long),
    setting("max.compaction.lag.ms", "9223372036854775807", Kind::Long),
    setting("max.message.bytes", "1048588", Kind::Int),
    setting("message.timestamp.after.max.ms", "3600000", Kind::Long),
    setting(
        "message.timestamp.before.max.ms",
        "9223372036854775807",
        Kind::Long,
    ),
    setting(
        "message.timestamp.type",
        "CreateTime",
        Kind::Word(&["CreateTime", "LogAppendTime"]),
    ),
    setting("min.cleanable.dirty.ratio", "0.5", Kind::Double),
    setting("min.compaction.lag.ms", "0", Kind::Long),
    setting("min.insync.replicas", "1", Kind::Int),
    setting("preallocate", "false", Kind::Bool),
    setting("retention.bytes", "-1", Kind::Long),
    setting("retention.ms", "604800000", Kind::Long),
    setting("segment.bytes", "1073741824", Kind::Int),
    setting("segment.index.bytes", "10485760", Kind::Int),
    setting("segment.jitter.ms", "0", Kind::Long),
    setting("segment.ms", "604800000", Kind::Long),
    setting("unclean.leader.election.enable", "false", Kind::Bool),
];

/// The setting of that name.
pub fn find(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|s| s.name == name)
}

impl Setting {
    /// True if the value is one that this setting may have.
    pub fn accepts(&self, value: &str) -> bool {
        match self.kind {
            Kind::Bool => matches!(value, "true" | "false"),
            Kind::Int => value.parse::<i32>().is_ok(),
            Kind::Long => value.parse::<i64>().is_ok(),
            Kind::Double => value.parse::<f64>().is_ok(),
            Kind::Text => true,
            Kind::List(words) => value.split(',').map(str::trim).all(|v| words.contains(&v)),
            Kind::Word(words) => words.contains(&value),
        }
    }

    /// The type code that DescribeConfigs reports.
    pub fn type_code(&self) -> i8 {
        match self.kind {
            Kind::Bool => 1,
            Kind::Text | Kind::Word(_) => 2,
            Kind::Int => 3,
            Kind::Long => 5,
            Kind::Double => 6,
            Kind::List(_) => 7,
        }
    }
}

/// Checks explicit settings; the error says which one is wrong and how.
pub fn check(configs: &BTreeMap<String, String>) -> Result<(), String> {
    for (name, value) in configs {
        match find(name) {
            None => return Err(format!("Unknown topic config name: {name}")),
            Some(s) if !s.accepts(value) => {
                return Err(format!("Invalid value {value} for configuration {name}"));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// The settings that have an effect, parsed. Times are milliseconds; -1 = unlimited.
#[derive(Debug, Clone, PartialEq)]
pub struct TopicConfig {
    pub compact: bool,
    pub delete: bool,
    pub delete_retention_ms: i64,
    pub max_message_bytes: usize,
    pub timestamp_after_max_ms: i64,
    pub log_append_time: bool,
    pub min_cleanable_dirty_ratio: f64,
    pub min_compaction_lag_ms: i64,
    pub retention_bytes: i64,
    pub retention_ms: i64,
    pub segment_bytes: u64,
    pub segment_ms: i64,
}

impl TopicConfig {
    /// Parses checked settings.
    pub fn parse(configs: &BTreeMap<String, String>) -> TopicConfig {
        let text = |name: &str| value(configs, name);
        let long = |name: &str| text(name).parse::<i64>().unwrap_or(-1);
        let policies: Vec<&str> = text("cleanup.policy").split(',').map(str::trim).collect();
        TopicConfig {
            compact: policies.contains(&"compact"),
            delete: policies.contains(&"delete"),
            delete_retention_ms: long("delete.retention.ms"),
            max_message_bytes: usize::try_from(long("max.message.bytes")).unwrap_or(0),
            timestamp_after_max_ms: long("message.timestamp.after.max.ms"),
            log_append_time: text("message.timestamp.type") == "LogAppendTime",
            min_cleanable_dirty_ratio: text("min.cleanable.dirty.ratio").parse().unwrap_or(0.5),
            min_compaction_lag_ms: long("min.compaction.lag.ms"),
            retention_bytes: long("retention.bytes"),
            retention_ms: long("retention.ms"),
            segment_bytes: u64::try_from(long("segment.bytes"))
                .unwrap_or(1 << 30)
                .max(1024),
            segment_ms: long("segment.ms").max(1),
        }
    }
}

/// The value in force: the explicit one, else the default.
pub fn value<'a>(configs: &'a BTreeMap<String, String>, name: &str) -> &'a str {
    match configs.get(name) {
        Some(v) => v,
        None => find(name).map_or("", |s| s.default),
    }
}
