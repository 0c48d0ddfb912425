//! `finlake reset`: the application begins again at the first record of its inputs.
//!
//! Lists first; removes only with `--yes`. Never touches inputs, schemas or tables. A running instance stops it: its
//! group has members.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use finlake_schemas::topics;
use futures::executor::block_on;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::{DIFFERS, SAME, printer};
use crate::app::{App, ends};
use crate::cli::{Global, ResetArgs};
use crate::config::Config;
use crate::output::{Kind, remark};

const PATIENCE: Duration = Duration::from_secs(20);

/// Topics that the application writes and others may read.
const OUTPUTS: [&str; 5] = [
    topics::OHLCV,
    topics::METRICS,
    topics::LIVE,
    topics::LEDGER,
    topics::DLQ,
];

/// Runs the command. Exit code 1 if there is something to remove and it was not.
///
/// # Errors
/// An instance runs; the ledger would begin again beside its old entries; Kafka does not answer.
pub fn run(global: &Global, config: Config, args: &ResetArgs) -> Result<u8> {
    let runtime = tokio::runtime::Runtime::new()?;
    let app = runtime.block_on(App::prepare(config, false))?;
    let config = &app.config;
    let client = crate::kafka::client(config);
    let consumer: BaseConsumer = client.create()?;
    let admin: AdminClient<DefaultClientContext> = client.create()?;

    let groups = groups(&consumer, &config.kafka.application_id)?;
    let metadata = consumer
        .fetch_metadata(None, PATIENCE)
        .with_context(|| format!("Kafka at {}", config.kafka.bootstrap_servers))?;
    let there = |name: &str| metadata.topics().iter().any(|t| t.name() == name);
    let mut names = app.topology.changelogs(&config.kafka.application_id);
    if args.outputs {
        names.extend(OUTPUTS.map(str::to_owned));
    }
    names.retain(|name| there(name));
    let written = !args.outputs && there(topics::LEDGER) && has_entries(config)?;
    let state = config.state.dir.clone();
    let strange = strange(&state)?;
    let refused = refusal(written, &groups).or_else(|| {
        let path = strange?;
        Some(format!(
            "{} is none of the state stores' files: move it away, or remove the stores by hand",
            path.display()
        ))
    });
    let mut out = printer(
        global,
        &[
            ("what", Kind::Text),
            ("name", Kind::Text),
            ("note", Kind::Text),
        ],
    )?;
    let mut line = |what: &str, name: &str, note: &str| {
        out.row(vec![
            Some(what.into()),
            Some(name.into()),
            Some(note.into()),
        ])
    };
    for (group, members) in &groups {
        line("consumer group", group, &format!("{members} members"))?;
    }
    for name in &names {
        line("topic", name, "")?;
    }
    if state.exists() {
        line("state stores", &state.display().to_string(), "")?;
    }
    let done = args.yes && refused.is_none();
    out.finish(&[("done", done.into())])?;
    if let Some(why) = refused {
        bail!(why);
    }
    if groups.is_empty() && names.is_empty() && !state.exists() {
        remark(global.quiet, "nothing to reset");
        return Ok(SAME);
    }
    if !args.yes {
        remark(global.quiet, "nothing was removed; --yes removes it");
        return Ok(DIFFERS);
    }
    let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
    if !groups.is_empty() {
        let names: Vec<&str> = groups.iter().map(|(g, _)| g.as_str()).collect();
        for result in block_on(admin.delete_groups(&names, &options))? {
            result.map_err(|(name, e)| anyhow::anyhow!("group {name}: {e}"))?;
        }
    }
    if !names.is_empty() {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        for result in block_on(admin.delete_topics(&names, &options))? {
            result.map_err(|(name, e)| anyhow::anyhow!("topic {name}: {e}"))?;
        }
    }
    if state.exists() {
        std::fs::remove_dir_all(&state).with_context(|| state.display().to_string())?;
    }
    remark(
        global.quiet,
        "done; `finlake topics create` makes the topics again",
    );
    Ok(SAME)
}

/// What lies in the folder of the stores and is not as RocksDB names its files.
fn strange(state: &Path) -> Result<Option<PathBuf>> {
    let known = |name: &str| {
        let (stem, end) = name.split_once('.').unwrap_or((name, ""));
        let numbered = !stem.is_empty() && stem.bytes().all(|b| b.is_ascii_digit());
        let ends = ["sst", "log", "blob", "dbtmp"];
        let begins = ["LOG", "MANIFEST-", "OPTIONS-"];
        ["CURRENT", "IDENTITY", "LOCK"].contains(&name)
            || begins.iter().any(|b| name.starts_with(b))
            || numbered && ends.contains(&end)
    };
    let entries = match std::fs::read_dir(state) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| state.display().to_string()),
    };
    for entry in entries {
        let entry = entry.with_context(|| state.display().to_string())?;
        let is_file = entry.file_type().is_ok_and(|t| t.is_file());
        if !is_file || !entry.file_name().to_str().is_some_and(known) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

fn has_entries(config: &Config) -> Result<bool> {
    Ok(ends(config, topics::LEDGER)?.values().any(|end| *end > 0))
}

/// Why nothing may be removed. `written`: the ledger has entries and would stay.
fn refusal(written: bool, groups: &[(String, usize)]) -> Option<String> {
    if written {
        return Some(format!(
            "{} has entries: without its stores the application would number its commits from 1 again beside them. \
             Add --outputs to remove the output topics too",
            topics::LEDGER
        ));
    }
    let (group, members) = groups.iter().find(|(_, members)| *members > 0)?;
    Some(format!(
        "group {group} has {members} members: stop every instance first (with --leave, or wait for the session timeout)"
    ))
}

/// The application's own groups and how many members each has.
fn groups(consumer: &BaseConsumer, app: &str) -> Result<Vec<(String, usize)>> {
    let list = consumer.fetch_group_list(None, PATIENCE)?;
    let ours = |name: &str| {
        name == app
            || ["-sink", "-audit", "-breaks"]
                .iter()
                .any(|end| name.strip_suffix(end) == Some(app))
            || name
                .strip_prefix(app)
                .is_some_and(|n| n.starts_with("-dlq-redrive-"))
    };
    let mut groups: Vec<(String, usize)> = list
        .groups()
        .iter()
        .filter(|g| ours(g.name()))
        .map(|g| (g.name().to_owned(), g.members().len()))
        .collect();
    groups.sort();
    Ok(groups)
}
