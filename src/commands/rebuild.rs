//! `finlake tables rebuild`: drops a damaged table, so that the sink fills it from Kafka again.
//!
//! Lists first; drops only with `--yes`. Must never drop what Kafka cannot give back: the topic has to reach back to the
//! first record that the ledger counts, and the ledger to its first commit. A running sink stops it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use finlake_lakehouse::{Lakehouse, Table};
use finlake_schemas::registry::Subject;
use finlake_schemas::{Codec, Kind as Schema, LedgerEntry, schema_id, topics};
use rdkafka::consumer::BaseConsumer;
use tokio::runtime::Runtime;

use super::{DIFFERS, SAME, printer, reached, reset};
use crate::app::kafka_ids;
use crate::cli::Global;
use crate::config::Config;
use crate::kafka::{self, Topic};
use crate::output::{Kind, remark};
use crate::parts;

/// The topic whose records are the table's rows.
fn topic_of(table: Table) -> Result<&'static str> {
    Ok(match table {
        Table::Ticks => topics::TICKS,
        Table::Bars => topics::BARS,
        Table::Ohlcv => topics::OHLCV,
        Table::Metrics => topics::METRICS,
        Table::Breaks => bail!(
            "{table} cannot be rebuilt: {} keeps the newest state of each break only. Bring an older snapshot back",
            topics::BREAKS
        ),
    })
}

/// Runs the command. Exit code 1 if the table would be dropped and was not.
///
/// # Errors
/// Kafka cannot give the table back; a sink runs; no such table; Kafka, catalog or storage.
pub fn run(
    global: &Global,
    config: &Config,
    lake: &Lakehouse,
    runtime: &Runtime,
    table: Table,
    yes: bool,
) -> Result<u8> {
    let name = topic_of(table)?;
    let there = runtime.block_on(finlake_lakehouse::inspect::tables(lake))?;
    let Some(info) = there.iter().find(|t| t.table == table && t.exists) else {
        bail!("{table} does not exist; `finlake run --roles sink` makes it and fills it");
    };
    let (config, own) = reached(config.clone())?;
    let consumer: BaseConsumer = kafka::client(&config).create()?;
    let bounds = kafka::bounds(&consumer, name)?;
    if bounds.is_empty() {
        bail!("there is no topic {name}: {table} cannot be filled again");
    }
    let ids = kafka_ids(&config)?;
    runtime.block_on(lake.check_source(table, &ids))?;
    let firsts = first_entries(&config)?;
    let app = &config.kafka.application_id;
    let mut refused = firsts.iter().find_map(|(&p, entry)| {
        let entry = entry.as_ref()?;
        if entry.app_id != *app {
            return Some(format!(
                "{} is of the application {}, not of {app}: set kafka.application_id",
                topics::LEDGER,
                entry.app_id
            ));
        }
        lost(table, name, p, entry, bounds.get(&p)?.0)
    });
    let sink = format!("{app}-sink");
    // A broker that has just been started here remembers members, and nobody else can reach it.
    let members = match own {
        Some(_) => Vec::new(),
        None => reset::groups(&consumer, app)?,
    };
    if let Some((_, n)) = members.iter().find(|(g, n)| *g == sink && *n > 0) {
        refused = refused.or(Some(format!(
            "group {sink} has {n} members: stop every sink first (with --leave, or wait for the session timeout)"
        )));
    }

    let columns = [
        ("table", Kind::Text),
        ("rows", Kind::Number),
        ("partition", Kind::Number),
        ("topic", Kind::Text),
        ("from", Kind::Number),
        ("to", Kind::Number),
    ];
    let mut out = printer(global, &columns)?;
    for (p, (low, end)) in &bounds {
        out.row(vec![
            Some(table.to_string()),
            Some(info.rows.to_string()),
            Some(p.to_string()),
            Some(name.into()),
            Some(low.to_string()),
            Some(end.to_string()),
        ])?;
    }
    out.finish(&[("dropped", (yes && refused.is_none()).into())])?;
    if let Some(why) = refused {
        bail!("{table} was not dropped: {why}");
    }
    if !yes {
        remark(
            global.quiet,
            "nothing was dropped; --yes drops the table, and these offsets are read again",
        );
        return Ok(DIFFERS);
    }
    runtime.block_on(lake.drop_table(table, &ids))?;
    remark(
        global.quiet,
        &format!("dropped {table}; `finlake run --roles sink` makes it and fills it"),
    );
    Ok(SAME)
}

/// The first entry that each partition of the ledger still has.
fn first_entries(config: &Config) -> Result<BTreeMap<i32, Option<LedgerEntry>>> {
    let ledger = Topic::open(config, topics::LEDGER)?;
    let mut registry = parts::registry(config);
    registry.register = false;
    let codec = Codec::connect(registry, &[Subject::new(topics::LEDGER, Schema::Ledger)])?;
    let mut firsts = BTreeMap::new();
    for (p, range) in ledger.settled(config)? {
        let mut first = None;
        ledger.read(&BTreeMap::from([(p, range)]), |record| {
            let value = record.value.context("an entry without a value")?;
            if let Some(id) = schema_id(value) {
                codec.resolve(id)?;
            }
            first = Some(codec.decode_ledger(value)?);
            Ok(false)
        })?;
        firsts.insert(p, first);
    }
    Ok(firsts)
}

/// What could not be given back of a partition: the ledger's first entry and the topic's first offset decide.
fn lost(
    table: Table,
    topic: &str,
    partition: i32,
    first: &LedgerEntry,
    low: i64,
) -> Option<String> {
    if first.commit != 1 {
        return Some(format!(
            "{} partition {partition} begins with commit {}, and the sink can only begin with the first",
            topics::LEDGER,
            first.commit
        ));
    }
    // Inputs may have begun late; outputs begin with the application.
    let due = match table {
        Table::Ticks | Table::Bars => first
            .inputs
            .iter()
            .find(|i| i.topic == topic)
            .map_or(0, |i| i.start),
        _ => 0,
    };
    (low > due).then(|| {
        format!(
            "{topic} partition {partition} begins at offset {low}, and the table holds it from {due}: those rows would \
             be lost. Bring an older snapshot back instead, then `finlake tables adopt {table}`"
        )
    })
}

#[cfg(test)]
mod tests {
    use finlake_schemas::InputRange;

    use super::*;

    fn entry(commit: i64, start: i64) -> LedgerEntry {
        LedgerEntry {
            app_id: "app".into(),
            task: 3,
            commit,
            system_time: 1,
            stream_times: Vec::new(),
            inputs: vec![InputRange {
                topic: topics::TICKS.into(),
                start,
                end: start + 10,
                records: 10,
                hash: 0,
                accepted: 10,
                duplicates: 0,
                rejected: 0,
                skipped: 0,
            }],
            outputs: Vec::new(),
            corrections: 0,
            totals: Vec::new(),
            schema_ids: Vec::new(),
            prev_hash: 0,
            last: false,
            heartbeat: false,
        }
    }

    #[test]
    fn a_table_is_dropped_only_if_its_topic_reaches_back() {
        let ticks =
            |commit, start, low| lost(Table::Ticks, topics::TICKS, 3, &entry(commit, start), low);
        assert_eq!(ticks(1, 0, 0), None);
        // The application began on a topic that had been cut.
        assert_eq!(ticks(1, 40, 40), None);
        assert!(ticks(1, 40, 41).unwrap().contains("begins at offset 41"));
        assert!(ticks(2, 0, 0).unwrap().contains("begins with commit 2"));
        let silver = |low| lost(Table::Ohlcv, topics::OHLCV, 3, &entry(1, 40), low);
        assert_eq!(silver(0), None);
        assert!(silver(1).is_some());
        assert!(topic_of(Table::Breaks).is_err());
    }
}
