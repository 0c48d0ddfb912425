//! pyiceberg, DuckDB and Spark read the three tables alike, and as `finlake query` does.

use crate::harness::{Finlake, Read, Reader, Readers, secs};
use crate::rows::ask;

#[test]
fn three_engines_read_the_three_tables_alike() {
    let Some(readers) = Readers::available() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("d");
    Finlake::new()
        .data(&data)
        .args(["demo", "--exit", "--trades", "20000"])
        .run(secs(180))
        .ok();
    let catalog = data.join("catalog.db");
    let warehouse = format!("file://{}", data.join("warehouse").display());
    let mut what = Read {
        symbol: Some("ETHUSDT"),
        ..Read::default()
    };
    let first = readers.read(Reader::Pyiceberg, &catalog, &warehouse, &what);
    const TABLES: [&str; 3] = [
        "bronze.market_ticks",
        "silver.market_ohlcv",
        "gold.market_metrics",
    ];
    for table in TABLES {
        let snapshots = first["tables"][table]["snapshots"].as_array().unwrap();
        assert!(
            snapshots.len() > 2,
            "{table} has too few snapshots to travel"
        );
        let older = snapshots[snapshots.len() / 2].as_i64().unwrap();
        what.snapshots.push((table, older));
    }
    let reports = Reader::ALL.map(|r| readers.read(r, &catalog, &warehouse, &what));
    for table in TABLES {
        let first = &reports[0]["tables"][table];
        for (reader, report) in Reader::ALL.iter().zip(&reports) {
            for part in ["count", "hash", "columns", "current", "symbol", "as_of"] {
                assert_eq!(
                    report["tables"][table][part], first[part],
                    "{reader:?} {table} {part}"
                );
            }
        }
        let count = |filter: &str| -> u64 {
            ask(
                &data,
                &format!("select count(*) from {table} where {filter}"),
            )[0]
            .parse()
            .unwrap()
        };
        assert_eq!(first["count"], count("true"), "{table}");
        assert_eq!(first["current"]["count"], count("is_current"), "{table}");
        assert_eq!(
            first["symbol"]["count"],
            count("symbol = 'ETHUSDT'"),
            "{table}"
        );
        assert!(first["symbol"]["count"].as_u64().unwrap() > 10);
        assert!(first["as_of"]["count"].as_u64() <= first["count"].as_u64());
    }
}
