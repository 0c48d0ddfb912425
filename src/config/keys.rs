//! The one table of configuration keys. The loader, the environment names, the example file and
//! docs/configuration.md are all made from it, so they cannot drift apart.

use super::kind::Kind;

/// A configuration key.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// `section.name`.
    pub path: &'static str,
    pub kind: Kind,
    /// The default as it would be written in an environment variable; empty: none.
    pub default: &'static str,
    /// What the default is when it is not a constant, in words.
    pub computed: &'static str,
    /// What the key does, in sentences for its user.
    pub doc: &'static str,
}

impl Key {
    /// The environment variable of the key: `FINLAKE_SECTION_KEY`.
    pub fn env(&self) -> String {
        env_name(self.path)
    }

    pub fn section(&self) -> &'static str {
        self.path.split_once('.').map_or("", |(section, _)| section)
    }

    pub fn name(&self) -> &'static str {
        self.path
            .split_once('.')
            .map_or(self.path, |(_, name)| name)
    }
}

/// The environment variable of a key path.
pub fn env_name(path: &str) -> String {
    format!("FINLAKE_{}", path.replace('.', "_").to_ascii_uppercase())
}

/// The key of this path.
pub fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|k| k.path == path)
}

/// The sections in the order of the example file, each with its sentence.
pub const SECTIONS: &[(&str, &str)] = &[
    (
        "kafka",
        "The Kafka cluster, and who this instance is in it.",
    ),
    ("registry", "The schema registry (Confluent API)."),
    (
        "stream",
        "The stream role: trades in, bars and metrics out, exactly once.",
    ),
    ("gold", "Returns, volatility and Sharpe ratios."),
    (
        "quality",
        "What the data itself must keep to; `finlake reconcile` measures it.",
    ),
    (
        "lake",
        "The Iceberg tables: catalog, warehouse, layout, upkeep.",
    ),
    ("serve", "The HTTP endpoint with metrics and health."),
    (
        "state",
        "The local state stores (RocksDB). They can be lost: changelogs restore them.",
    ),
    ("log", "Log output on stderr."),
];

const fn key(path: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Key {
    Key {
        path,
        kind,
        default,
        computed: "",
        doc,
    }
}

const fn computed(path: &'static str, kind: Kind, words: &'static str, doc: &'static str) -> Key {
    Key {
        path,
        kind,
        default: "",
        computed: words,
        doc,
    }
}

const fn int(min: i64, max: i64) -> Kind {
    Kind::Int { min, max }
}

const fn ms(min: i64, max: i64) -> Kind {
    Kind::Duration { min, max }
}

const SECOND: i64 = 1_000;
const HOUR: i64 = 3_600 * SECOND;
const DAY: i64 = 24 * HOUR;

/// Every key there is.
pub const KEYS: &[Key] = &[
    // kafka
    key(
        "kafka.bootstrap_servers",
        Kind::Servers,
        "127.0.0.1:9092",
        "Brokers to ask first. The default is where `finlake devkafka` listens.",
    ),
    key(
        "kafka.application_id",
        Kind::Name,
        "finlake",
        "Name of the application: consumer group, and prefix of transactional ids and changelog \
         topics. A new name begins anew, from the start of the input.",
    ),
    key(
        "kafka.instance_id",
        Kind::Name,
        "1",
        "Name of this instance within the application. It must differ between processes that run \
         at the same time and stay the same over restarts: a restarted instance takes over from \
         its dead predecessor at once.",
    ),
    key(
        "kafka.partitions",
        int(1, 1024),
        "4",
        "Partitions of every topic. Fixed for the life of an application: a topic with another \
         count stops it.",
    ),
    key(
        "kafka.replication_factor",
        int(0, 15),
        "0",
        "Replicas of topics that `finlake topics create` makes; 0 takes the cluster's default.",
    ),
    key(
        "kafka.min_insync_replicas",
        int(0, 15),
        "0",
        "min.insync.replicas of topics that `finlake topics create` makes; 0 takes the cluster's \
         default.",
    ),
    key(
        "kafka.sasl_password",
        Kind::Secret,
        "",
        "librdkafka's sasl.password.",
    ),
    key(
        "kafka.ssl_key_password",
        Kind::Secret,
        "",
        "librdkafka's ssl.key.password.",
    ),
    key(
        "kafka.properties",
        Kind::Map,
        "",
        "Further librdkafka properties for every client, for security above all, such as \
         \"security.protocol\", \"sasl.mechanism\", \"sasl.username\", \"ssl.ca.location\". \
         Properties that exactly-once depends on are refused.",
    ),
    // registry
    key(
        "registry.url",
        Kind::Url,
        "http://127.0.0.1:8081",
        "Address of the registry, with its path if it has one.",
    ),
    key(
        "registry.user",
        Kind::Text,
        "",
        "User for basic authentication.",
    ),
    key(
        "registry.password",
        Kind::Secret,
        "",
        "Password for basic authentication.",
    ),
    // stream
    key(
        "stream.threads",
        int(1, 64),
        "1",
        "Stream threads in this process; each has a consumer and a transactional producer. \
         More than kafka.partitions in all instances together would idle.",
    ),
    key(
        "stream.commit_interval_ms",
        int(1, 60_000),
        "100",
        "Milliseconds between two transactions. Readers see results this much later at most; \
         shorter costs CPU.",
    ),
    key(
        "stream.intervals",
        Kind::Intervals,
        "1m,1h,1d",
        "Bar intervals, each in the largest unit that fits (1h, not 60m). 1d is always computed, since \
         Gold is made of it.",
    ),
    key(
        "stream.emit",
        Kind::Emit,
        "1s",
        "How often a changed, still forming bar goes to market.ohlcv.live. Closed and corrected \
         bars go at once.",
    ),
    key(
        "stream.checkpoint_every",
        ms(60 * SECOND, DAY),
        "1h",
        "A forming bar of a longer interval becomes a table version at each such multiple of \
         stream time.",
    ),
    key(
        "stream.idle_checkpoint",
        ms(SECOND, HOUR),
        "1m",
        "After this long without input, changed forming bars become table versions too, so that \
         a finished file is whole in the tables.",
    ),
    key(
        "stream.correct_every",
        ms(100, HOUR),
        "10s",
        "A bar that late trades change is corrected at most this often.",
    ),
    key(
        "stream.max_ahead",
        ms(100, DAY),
        "10s",
        "A trade stamped later than its record's Kafka timestamp by more than this goes to the \
         dead-letter topic as `future`.",
    ),
    key(
        "stream.retention_1m",
        ms(DAY, 3_650 * DAY),
        "35d",
        "How long 1m and shorter bars stay correctable. A later trade still corrects the longer \
         intervals and is listed in the dead-letter topic as too_late.",
    ),
    key(
        "stream.heartbeat",
        ms(SECOND, HOUR),
        "10s",
        "A partition without input commits an empty ledger entry this often, which moves the \
         stable frontier of the tables.",
    ),
    key(
        "stream.batch_records",
        int(1, 100_000),
        "4096",
        "Most records taken from the consumer at a time.",
    ),
    key(
        "stream.transaction_timeout_ms",
        int(1_000, 900_000),
        "10000",
        "Milliseconds after which the broker aborts a transaction. Less than \
         stream.session_timeout_ms, and at least four commit intervals.",
    ),
    key(
        "stream.session_timeout_ms",
        int(6_000, 1_800_000),
        "20000",
        "Milliseconds after which the group gives a silent instance's partitions to others.",
    ),
    // gold
    key(
        "gold.windows",
        Kind::Ints { min: 2, max: 1_000 },
        "30,90",
        "Observations (daily returns) of the windows for return, volatility and Sharpe. Fixed at \
         table creation: each has its columns.",
    ),
    key(
        "gold.risk_free",
        Kind::Float {
            min: -0.5,
            max: 1.0,
        },
        "0.0",
        "Annual risk-free rate: 0.03 is three per cent.",
    ),
    key(
        "gold.periods",
        int(1, 366),
        "365",
        "Trading days in a year: 365 for crypto, 252 for equities.",
    ),
    // quality
    key(
        "quality.rules",
        Kind::Text,
        finlake_reconcile::rules::DEFAULT,
        "Validators that `finlake reconcile` measures, each with the greatest value that is fine: \
         id_gaps (missing trade ids per million), ohlc_order, volume_sum:INTERVAL, current_unique \
         (counts), missing_bars:INTERVAL, null_rate:COLUMN (shares), kline_accuracy:INTERVAL, \
         vendor_accuracy:INTERVAL (shares of bars that are more than 0.01 % off).",
    ),
    // lake
    key(
        "lake.catalog",
        Kind::OneOf(&["sqlite", "rest"]),
        "sqlite",
        "The Iceberg catalog: a SQLite file (also read by Spark and pyiceberg), or a REST catalog.",
    ),
    key(
        "lake.catalog_name",
        Kind::Name,
        "finlake",
        "Name of the catalog. Others that open a SQLite catalog must use the same name.",
    ),
    computed(
        "lake.uri",
        Kind::Location,
        "DIR/catalog.db",
        "Where the catalog is: the file for sqlite, the address for rest.",
    ),
    computed(
        "lake.warehouse",
        Kind::Location,
        "DIR/warehouse",
        "Where the data is: a folder or s3://bucket/path for sqlite; for rest what the catalog \
         calls its warehouse (may be empty).",
    ),
    key(
        "lake.namespace_prefix",
        Kind::Name,
        "",
        "Put before the namespaces bronze, silver and gold, as in prefix_bronze.",
    ),
    key(
        "lake.rest_token",
        Kind::Secret,
        "",
        "Bearer token for a REST catalog.",
    ),
    key(
        "lake.rest_credential",
        Kind::Secret,
        "",
        "OAuth2 client credentials for a REST catalog: client_id:client_secret.",
    ),
    key(
        "lake.s3_endpoint",
        Kind::Url,
        "",
        "Endpoint of an S3-compatible store (MinIO and others); none: Amazon's.",
    ),
    key(
        "lake.s3_region",
        Kind::Name,
        "us-east-1",
        "Region of the bucket.",
    ),
    key(
        "lake.s3_path_style",
        Kind::Bool,
        "true",
        "Bucket in the path (MinIO and others) instead of in the host name.",
    ),
    key(
        "lake.s3_access_key_id",
        Kind::Text,
        "",
        "Access key; none: AWS_ACCESS_KEY_ID, then the machine's own identity.",
    ),
    key(
        "lake.s3_secret_access_key",
        Kind::Secret,
        "",
        "Secret key; none: AWS_SECRET_ACCESS_KEY.",
    ),
    key(
        "lake.s3_session_token",
        Kind::Secret,
        "",
        "Session token of temporary credentials.",
    ),
    key(
        "lake.properties",
        Kind::Map,
        "",
        "Further properties for the storage and for the REST catalog's client (`header.*`, `scope`, \
         `oauth2-server-uri`, `prefix`).",
    ),
    key(
        "lake.commit_interval",
        ms(100, HOUR),
        "10s",
        "One snapshot per table and interval. Shorter shows rows sooner and makes more, smaller \
         files.",
    ),
    key(
        "lake.buckets",
        int(0, 32),
        "0",
        "Partition by bucket(N, symbol) in place of symbol; for more than 64 symbols. 0: by \
         symbol. buckets × kafka.partitions is at most 32. Only read when a table is created.",
    ),
    key(
        "lake.keep_snapshots",
        int(10, 100_000),
        "100",
        "Snapshots a table keeps. As-of queries do not need them: every version is a row.",
    ),
    key(
        "lake.keep_snapshots_for",
        ms(60 * SECOND, 3_650 * DAY),
        "15m",
        "No snapshot younger than this expires, so that running readers finish.",
    ),
    key(
        "lake.keep_metadata_files",
        int(2, 1_000),
        "20",
        "Old metadata files a table keeps.",
    ),
    key(
        "lake.merge_manifests_at",
        int(2, 1_000),
        "50",
        "Manifests of a table are merged when there are this many.",
    ),
    // serve
    key(
        "serve.listen",
        Kind::Listen,
        "127.0.0.1:9464",
        "Where /metrics, /healthz and /readyz answer. Without authentication: think before you \
         open it to others.",
    ),
    // state
    computed(
        "state.dir",
        Kind::Path,
        "DIR/state",
        "Folder of the state stores and of nothing else. One process at a time.",
    ),
    key(
        "state.cache_mb",
        int(8, 65_536),
        "32",
        "Block cache in MB, shared by all stores of the process.",
    ),
    key(
        "state.write_buffer_mb",
        int(4, 16_384),
        "16",
        "Write buffers in MB, shared by all stores of the process.",
    ),
    // log
    key(
        "log.filter",
        Kind::Text,
        "info",
        "What is logged: a level, or target=level pairs such as info,finlake_topology=debug.",
    ),
    key(
        "log.format",
        Kind::OneOf(&["auto", "text", "json"]),
        "auto",
        "auto: text on a terminal, else JSON lines.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::kind::Raw;

    #[test]
    fn paths_and_environment_names_are_unique_and_in_known_sections() {
        let mut envs = std::collections::BTreeSet::new();
        for k in KEYS {
            assert!(
                SECTIONS.iter().any(|(s, _)| *s == k.section()),
                "{}",
                k.path
            );
            assert!(envs.insert(k.env()), "{} twice", k.env());
            if k.kind == Kind::Secret {
                assert!(
                    envs.insert(env_name(&format!("{}_file", k.path))),
                    "{}",
                    k.path
                );
            }
            assert!(
                k.doc.ends_with('.'),
                "{}: a sentence ends with a full stop",
                k.path
            );
        }
    }

    #[test]
    fn every_default_is_allowed() {
        for k in KEYS.iter().filter(|k| !k.default.is_empty()) {
            let parsed = k.kind.parse(&Raw::Text(k.default.into()));
            assert!(parsed.is_ok(), "{} = {:?}: {parsed:?}", k.path, k.default);
        }
    }
}
