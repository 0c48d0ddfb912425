//! `finlake schemas`: this version's Avro schemas against the registry.

use anyhow::{Context, Result};
use finlake_schemas::Codec;
use finlake_schemas::registry::{RegistryError, Subject};

use super::{DIFFERS, SAME, printer};
use crate::cli::{Global, SchemasCommand};
use crate::config::Config;
use crate::output::{Kind, remark};
use crate::parts;

/// Runs the command.
///
/// # Errors
/// The registry does not answer; `register`: a schema is not compatible.
pub fn run(global: &Global, config: &Config, command: &SchemasCommand) -> Result<u8> {
    match command {
        SchemasCommand::Register => register(global, config),
        SchemasCommand::Check => check(global, config),
    }
}

fn register(global: &Global, config: &Config) -> Result<u8> {
    let subjects = Subject::all();
    let codec = Codec::connect(parts::registry(config), &subjects)
        .with_context(|| format!("schema registry {}", config.registry.url))?;
    let columns = [
        ("subject", Kind::Text),
        ("version", Kind::Number),
        ("id", Kind::Number),
    ];
    let mut out = printer(global, &columns)?;
    for subject in &subjects {
        for version in 1..=subject.kind.versions().len() {
            let id = u8::try_from(version)
                .ok()
                .and_then(|v| codec.own_id(subject.kind, v));
            out.row(vec![
                Some(subject.name()),
                Some(version.to_string()),
                id.map(|id| id.to_string()),
            ])?;
        }
    }
    out.finish(&[])?;
    Ok(SAME)
}

/// Subject by subject, so that one that differs does not hide the others.
fn check(global: &Global, config: &Config) -> Result<u8> {
    let columns = [
        ("subject", Kind::Text),
        ("state", Kind::Text),
        ("why", Kind::Text),
    ];
    let mut out = printer(global, &columns)?;
    let mut differs = false;
    for subject in Subject::all() {
        let mut registry = parts::registry(config);
        registry.register = false;
        let result = Codec::connect(registry, std::slice::from_ref(&subject));
        let (state, why) = match result {
            Ok(_) => ("registered", None),
            Err(RegistryError::Missing { version, .. }) => (
                "missing",
                Some(format!("version {version} is not registered")),
            ),
            Err(RegistryError::Incompatible { version, why, .. }) => {
                ("incompatible", Some(format!("version {version}: {why}")))
            }
            Err(other) => {
                return Err(other)
                    .with_context(|| format!("schema registry {}", config.registry.url));
            }
        };
        differs |= state != "registered";
        out.row(vec![Some(subject.name()), Some(state.to_owned()), why])?;
    }
    out.finish(&[])?;
    if differs {
        remark(
            global.quiet,
            "`finlake schemas register` registers what is missing",
        );
    }
    Ok(if differs { DIFFERS } else { SAME })
}
