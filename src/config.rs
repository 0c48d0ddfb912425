//! One validated [`Config`] from defaults, file, environment and command line.
//!
//! The keys stand in one table ([`keys`]); everything that lists them is made from it. A wrong
//! value or an unknown key stops the program at its start, with the key, where it came from and
//! what is allowed. Reads the configuration file and secret files; opens nothing else, and never
//! shows a secret.

pub mod keys;
pub mod kind;
mod layers;
mod render;
mod secret;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use layers::{Layers, Origin, Problem};
pub use render::{example, markdown, settings};
pub use secret::{Properties, Secret};

use finlake_market::Intervals;
use secret::is_secret_property;

/// Environment variables of the command line itself; they are not keys.
pub const RESERVED_ENV: &[&str] = &[
    "FINLAKE_DATA",
    "FINLAKE_CONFIG",
    "FINLAKE_OUTPUT",
    "FINLAKE_LOG",
];

/// The data folder when neither `--data` nor `--config` is given.
pub const DEFAULT_DATA_DIR: &str = "finlake-data";

/// Everything a configuration is made from.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    /// `--data`
    pub data: Option<PathBuf>,
    /// `--config`
    pub config: Option<PathBuf>,
    /// `key=value` of `--set` and of flags that stand for a key, with the flag's name.
    pub overrides: Vec<(String, String, String)>,
    /// The environment.
    pub env: BTreeMap<String, String>,
}

/// What is wrong with the configuration: all of it, not the first thing only.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(
        "cannot read the configuration file {path}: {source}\n  `finlake config --example > {path}` writes one to start from"
    )]
    Unreadable {
        path: String,
        source: std::io::Error,
    },
    #[error("the configuration is not usable:\n{}", list(.0))]
    Invalid(Vec<Problem>),
}

fn list(problems: &[Problem]) -> String {
    problems
        .iter()
        .map(|p| format!("  {p}"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// The layout of a data folder (`--data DIR`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataDir(PathBuf);

impl DataDir {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The configuration file, read if it exists.
    pub fn config_file(&self) -> PathBuf {
        self.0.join("finlake.toml")
    }

    /// The Iceberg catalog (SQLite).
    pub fn catalog(&self) -> PathBuf {
        self.0.join("catalog.db")
    }

    /// The Iceberg tables' files.
    pub fn warehouse(&self) -> PathBuf {
        self.0.join("warehouse")
    }

    /// The state stores.
    pub fn state(&self) -> PathBuf {
        self.0.join("state")
    }

    /// Topics, groups and schemas of `finlake devkafka`.
    pub fn kafka(&self) -> PathBuf {
        self.0.join("kafka")
    }
}

#[derive(Debug, Clone)]
pub struct Kafka {
    pub bootstrap_servers: String,
    pub application_id: String,
    pub instance_id: String,
    pub partitions: i32,
    /// `None`: the cluster's default.
    pub replication_factor: Option<i32>,
    /// `None`: the cluster's default.
    pub min_insync_replicas: Option<i32>,
    pub sasl_password: Option<Secret>,
    pub ssl_key_password: Option<Secret>,
    pub properties: Properties,
}

impl Kafka {
    /// The librdkafka properties that every client of the process begins with: servers and
    /// security. Holds secrets; hand it to the client only.
    pub fn client_properties(&self) -> Properties {
        let mut map = self.properties.0.clone();
        map.insert("bootstrap.servers".into(), self.bootstrap_servers.clone());
        if let Some(secret) = &self.sasl_password {
            map.insert("sasl.password".into(), secret.reveal().to_owned());
        }
        if let Some(secret) = &self.ssl_key_password {
            map.insert("ssl.key.password".into(), secret.reveal().to_owned());
        }
        Properties(map)
    }
}

#[derive(Debug, Clone)]
pub struct Registry {
    pub url: String,
    pub user: Option<String>,
    pub password: Option<Secret>,
}

#[derive(Debug, Clone)]
pub struct Stream {
    pub threads: usize,
    pub commit_interval: Duration,
    /// Always with the daily one.
    pub intervals: Intervals,
    /// `None`: with every commit.
    pub emit: Option<Duration>,
    pub checkpoint_every: Duration,
    pub idle_checkpoint: Duration,
    pub correct_every: Duration,
    pub max_ahead: Duration,
    pub retention_1m: Duration,
    pub heartbeat: Duration,
    pub batch_records: usize,
    pub transaction_timeout: Duration,
    pub session_timeout: Duration,
}

#[derive(Debug, Clone)]
pub struct Gold {
    pub windows: Vec<i32>,
    pub risk_free: f64,
    pub periods: i32,
}

/// What the data itself must keep to.
#[derive(Debug, Clone)]
pub struct Quality {
    /// Validators with their limits, as `finlake_reconcile::rules` reads them.
    pub rules: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Catalog {
    Sqlite { path: PathBuf },
    Rest { uri: String },
}

#[derive(Debug, Clone, Default)]
pub struct S3 {
    pub endpoint: Option<String>,
    pub region: Option<String>,
    pub path_style: bool,
    pub access_key_id: Option<String>,
    pub secret_access_key: Option<Secret>,
    pub session_token: Option<Secret>,
}

#[derive(Debug, Clone)]
pub struct Lake {
    pub catalog: Catalog,
    pub catalog_name: String,
    /// An address (`file://…` or `s3://…`) for SQLite; for REST what the catalog calls it, and it
    /// may be empty.
    pub warehouse: String,
    pub namespace_prefix: Option<String>,
    pub rest_token: Option<Secret>,
    pub rest_credential: Option<Secret>,
    pub s3: S3,
    pub properties: Properties,
    pub commit_interval: Duration,
    pub buckets: Option<u32>,
    pub keep_snapshots: usize,
    pub keep_snapshots_for: Duration,
    pub keep_metadata_files: usize,
    pub merge_manifests_at: usize,
}

#[derive(Debug, Clone)]
pub struct Serve {
    /// `None`: off.
    pub listen: Option<SocketAddr>,
}

#[derive(Debug, Clone)]
pub struct State {
    pub dir: PathBuf,
    pub cache_bytes: usize,
    pub write_buffer_bytes: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogFormat {
    Auto,
    Text,
    Json,
}

#[derive(Debug, Clone)]
pub struct Log {
    pub filter: String,
    pub format: LogFormat,
}

/// The whole configuration, checked. `Debug` shows no secret.
#[derive(Debug, Clone)]
pub struct Config {
    pub data: DataDir,
    pub kafka: Kafka,
    pub registry: Registry,
    pub stream: Stream,
    pub gold: Gold,
    pub quality: Quality,
    pub lake: Lake,
    pub serve: Serve,
    pub state: State,
    pub log: Log,
    /// Not wrong, but worth a line in the log.
    pub warnings: Vec<String>,
}

/// librdkafka properties that exactly-once depends on, or that have a key of ours.
const MANAGED: &[(&str, &str)] = &[
    ("bootstrap.servers", "kafka.bootstrap_servers"),
    ("metadata.broker.list", "kafka.bootstrap_servers"),
    ("group.id", "kafka.application_id"),
    ("group.instance.id", "kafka.instance_id"),
    ("transactional.id", "kafka.instance_id"),
    ("transaction.timeout.ms", "stream.transaction_timeout_ms"),
    ("session.timeout.ms", "stream.session_timeout_ms"),
    ("sasl.password", "kafka.sasl_password"),
    ("ssl.key.password", "kafka.ssl_key_password"),
    ("enable.idempotence", ""),
    ("enable.auto.commit", ""),
    ("enable.auto.offset.store", ""),
    ("auto.offset.reset", ""),
    ("isolation.level", ""),
    ("partition.assignment.strategy", ""),
    ("message.timeout.ms", ""),
    ("delivery.timeout.ms", ""),
    ("acks", ""),
    ("request.required.acks", ""),
    ("linger.ms", ""),
    ("queue.buffering.max.ms", ""),
];

impl Config {
    /// Reads and checks everything.
    pub fn load(inputs: &Inputs) -> Result<Config, ConfigError> {
        Self::load_with_layers(inputs).map(|(config, _)| config)
    }

    /// As [`Config::load`]; the layers tell each value's origin.
    pub fn load_with_layers(inputs: &Inputs) -> Result<(Config, Layers), ConfigError> {
        let data = data_dir(inputs);
        let mut layers = Layers::defaults();
        if let Some((path, text)) = read_file(inputs, &data)? {
            layers.file(&path.display().to_string(), &text);
        }
        layers.env(&inputs.env, RESERVED_ENV);
        for (key, value, flag) in &inputs.overrides {
            layers.set(key, value, flag);
        }
        layers.layout("state.dir", &data.state());
        if layers.text("lake.catalog").as_deref() == Some("sqlite") {
            layers.layout("lake.uri", &data.catalog());
            layers.layout("lake.warehouse", &data.warehouse());
        }
        match build(data, &mut layers) {
            Some(config) if layers.problems.is_empty() => Ok((config, layers)),
            _ => {
                let mut problems = std::mem::take(&mut layers.problems);
                problems.sort_by(|a, b| a.key.cmp(&b.key));
                problems.dedup();
                Err(ConfigError::Invalid(problems))
            }
        }
    }
}

fn data_dir(inputs: &Inputs) -> DataDir {
    let dir = inputs
        .data
        .clone()
        .unwrap_or_else(|| PathBuf::from(DEFAULT_DATA_DIR));
    // Paths end up in catalogs and addresses: they must not depend on the current folder.
    DataDir::new(std::path::absolute(&dir).unwrap_or(dir))
}

fn read_file(inputs: &Inputs, data: &DataDir) -> Result<Option<(PathBuf, String)>, ConfigError> {
    let path = inputs.config.clone().unwrap_or_else(|| data.config_file());
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some((path, text))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && inputs.config.is_none() => Ok(None),
        Err(source) => Err(ConfigError::Unreadable {
            path: path.display().to_string(),
            source,
        }),
    }
}

fn build(data: DataDir, layers: &mut Layers) -> Option<Config> {
    let kafka = Kafka {
        bootstrap_servers: layers.text("kafka.bootstrap_servers").unwrap_or_default(),
        application_id: layers.text("kafka.application_id").unwrap_or_default(),
        instance_id: layers.text("kafka.instance_id").unwrap_or_default(),
        partitions: int(layers, "kafka.partitions"),
        replication_factor: some_if_positive(int(layers, "kafka.replication_factor")),
        min_insync_replicas: some_if_positive(int(layers, "kafka.min_insync_replicas")),
        sasl_password: layers.secret("kafka.sasl_password"),
        ssl_key_password: layers.secret("kafka.ssl_key_password"),
        properties: layers.map("kafka.properties"),
    };
    let registry = Registry {
        url: layers.text("registry.url").unwrap_or_default(),
        user: layers.text("registry.user"),
        password: layers.secret("registry.password"),
    };
    let intervals = match kind::intervals(&layers.list("stream.intervals")) {
        Ok(intervals) => intervals,
        Err(message) => {
            layers.problem(
                "stream.intervals",
                layers.origin("stream.intervals"),
                message,
            );
            return None;
        }
    };
    let stream = Stream {
        threads: int(layers, "stream.threads"),
        commit_interval: millis(layers, "stream.commit_interval_ms"),
        intervals,
        emit: layers.emit("stream.emit").map(from_millis),
        checkpoint_every: millis(layers, "stream.checkpoint_every"),
        idle_checkpoint: millis(layers, "stream.idle_checkpoint"),
        correct_every: millis(layers, "stream.correct_every"),
        max_ahead: millis(layers, "stream.max_ahead"),
        retention_1m: millis(layers, "stream.retention_1m"),
        heartbeat: millis(layers, "stream.heartbeat"),
        batch_records: int(layers, "stream.batch_records"),
        transaction_timeout: millis(layers, "stream.transaction_timeout_ms"),
        session_timeout: millis(layers, "stream.session_timeout_ms"),
    };
    let gold = Gold {
        windows: layers
            .ints("gold.windows")
            .iter()
            .map(|n| clamp(*n))
            .collect(),
        risk_free: layers.float("gold.risk_free"),
        periods: int(layers, "gold.periods"),
    };
    let rules = layers.text("quality.rules").unwrap_or_default();
    if let Err(e) = finlake_reconcile::rules::parse(&rules) {
        layers.problem(
            "quality.rules",
            layers.origin("quality.rules"),
            e.to_string(),
        );
    }
    let quality = Quality { rules };
    let lake = lake(layers);
    let serve = Serve {
        listen: layers.text("serve.listen").and_then(|t| t.parse().ok()),
    };
    let state = State {
        dir: layers
            .text("state.dir")
            .map_or_else(|| data.state(), PathBuf::from),
        cache_bytes: int::<usize>(layers, "state.cache_mb") << 20,
        write_buffer_bytes: int::<usize>(layers, "state.write_buffer_mb") << 20,
    };
    let log = Log {
        filter: layers.text("log.filter").unwrap_or_else(|| "info".into()),
        format: match layers.text("log.format").as_deref() {
            Some("text") => LogFormat::Text,
            Some("json") => LogFormat::Json,
            _ => LogFormat::Auto,
        },
    };
    let mut config = Config {
        data,
        kafka,
        registry,
        stream,
        gold,
        quality,
        lake,
        serve,
        state,
        log,
        warnings: Vec::new(),
    };
    // Relations between values that are wrong by themselves would only confuse.
    if layers.problems.is_empty() {
        check_relations(&config, layers);
    }
    config.warnings = std::mem::take(&mut layers.warnings);
    Some(config)
}

fn lake(layers: &mut Layers) -> Lake {
    let uri = layers.text("lake.uri").unwrap_or_default();
    let warehouse = layers.text("lake.warehouse").unwrap_or_default();
    let (catalog, warehouse) = if layers.text("lake.catalog").as_deref() == Some("rest") {
        if !uri.starts_with("http://") && !uri.starts_with("https://") {
            let message = "a REST catalog needs its http:// or https:// address".into();
            layers.problem("lake.uri", layers.origin("lake.uri"), message);
        }
        (Catalog::Rest { uri }, warehouse)
    } else {
        let path = uri.strip_prefix("sqlite://").unwrap_or(&uri);
        if path.contains("://") {
            let message = "a SQLite catalog is a file; for an address set lake.catalog = \"rest\"";
            layers.problem("lake.uri", layers.origin("lake.uri"), message.into());
        }
        let path = std::path::absolute(path).unwrap_or_else(|_| PathBuf::from(path));
        (Catalog::Sqlite { path }, warehouse_url(layers, &warehouse))
    };
    let buckets: u32 = int(layers, "lake.buckets");
    Lake {
        catalog,
        catalog_name: layers.text("lake.catalog_name").unwrap_or_default(),
        warehouse,
        namespace_prefix: layers.text("lake.namespace_prefix"),
        rest_token: layers.secret("lake.rest_token"),
        rest_credential: layers.secret("lake.rest_credential"),
        s3: S3 {
            endpoint: layers.text("lake.s3_endpoint"),
            region: layers.text("lake.s3_region"),
            path_style: layers.bool("lake.s3_path_style"),
            access_key_id: layers.text("lake.s3_access_key_id"),
            secret_access_key: layers.secret("lake.s3_secret_access_key"),
            session_token: layers.secret("lake.s3_session_token"),
        },
        properties: layers.map("lake.properties"),
        commit_interval: millis(layers, "lake.commit_interval"),
        buckets: (buckets > 0).then_some(buckets),
        keep_snapshots: int(layers, "lake.keep_snapshots"),
        keep_snapshots_for: millis(layers, "lake.keep_snapshots_for"),
        keep_metadata_files: int(layers, "lake.keep_metadata_files"),
        merge_manifests_at: int(layers, "lake.merge_manifests_at"),
    }
}

/// A folder becomes a `file://` address; an address must be one that the storage knows.
fn warehouse_url(layers: &mut Layers, warehouse: &str) -> String {
    if let Some((scheme, _)) = warehouse.split_once("://") {
        if !matches!(scheme, "file" | "s3" | "s3a") {
            let message = format!("{scheme}:// is not known; allowed: a folder, file://, s3://");
            layers.problem("lake.warehouse", layers.origin("lake.warehouse"), message);
        }
        return warehouse.trim_end_matches('/').to_owned();
    }
    let path = std::path::absolute(warehouse).unwrap_or_else(|_| PathBuf::from(warehouse));
    // Not percent-encoded: the other engines take these locations literally, too.
    format!("file://{}", path.display())
        .trim_end_matches('/')
        .to_owned()
}

/// What must hold between keys.
/// What lies in the folder of the state stores and is none of theirs.
fn beside_the_stores(config: &Config) -> Option<PathBuf> {
    let whole = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let state = whole(&config.state.dir);
    let mut others = vec![config.data.path().to_owned(), config.data.kafka()];
    if let Catalog::Sqlite { path } = &config.lake.catalog {
        others.push(path.clone());
    }
    if let Some(path) = config.lake.warehouse.strip_prefix("file://") {
        others.push(PathBuf::from(path));
    }
    let mut others = others.iter().map(|path| whole(path));
    others.find(|path| path.starts_with(&state))
}

fn check_relations(config: &Config, layers: &mut Layers) {
    let stream = &config.stream;
    let mut wrong = |key: &str, message: String| {
        let origin = layers.origin(key);
        layers.problem(key, origin, message);
    };
    if let Some(inside) = beside_the_stores(config) {
        wrong(
            "state.dir",
            format!(
                "{} holds {}: give the state stores a folder of their own, since a reset removes it",
                config.state.dir.display(),
                inside.display()
            ),
        );
    }
    let (tx, session) = (stream.transaction_timeout, stream.session_timeout);
    if tx >= session {
        wrong(
            "stream.transaction_timeout_ms",
            format!(
                "{} must be less than stream.session_timeout_ms ({}): a transaction must not \
                 outlive the membership that its partitions belong to",
                tx.as_millis(),
                session.as_millis()
            ),
        );
    }
    if stream.commit_interval * 4 > tx {
        wrong(
            "stream.commit_interval_ms",
            format!(
                "{} must be at most a quarter of stream.transaction_timeout_ms ({})",
                stream.commit_interval.as_millis(),
                tx.as_millis()
            ),
        );
    }
    if stream.heartbeat < stream.commit_interval {
        wrong(
            "stream.heartbeat",
            "must not be shorter than stream.commit_interval_ms".into(),
        );
    }
    if stream
        .emit
        .is_some_and(|every| every < stream.commit_interval)
    {
        wrong(
            "stream.emit",
            "must not be shorter than stream.commit_interval_ms; for each commit write \"commit\""
                .into(),
        );
    }
    if let (Some(min), Some(factor)) = (
        config.kafka.min_insync_replicas,
        config.kafka.replication_factor,
    ) && min > factor
    {
        wrong(
            "kafka.min_insync_replicas",
            "must not exceed kafka.replication_factor".into(),
        );
    }
    if config
        .lake
        .buckets
        .is_some_and(|n| i64::from(n) * i64::from(config.kafka.partitions) > 32)
    {
        wrong(
            "lake.buckets",
            format!(
                "buckets × kafka.partitions ({}) must be at most 32, or every commit makes too \
                 many small files",
                config.kafka.partitions
            ),
        );
    }
    if config.registry.user.is_some() != config.registry.password.is_some() {
        wrong(
            "registry.user",
            "needs registry.password, and the other way round".into(),
        );
    }
    for name in config.kafka.properties.0.keys() {
        if let Some((_, ours)) = MANAGED.iter().find(|(managed, _)| managed == name) {
            let instead = if ours.is_empty() {
                "exactly-once depends on it, it is fixed".to_owned()
            } else {
                format!("set {ours} instead")
            };
            wrong("kafka.properties", format!("\"{name}\": {instead}"));
        }
    }
    for (key, map) in [
        ("kafka.properties", &config.kafka.properties),
        ("lake.properties", &config.lake.properties),
    ] {
        let from_env = matches!(layers.origin(key), Some(Origin::Env(_)));
        for name in map
            .0
            .keys()
            .filter(|name| is_secret_property(name) && !from_env)
        {
            let message = format!(
                "\"{name}\" is a secret: it may come from the environment only ({})",
                keys::env_name(key)
            );
            let origin = layers.origin(key);
            layers.problem(key, origin, message);
        }
    }
}

/// Ranges are in the table; a number that does not fit its type cannot pass them.
fn int<T: TryFrom<i64> + Default>(layers: &Layers, path: &'static str) -> T {
    T::try_from(layers.int(path)).unwrap_or_default()
}

fn clamp(n: i64) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

fn some_if_positive(n: i32) -> Option<i32> {
    (n > 0).then_some(n)
}

fn from_millis(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or_default())
}

fn millis(layers: &Layers, path: &'static str) -> Duration {
    from_millis(layers.int(path))
}

#[cfg(test)]
mod tests;
