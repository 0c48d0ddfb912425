//! Breaks as records of `quality.breaks`: what is known. Reads committed records only; `publish` writes.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use finlake_lakehouse::follows;
use finlake_schemas::{Break, Codec, topics};

use crate::config::Config;
use crate::kafka::Topic;

/// Microseconds of UTC.
pub(super) fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_micros() as i64)
}

/// The newest version of every break.
pub struct Known;

impl Known {
    /// Reads the compacted topic to its end, by the same rule as the table: in the topic's order, and without records
    /// that come out of turn.
    ///
    /// # Errors
    /// Kafka does not answer, or a record is not a break.
    pub fn read(config: &Config, codec: &Codec) -> Result<BTreeMap<[u8; 16], Break>> {
        let topic = Topic::open(config, topics::BREAKS)?;
        let bounds = topic.bounds()?;
        Known::from(&topic, &bounds, codec)
    }

    /// The same, up to these bounds.
    ///
    /// # Errors
    /// The same.
    pub(super) fn from(
        topic: &Topic,
        bounds: &BTreeMap<i32, (i64, i64)>,
        codec: &Codec,
    ) -> Result<BTreeMap<[u8; 16], Break>> {
        if bounds.is_empty() {
            bail!(
                "there is no topic {}; `finlake topics create` makes it",
                topics::BREAKS
            );
        }
        let mut known: BTreeMap<[u8; 16], Break> = BTreeMap::new();
        topic.read(bounds, |message| {
            let Some(value) = message.value else {
                return Ok(true);
            };
            let found = decode(codec, value).with_context(|| {
                format!(
                    "{}/{}:{}",
                    topics::BREAKS,
                    message.partition,
                    message.offset
                )
            })?;
            fold(&mut known, found);
            Ok(true)
        })?;
        Ok(known)
    }
}

/// Takes the next version in, if it is one.
pub(super) fn fold(known: &mut BTreeMap<[u8; 16], Break>, next: Break) {
    let before = known.get(&next.break_id).map(|b| b.status);
    if follows(before, next.status) {
        known.insert(next.break_id, next);
    }
}

/// A record's value as a break.
pub(super) fn decode(codec: &Codec, value: &[u8]) -> Result<Break> {
    if let Some(id) = finlake_schemas::schema_id(value)
        && !codec.knows(id)
    {
        codec.resolve(id)?;
    }
    Ok(codec.decode_break(value)?)
}

#[cfg(test)]
mod tests {
    use finlake_reconcile::{Finding, Layer, resolved};
    use finlake_schemas::{BreakKind, BreakStatus};

    use super::*;

    #[test]
    fn an_explanation_outlives_a_run_that_did_not_know() {
        let finding = Finding::new(BreakKind::Missing, Layer::Silver, "silver.x", "k", "row");
        let opened = finding.to_break("reconcile", 10);
        let mut explained = opened.clone();
        explained.status = BreakStatus::Explained;
        // A clock that is behind must not hide a newer version either.
        explained.system_time = 5;
        let mut known = BTreeMap::new();
        let mut status = |next: &Break| {
            fold(&mut known, next.clone());
            known[&next.break_id].status
        };
        assert_eq!(status(&opened), BreakStatus::Opened);
        assert_eq!(status(&explained), BreakStatus::Explained);
        assert_eq!(
            status(&finding.to_break("audit", 20)),
            BreakStatus::Explained
        );
        assert_eq!(status(&resolved(&opened, 30)), BreakStatus::Resolved);
        assert_eq!(status(&explained), BreakStatus::Resolved);
        assert_eq!(status(&opened), BreakStatus::Opened);
    }
}
