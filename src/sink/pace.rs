//! Which of a partition's topics are read on and which are held back while what they brought waits for the others.
//!
//! Pure. Two rules, so that memory is bounded and nothing ever waits for itself: a topic is held back when much of it
//! waits, and it is read on, however much that is, as soon as the commit at the front is short of its records.

use super::assemble::{Assembler, FEEDS};

/// Bytes of one topic and partition that may wait for their ledger entry.
const WAITING_BYTES: usize = 16 << 20;
/// Ledger entries read ahead of their records.
const WAITING_ENTRIES: usize = 4096;

/// The ledger, then the feeds that fill a table.
pub type Topics = [bool; FEEDS + 1];

/// Which topics are to be held back; `held` are held back now, and stay so until half of what waited is gone.
pub fn held_back(assembler: &Assembler, held: Topics) -> Topics {
    let limit = |most: usize, held: bool| if held { most / 2 } else { most };
    let short = assembler.short();
    std::array::from_fn(|topic| match topic.checked_sub(1) {
        None => assembler.entries_waiting() > limit(WAITING_ENTRIES, held[0]),
        Some(feed) => !short[feed] && assembler.bytes(feed) > limit(WAITING_BYTES, held[topic]),
    })
}

#[cfg(test)]
mod tests {
    use finlake_schemas::{InputRange, LedgerEntry, OutputCount, topics};
    use proptest::prelude::*;

    use super::super::assemble::{Feed, Held};
    use super::super::queue::Queued;
    use super::*;
    use finlake_schemas::hash128;

    const SIZE: usize = 1 << 20;

    fn entry(commit: i64, ticks: i64, bars: i64, value: &[u8]) -> LedgerEntry {
        let hash = |n: i64| hash128(b"", value).wrapping_mul(n as u128);
        LedgerEntry {
            app_id: "a".into(),
            task: 0,
            commit,
            system_time: commit,
            stream_times: vec![],
            inputs: vec![InputRange {
                topic: topics::TICKS.into(),
                start: (commit - 1) * ticks,
                end: commit * ticks,
                records: ticks,
                hash: hash(ticks),
                accepted: ticks,
                duplicates: 0,
                rejected: 0,
                skipped: 0,
            }],
            outputs: vec![OutputCount {
                topic: topics::OHLCV.into(),
                count: bars,
                hash: hash(bars),
            }],
            corrections: 0,
            totals: vec![],
            schema_ids: vec![],
            prev_hash: 0,
            last: false,
            heartbeat: false,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        /// Whatever comes first, and however much of it: all commits come out in the end, and no topic that is not
        /// needed holds more than its share.
        #[test]
        fn whatever_runs_ahead_all_commits_come_out(
            turns in prop::collection::vec(0usize..3, 0..400),
            (ticks, bars) in (1i64..40, 0i64..25),
        ) {
            const COMMITS: i64 = 8;
            let value = vec![7u8; SIZE];
            let mut a = Assembler::new(0, [Held::default(); FEEDS], [0; FEEDS]);
            let (mut next, mut held, mut out) = ([0i64; 3], [false; FEEDS + 1], 0);
            let ends = [COMMITS, COMMITS * ticks, COMMITS * bars];
            // After the drawn order, every topic in turn: a broker that is asked long enough brings everything.
            let after = (0..).map(|n| n % 3);
            for topic in turns.into_iter().chain(after).take(20_000) {
                if !held[topic] && next[topic] < ends[topic] {
                    let n = next[topic];
                    let record = Queued { offset: n, timestamp_ms: 0, key: None, value: Some(&value) };
                    match topic {
                        0 => a.push_ledger(n, entry(n + 1, ticks, bars, &value)).unwrap(),
                        1 => a.push(Feed::Ticks, record),
                        _ => a.push(Feed::Ohlcv, record),
                    }
                    next[topic] += 1;
                }
                while let Some(ready) = a.ready().unwrap() {
                    a.pop(ready);
                    out += 1;
                }
                held = held_back(&a, held);
                for feed in 0..2 {
                    let most = WAITING_BYTES + (ticks.max(bars) as usize + 2) * SIZE;
                    prop_assert!(a.bytes(feed) <= most, "{} bytes of feed {}", a.bytes(feed), feed);
                }
                if out == COMMITS {
                    return Ok(());
                }
            }
            prop_assert!(false, "stuck after {out} commits: read {next:?} of {ends:?}, held {held:?}");
        }
    }
}
