//! The roles of a running application: stream threads and the sink, started and stopped together.
//!
//! Each role runs on threads of its own; the only thing they share is the codec and the metrics registry. A role that
//! ends with an error ends the process: the supervisor restarts it, and it goes on where Kafka and the tables say.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use finlake_lakehouse::{KafkaIds, Lakehouse};
use finlake_pipeline::{Emit, Market, PipelineConfig};
use finlake_schemas::registry::Subject;
use finlake_schemas::{Codec, topics};
use finlake_state::{Budget, StateDb};
use finlake_topology::broker::SystemClock;
use finlake_topology::gate::{Resolution, SchemaGate};
use finlake_topology::kafka::{KafkaBroker, KafkaConfig};
use finlake_topology::thread::{Control, Hooks, StreamThread, ThreadConfig};
use finlake_topology::{Record, Topology};
use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, Consumer};
use tokio::runtime::Handle;

use crate::audit::{self, Audit, Audited, BreaksThread};
use crate::config::Config;
use crate::parts::{self, micros};
use crate::serve::metrics::Metrics;
use crate::sink::{Sink, SinkControl, SinkOptions, SinkStatus};

/// What every role needs: schemas and the topology. Topics exist when this is there.
pub struct App {
    pub config: Config,
    pub codec: Arc<Codec>,
    pub topology: Topology<Market>,
    pub metrics: Arc<Metrics>,
    pub faults: PlantedFaults,
}

/// What tests make go wrong, to see that somebody notices; none. Reached by code alone: no setting and no command.
#[derive(Debug, Clone, Default)]
pub struct PlantedFaults {
    /// In the stream role's tasks.
    pub task: finlake_topology::faults::Faults,
    /// In the sink's tables.
    pub lake: finlake_lakehouse::faults::Faults,
}

/// The pipeline's settings.
pub fn pipeline_config(config: &Config) -> PipelineConfig {
    let limits = finlake_market::Limits {
        max_ahead: micros(config.stream.max_ahead),
    };
    PipelineConfig {
        app_id: config.kafka.application_id.clone(),
        intervals: config.stream.intervals.list().to_vec(),
        emit: config
            .stream
            .emit
            .map_or(Emit::Commit, |every| Emit::Every(micros(every))),
        checkpoint_every: micros(config.stream.checkpoint_every),
        correct_every: micros(config.stream.correct_every),
        idle_checkpoint: micros(config.stream.idle_checkpoint),
        limits,
        retention_1m: micros(config.stream.retention_1m),
        gold: finlake_market::GoldConfig {
            windows: config
                .gold
                .windows
                .iter()
                .map(|n| u16::try_from(*n).unwrap_or(u16::MAX))
                .collect(),
            periods: u16::try_from(config.gold.periods).unwrap_or(u16::MAX),
            risk_free: config.gold.risk_free,
        },
        ..PipelineConfig::default()
    }
}

/// How one thread or sink of this instance reaches Kafka. `suffix` tells roles of one process apart.
pub fn kafka_config(config: &Config, suffix: &str, thread: usize) -> KafkaConfig {
    let app = format!("{}{suffix}", config.kafka.application_id);
    let mut kafka = KafkaConfig::new(
        &config.kafka.bootstrap_servers,
        &app,
        &config.kafka.instance_id,
    );
    kafka.thread = thread;
    kafka.properties = config.kafka.client_properties().0.into_iter().collect();
    kafka.properties.remove("bootstrap.servers");
    kafka.transaction_timeout_ms = config.stream.transaction_timeout.as_millis() as u32;
    kafka.session_timeout_ms = config.stream.session_timeout.as_millis() as u32;
    kafka
}

/// How long the broker may gather records before it answers a fetch, ms: a quarter of what a commit waits anyway.
fn fetch_wait(commit_interval: Duration) -> u32 {
    u32::try_from(commit_interval.as_millis() / 4).map_or(500, |ms| ms.clamp(1, 500))
}

impl App {
    /// Registers schemas (compatibility is asked for first), makes missing topics if `create`, builds the topology.
    ///
    /// # Errors
    /// Registry or Kafka not reachable, a schema that is not compatible, a topic with another partition count.
    pub async fn prepare(config: Config, create: bool) -> Result<App> {
        let registry = parts::registry(&config);
        let codec = Codec::connect_async(registry, &Subject::all())
            .await
            .with_context(|| format!("schema registry {}", config.registry.url))?;
        let codec = Arc::new(codec);
        let topology = finlake_pipeline::build(&pipeline_config(&config), codec.clone())?;
        if create {
            let made =
                crate::topics::ensure(&config, &crate::topics::wanted(&config, &topology)).await?;
            if !made.is_empty() {
                tracing::info!("created {} topics: {}", made.len(), made.join(", "));
            }
        }
        Ok(App {
            config,
            codec,
            topology,
            metrics: Arc::new(Metrics::new()?),
            faults: PlantedFaults::default(),
        })
    }
}

/// Asks the codec, and through it the registry.
struct Gate(Arc<Codec>);

impl SchemaGate for Gate {
    fn known(&self, record: &Record<'_>) -> bool {
        record
            .value
            .and_then(finlake_schemas::schema_id)
            .is_none_or(|id| self.0.knows(id))
    }

    fn resolve(&mut self, record: &Record<'_>) -> Resolution {
        let Some(id) = record.value.and_then(finlake_schemas::schema_id) else {
            return Resolution::Known;
        };
        match self.0.resolve(id) {
            Ok(finlake_schemas::Resolved::Known) => Resolution::Known,
            Ok(finlake_schemas::Resolved::Unknown) => Resolution::Poison,
            Err(e) => Resolution::Unreachable(e.to_string()),
        }
    }
}

type Outcome = Result<(), String>;

/// Running stream threads.
pub struct Streams {
    control: Arc<Control>,
    threads: Vec<JoinHandle<Outcome>>,
}

impl Streams {
    /// Opens the state folder and starts the configured number of threads.
    ///
    /// # Errors
    /// The state folder is in use or unreadable; a client cannot be made.
    pub fn start(app: &App) -> Result<Streams> {
        let config = &app.config;
        std::fs::create_dir_all(&config.state.dir)
            .with_context(|| format!("state folder {}", config.state.dir.display()))?;
        let budget = Budget {
            block_cache: config.state.cache_bytes,
            write_buffers: config.state.write_buffer_bytes,
            ..Budget::default()
        };
        let db = StateDb::open(&config.state.dir, budget)?;
        let control = Arc::new(Control::default());
        let mut threads = Vec::new();
        for thread in 0..config.stream.threads {
            let mut kafka = kafka_config(config, "", thread);
            kafka.fetch_wait_ms = fetch_wait(config.stream.commit_interval);
            let id = kafka.id();
            let broker = KafkaBroker::new(&app.topology, kafka)?;
            let mut settings = ThreadConfig::new(&config.kafka.application_id);
            settings.task.heartbeat_us = micros(config.stream.heartbeat);
            settings.task.faults = app.faults.task;
            settings.commit_interval_us = micros(config.stream.commit_interval);
            settings.poll.records = config.stream.batch_records;
            let hooks = Hooks {
                clock: Box::new(SystemClock),
                gate: Some(Box::new(Gate(app.codec.clone()))),
                observer: app.metrics.stream_observer(&id),
            };
            let mut stream = StreamThread::new(&app.topology, broker, db.clone(), settings, hooks);
            let control = control.clone();
            let spawned = std::thread::Builder::new().name(format!("stream-{thread}"));
            threads.push(spawned.spawn(move || stream.run(&control).map_err(|e| e.to_string()))?);
        }
        Ok(Streams { control, threads })
    }

    /// Asks all threads to stop once every input is read to its end.
    pub fn drain(&self) {
        self.control.drain.store(true, Ordering::Relaxed);
    }

    /// Asks all threads to stop now, gracefully; with `leave` they hand their partitions on.
    pub fn stop(&self, leave: bool) {
        self.control.leave.store(leave, Ordering::Relaxed);
        self.control.stop.store(true, Ordering::Relaxed);
    }

    /// Whether a thread has ended.
    pub fn ended(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Waits for all threads; the first error of any.
    ///
    /// # Errors
    /// What ended a thread.
    pub fn join(self) -> Result<()> {
        let mut first = None;
        for thread in self.threads {
            let outcome = thread
                .join()
                .unwrap_or_else(|_| Err("a stream thread panicked; this is a bug".into()));
            if let Err(e) = outcome {
                // One failed thread must not leave the others running half an application.
                self.control.stop.store(true, Ordering::Relaxed);
                first.get_or_insert(e);
            }
        }
        first.map_or(Ok(()), |e| Err(anyhow!(e).context("stream")))
    }
}

/// The running sink.
pub struct Sinks {
    pub control: Arc<SinkControl>,
    pub status: Arc<Mutex<SinkStatus>>,
    thread: JoinHandle<Outcome>,
    breaks: Option<BreaksThread>,
}

impl Sinks {
    /// Creates missing tables, opens them, starts the sink's thread. Not to be called from a runtime's worker.
    ///
    /// # Errors
    /// Catalog or storage does not answer, tables of another schema or cluster.
    pub fn start(app: &App, runtime: &Handle) -> Result<Sinks> {
        let lake = runtime.block_on(parts::open_lake(&app.config))?;
        Sinks::into(app, lake, runtime)
    }

    /// The same into another lakehouse than the configuration's: where a replay rebuilds the tables.
    ///
    /// # Errors
    /// As [`Sinks::start`].
    pub fn into(app: &App, lake: Lakehouse, runtime: &Handle) -> Result<Sinks> {
        let config = &app.config;
        let lake = runtime.block_on(prepare_lake(app, lake))?;
        let options = SinkOptions {
            commit_interval: config.lake.commit_interval,
            ..SinkOptions::default()
        };
        let mut kafka = kafka_config(config, "-sink", 0);
        kafka.fetch_wait_ms = fetch_wait(config.lake.commit_interval);
        let breaks = BreaksThread::start(config, lake.clone(), app.codec.clone(), runtime.clone())?;
        let mut sink = Sink::new(
            &kafka,
            lake,
            app.codec.clone(),
            runtime.clone(),
            options,
            app.metrics.sink_observer(),
        )?;
        let control = Arc::new(SinkControl::default());
        let status = sink.status();
        let inner = control.clone();
        let thread = std::thread::Builder::new()
            .name("sink".into())
            .spawn(move || sink.run(&inner).map_err(|e| e.to_string()))?;
        Ok(Sinks {
            control,
            status,
            thread,
            breaks: Some(breaks),
        })
    }

    /// Asks it to commit what is whole and to stop.
    pub fn stop(&self, leave: bool) {
        self.control.leave.store(leave, Ordering::Relaxed);
        self.control.stop.store(true, Ordering::Relaxed);
    }

    /// Asks it to stop once all of the ledger up to `ends` is in the tables.
    pub fn drain_to(&self, ends: BTreeMap<i32, i64>) {
        *self.control.drain_to.lock() = Some(ends);
    }

    /// Whether its thread has ended.
    pub fn ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for it.
    ///
    /// # Errors
    /// What ended it.
    pub fn join(mut self) -> Result<()> {
        let outcome = self.thread.join();
        if let Some(breaks) = self.breaks.take() {
            breaks.stop();
        }
        match outcome {
            Ok(outcome) => outcome.map_err(|e| anyhow!(e).context("sink")),
            Err(_) => Err(anyhow!("the sink panicked; this is a bug")),
        }
    }
}

/// Starts the audit role.
///
/// # Errors
/// Catalog or storage does not answer, the client cannot be made.
pub fn start_audit(app: &App, runtime: &Handle) -> Result<Audit> {
    let lake = runtime.block_on(parts::open_lake(&app.config))?;
    Audit::start(
        &app.config,
        app.codec.clone(),
        lake,
        app.metrics.clone(),
        runtime.clone(),
    )
}

/// The audit's single pass.
///
/// # Errors
/// Catalog, storage or Kafka does not answer.
pub fn audit_once(app: &App, runtime: &Handle) -> Result<Audited> {
    let lake = runtime.block_on(parts::open_lake(&app.config))?;
    audit::once(
        &app.config,
        app.codec.clone(),
        lake,
        app.metrics.clone(),
        runtime.clone(),
    )
}

/// Takes the breaks that are in the topic now into the table.
///
/// # Errors
/// Catalog, storage or Kafka does not answer.
pub fn sink_breaks(app: &App, runtime: &Handle) -> Result<()> {
    let lake = runtime.block_on(parts::open_lake(&app.config))?;
    audit::sink_all(&app.config, &lake, &app.codec, runtime)
        .context("quality.breaks into its table")
}

/// Creates missing tables, bound to this Kafka cluster and its topics.
async fn prepare_lake(app: &App, lake: Lakehouse) -> Result<Lakehouse> {
    let kafka = kafka_config(&app.config, "-sink", 0);
    let facts = finlake_topology::kafka::cluster_facts(
        &kafka,
        &[
            topics::TICKS,
            topics::OHLCV,
            topics::METRICS,
            topics::LEDGER,
            topics::BARS,
        ],
    )?;
    if let Some(missing) = facts.topics.iter().find(|t| t.partitions == 0) {
        anyhow::bail!(
            "topic {} does not exist; `finlake topics create` makes what this version needs",
            missing.name
        );
    }
    let ids = KafkaIds {
        cluster_id: facts.cluster_id,
        topic_ids: facts.topics.into_iter().map(|t| (t.name, t.id)).collect(),
    };
    lake.ensure_tables(&ids).await?;
    Ok(lake.with_faults(app.faults.lake.clone()))
}

/// Next offsets of all partitions of a topic (high watermarks, markers included).
///
/// # Errors
/// Kafka does not answer.
pub fn ends(config: &Config, topic: &str) -> Result<BTreeMap<i32, i64>> {
    let mut client = crate::kafka::client(config);
    client.set("isolation.level", "read_uncommitted");
    let client: BaseConsumer = client.create()?;
    (0..config.kafka.partitions)
        .map(|p| {
            let (_, high) = client
                .fetch_watermarks(topic, p, Duration::from_secs(10))
                .with_context(|| format!("end of {topic}/{p}"))?;
            Ok((p, high))
        })
        .collect()
}
