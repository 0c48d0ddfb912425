//! The tables that the demo leaves behind are clean, by the command and by the audit that ran beside it.

use crate::harness::{Finlake, secs};

#[test]
fn what_the_demo_leaves_is_clean() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| Finlake::new().data(dir.path()).args(args).run(secs(300));
    run(&[
        "demo",
        "--exit",
        "--trades",
        "20000",
        "--symbols",
        "4",
        "--quiet",
    ])
    .ok();
    let report = run(&["reconcile", "--quiet", "--output", "json"]);
    let json = report.json();
    assert_eq!(
        (report.code, &json["breaks"]),
        (0, &0.into()),
        "{}\n{}",
        report.stdout,
        report.stderr
    );
    for layer in ["bronze", "silver", "gold"] {
        assert!(
            json["compared_rows"][layer].as_u64().unwrap() > 100,
            "{json:#}"
        );
    }
    // The tables alone, one day, one symbol.
    let day = [
        "reconcile",
        "--no-kafka",
        "--date",
        "2026-01-06",
        "--layer",
        "silver",
        "--quiet",
        "-o",
        "json",
    ];
    let report = run(&day);
    assert_eq!(report.code, 0, "{}\n{}", report.stdout, report.stderr);
    // Nothing was found by the audit either: the table of breaks is empty.
    let sql = "select count(*) as n from quality.breaks";
    let rows = run(&["query", "--quiet", "--output", "csv", sql]).ok();
    assert_eq!(rows.stdout.trim(), "n\n0");
}
