//! What is left after a kill -9: everything that was acknowledged, and nothing half done.

mod conformance;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use conformance::clients::*;
use finlake_devkafka::{Config, DevKafka, Storage};
use rdkafka::consumer::Consumer;
use rdkafka::producer::Producer;

const QUIET: Duration = Duration::from_millis(1000);

/// Not a test: the process that the others kill.
#[test]
#[ignore = "run as a child process by the other tests"]
fn broker_process() {
    let Ok(folder) = std::env::var("DEVKAFKA_TEST_FOLDER") else {
        return;
    };
    let listen = std::env::var("DEVKAFKA_TEST_LISTEN")
        .unwrap()
        .parse()
        .unwrap();
    let broker = DevKafka::start(Config {
        listen,
        storage: Storage::Folder(folder.into()),
        ..Config::default()
    })
    .unwrap();
    println!(
        "\nlistening {} {}",
        broker.bootstrap(),
        broker.registry_url().unwrap()
    );
    std::thread::sleep(Duration::from_secs(600));
}

struct Process {
    child: Child,
    bootstrap: String,
    registry: String,
}

impl Process {
    fn start(folder: &Path, listen: &str) -> Process {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "broker_process", "--ignored", "--nocapture"])
            .env("DEVKAFKA_TEST_FOLDER", folder)
            .env("DEVKAFKA_TEST_LISTEN", listen)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut process = Process {
            child,
            bootstrap: String::new(),
            registry: String::new(),
        };
        let mut lines = lines.map_while(Result::ok);
        let addresses = lines.find_map(|l| l.strip_prefix("listening ").map(str::to_owned));
        let addresses = addresses.expect("the broker process did not start");
        let (bootstrap, registry) = addresses.split_once(' ').unwrap();
        (process.bootstrap, process.registry) = (bootstrap.to_owned(), registry.to_owned());
        process
    }

    fn kill(mut self) -> String {
        self.child.kill().unwrap(); // SIGKILL
        self.child.wait().unwrap();
        std::mem::take(&mut self.bootstrap)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_that_was_acknowledged_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let first = Process::start(dir.path(), "127.0.0.1:0");
    let bootstrap = first.bootstrap.clone();
    let name = topic_with(&bootstrap, "kill", 2, &[("retention.ms", "123456789")]).await;
    let group = unique("g");
    let id = unique("tx");
    let open_id = unique("tx-open");
    let plain = plain_producer(&bootstrap);
    for i in 0..50 {
        send(&plain, &name, 0, "k", &format!("plain {i}")).await;
    }
    let txn = ready_producer(&bootstrap, &id, 10_000);
    let reader = consumer(&bootstrap, &group, "read_committed");
    for (value, commit) in [("committed", true), ("aborted", false)] {
        txn.begin_transaction().unwrap();
        send(&txn, &name, 1, "k", value).await;
        let metadata = reader.group_metadata().unwrap();
        let offset = if commit { 11 } else { 22 };
        txn.send_offsets_to_transaction(&offsets(&name, &[(0, offset)]), &metadata, WAIT)
            .unwrap();
        if commit {
            txn.commit_transaction(WAIT).unwrap()
        } else {
            txn.abort_transaction(WAIT).unwrap()
        }
    }
    let open = ready_producer(&bootstrap, &open_id, 3_000);
    open.begin_transaction().unwrap();
    send(&open, &name, 1, "k", "open").await;
    let admin_client = admin(&bootstrap);
    let cluster = admin_client.inner().fetch_cluster_id(WAIT).unwrap();
    let registry = first.registry.clone();
    let schema =
        serde_json::json!({ "schema": r#"{"type":"record","name":"R","fields":[]}"# }).to_string();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest_registry::Client::new();
    let put = client
        .post(format!("{registry}/subjects/s/versions"))
        .body(schema)
        .send()
        .await
        .unwrap();
    assert_eq!(put.status(), 200);

    first.kill();
    let second = Process::start(dir.path(), &bootstrap);
    assert_eq!(second.bootstrap, bootstrap);
    assert_eq!(admin_client.inner().fetch_cluster_id(WAIT), Some(cluster));
    let plain_values = read(&bootstrap, &name, 0, "read_committed", 50, WAIT);
    assert_eq!(plain_values.len(), 50);
    assert_eq!(plain_values[49], (49, "plain 49".to_owned()));
    assert_eq!(
        committed(&consumer(&bootstrap, &group, "read_committed"), &name, 0),
        Some(11)
    );
    assert_eq!(
        values(&read(&bootstrap, &name, 1, "read_committed", 9, QUIET)),
        ["committed"]
    );
    let all = read(&bootstrap, &name, 1, "read_uncommitted", 9, QUIET);
    assert_eq!(values(&all), ["committed", "aborted", "open"]);

    // The open transaction is still open, and its own producer can go on; a successor fences it.
    let successor = ready_producer(&bootstrap, &open_id, 3_000);
    successor.begin_transaction().unwrap();
    send(&successor, &name, 1, "k", "after").await;
    successor.commit_transaction(WAIT).unwrap();
    assert_eq!(
        values(&read(&bootstrap, &name, 1, "read_committed", 2, WAIT)),
        ["committed", "after"]
    );

    // Idempotence goes on where it was: the same producer, the same sequence numbers.
    send(&plain, &name, 0, "k", "plain 50").await;
    txn.begin_transaction().unwrap();
    send(&txn, &name, 1, "k", "again").await;
    txn.commit_transaction(WAIT).unwrap();
    let ids = client
        .get(format!("{}/subjects/s/versions/latest", second.registry))
        .send()
        .await
        .unwrap();
    assert_eq!(ids.status(), 200);
    second.kill();
}

/// An open transaction whose producer and broker are both gone is aborted by its timeout.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orphaned_transaction_times_out_after_the_restart() {
    let dir = tempfile::tempdir().unwrap();
    let config = || Config {
        storage: Storage::Folder(dir.path().to_owned()),
        ..Config::default()
    };
    let broker = DevKafka::start(config()).unwrap();
    let name = topic(&broker.bootstrap(), "orphan", 1).await;
    let open = ready_producer(&broker.bootstrap(), &unique("tx"), 2_000);
    open.begin_transaction().unwrap();
    send(&open, &name, 0, "k", "orphan").await;
    broker.shutdown();
    drop(open);
    let broker = DevKafka::start(config()).unwrap();
    send(&plain_producer(&broker.bootstrap()), &name, 0, "k", "later").await;
    let found = read(&broker.bootstrap(), &name, 0, "read_committed", 1, WAIT);
    assert_eq!(values(&found), ["later"]);
}

#[test]
fn a_folder_belongs_to_one_broker() {
    let dir = tempfile::tempdir().unwrap();
    let config = || Config {
        storage: Storage::Folder(dir.path().to_owned()),
        ..Config::default()
    };
    let broker = DevKafka::start(config()).unwrap();
    assert!(DevKafka::start(config()).is_err());
    broker.shutdown();
    DevKafka::start(config()).unwrap().shutdown();
}

/// Producers write on while the broker is killed over and over: no acknowledged record is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_under_load_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start(dir.path(), "127.0.0.1:0");
    let bootstrap = process.bootstrap.clone();
    let name = topic(&bootstrap, "load", 1).await;
    let (to, topic_name) = (bootstrap.clone(), name.clone());
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    let writer = tokio::spawn(async move {
        let producer: rdkafka::producer::FutureProducer = rdkafka::ClientConfig::new()
            .set("bootstrap.servers", &to)
            .set("enable.idempotence", "true")
            .set("linger.ms", "1")
            .set("reconnect.backoff.max.ms", "200")
            .create()
            .unwrap();
        let mut sent = 0;
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            let batch: Vec<String> = (sent..sent + 100).map(|i| i.to_string()).collect();
            let results = batch
                .iter()
                .map(|v| send(&producer, &topic_name, 0, "k", v));
            futures::future::join_all(results).await;
            sent += 100;
        }
        sent
    });
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        process.kill();
        process = Process::start(dir.path(), &bootstrap);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let sent = writer.await.unwrap();
    let found = read(
        &bootstrap,
        &name,
        0,
        "read_committed",
        sent,
        Duration::from_secs(10),
    );
    let expected: Vec<String> = (0..sent).map(|i| i.to_string()).collect();
    assert!(
        values(&found) == expected,
        "{} of {sent} records, or out of order",
        found.len()
    );
}
