//! `finlake topology describe`.

use std::io::{self, Write};
use std::sync::Arc;

use anyhow::Result;
use finlake_pipeline::Market;
use finlake_schemas::Codec;
use finlake_topology::Topology;

use crate::cli::TopologyCommand;
use crate::config::Config;

/// The topology of the configuration, with a codec that knows our own schemas only: for what asks nothing of Kafka.
///
/// # Errors
/// A configuration that makes no topology.
pub fn offline(config: &Config) -> Result<Topology<Market>> {
    let codec = Arc::new(Codec::offline());
    Ok(finlake_pipeline::build(
        &crate::app::pipeline_config(config),
        codec,
    )?)
}

/// Prints the topology as text or as a Mermaid diagram; asks nothing of Kafka.
///
/// # Errors
/// A configuration that makes no topology.
pub fn run(config: &Config, command: &TopologyCommand) -> Result<u8> {
    let TopologyCommand::Describe { mermaid } = command;
    let topology = offline(config)?;
    let app = &config.kafka.application_id;
    let text = if *mermaid {
        topology.mermaid()
    } else {
        topology.describe(app)
    };
    io::stdout().write_all(text.as_bytes())?;
    Ok(0)
}
