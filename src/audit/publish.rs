//! Writers of `quality.breaks` take turns: whoever writes has read all that was written before, and nobody writes between
//! his reading and his writing.
//!
//! The topic is compacted, so of each break only the newest record is sure to stay, and one written out of turn (an end
//! of what was opened again meanwhile, an explanation after the end) would in time be all that is known. Kafka's fencing
//! keeps the turns: a publication is a transaction under one id that all writers share.
//!
//! 1. look; if nothing is to be changed, that is all: no producer is made
//! 2. `init_transactions`: every other writer that has not committed can no longer do so, and what it sent is aborted
//! 3. read the topic to its end, decide on that, send, commit
//! 4. fenced, aborted or outcome unknown: a new producer, from 2; what was committed after all is seen there, and counts
//!    as written
//!
//! Must never write what was decided before 2. Data flows: known breaks → the caller's decision → one transaction.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Error, Result};
use finlake_schemas::{Break, Codec, keys, topics};
use rdkafka::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};

use super::breaks::{Known, fold};
use crate::config::Config;
use crate::generate::Rng;
use crate::kafka::{self, Topic};

/// The right to write. It is the topic's, not an application's: several applications may share a cluster.
pub const TURN: &str = topics::BREAKS;
/// The client refuses message and socket timeouts beyond the transaction's.
const TIMEOUT_MS: &str = "10000";
const TIMEOUT: Duration = Duration::from_secs(10);
/// A dead writer's transaction ends by `init_transactions`, at once; a broker may be starting.
const INIT: Duration = Duration::from_secs(30);
/// After a lost turn: about so long, then twice as long, up to `LONGEST`.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(4);
/// No further turn is tried after this.
const PATIENCE: Duration = Duration::from_secs(60);

/// Breaks by id, each in its newest version.
pub type Breaks = BTreeMap<[u8; 16], Break>;

/// What a publication did.
#[derive(Debug)]
pub struct Published {
    /// Versions written.
    pub written: Vec<Break>,
    /// All that is known, these included.
    pub known: Breaks,
}

/// Writes versions of breaks.
#[derive(Debug, Clone)]
pub struct Publisher {
    config: Config,
}

/// Why a turn wrote nothing that is known of.
enum Lost {
    /// Somebody else's turn, or an outcome that is not known: try again.
    Again(Error),
    Stop(Error),
}

impl Publisher {
    /// Makes no client.
    pub fn new(config: &Config) -> Publisher {
        Publisher {
            config: config.clone(),
        }
    }

    /// Writes what `decide` makes of the breaks that are known. It is asked again whenever somebody else has written
    /// meanwhile, so it must decide by what it is handed alone; its last answer holds.
    ///
    /// # Errors
    /// What `decide` gives, Kafka does not answer or refuses, other writers do not let it have its turn. What was written
    /// all the same is seen by the next attempt, and is not written twice.
    pub fn publish(
        &self,
        codec: &Codec,
        mut decide: impl FnMut(&Breaks) -> Result<Vec<Break>>,
    ) -> Result<Published> {
        let known = Known::read(&self.config, codec).context("known breaks")?;
        if decide(&known)?.is_empty() {
            let written = Vec::new();
            return Ok(Published { written, known });
        }
        let began = Instant::now();
        let mut pause = PAUSE;
        // What was sent, with an outcome that is not known.
        let mut sent = Vec::new();
        // Writers that met once must not meet again.
        let clock = SystemTime::now().duration_since(UNIX_EPOCH);
        let seed = clock.map_or(0, |d| d.as_nanos() as u64) ^ u64::from(std::process::id());
        let mut rng = Rng::new(seed);
        loop {
            let lost = match self.turn(codec, &mut decide, &mut sent) {
                Ok(published) => return Ok(published),
                Err(Lost::Stop(e)) => return Err(e),
                Err(Lost::Again(e)) => e,
            };
            tracing::debug!("{TURN}: lost its turn: {lost:#}");
            if began.elapsed() > PATIENCE {
                return Err(lost.context(format!(
                    "another writer of {TURN} is at work, or Kafka cannot commit; run it again"
                )));
            }
            let most = pause.as_millis() as u64;
            std::thread::sleep(Duration::from_millis(most / 2 + rng.below(most)));
            pause = (pause * 2).min(LONGEST);
        }
    }

    fn turn(
        &self,
        codec: &Codec,
        decide: &mut impl FnMut(&Breaks) -> Result<Vec<Break>>,
        sent: &mut Vec<Break>,
    ) -> Result<Published, Lost> {
        let turn = Turn::take(&self.config)?;
        let topic = Topic::open(&self.config, topics::BREAKS).map_err(Lost::Stop)?;
        let bounds = topic.settled(&self.config).map_err(Lost::Stop)?;
        let mut known = Known::from(&topic, &bounds, codec).map_err(Lost::Stop)?;
        // An earlier turn's, that came through after all.
        sent.retain(|b| known.get(&b.break_id) == Some(b));
        let next = decide(&known).map_err(Lost::Stop)?;
        if !next.is_empty() {
            sent.extend_from_slice(&next);
            turn.write(codec, &next)?;
            // So that whoever reads after this call finds them.
            if let Err(e) = topic.settled(&self.config) {
                tracing::warn!("{TURN}: written, and not readable yet: {e:#}");
            }
            for b in next {
                fold(&mut known, b);
            }
        }
        let written = std::mem::take(sent);
        Ok(Published { written, known })
    }
}

/// Keeps the first failure of a delivery; a flush alone says nothing of it.
#[derive(Clone, Default)]
struct Deliveries(Arc<std::sync::Mutex<Option<KafkaError>>>);

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            let mut first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert_with(|| error.clone());
        }
    }
}

/// A producer that no other has followed yet. Dropped in the middle, its transaction ends with the next turn, or by the
/// broker's timeout.
struct Turn {
    /// Polled while it sends only.
    producer: BaseProducer<Deliveries>,
    deliveries: Deliveries,
}

impl Turn {
    fn take(config: &Config) -> Result<Turn, Lost> {
        let mut client = kafka::client(config);
        client
            .set("transactional.id", TURN)
            .set("transaction.timeout.ms", TIMEOUT_MS)
            .set("message.timeout.ms", TIMEOUT_MS)
            .set("socket.timeout.ms", TIMEOUT_MS)
            .set("linger.ms", "0")
            // By key, as all versions of one break must lie in one partition.
            .set("partitioner", "murmur2_random");
        let deliveries = Deliveries::default();
        let made = client.create_with_context(deliveries.clone());
        let producer: BaseProducer<Deliveries> = made.map_err(|e| Lost::Stop(e.into()))?;
        producer.init_transactions(INIT).map_err(|e| {
            let lost = lost(e, "init_transactions");
            match lost {
                Lost::Again(e) if !is_fenced(&e) => Lost::Stop(e.context(
                    "Kafka does not give out the right to write; check kafka.bootstrap_servers",
                )),
                lost => lost,
            }
        })?;
        Ok(Turn {
            producer,
            deliveries,
        })
    }

    /// One transaction.
    fn write(&self, codec: &Codec, all: &[Break]) -> Result<(), Lost> {
        let begun = self.producer.begin_transaction();
        begun.map_err(|e| lost(e, "begin_transaction"))?;
        if let Err(e) = self.send(codec, all) {
            // Readers wait for an open transaction to end. That this one ends is settled by the next turn at the latest.
            let _ = self.producer.abort_transaction(Duration::from_secs(2));
            return Err(e);
        }
        let committed = self.producer.commit_transaction(TIMEOUT);
        committed.map_err(|e| lost(e, "commit_transaction"))
    }

    fn send(&self, codec: &Codec, all: &[Break]) -> Result<(), Lost> {
        for found in all {
            let (mut key, mut value) = (Vec::new(), Vec::new());
            keys::breaks(found.break_id, &mut key);
            let encoded = codec.encode_break(found, &mut value);
            encoded.map_err(|e| Lost::Stop(e.into()))?;
            let mut record = BaseRecord::to(topics::BREAKS).key(&key).payload(&value);
            while let Err((e, back)) = self.producer.send(record) {
                if e.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
                    return Err(lost(e, "send"));
                }
                self.producer.poll(Duration::from_millis(50));
                record = back;
            }
        }
        let flushed = self.producer.flush(TIMEOUT);
        let failed = self.deliveries.0.lock();
        if let Some(e) = failed.unwrap_or_else(PoisonError::into_inner).take() {
            return Err(lost(e, "send"));
        }
        flushed.map_err(|e| lost(e, "flush"))
    }
}

fn is_fenced(e: &Error) -> bool {
    use RDKafkaErrorCode as Code;
    let code = e.downcast_ref::<KafkaError>().and_then(code);
    matches!(
        code,
        Some(Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch)
    )
}

/// rdkafka's own accessor leaves those of transactions out.
fn code(e: &KafkaError) -> Option<RDKafkaErrorCode> {
    match e {
        KafkaError::Transaction(e) => Some(e.code()),
        e => e.rdkafka_error_code(),
    }
}

/// What is refused stays refused; everything else may be somebody else's turn.
fn lost(e: KafkaError, step: &'static str) -> Lost {
    use RDKafkaErrorCode as Code;
    let code = code(&e);
    let refused = match code {
        Some(
            Code::TransactionalIdAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TopicAuthorizationFailed,
        ) => format!(
            "Kafka refuses to let it write breaks; grant its principal Write on the topic {} and on the \
             transactional id {TURN}",
            topics::BREAKS
        ),
        Some(Code::MessageSizeTooLarge | Code::InvalidRecord | Code::PolicyViolation) => {
            format!("{} does not take the record", topics::BREAKS)
        }
        _ => return Lost::Again(Error::new(e).context(step)),
    };
    Lost::Stop(Error::new(e).context(step).context(refused))
}

#[cfg(test)]
mod tests;
