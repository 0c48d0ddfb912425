//! Shadows: marked from the first moment on, beside the live tables, asked together with them, dropped whole.

use std::collections::BTreeMap;
use std::path::Path;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use finlake_lakehouse::query::{AsOf, Options, QueryEngine};
use finlake_lakehouse::{LakeConfig, LakeError, Lakehouse, Table, TableSink};

use crate::common::*;

fn about(range: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("range".to_owned(), range.to_owned())])
}

/// A lake with nine commits of Bronze and Silver, and the versions of Silver.
async fn live(dir: &Path) -> (Lakehouse, Vec<Version>) {
    let lake = open(eager(dir, 1)).await;
    let ops: Vec<Vec<(u8, u8)>> = (0..9u8).map(|i| vec![(i / 2, i), (i, 1)]).collect();
    let all = ledger(&ops);
    let mut bars = sink(&lake, Table::Ohlcv, &[0]).await;
    let mut ticks = sink(&lake, Table::Ticks, &[0]).await;
    for c in 1..=9 {
        bars.commit(silver(&lake, 0, c, c, &all)).await.unwrap();
        ticks.commit(bronze(0, c, c)).await.unwrap();
    }
    (lake, all)
}

/// A rebuild into a shadow gives the same rows (INV-7); dropping the shadow touches nothing else.
#[tokio::test]
async fn shadows_are_rebuilt_and_dropped_beside_the_live_tables() {
    let dir = tempfile::tempdir().unwrap();
    let (lake, _) = live(dir.path()).await;
    let before = rows(&lake, Table::Ticks).await;
    let shadow = lake
        .create_shadow("verify_1", about("all"), false)
        .await
        .unwrap();
    shadow.ensure_tables(&ids()).await.unwrap();
    let mut again = sink(&shadow, Table::Ticks, &[0]).await;
    again.commit(bronze(0, 1, 9)).await.unwrap();
    assert_eq!(rows(&shadow, Table::Ticks).await, before, "INV-7");
    let place = dir.path().join("warehouse/shadow/verify_1");
    assert!(place.exists());

    shadow.note(&about("everything")).await.unwrap();
    let listed = lake.shadows().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].name, "verify_1");
    assert_eq!(listed[0].about, about("everything"));
    let rows_of = |t| listed[0].tables.iter().find(|(u, _)| *u == t).unwrap().1;
    assert_eq!((rows_of(Table::Ticks), rows_of(Table::Ohlcv)), (90, 0));
    // After a note, rows can still be added.
    again.commit(bronze(0, 10, 10)).await.unwrap();
    assert_eq!(rows(&shadow, Table::Ticks).await.len(), 100);

    assert!(lake.drop_shadow("verify_1").await.unwrap());
    assert!(!lake.drop_shadow("verify_1").await.unwrap());
    assert!(!place.exists());
    assert!(shadow.load(Table::Ticks).await.unwrap().is_none());
    assert!(lake.shadows().await.unwrap().is_empty());
    assert_eq!(rows(&lake, Table::Ticks).await, before);
    assert!(lake.shadow("../x").await.is_err());
    assert!(
        lake.note(&about("x")).await.is_err(),
        "live tables are not annotated"
    );
}

#[tokio::test]
async fn a_shadow_that_is_there_is_replaced_only_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let (lake, _) = live(dir.path()).await;
    let make = |overwrite| lake.create_shadow("a", about("all"), overwrite);
    let shadow = make(false).await.unwrap();
    // Its mark alone counts: whoever was killed here left it.
    let e = make(false).await.unwrap_err();
    assert!(matches!(e, LakeError::Shadow(_)), "{e}");
    for word in ["finlake tables drop-shadow a", "--overwrite"] {
        assert!(e.to_string().contains(word), "{e}");
    }
    shadow.ensure_only(&[Table::Ticks], &ids()).await.unwrap();
    let mut s = sink(&shadow, Table::Ticks, &[0]).await;
    s.commit(bronze(0, 1, 3)).await.unwrap();
    assert!(make(false).await.is_err());
    assert_eq!(
        rows(&shadow, Table::Ticks).await.len(),
        30,
        "nothing was touched"
    );
    // What a killed writer had not committed, in a folder of its tables.
    let orphan = dir
        .path()
        .join("warehouse/shadow/a/shadow_a_bronze/market_ticks/data/orphan.parquet");
    std::fs::write(&orphan, b"x").unwrap();
    let fresh = make(true).await.unwrap();
    assert!(!orphan.exists());
    assert!(fresh.load(Table::Ticks).await.unwrap().is_none());
    assert!(
        s.commit(bronze(0, 4, 4)).await.is_err(),
        "the writer before"
    );
}

/// Drops that were interrupted after any step, and creations, can be repeated.
#[tokio::test]
async fn an_interrupted_drop_is_finished_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let (lake, _) = live(dir.path()).await;
    let folder = dir.path().join("warehouse/shadow/a");
    lake.create_shadow("a", about("all"), false).await.unwrap();
    assert!(folder.exists());
    assert!(lake.drop_shadow("a").await.unwrap(), "no table yet");
    assert!(!folder.exists());

    // The tables are out of the catalog, their files are not gone.
    let shadow = lake.create_shadow("a", about("all"), false).await.unwrap();
    shadow.ensure_tables(&ids()).await.unwrap();
    let kept = dir.path().join("kept");
    std::fs::create_dir(&kept).unwrap();
    let copied = std::process::Command::new("cp")
        .args(["-r".as_ref(), folder.as_os_str(), kept.as_os_str()])
        .status();
    assert!(copied.unwrap().success());
    assert!(lake.drop_shadow("a").await.unwrap());
    std::fs::rename(kept.join("a"), &folder).unwrap();
    assert!(
        lake.create_shadow("a", about("all"), false).await.is_err(),
        "files are left"
    );
    assert!(lake.drop_shadow("a").await.unwrap());
    assert!(!folder.exists());

    // A writer that was not done when its tables were dropped: the file has no mark beside it.
    let data = folder.join("shadow_a_bronze/market_ticks/data");
    let late = || {
        std::fs::create_dir_all(&data).unwrap();
        std::fs::write(data.join("late.parquet"), b"x").unwrap();
    };
    late();
    assert!(lake.create_shadow("a", about("all"), false).await.is_err());
    assert!(lake.drop_shadow("a").await.unwrap());
    assert!(!folder.exists());
    // What no shadow put there stays.
    late();
    let foreign = folder.join("silver/note.txt");
    std::fs::create_dir_all(foreign.parent().unwrap()).unwrap();
    std::fs::write(&foreign, b"mine").unwrap();
    assert!(lake.drop_shadow("a").await.unwrap());
    assert!(foreign.exists() && !data.exists());
    assert!(!lake.drop_shadow("a").await.unwrap());
}

/// No sink writes what bears a mark, and nothing without one is dropped or written as a shadow.
#[tokio::test]
async fn live_tables_and_shadows_are_never_taken_for_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let (lake, _) = live(dir.path()).await;
    let shadow = lake.create_shadow("a", about("all"), false).await.unwrap();
    shadow.ensure_only(&[Table::Ticks], &ids()).await.unwrap();
    let refused = |e: LakeError| {
        assert!(
            matches!(e, LakeError::Shadow(_)) && !e.is_transient(),
            "{e}"
        )
    };
    // A sink whose prefix names the shadow.
    let with_prefix = |prefix: &str| LakeConfig {
        namespace_prefix: Some(prefix.to_owned()),
        ..eager(dir.path(), 1)
    };
    let disguised = Lakehouse::open(with_prefix("shadow_a")).await.unwrap();
    refused(TableSink::open(&disguised, Table::Ticks).await.unwrap_err());
    refused(disguised.ensure_tables(&ids()).await.unwrap_err());
    refused(disguised.adopt(Table::Ticks).await.unwrap_err());
    // Nor does one begin where a shadow would stand.
    let early = Lakehouse::open(with_prefix("shadow_b")).await.unwrap();
    refused(early.ensure_tables(&ids()).await.unwrap_err());
    assert!(early.load(Table::Ticks).await.unwrap().is_none());

    // Tables in a shadow's namespace with another mark than its own.
    let twin = dir.path().join("twin");
    let mut plain = eager(&twin, 1);
    plain.catalog = lake.config().catalog.clone();
    plain.warehouse = twin.display().to_string();
    plain.namespace_prefix = Some("shadow_c".into());
    plain.shadow = Some(finlake_lakehouse::shadow::Shadow {
        name: "else".into(),
        about: BTreeMap::new(),
    });
    let unmarked = open(plain).await;
    let mut s = sink(&unmarked, Table::Ticks, &[0]).await;
    s.commit(bronze(0, 1, 1)).await.unwrap();
    refused(lake.drop_shadow("c").await.unwrap_err());
    refused(
        lake.create_shadow("c", about("all"), true)
            .await
            .unwrap_err(),
    );
    assert_eq!(rows(&unmarked, Table::Ticks).await.len(), 10);
}

/// One statement asks the live tables and the shadow, each as of any time.
#[tokio::test]
async fn a_statement_joins_live_tables_and_shadows() {
    let dir = tempfile::tempdir().unwrap();
    let (lake, all) = live(dir.path()).await;
    let shadow = lake.create_shadow("a", about("all"), false).await.unwrap();
    shadow.ensure_only(&[Table::Ohlcv], &ids()).await.unwrap();
    let changed: Vec<Version> = all
        .iter()
        .map(|v| Version {
            payload: v.payload + i64::from(v.commit == 3),
            ..v.clone()
        })
        .collect();
    let mut s = sink(&shadow, Table::Ohlcv, &[0]).await;
    s.commit(silver(&shadow, 0, 1, 9, &changed)).await.unwrap();
    let ask = async |sql: &str, system: Option<i64>| {
        let options = Options {
            as_of: AsOf {
                system,
                ..AsOf::default()
            },
            ..Options::default()
        };
        let answer = QueryEngine::open(&lake).sql(sql, &options).await.unwrap();
        let stability = answer.stability.clone();
        let batches = answer.collect().await.unwrap();
        let count =
            |b: &arrow::array::RecordBatch| b.column(0).as_primitive::<Int64Type>().value(0);
        (batches.iter().map(count).sum::<i64>(), stability)
    };
    let differing = "select count(*) from silver.market_ohlcv l join SHADOW_A_silver.market_ohlcv s \
                     on l.tick_id = s.tick_id and l.sys_from = s.sys_from \
                     where l.trade_count <> s.trade_count";
    let wanted = all.iter().filter(|v| v.commit == 3 && !v.retracted).count() as i64;
    assert!(wanted > 0);
    assert_eq!(ask(differing, None).await.0, wanted);
    // Before the third commit they are the same; after it, what it left current differs.
    let (none, stability) = ask(differing, Some(sys_of(2))).await;
    assert_eq!(none, 0);
    assert!(stability.is_final, "{stability:?}");
    assert_eq!(
        stability.tables,
        ["shadow_a_silver.market_ohlcv", "silver.market_ohlcv"]
    );
    assert_eq!(ask(differing, Some(sys_of(3))).await.0, wanted);
    // sys_of(2)
    let inside =
        "select count(*) from as_of_system('shadow_a_silver.market_ohlcv', '2024-08-08T00:00:20Z')";
    let live = "select count(*) from silver.market_ohlcv";
    assert_eq!(
        ask(inside, None).await.0,
        ask(live, Some(sys_of(2))).await.0
    );
    let missing = "select 1 from shadow_b_silver.market_ohlcv";
    let e = QueryEngine::open(&lake)
        .sql(missing, &Options::default())
        .await
        .unwrap_err();
    assert!(
        e.to_string()
            .contains("there is no table shadow_b_silver.market_ohlcv"),
        "{e}"
    );
}
