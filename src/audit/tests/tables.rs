//! The audit beside tables that are not what the ledger says.

use finlake_lakehouse::commit::Committer;
use finlake_lakehouse::faults::tamper;
use finlake_lakehouse::{
    BronzeRows, Cut, KafkaIds, Lakehouse, PartitionBatch, RecordAt, Rows, SinkBatch, Table,
    TableSink,
};

use super::*;

const TABLES: [Table; 4] = [Table::Ticks, Table::Ohlcv, Table::Metrics, Table::Bars];
/// Commits to a snapshot.
const STEP: i64 = 5;

impl Fixture {
    fn lake(&self) -> Lakehouse {
        let lake = self.runtime.block_on(parts::open_lake(&self.config));
        let lake = lake.unwrap();
        let made = self
            .runtime
            .block_on(lake.ensure_tables(&KafkaIds::default()));
        made.unwrap();
        lake
    }

    /// Takes the next commits of all partitions into all tables, as one snapshot of each; `rows`: how many one commit of
    /// partition 0 puts into Bronze, where the ledger says one.
    fn take(&self, lake: &Lakehouse, last: i64, odd: i64, rows: i64) {
        for table in TABLES {
            let all: Vec<i32> = (0..PARTITIONS).collect();
            let part = |&partition: &i32| PartitionBatch {
                partition,
                input_start: last - STEP,
                cuts: (last - STEP + 1..=last).map(cut).collect(),
                frontier: last * 1_000,
                rows: match table {
                    Table::Ticks => bronze(partition, last, odd, rows),
                    _ => Rows::None,
                },
            };
            let batch = SinkBatch {
                parts: all.iter().map(part).collect(),
            };
            let committed = self.runtime.block_on(async {
                let mut sink = TableSink::open(lake, table).await?;
                sink.assign(&all).await?;
                sink.commit(batch).await
            });
            assert!(committed.unwrap().snapshot.is_some());
        }
    }

    /// What an audit finds that runs to the end of the ledger: key and cause of all breaks that are open, and how many it
    /// opened.
    fn audited(&self) -> (Vec<(String, String)>, i64) {
        let (audit, metrics) = self.audit(&self.codec);
        eventually("it is active", 30, || active(&metrics) == 1);
        let ends = self
            .written
            .iter()
            .map(|(_, (commit, _))| *commit)
            .sum::<i64>();
        eventually("it has read all", 30, || {
            sum(&metrics, "finlake_audit_commit") == ends
        });
        end(audit);
        let known = Known::read(&self.config, &self.codec).unwrap();
        let open = known
            .values()
            .filter(|b| b.status == finlake_schemas::BreakStatus::Opened);
        let mut open: Vec<_> = open.map(|b| (b.key.clone(), b.cause.clone())).collect();
        open.sort();
        (open, sum(&metrics, "finlake_audit_findings_total"))
    }

    fn current(&self, lake: &Lakehouse) -> i64 {
        let pinned = self.runtime.block_on(lake.snapshot(Table::Ticks));
        pinned.unwrap().snapshot_id()
    }
}

fn cut(commit: i64) -> Cut {
    Cut {
        commit,
        input_end: commit,
        system_time: commit * 1_000,
        ..Cut::default()
    }
}

fn bronze(partition: i32, last: i64, odd: i64, rows: i64) -> Rows {
    let mut out = BronzeRows::new(topics::TICKS, partition);
    for commit in last - STEP + 1..=last {
        let at = RecordAt {
            offset: commit - 1,
            timestamp: commit * 1_000,
            key: None,
            schema_id: None,
            commit,
            sys_from: commit * 1_000,
        };
        let of_this = (partition, commit) == (0, odd);
        for _ in 0..if of_this { rows } else { 1 } {
            out.push_raw(&at, b"?");
        }
    }
    out.into()
}

fn total(snapshot: i64, off: i64) -> (String, String) {
    (
        format!("bronze.market_ticks@{snapshot}"),
        format!("INV-13:total:{off}"),
    )
}

#[test]
fn a_commit_that_lost_a_row_beside_one_with_a_row_too_many() {
    let mut f = Fixture::new();
    let lake = f.lake();
    for p in 0..PARTITIONS {
        f.write(p, 4 * STEP, 0);
    }
    f.take(&lake, STEP, 0, 1);
    f.take(&lake, 2 * STEP, 7, 0);
    let lost = f.current(&lake);
    f.take(&lake, 3 * STEP, 13, 2);
    let doubled = f.current(&lake);
    f.take(&lake, 4 * STEP, 0, 1);
    let mut both = vec![total(lost, -1), total(doubled, 1)];
    both.sort();
    assert_eq!(f.audited(), (both.clone(), 2));
    // Another process, which goes on from the kept state; then one that has none.
    assert_eq!(f.audited(), (both.clone(), 0));
    for p in 0..PARTITIONS {
        f.write(p, STEP, 0);
    }
    f.take(&lake, 5 * STEP, 24, 3);
    both.push(total(f.current(&lake), 2));
    both.sort();
    assert_eq!(f.audited(), (both.clone(), 1));
    f.config.kafka.application_id = "another".into();
    assert_eq!(f.audited(), (both, 0));
}

#[test]
fn files_that_are_written_anew_are_no_finding_and_rows_that_go_are() {
    let mut f = Fixture::new();
    let lake = f.lake();
    for p in 0..PARTITIONS {
        f.write(p, 3 * STEP, 0);
    }
    f.take(&lake, STEP, 0, 1);
    f.take(&lake, 2 * STEP, 0, 1);
    let file = || {
        let committer = f.runtime.block_on(Committer::open(&lake, Table::Ticks));
        let committer = committer.unwrap();
        committer.base().files().next().unwrap().path.to_string()
    };
    let path = file();
    let rewritten = tamper(&lake, Table::Ticks, &path, Ok);
    f.runtime.block_on(rewritten).unwrap();
    f.take(&lake, 3 * STEP, 0, 1);
    assert_eq!(f.audited(), (vec![], 0));
    let path = file();
    let gone = tamper(&lake, Table::Ticks, &path, |rows| {
        Ok(rows.slice(0, rows.num_rows() - 2))
    });
    f.runtime.block_on(gone).unwrap();
    let damage = f.current(&lake);
    assert_eq!(f.audited(), (vec![total(damage, -2)], 1));
}
