//! The topics an application needs, and making the missing ones.
//!
//! Existing topics are never changed. All topics of an application have one partition count, fixed for its life.

use std::collections::BTreeMap;
use std::time::Duration;

use finlake_pipeline::Market;
use finlake_schemas::topics;
use finlake_topology::Topology;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::RDKafkaErrorCode;

use crate::config::Config;

/// A topic as it ought to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub name: String,
    pub partitions: i32,
    pub config: Vec<(&'static str, &'static str)>,
}

/// Why topics could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TopicsError {
    #[error(
        "Kafka at {bootstrap} does not answer: {error}; check kafka.bootstrap_servers and that the broker runs"
    )]
    Unreachable {
        bootstrap: String,
        error: rdkafka::error::KafkaError,
    },
    #[error("topic {name} could not be created: {error}")]
    Create { name: String, error: String },
    #[error(
        "topic {name} has {found} partitions and the application {wanted}; the count is fixed for the life of an \
         application. Set kafka.partitions = {found} if this is a new one"
    )]
    Partitions {
        name: String,
        found: i32,
        wanted: i32,
    },
}

/// Every topic the application reads or writes, changelogs included.
pub fn wanted(config: &Config, topology: &Topology<Market>) -> Vec<Wanted> {
    let partitions = config.kafka.partitions;
    let fixed = topics::ALL.iter().map(|t| Wanted {
        name: t.name.to_owned(),
        partitions,
        config: t.config.to_vec(),
    });
    let changelogs = topology.changelogs(&config.kafka.application_id);
    let changelogs = changelogs.into_iter().map(|name| Wanted {
        name,
        partitions,
        config: topics::CHANGELOG.to_vec(),
    });
    fixed.chain(changelogs).collect()
}

/// Creates what is missing; gives the names. A wrong partition count is an error.
///
/// # Errors
/// See [`TopicsError`].
pub async fn ensure(config: &Config, wanted: &[Wanted]) -> Result<Vec<String>, TopicsError> {
    let bootstrap = config.kafka.bootstrap_servers.clone();
    let unreachable = |error| TopicsError::Unreachable {
        bootstrap: bootstrap.clone(),
        error,
    };
    let client = crate::kafka::client(config);
    let admin: AdminClient<DefaultClientContext> = client.create().map_err(unreachable)?;
    let metadata = admin
        .inner()
        .fetch_metadata(None, Duration::from_secs(15))
        .map_err(unreachable)?;
    let there: BTreeMap<&str, i32> = metadata
        .topics()
        .iter()
        .map(|t| (t.name(), t.partitions().len() as i32))
        .collect();
    let mut missing = Vec::new();
    for topic in wanted {
        match there.get(topic.name.as_str()) {
            Some(&found) if found == topic.partitions => {}
            Some(&found) => {
                return Err(TopicsError::Partitions {
                    name: topic.name.clone(),
                    found,
                    wanted: topic.partitions,
                });
            }
            None => missing.push(topic),
        }
    }
    let min_isr = config.kafka.min_insync_replicas.map(|n| n.to_string());
    let new: Vec<NewTopic<'_>> = missing
        .iter()
        .map(|t| {
            let replication =
                TopicReplication::Fixed(config.kafka.replication_factor.unwrap_or(-1));
            let mut new = NewTopic::new(&t.name, t.partitions, replication);
            for (key, value) in &t.config {
                new = new.set(key, value);
            }
            if let Some(n) = &min_isr {
                new = new.set("min.insync.replicas", n);
            }
            new
        })
        .collect();
    if new.is_empty() {
        return Ok(Vec::new());
    }
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
    let results = admin
        .create_topics(&new, &options)
        .await
        .map_err(unreachable)?;
    let mut made = Vec::new();
    for result in results {
        match result {
            Ok(name) => made.push(name),
            // Another instance was quicker.
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((name, code)) => {
                return Err(TopicsError::Create {
                    name,
                    error: code.to_string(),
                });
            }
        }
    }
    Ok(made)
}
