//! The conformance checks, against devkafka in memory, devkafka on a folder, and the Kafka at
//! `FINLAKE_KAFKA_BOOTSTRAP` in their place if that is set.

mod conformance;

use std::sync::OnceLock;

use conformance::{groups, raw, soak, transactions};
use finlake_devkafka::{Config, DevKafka, Storage};

/// The cluster under test, started once for all checks of this binary.
fn bootstrap() -> &'static str {
    static CLUSTER: OnceLock<(String, Option<DevKafka>)> = OnceLock::new();
    &CLUSTER
        .get_or_init(|| match std::env::var("FINLAKE_KAFKA_BOOTSTRAP") {
            Ok(bootstrap) => (bootstrap, None),
            Err(_) => {
                let broker = DevKafka::start(Config::default()).unwrap();
                (broker.bootstrap(), Some(broker))
            }
        })
        .0
}

macro_rules! checks {
    ($($module:ident :: $name:ident),* $(,)?) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            $module::$name(bootstrap()).await;
        })*
    };
}

checks! {
    transactions::abort_isolation,
    transactions::interleaved_abort,
    transactions::open_transaction_blocks,
    transactions::fencing,
    transactions::stale_generation,
    transactions::atomic_offsets,
    transactions::unstable_offsets,
    transactions::timeout_abort,
    transactions::replay_from_zero,
    transactions::late_batch_of_fenced_producer,
    groups::range,
    groups::cooperative_sticky,
    groups::static_member_restart,
    groups::static_member_fenced,
    groups::close_unanswered,
    groups::session_timeout,
    groups::commit_and_describe,
    groups::commit_of_what_others_own,
    raw::transaction_codes,
    raw::data_codes,
    raw::group_codes,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashing_instances() {
    soak::crashing_instances(bootstrap(), 6_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashing_instances_on_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let broker = DevKafka::start(Config {
        storage: Storage::Folder(dir.path().to_owned()),
        ..Config::default()
    })
    .unwrap();
    soak::crashing_instances(&broker.bootstrap(), 6_000).await;
}
