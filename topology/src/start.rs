//! Checks before a thread joins its group; every failure names the topic.

use crate::broker::ClusterFacts;
use crate::builder::Topology;
use crate::error::Error;
use crate::processor::Domain;
use crate::task::Identity;

/// All topics exist with one partition count, and have ids. Gives the identity
/// that the tasks' checkpoints carry.
pub(crate) fn check_cluster<D: Domain>(
    topology: &Topology<D>,
    app_id: &str,
    facts: &ClusterFacts,
) -> Result<Identity, Error> {
    if facts.cluster_id.is_empty() {
        return Err(Error::Fatal(
            "the Kafka cluster has no cluster id; stores could not be told apart. Connect to \
             Apache Kafka 2.8 or later"
                .to_owned(),
        ));
    }
    let lead = &topology.inputs()[0];
    let count = facts.topics.iter().find(|t| t.name == **lead);
    let count = count.map_or(0, |t| t.partitions);
    for topic in &facts.topics {
        if topic.partitions == 0 {
            return Err(Error::Fatal(format!(
                "topic `{}` does not exist; `finlake topics create` makes it, with {} partitions as \
                 every other topic of application `{app_id}`",
                topic.name,
                count.max(1)
            )));
        }
        if topic.partitions != count {
            return Err(Error::Fatal(format!(
                "topic `{}` has {} partitions, but `{lead}` has {count}; all topics of application \
                 `{app_id}` need the same count, fixed for its life. Recreate `{}` with {count}",
                topic.name, topic.partitions, topic.name
            )));
        }
        if topic.id == [0; 16] {
            return Err(Error::Fatal(format!(
                "the broker gives no topic id for `{}`; a recreated topic could not be noticed. \
                 Use a broker that answers Metadata version 10 or later",
                topic.name
            )));
        }
    }
    let changelogs = topology.changelogs(app_id);
    let mut topic_ids: Vec<_> = facts
        .topics
        .iter()
        .filter(|t| {
            let input = topology.inputs().iter().any(|i| **i == *t.name);
            input || changelogs.contains(&t.name)
        })
        .map(|t| (t.name.clone(), t.id))
        .collect();
    topic_ids.sort();
    Ok(Identity {
        cluster_id: facts.cluster_id.clone(),
        topic_ids,
    })
}
