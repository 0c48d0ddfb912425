//! Kafka and the registry, as a reconciliation reaches them: reads only, joins no group, registers
//! nothing.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use finlake_devkafka::DevKafka;
use finlake_reconcile::{Books, Layer};
use finlake_schemas::registry::{RegistryError, Subject};
use finlake_schemas::{Codec, Kind as Schema, topics};

use crate::cli::{Global, ReconcileArgs};
use crate::commands::reached;
use crate::config::Config;
use crate::kafka::{Topic, reachable};
use crate::output::Progress;
use crate::parts;

/// Kafka and the registry, as they can be reached.
pub struct Source {
    pub config: Config,
    pub codec: Codec,
    /// Newest registered schema, by subject.
    schemas: BTreeMap<String, String>,
    /// The folder of an embedded broker that nobody else runs.
    _broker: Option<DevKafka>,
}

/// The layers and what is registered for the values of their topics.
const SUBJECTS: [(Layer, &str, Schema); 3] = [
    (Layer::Bronze, topics::TICKS, Schema::Tick),
    (Layer::Silver, topics::OHLCV, Schema::Bar),
    (Layer::Gold, topics::METRICS, Schema::Metrics),
];

/// Registered schemas by layer, and why some cannot be said.
pub type Registered = (BTreeMap<Layer, String>, Vec<String>);

impl Source {
    /// The configured cluster; where it does not answer and the data folder holds an embedded
    /// broker's topics, that broker, for the time of the run. The inner error says what could not
    /// be reached; `None`: it is not to be asked.
    ///
    /// # Errors
    /// The registry's configuration cannot be used.
    pub fn open(config: &Config, args: &ReconcileArgs) -> Result<Result<Option<Source>, String>> {
        if args.no_kafka {
            return Ok(Ok(None));
        }
        let silent = || {
            format!(
                "Kafka at {} does not answer: the ledger, the topics and the registered schemas \
                 were not compared (--no-kafka says that this is intended)",
                config.kafka.bootstrap_servers
            )
        };
        if !config.data.kafka().is_dir() && !reachable(config) {
            return Ok(Err(silent()));
        }
        let (config, broker) = match reached(config.clone()) {
            Ok(reached) => reached,
            Err(e) => {
                tracing::warn!("{e:#}");
                return Ok(Err(silent()));
            }
        };
        // A check changes nothing in the registry, and looks at what is there whatever it is.
        match Codec::connect_reading(parts::registry(&config), &Subject::all()) {
            Ok((codec, schemas)) => Ok(Ok(Some(Source {
                config,
                codec,
                schemas,
                _broker: broker,
            }))),
            Err(RegistryError::Unreachable(e)) => Ok(Err(format!(
                "schema registry {}: {e}. The registered schemas, the ledger and the topics were \
                 not compared (--no-kafka says that this is intended)",
                config.registry.url
            ))),
            Err(e) => Err(e).with_context(|| format!("schema registry {}", config.registry.url)),
        }
    }

    /// What is registered for the topics of the layers.
    pub fn registered(&self) -> Registered {
        let (mut schemas, mut unread) = (BTreeMap::new(), Vec::new());
        for (layer, topic, kind) in SUBJECTS {
            let subject = Subject::new(topic, kind).name();
            match self.schemas.get(&subject) {
                Some(text) => {
                    schemas.insert(layer, text.clone());
                }
                None => unread.push(format!(
                    "no schema is registered as {subject}: {} was not compared with one; \
                     `finlake schemas register` registers it",
                    layer.as_str()
                )),
            }
        }
        (schemas, unread)
    }

    /// The ledger, folded.
    ///
    /// # Errors
    /// The topic cannot be read, or holds something else.
    pub fn books(&self, global: &Global) -> Result<Books> {
        let topic = Topic::open(&self.config, topics::LEDGER)?;
        let bounds = topic.bounds()?;
        if bounds.is_empty() {
            bail!("there is no topic {}", topics::LEDGER);
        }
        let total: i64 = bounds.values().map(|(a, b)| b - a).sum();
        let progress = Progress::new(
            global.quiet,
            "reading the ledger",
            "records",
            u64::try_from(total).ok(),
        );
        let mut books = Books::default();
        for (&partition, _) in bounds.iter().filter(|(_, (low, _))| *low == 0) {
            books.from_start(partition);
        }
        topic.read(&bounds, |message| {
            let value = message.value.unwrap_or_default();
            self.resolve(value)?;
            let entry = self.codec.decode_ledger(value).with_context(|| {
                format!(
                    "{}/{}:{}",
                    topics::LEDGER,
                    message.partition,
                    message.offset
                )
            })?;
            books.push(&entry, value);
            progress.add(1);
            Ok(true)
        })?;
        progress.done();
        Ok(books)
    }

    /// Learns a record's schema.
    ///
    /// # Errors
    /// The registry does not answer.
    pub fn resolve(&self, value: &[u8]) -> Result<()> {
        if let Some(id) = finlake_schemas::schema_id(value)
            && !self.codec.knows(id)
        {
            // If nobody knows it, decoding says so.
            self.codec.resolve(id)?;
        }
        Ok(())
    }
}
