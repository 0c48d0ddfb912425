//! What the sink stamps on every row of Bronze, whatever the record says: the topic, the valid and
//! system times, that the row holds, the schema it was written with.
//!
//! Whole batches at a time, since they are right as a rule; only of a batch that is not are the rows
//! looked at one by one.

use std::collections::BTreeMap;

use finlake_schemas::topics;
use rustc_hash::FxHashSet;

use super::*;

/// Columns that only these checks need.
pub const STAMPS: &[&str] = &[
    "kafka_topic",
    "schema_id",
    "valid_from",
    "valid_to",
    "sys_to",
    "is_current",
];

/// Rows whose stamps are not what the sink writes.
#[derive(Debug, Clone, Default)]
pub struct Stamps {
    /// Input offsets by partition and column.
    pub wrong: BTreeMap<(usize, &'static str), Vec<i64>>,
    /// Schema ids of rows that decoded, by partition and commit.
    pub schemas: FxHashSet<(usize, i64, i32)>,
    /// There are more than are named.
    pub more: bool,
}

/// Rows that are named at most of a partition and column.
const MOST: usize = 1 << 20;

impl Stamps {
    /// A row whose column is wrong.
    pub fn wrong(&mut self, partition: usize, column: &'static str, offset: i64) {
        let offsets = self.wrong.entry((partition, column)).or_default();
        match offsets.len() < MOST {
            true => offsets.push(offset),
            false => self.more = true,
        }
    }

    /// Takes over another's.
    pub fn absorb(&mut self, other: Stamps) {
        self.more |= other.more;
        for ((partition, column), offsets) in other.wrong {
            for offset in offsets {
                self.wrong(partition, column, offset);
            }
        }
        self.schemas.extend(other.schemas);
    }

    /// Looks at the rows of a batch that are not beyond the cut.
    ///
    /// # Errors
    /// [`BadColumn`].
    pub(super) fn take(&mut self, batch: &RecordBatch, until: &[i64], open_end: i64) -> Result<()> {
        let t = |name: &str| instants(batch, name);
        let (valid_to, sys_to) = (t("valid_to")?, t("sys_to")?);
        let current = flags(batch, "is_current")?;
        let topic = Texts::of(batch, "kafka_topic")?;
        let (valid_from, time, timestamp) =
            (t("valid_from")?, t("trade_time")?, t("kafka_timestamp")?);
        let starts = |at: usize| {
            let own = time.get(at).filter(|time| (0..open_end).contains(time));
            own.or(timestamp.get(at))
        };
        let rows = batch.num_rows();
        let open = |column: &Numbers<'_, i64>| {
            column.array.is_none() && column.values.iter().all(|to| *to == open_end)
        };
        let named = topic.nulls.is_none() && topic.values.iter().all(|v| *v == Some(topics::TICKS));
        let good = [
            ("valid_to", open(&valid_to)),
            ("sys_to", open(&sys_to)),
            ("is_current", current.true_count() == rows),
            ("kafka_topic", named),
            (
                "valid_from",
                (0..rows).all(|at| valid_from.get(at) == starts(at)),
            ),
        ];
        if good.iter().all(|(_, good)| *good) {
            return Ok(());
        }
        let place = Place::of(batch, until)?;
        for at in 0..rows {
            let Some((p, offset)) = place.at(at) else {
                continue;
            };
            let right = [
                ("valid_to", valid_to.get(at) == Some(open_end)),
                ("sys_to", sys_to.get(at) == Some(open_end)),
                ("is_current", flag(current, at) == Some(true)),
                ("kafka_topic", topic.get(at) == Some(topics::TICKS)),
                ("valid_from", valid_from.get(at) == starts(at)),
            ];
            for (column, _) in right.iter().filter(|(_, right)| !right) {
                self.wrong(p, column, offset);
            }
        }
        Ok(())
    }
}

/// Where rows come from.
struct Place<'a> {
    partitions: Numbers<'a, i32>,
    offsets: Numbers<'a, i64>,
    system: Numbers<'a, i64>,
    until: &'a [i64],
}

impl<'a> Place<'a> {
    fn of(batch: &'a RecordBatch, until: &'a [i64]) -> Result<Place<'a>> {
        Ok(Place {
            partitions: ints(batch, "kafka_partition")?,
            offsets: longs(batch, "kafka_offset")?,
            system: instants(batch, "sys_from")?,
            until,
        })
    }

    /// Partition and offset of a row within the cut.
    #[inline]
    fn at(&self, at: usize) -> Option<(usize, i64)> {
        let p = usize::try_from(self.partitions.or(at, -1)).ok()?;
        let limit = self.until.get(p)?;
        let within = self.system.or(at, i64::MIN) <= *limit;
        within.then(|| (p, self.offsets.or(at, -1)))
    }
}
