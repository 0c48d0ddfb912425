//! `finlake topics create`: makes missing topics, compares the others, changes none.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result};
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use tokio::runtime::Runtime;

use super::{DIFFERS, SAME, printer, topology};
use crate::cli::{Global, TopicsCommand};
use crate::config::Config;
use crate::output::{Kind, remark};
use crate::topics::{self, Wanted};

const PATIENCE: Duration = Duration::from_secs(15);

/// A topic as the cluster has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    partitions: i32,
    /// `None`: the cluster did not tell.
    config: Option<BTreeMap<String, String>>,
}

/// Runs the command.
///
/// # Errors
/// Kafka does not answer, or refuses to create a topic.
pub fn run(global: &Global, config: &Config, command: &TopicsCommand) -> Result<u8> {
    let TopicsCommand::Create { dry_run } = command;
    let wanted = topics::wanted(config, &topology::offline(config)?);
    let runtime = Runtime::new()?;
    let found = runtime.block_on(found(config, &wanted))?;
    let missing: Vec<Wanted> = wanted
        .iter()
        .filter(|w| !found.contains_key(&w.name))
        .cloned()
        .collect();
    let made: BTreeSet<String> = if *dry_run || missing.is_empty() {
        BTreeSet::new()
    } else {
        runtime
            .block_on(topics::ensure(config, &missing))?
            .into_iter()
            .collect()
    };
    let columns = [
        ("topic", Kind::Text),
        ("partitions", Kind::Number),
        ("state", Kind::Text),
        ("differs", Kind::Text),
    ];
    let mut out = printer(global, &columns)?;
    let mut differs = false;
    for topic in &wanted {
        let (state, what) = match found.get(&topic.name) {
            Some(found) => {
                let what = differences(topic, found);
                (
                    if what.is_empty() {
                        "as wanted"
                    } else {
                        "differs"
                    },
                    what,
                )
            }
            None if *dry_run => ("missing", Vec::new()),
            // Somebody else was quicker: it is there all the same.
            None if !made.contains(&topic.name) => ("there now", Vec::new()),
            None => ("created", Vec::new()),
        };
        differs |= matches!(state, "differs" | "missing");
        let partitions = found
            .get(&topic.name)
            .map_or(topic.partitions, |f| f.partitions);
        let what = (!what.is_empty()).then(|| what.join("; "));
        out.row(vec![
            Some(topic.name.clone()),
            Some(partitions.to_string()),
            Some(state.to_owned()),
            what,
        ])?;
    }
    out.finish(&[])?;
    if found.values().any(|f| f.config.is_none()) {
        remark(
            global.quiet,
            "the cluster does not tell topic settings; only partition counts were compared",
        );
    }
    if differs && !*dry_run {
        remark(
            global.quiet,
            "existing topics are never changed; change them with Kafka's own tools",
        );
    }
    Ok(if differs { DIFFERS } else { SAME })
}

/// What is not as wanted, in words.
fn differences(wanted: &Wanted, found: &Found) -> Vec<String> {
    let mut out = Vec::new();
    if wanted.partitions != found.partitions {
        out.push(format!(
            "{} partitions, wanted {}",
            found.partitions, wanted.partitions
        ));
    }
    for (name, value) in &wanted.config {
        let Some(config) = &found.config else { break };
        match config.get(*name) {
            Some(there) if same(there, value) => {}
            Some(there) => out.push(format!("{name} = {there}, wanted {value}")),
            None => out.push(format!("{name} is not set, wanted {value}")),
        }
    }
    out
}

/// Lists such as cleanup.policy mean the same in any order.
fn same(a: &str, b: &str) -> bool {
    let parts =
        |t: &str| -> BTreeSet<String> { t.split(',').map(|p| p.trim().to_owned()).collect() };
    a == b || parts(a) == parts(b)
}

async fn found(config: &Config, wanted: &[Wanted]) -> Result<BTreeMap<String, Found>> {
    let client = crate::kafka::client(config);
    let admin: AdminClient<DefaultClientContext> = client.create()?;
    let servers = &config.kafka.bootstrap_servers;
    let metadata = admin
        .inner()
        .fetch_metadata(None, PATIENCE)
        .with_context(|| {
            format!("Kafka at {servers} does not answer; check kafka.bootstrap_servers")
        })?;
    let names: BTreeSet<&str> = wanted.iter().map(|w| w.name.as_str()).collect();
    let mut found: BTreeMap<String, Found> = metadata
        .topics()
        .iter()
        .filter(|t| names.contains(t.name()))
        .map(|t| {
            let partitions = i32::try_from(t.partitions().len()).unwrap_or(i32::MAX);
            (
                t.name().to_owned(),
                Found {
                    partitions,
                    config: None,
                },
            )
        })
        .collect();
    let there: Vec<String> = found.keys().cloned().collect();
    if there.is_empty() {
        return Ok(found);
    }
    let resources: Vec<ResourceSpecifier<'_>> = there
        .iter()
        .map(|name| ResourceSpecifier::Topic(name))
        .collect();
    let options = AdminOptions::new().request_timeout(Some(PATIENCE));
    // Without the right to describe, partition counts can still be compared.
    for (name, described) in there.iter().zip(
        admin
            .describe_configs(&resources, &options)
            .await
            .unwrap_or_default(),
    ) {
        if let (Ok(resource), Some(topic)) = (described, found.get_mut(name)) {
            let entries = resource.entries.into_iter();
            topic.config = Some(entries.filter_map(|e| Some((e.name, e.value?))).collect());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_named() {
        let wanted = Wanted {
            name: "t".into(),
            partitions: 4,
            config: vec![("cleanup.policy", "compact,delete"), ("retention.ms", "-1")],
        };
        let config = |pairs: &[(&str, &str)]| {
            Some(
                pairs
                    .iter()
                    .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                    .collect(),
            )
        };
        let same = Found {
            partitions: 4,
            config: config(&[
                ("cleanup.policy", "delete, compact"),
                ("retention.ms", "-1"),
                ("x", "y"),
            ]),
        };
        assert_eq!(differences(&wanted, &same), [""; 0]);
        let other = Found {
            partitions: 3,
            config: config(&[("cleanup.policy", "delete")]),
        };
        assert_eq!(
            differences(&wanted, &other),
            [
                "3 partitions, wanted 4",
                "cleanup.policy = delete, wanted compact,delete",
                "retention.ms is not set, wanted -1"
            ]
        );
        let silent = Found {
            partitions: 4,
            config: None,
        };
        assert_eq!(differences(&wanted, &silent), [""; 0]);
    }
}
