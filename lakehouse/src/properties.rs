//! Positions and identities as table properties: versioned text, with fixtures of every version.
//!
//! Pure. The properties are the sink's only authority; they are trusted only while
//! `finlake.commit-snapshot-id`, written with them, is the current snapshot or is reached from it
//! through `replace` snapshots (another engine compacted). Data flows: `plan.rs` decides on what
//! is read here, `commit.rs` writes what is built here in the same metadata as the snapshot.

use std::collections::{BTreeMap, HashMap};

use iceberg::spec::{Operation, TableMetadata};

use crate::error::{LakeError, Result};
use crate::tables::Table;

/// Version of the property set.
pub const VERSION: &str = "1";
/// Property: version of the property set.
pub const P_VERSION: &str = "finlake.version";
/// Property: the snapshot that was written together with the positions.
pub const P_SNAPSHOT: &str = "finlake.commit-snapshot-id";
/// Property: Kafka cluster id.
pub const P_CLUSTER: &str = "finlake.kafka.cluster-id";
/// Property prefix: topic id by topic name.
pub const P_TOPIC: &str = "finlake.kafka.topic-id.";
/// Property prefix: position by Kafka partition.
pub const P_POSITION: &str = "finlake.position.";
/// Snapshot summary: positions of the partitions that the snapshot moved.
pub const S_POSITIONS: &str = "finlake.positions";

/// How far a table is, for one Kafka partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// Number of the last task commit that is whole in the table; 0 = none yet.
    pub commit: i64,
    /// Input position (exclusive) after that commit; meaningless while `commit` is 0.
    pub input_end: i64,
    /// Stable frontier: system time (µs) up to which the table is whole for this partition.
    pub frontier: i64,
    /// Offset in the ledger topic from which to read on. A hint: it spares reading the ledger
    /// from its start, commit and input position decide what is taken. `None` in tables written
    /// before there were hints.
    pub ledger_next: Option<i64>,
    /// The same for the table's own topic (Silver, Gold); Bronze has `input_end`.
    pub output_next: Option<i64>,
}

impl Position {
    /// Text form: version 1, with the hints at its end, where a program that knows none of them
    /// does not look.
    pub fn encode(&self) -> String {
        let mut out = format!(
            "v1 commit={} input={} frontier={}",
            self.commit, self.input_end, self.frontier
        );
        for (name, hint) in [("ledger", self.ledger_next), ("output", self.output_next)] {
            if let Some(next) = hint {
                out.push_str(&format!(" {name}={next}"));
            }
        }
        out
    }

    /// Text form in snapshot summaries: `commit/input/frontier`, then the hints, empty if unknown.
    pub(crate) fn summary(&self) -> String {
        let mut out = format!("{}/{}/{}", self.commit, self.input_end, self.frontier);
        if self.ledger_next.is_some() || self.output_next.is_some() {
            for hint in [self.ledger_next, self.output_next] {
                out.push('/');
                if let Some(next) = hint {
                    out.push_str(&next.to_string());
                }
            }
        }
        out
    }

    /// Reads what `summary` wrote, now or before there were hints.
    pub(crate) fn from_summary(text: &str) -> Option<Position> {
        let mut parts = text.split('/');
        let mut number = || parts.next()?.parse().ok();
        let (commit, input_end, frontier) = (number()?, number()?, number()?);
        let mut hint = || match parts.next() {
            None | Some("") => Some(None),
            Some(n) => n.parse().ok().map(Some),
        };
        Some(Position {
            commit,
            input_end,
            frontier,
            ledger_next: hint()?,
            output_next: hint()?,
        })
    }

    /// Reads any version ever written.
    ///
    /// # Errors
    /// `Corrupt` with the text.
    pub fn decode(text: &str) -> Result<Position> {
        let bad = |why: &str| LakeError::corrupt(format!("position property {text:?}"), why);
        let mut words = text.split(' ');
        if words.next() != Some("v1") {
            return Err(bad("unknown version"));
        }
        let mut number = |name: &str| -> Result<i64> {
            words
                .next()
                .and_then(|w| w.strip_prefix(name))
                .and_then(|w| w.strip_prefix('='))
                .and_then(|w| w.parse().ok())
                .ok_or_else(|| bad("field missing or not a number"))
        };
        let mut out = Position {
            commit: number("commit")?,
            input_end: number("input")?,
            frontier: number("frontier")?,
            ..Position::default()
        };
        // Further words are hints of this or a later version.
        for word in words {
            let (name, value) = word.split_once('=').ok_or_else(|| bad("no name=value"))?;
            let hint = match name {
                "ledger" => &mut out.ledger_next,
                "output" => &mut out.output_next,
                _ => continue,
            };
            *hint = Some(value.parse().map_err(|_| bad("hint is not a number"))?);
        }
        Ok(out)
    }
}

/// Kafka identities that a table is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KafkaIds {
    /// Cluster id as the broker names it.
    pub cluster_id: String,
    /// Topic ids by topic name.
    pub topic_ids: BTreeMap<String, [u8; 16]>,
}

/// What the properties of one table say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Watermarks {
    /// Position per Kafka partition.
    pub positions: BTreeMap<i32, Position>,
    /// Snapshot the positions were written with.
    pub snapshot: Option<i64>,
    /// Kafka cluster, if bound.
    pub cluster_id: Option<String>,
    /// Topic ids as UUID text.
    pub topic_ids: BTreeMap<String, String>,
}

impl Watermarks {
    /// Reads the properties of a table.
    ///
    /// # Errors
    /// `Corrupt` for values this version does not know.
    pub fn read(props: &HashMap<String, String>) -> Result<Watermarks> {
        let mut out = Watermarks::default();
        if let Some(v) = props.get(P_VERSION)
            && v != VERSION
        {
            return Err(LakeError::corrupt(P_VERSION, format!("version {v}")));
        }
        for (key, value) in props {
            if let Some(p) = key.strip_prefix(P_POSITION) {
                let partition = p
                    .parse()
                    .map_err(|e| LakeError::corrupt(format!("property {key}"), e))?;
                out.positions.insert(partition, Position::decode(value)?);
            } else if let Some(topic) = key.strip_prefix(P_TOPIC) {
                out.topic_ids.insert(topic.to_string(), value.clone());
            }
        }
        out.cluster_id = props.get(P_CLUSTER).cloned();
        out.snapshot = match props.get(P_SNAPSHOT) {
            None => None,
            Some(s) => Some(
                s.parse()
                    .map_err(|e| LakeError::corrupt(format!("property {P_SNAPSHOT}"), e))?,
            ),
        };
        Ok(out)
    }

    /// The stable frontier of the table: the least over all partitions; `None` without partitions.
    pub fn frontier(&self) -> Option<i64> {
        self.positions.values().map(|p| p.frontier).min()
    }
}

/// The properties a commit writes: moved positions and the snapshot they belong to.
pub fn updates(positions: &BTreeMap<i32, Position>, snapshot: i64) -> HashMap<String, String> {
    let mut out: HashMap<String, String> = positions
        .iter()
        .map(|(p, pos)| (format!("{P_POSITION}{p}"), pos.encode()))
        .collect();
    out.insert(P_SNAPSHOT.to_string(), snapshot.to_string());
    out
}

/// Old metadata files a table keeps; any writer's library heeds it.
pub const P_METADATA_FILES: &str = "write.metadata.previous-versions-max";

/// The properties a new table starts with, but for [`wanted`]: partitions at commit 0, and the
/// settings other engines should honour.
pub fn initial(partitions: i32) -> HashMap<String, String> {
    let mut out = HashMap::from([
        (P_VERSION.to_string(), VERSION.to_string()),
        ("write.format.default".into(), "parquet".into()),
        ("write.parquet.compression-codec".into(), "zstd".into()),
        (
            "write.metadata.delete-after-commit.enabled".into(),
            "true".into(),
        ),
        ("commit.manifest-merge.enabled".into(), "true".into()),
    ]);
    for p in 0..partitions {
        out.insert(format!("{P_POSITION}{p}"), Position::default().encode());
    }
    out
}

/// What every table is to have, new or not: the Kafka identities, and what the configuration sets.
pub fn wanted(ids: &KafkaIds, metadata_files: usize) -> HashMap<String, String> {
    let mut out = identities(ids);
    out.insert(P_METADATA_FILES.into(), metadata_files.to_string());
    out
}

/// Properties that bind a table to a Kafka cluster and its topics.
fn identities(ids: &KafkaIds) -> HashMap<String, String> {
    let mut out = HashMap::new();
    if !ids.cluster_id.is_empty() {
        out.insert(P_CLUSTER.to_string(), ids.cluster_id.clone());
    }
    for (topic, id) in &ids.topic_ids {
        out.insert(
            format!("{P_TOPIC}{topic}"),
            uuid::Uuid::from_bytes(*id).to_string(),
        );
    }
    out
}

/// Compares a table's Kafka identities with the running cluster's. Topics the table does not
/// know are fine (they are added); a different id is not.
///
/// # Errors
/// `KafkaChanged`, naming cluster or topic.
pub fn check_identities(table: Table, marks: &Watermarks, ids: &KafkaIds) -> Result<()> {
    if let Some(stored) = &marks.cluster_id
        && !ids.cluster_id.is_empty()
        && *stored != ids.cluster_id
    {
        return Err(LakeError::KafkaChanged {
            table,
            what: "cluster".into(),
            stored: stored.clone(),
            found: ids.cluster_id.clone(),
        });
    }
    for (topic, id) in &ids.topic_ids {
        let found = uuid::Uuid::from_bytes(*id).to_string();
        if let Some(stored) = marks.topic_ids.get(topic)
            && *stored != found
        {
            return Err(LakeError::KafkaChanged {
                table,
                what: format!("topic {topic}"),
                stored: stored.clone(),
                found,
            });
        }
    }
    Ok(())
}

/// Decides whether the properties may be trusted: the snapshot they were written with is current,
/// or every snapshot since is a `replace` whose parent chain leads back to it.
///
/// # Errors
/// `TableMoved` otherwise.
pub fn check_authority(table: Table, metadata: &TableMetadata, marks: &Watermarks) -> Result<()> {
    let Some(expected) = marks.snapshot else {
        return Ok(()); // not initialised yet: nothing to trust
    };
    let moved = || LakeError::TableMoved {
        table,
        expected,
        current: metadata.current_snapshot_id(),
    };
    let mut at = metadata.current_snapshot_id().ok_or_else(moved)?;
    while at != expected {
        let snapshot = metadata.snapshot_by_id(at).ok_or_else(moved)?;
        if snapshot.summary().operation != Operation::Replace {
            return Err(moved());
        }
        at = snapshot.parent_snapshot_id().ok_or_else(moved)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_fixtures_of_every_version() {
        let v1 = Position {
            commit: 12,
            input_end: 345,
            frontier: 1_700_000_000_000_000,
            ..Position::default()
        };
        // Frozen: tables hold these texts.
        let text = "v1 commit=12 input=345 frontier=1700000000000000";
        assert_eq!(v1.encode(), text);
        assert_eq!(Position::decode(text).unwrap(), v1);
        assert_eq!(v1.summary(), "12/345/1700000000000000");
        assert_eq!(Position::from_summary(&v1.summary()), Some(v1));
        let hinted = Position {
            ledger_next: Some(99),
            output_next: Some(7),
            ..v1
        };
        let text = "v1 commit=12 input=345 frontier=1700000000000000 ledger=99 output=7";
        assert_eq!(hinted.encode(), text);
        assert_eq!(Position::decode(text).unwrap(), hinted);
        assert_eq!(hinted.summary(), "12/345/1700000000000000/99/7");
        for p in [
            hinted,
            Position {
                ledger_next: None,
                ..hinted
            },
            Position {
                output_next: None,
                ..hinted
            },
        ] {
            assert_eq!(Position::decode(&p.encode()).unwrap(), p);
            assert_eq!(Position::from_summary(&p.summary()), Some(p));
        }
        let later = "v1 commit=12 input=345 frontier=1700000000000000 else=1 output=7";
        assert_eq!(Position::decode(later).unwrap().output_next, Some(7));
        for bad in [
            "",
            "v2 commit=1",
            "v1 commit=x input=1 frontier=2",
            "v1",
            "v1 commit=1 input=1 frontier=2 ledger=x",
            "v1 commit=1 input=1 frontier=2 ledger",
        ] {
            assert!(Position::decode(bad).is_err(), "{bad}");
        }
        for bad in ["", "1/2", "1/2/x", "1/2/3/x"] {
            assert!(Position::from_summary(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn property_set_round_trips() {
        let ids = KafkaIds {
            cluster_id: "c1".into(),
            topic_ids: BTreeMap::from([("market.ticks".to_string(), [7u8; 16])]),
        };
        let mut props = initial(2);
        props.extend(wanted(&ids, 20));
        let moved = BTreeMap::from([(
            1,
            Position {
                commit: 3,
                input_end: 9,
                frontier: 5,
                ..Position::default()
            },
        )]);
        props.extend(updates(&moved, 42));
        let marks = Watermarks::read(&props).unwrap();
        assert_eq!(marks.snapshot, Some(42));
        assert_eq!(marks.positions.len(), 2);
        assert_eq!(marks.positions[&1], moved[&1]);
        assert_eq!(marks.frontier(), Some(0));
        check_identities(Table::Ticks, &marks, &ids).unwrap();
        let other = KafkaIds {
            cluster_id: "c1".into(),
            topic_ids: BTreeMap::from([("market.ticks".to_string(), [8u8; 16])]),
        };
        let e = check_identities(Table::Ticks, &marks, &other).unwrap_err();
        assert!(e.to_string().contains("topic market.ticks"), "{e}");
        props.insert(P_VERSION.into(), "2".into());
        assert!(Watermarks::read(&props).is_err());
    }
}
