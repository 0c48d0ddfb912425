//! Two instances, each stream and sink, commit to one set of tables once a second for ten minutes: neither starves,
//! nothing is lost, and how often they met is counted.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use finlake_schemas::topics;

use crate::bare::{self, Way};
use crate::feed::{Feed, Spec};
use crate::harness::secs;
use crate::meter::row;
use crate::world::{Instance, World, size};
use crate::{oracle, rows};

const RATE: u64 = 4_000;
const TABLES: [&str; 3] = ["ticks", "ohlcv", "metrics"];
/// Without a table commit for this long an instance counts as starved: twenty intervals.
const STARVED: Duration = Duration::from_secs(20);

/// What one instance's `/metrics` told over time.
#[derive(Default)]
struct Seen {
    commits: [f64; 3],
    conflicts: [f64; 3],
    rows: f64,
    retries: f64,
    changed: Option<Instant>,
    /// Longest time between two Bronze commits.
    gap: Duration,
}

impl Seen {
    fn look(&mut self, instance: &Instance) {
        let scrape = instance.metrics();
        let now = Instant::now();
        let commits = TABLES.map(|t| scrape.with("finlake_sink_commits_total", t));
        if commits[0] > self.commits[0] {
            if let Some(before) = self.changed {
                self.gap = self.gap.max(now - before);
            }
            self.changed = Some(now);
        }
        self.commits = commits;
        self.conflicts = TABLES.map(|t| scrape.with("finlake_sink_commit_conflicts_total", t));
        self.rows = scrape.with("finlake_sink_rows_total", "ticks");
        self.retries = scrape.sum("finlake_sink_retries_total");
    }
}

#[test]
#[ignore = "chaos: ./test --chaos"]
fn two_instances_commit_to_one_table_for_ten_minutes() {
    let Some(mut world) = World::start(8) else {
        return;
    };
    world.set("lake.commit_interval", "1s");
    world.create_topics();
    let seconds = size("BENCH_SECONDS", 600);
    let spec = Spec {
        symbols: 24,
        trades: RATE * (seconds + 20),
        density: RATE,
        linger_ms: 5,
    };
    let mut feed = Feed::new(&world.kafka, world.partitions, spec);
    let instances = [world.run("a", "stream,sink"), world.run("b", "stream,sink")];
    // Until both have their share.
    feed.pace(&world.codec, RATE, secs(15), |_| {});
    let mut seen = [Seen::default(), Seen::default()];
    let codec = finlake_schemas::Codec::offline();
    let feeder = std::thread::spawn(move || {
        feed.pace(&codec, RATE, secs(seconds), |_| {});
        feed
    });
    let started = instances.each_ref().map(|i| {
        let mut s = Seen::default();
        s.look(i);
        s
    });
    while !feeder.is_finished() {
        for (seen, instance) in seen.iter_mut().zip(&instances) {
            seen.look(instance);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let feed = feeder.join().unwrap();
    for ((name, s), start) in ["a", "b"].iter().zip(&seen).zip(&started) {
        let over = |now: [f64; 3], then: [f64; 3]| {
            let of: BTreeMap<_, _> = TABLES
                .iter()
                .zip(now.iter().zip(then).map(|(n, t)| n - t))
                .collect();
            format!("{of:?}")
        };
        row(
            "check 9",
            &format!("instance {name} of two, {seconds} s, commit 1 s, 8 partitions"),
            "neither starves",
            &format!(
                "commits {}, lost swaps re-attached {}, {} retries, {:.0} Bronze rows, longest gap between Bronze \
                 commits {:.1} s",
                over(s.commits, start.commits),
                over(s.conflicts, start.conflicts),
                s.retries,
                s.rows - start.rows,
                s.gap.as_secs_f64()
            ),
        );
    }
    for mut instance in instances {
        let code = instance.process.stop(secs(120));
        assert_eq!(code, 0, "{}", instance.process.tail());
    }
    for s in &seen {
        assert!(s.gap < STARVED, "starved for {:?}", s.gap);
        assert!(s.rows > 0.0 && s.commits[0] > seconds as f64 / 20.0);
    }
    world.until_caught_up("a", "stream,sink");
    verify(&world, feed.sent);
}

/// Bronze holds every record once; Silver equals the recomputation.
fn verify(world: &World, sent: u64) {
    let mut inputs = Vec::with_capacity(sent as usize);
    bare::read(
        &world.kafka,
        topics::TICKS,
        world.partitions,
        Way::Batch,
        |m| {
            inputs.push(oracle::Input {
                partition: m.partition,
                offset: m.offset,
                timestamp_ms: m.timestamp_ms,
                key: m.key.to_vec(),
                value: m.value.to_vec(),
            });
        },
    );
    assert_eq!(inputs.len() as u64, sent);
    let data = world.data();
    let found = rows::ask(
        &data,
        "select count(*), count(distinct kafka_offset * 1024 + kafka_partition), sum(kafka_offset) from bronze.market_ticks",
    );
    let offsets: i64 = inputs.iter().map(|i| i.offset).sum();
    assert_eq!(found, [format!("{sent},{sent},{offsets}")], "Bronze");
    let expected = oracle::recompute(&inputs, &world.codec, &["1m", "1h", "1d"], 10_000_000);
    assert_eq!(expected.accepted, sent);
    assert!(rows::silver(&data) == expected.silver, "Silver differs");
    assert!(rows::gold(&data) == expected.gold, "Gold differs");
    rows::histories(
        &data,
        "silver.market_ohlcv",
        "source, symbol, bar_interval, bar_start",
    );
}
