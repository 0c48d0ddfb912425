//! Breaks from their finding to their end, on Apache Kafka: opened once whoever finds them and however often a run is
//! killed, explained by people, resolved by a repair; their table is as bi-temporal as every other.

use std::time::{Duration, Instant};

use finlake::app::PlantedFaults;
use finlake::generate::Rng;
use finlake_lakehouse::Table;
use finlake_lakehouse::faults::Plant;

use crate::exact::World;
use crate::harness::{Kafka, Ran, secs};
use crate::planted::{Inside, halves, once};
use crate::rows::{self, ask};

/// What a reconciliation says it did: opened, known, resolved.
fn changes(ran: &Ran) -> [u64; 3] {
    let line = ran.stderr.lines().find(|l| l.starts_with("breaks: "));
    let line = line.unwrap_or_else(|| panic!("{}\n{}", ran.stdout, ran.stderr));
    let mut numbers = line.split([' ', ',']).filter_map(|w| w.parse().ok());
    std::array::from_fn(|_| numbers.next().unwrap())
}

/// All that is found is listed, and so opened.
const ALL: [&str; 3] = ["reconcile", "--limit", "100000"];

fn reconcile(world: &World) -> Ran {
    world.finlake("reconcile").args(ALL).run(secs(300))
}

/// Everything that lies in the topics goes into the tables.
fn sink(world: &World) {
    world
        .finlake("a")
        .args(["run", "--roles", "sink", "--until-caught-up"])
        .run(secs(120))
        .ok();
}

/// (status, how many) of the current rows.
fn statuses(world: &World) -> Vec<String> {
    ask(
        &world.data(),
        "select status, count(*) from quality.breaks where is_current group by 1 order by 1",
    )
}

/// INV-2, INV-3, INV-6, INV-8 over all versions; and no break was opened more often than it was resolved, plus once.
fn histories(world: &World) {
    rows::histories(&world.data(), "quality.breaks", "break_id");
    let twice = ask(
        &world.data(),
        "select break_id from quality.breaks group by 1 having sum(case when status = 'opened' then 1 else 0 end) > \
         1 + sum(case when status = 'resolved' then 1 else 0 end)",
    );
    assert_eq!(twice, Vec::<String>::new(), "opened twice");
}

fn life_of_breaks(kills: u64) {
    let Some(kafka) = Kafka::start() else { return };
    let (world, sides) = halves(&kafka, 2_000, ["side".to_owned()]);
    let side = &sides[0];
    let faults = PlantedFaults {
        lake: once(Plant::CommitTwice, Table::Ohlcv),
        ..PlantedFaults::default()
    };
    Inside::new(side, "a", faults).sink().unwrap();

    // Found, and killed somewhere on the way.
    let began = Instant::now();
    let only = side.finlake("only").args(["reconcile", "--report-only"]);
    assert_eq!(only.run(secs(120)).code, 1);
    let took = began.elapsed().as_millis() as u64;
    let mut rng = Rng::new(kills);
    for _ in 0..kills {
        let mut run = side.finlake("killed").args(ALL).spawn();
        std::thread::sleep(Duration::from_millis(took / 2 + rng.below(took)));
        run.kill9();
        let mut audit = side
            .finlake("killed-audit")
            .args(["run", "--roles", "audit", "--until-caught-up"])
            .spawn();
        std::thread::sleep(Duration::from_millis(rng.below(took)));
        audit.kill9();
    }
    // Two that do not know of each other.
    let mut first = side.finlake("first").args(ALL).spawn();
    let mut second = side.finlake("second").args(ALL).spawn();
    assert_eq!((first.wait(secs(120)), second.wait(secs(120))), (1, 1));
    assert_eq!(side.audit().code, 1);
    let [opened, known, resolved] = changes(&reconcile(side));
    assert_eq!((opened, resolved), (0, 0));
    assert!(known > 2, "{known}");
    sink(side);
    // Those of reconcile, and the audit's one.
    let all = known + 1;
    let kinds = "select found_by, kind, layer, split_part(cause, ':', 1), count(*) from quality.breaks group by 1, 2, 3, 4";
    let kinds = ask(&side.data(), kinds);
    assert_eq!(statuses(side), [format!("opened,{all}")], "{kinds:#?}");
    // The audit's names the snapshot, and what it took: nothing that was not there before.
    let audits = "select break_key, expected from quality.breaks where found_by = 'audit'";
    let audits = ask(&side.data(), audits);
    assert!(audits[0].starts_with("silver.market_ohlcv@"), "{audits:?}");
    assert!(
        audits[0].ends_with(",0 rows more: no new commit"),
        "{audits:?}"
    );
    histories(side);

    // Explained; nobody opens it again.
    let ids = ask(
        &side.data(),
        "select break_id from quality.breaks order by 1 limit 1",
    );
    side.finlake("explain")
        .args(["breaks", "explain", &ids[0], "--why", "planted"])
        .quick()
        .ok();
    assert_eq!(changes(&reconcile(side)), [0, known, 0]);
    assert_eq!(side.audit().code, 1);
    sink(side);
    let open = all - 1;
    let after = ["explained,1".to_owned(), format!("opened,{open}")];
    assert_eq!(statuses(side), after);
    histories(side);
    let instant = "select cast(max(sys_from) as bigint) from quality.breaks";
    let before_repair = &ask(&side.data(), instant)[0];

    // Repaired: tables made anew from the topics. Whoever looks at them ends the breaks, the audit's among them.
    let repaired = world.beside("repaired");
    sink(&repaired);
    assert_eq!(statuses(&repaired), after, "the same table from the topic");
    let ran = reconcile(&repaired);
    assert_eq!(
        (ran.code, changes(&ran)),
        (0, [0, 0, all]),
        "{}",
        ran.stderr
    );
    let ran = repaired.audit();
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    sink(&repaired);
    assert_eq!(statuses(&repaired), [format!("resolved,{all}")]);
    histories(&repaired);
    // As known before: as it was.
    let was = format!(
        "select status, count(*) from quality.breaks where cast(sys_from as bigint) <= {before_repair} and \
         cast(sys_to as bigint) > {before_repair} group by 1 order by 1"
    );
    assert_eq!(ask(&repaired.data(), &was), after);

    // The damaged tables are still there: what is found again is open again.
    assert_eq!(changes(&reconcile(side)), [known, 0, 0]);
    assert_eq!(side.audit().code, 1);
    sink(&repaired);
    assert_eq!(statuses(&repaired), [format!("opened,{all}")]);
    histories(&repaired);
}

#[test]
fn breaks_are_opened_once_explained_and_resolved_by_a_repair() {
    life_of_breaks(3);
}

/// A table that is filled anew is right as far as it has come, which says nothing of what comes after.
#[test]
fn a_table_that_is_being_filled_ends_no_break() {
    let Some(kafka) = Kafka::start() else { return };
    let apps = ["damaged", "filled"].map(str::to_owned);
    let (_world, sides) = halves(&kafka, 2_000, apps);
    let [damaged, filled] = &sides[..] else {
        panic!("two of them")
    };
    let faults = PlantedFaults {
        lake: once(Plant::CommitTwice, Table::Ohlcv),
        ..PlantedFaults::default()
    };
    Inside::new(damaged, "a", faults).sink().unwrap();
    assert_eq!(damaged.audit().code, 1);
    let [opened, ..] = changes(&reconcile(damaged));
    assert!(opened > 1, "{opened}");
    let open = |world: &World| {
        let all = world.finlake("list").args(["breaks", "list"]).quick();
        all.stdout
            .lines()
            .filter(|l| l.contains(",opened,"))
            .count() as u64
    };
    assert_eq!(open(damaged), opened + 1, "the audit's too");

    // It holds the first half, and that is right, but for late trades, which belong there and come in the other one.
    let ran = reconcile(filled);
    let [gaps, known, resolved] = changes(&ran);
    assert_eq!((known, resolved), (0, 0), "{}", ran.stderr);
    let all = opened + gaps;
    let ran = filled.audit();
    assert_eq!(ran.code, 1, "its own break is open: {}", ran.stderr);
    assert_eq!(open(filled), all + 1);
    sink(filled);
    assert_eq!(filled.audit().code, 0);
    assert_eq!(open(filled), all);
    assert_eq!(changes(&reconcile(filled)), [0, 0, all]);
    assert_eq!(open(filled), 0);
}

/// The long form.
#[test]
#[ignore = "chaos: ./test --chaos"]
fn runs_that_are_killed_thirty_times_open_nothing_twice() {
    life_of_breaks(30);
}
