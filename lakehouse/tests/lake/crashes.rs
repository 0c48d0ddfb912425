//! Every crash point, re-run to the same rows.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use finlake_lakehouse::faults::{Fault, Faults, Point};
use finlake_lakehouse::{LakeError, Table};

use crate::common::*;

fn ops() -> Vec<Vec<(u8, u8)>> {
    (0..12u8)
        .map(|i| vec![(i, i), (i / 2, i / 3), (i.wrapping_mul(5), 7 - i % 8)])
        .collect()
}

#[tokio::test]
async fn every_crash_point_reruns_to_the_same_rows() {
    let all = ledger(&ops());
    for point in Point::ALL {
        for crash_in in [1, 4, 9] {
            let dir = tempfile::tempdir().unwrap();
            let lake = open(eager(dir.path(), 1)).await;
            let armed = Arc::new(AtomicBool::new(false));
            let hook = armed.clone();
            let faulty = lake.clone().with_faults(Faults::new(move |p| {
                if p == point && hook.swap(false, Ordering::SeqCst) {
                    Fault::Crash
                } else {
                    Fault::None
                }
            }));
            let mut s = sink(&faulty, Table::Ohlcv, &[0]).await;
            let mut c = 1;
            while c <= 12 {
                armed.store(c == crash_in, Ordering::SeqCst);
                match s.commit(silver(&lake, 0, c, c, &all)).await {
                    Ok(_) => c += 1,
                    Err(LakeError::Injected(_)) => {
                        // The process is gone; its heir reads the positions and goes on.
                        s = sink(&lake, Table::Ohlcv, &[0]).await;
                        c = s.positions()[&0].commit + 1;
                        let after_swap = matches!(point, Point::AfterSwap | Point::BeforeCleanup);
                        assert_eq!(c, crash_in + i64::from(after_swap), "{point:?}");
                    }
                    Err(e) => panic!("{point:?}: {e}"),
                }
            }
            let found = rows(&lake, Table::Ohlcv).await;
            assert_eq!(as_versions(&found), expected(&all), "{point:?} {crash_in}");
        }
    }
}

/// The same sink object goes on after an error: it reads the table again by itself.
#[tokio::test]
async fn the_same_batch_may_be_offered_again() {
    let all = ledger(&ops());
    for point in Point::ALL {
        let dir = tempfile::tempdir().unwrap();
        let lake = open(eager(dir.path(), 1)).await;
        let armed = Arc::new(AtomicBool::new(false));
        let hook = armed.clone();
        let faulty = lake.clone().with_faults(Faults::new(move |p| {
            if p == point && hook.swap(false, Ordering::SeqCst) {
                Fault::Crash
            } else {
                Fault::None
            }
        }));
        let mut s = sink(&faulty, Table::Ohlcv, &[0]).await;
        for c in 1..=12 {
            armed.store(c % 3 == 0, Ordering::SeqCst);
            if s.commit(silver(&lake, 0, c, c, &all)).await.is_err() {
                s.commit(silver(&lake, 0, c, c, &all)).await.unwrap();
            }
        }
        let found = rows(&lake, Table::Ohlcv).await;
        assert_eq!(as_versions(&found), expected(&all), "{point:?}");
    }
}

#[tokio::test]
async fn a_lost_reply_is_found_out() {
    let all = ledger(&ops());
    let dir = tempfile::tempdir().unwrap();
    let lake = open(eager(dir.path(), 1)).await;
    let faulty = lake.clone().with_faults(Faults::new(|p| {
        if p == Point::AfterSwap {
            Fault::LoseReply
        } else {
            Fault::None
        }
    }));
    let mut s = sink(&faulty, Table::Ohlcv, &[0]).await;
    for c in 1..=12 {
        let out = s.commit(silver(&lake, 0, c, c, &all)).await.unwrap();
        assert!(out.snapshot.is_some());
    }
    assert_eq!(s.reattached(), 0);
    let found = rows(&lake, Table::Ohlcv).await;
    assert_eq!(as_versions(&found), expected(&all));
    assert_eq!(
        lake.position(Table::Ohlcv, 0)
            .await
            .unwrap()
            .unwrap()
            .commit,
        12
    );
}
