//! The harness itself: what the other integration tests rely on does what it says.

mod harness;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use harness::{Kafka, Process, Read, Reader, Readers, eventually, secs};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};

/// Sends `n` records in one transaction; commits it or leaves it open.
fn produce(kafka: &Kafka, id: &str, topic: &str, n: usize, commit: bool) {
    let producer: ThreadedProducer<_> = kafka
        .client()
        .set("transactional.id", id)
        .set("linger.ms", "0")
        .create()
        .unwrap();
    producer.init_transactions(secs(30)).unwrap();
    producer.begin_transaction().unwrap();
    for i in 0..n {
        let value = format!("{id} {i}");
        let record = BaseRecord::to(topic).key("k").payload(&value);
        producer.send(record).map_err(|(e, _)| e).unwrap();
    }
    producer.flush(secs(30)).unwrap();
    if commit {
        producer.commit_transaction(secs(30)).unwrap();
    }
}

fn committed(kafka: &Kafka, topic: &str) -> Vec<String> {
    let consumer: BaseConsumer = kafka
        .client()
        .set("group.id", format!("reader-{topic}"))
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .create()
        .unwrap();
    let mut whole = rdkafka::TopicPartitionList::new();
    whole
        .add_partition_offset(topic, 0, rdkafka::Offset::Beginning)
        .unwrap();
    consumer.assign(&whole).unwrap();
    let mut found = Vec::new();
    loop {
        match consumer.poll(secs(20)).expect("an answer") {
            Ok(m) => found.push(String::from_utf8_lossy(m.payload().unwrap()).into_owned()),
            Err(rdkafka::error::KafkaError::PartitionEOF(_)) => return found,
            Err(e) => panic!("{e}"),
        }
    }
}

#[test]
fn a_real_broker_commits_survives_a_kill_and_hides_what_is_open() {
    let Some(kafka) = Kafka::start() else { return };
    kafka.create_topic("t", 1, &[("cleanup.policy", "delete")]);
    // A commit is acknowledged before its markers are written. Killed in between, Apache Kafka 4.4.0 as it is set up here
    // sometimes leaves them out after its restart (in 3 of 80 runs, and not within 90 s), which is not ours to test.
    let readable = |what: &str, expected: &[&str]| {
        let mut found = Vec::new();
        let by = Instant::now() + secs(60);
        while found != expected {
            assert!(Instant::now() < by, "{what} is not readable: {found:?}");
            found = committed(&kafka, "t");
        }
    };
    produce(&kafka, "a", "t", 3, true);
    readable("the first transaction", &["a 0", "a 1", "a 2"]);
    kafka.kill9(0);
    kafka.restart(0);
    produce(&kafka, "b", "t", 2, true);
    produce(&kafka, "c", "t", 5, false);
    let expected = ["a 0", "a 1", "a 2", "b 0", "b 1"];
    readable("what was committed before and after the kill", &expected);
    assert_eq!(committed(&kafka, "t"), expected);
}

#[test]
fn libclang_is_told_from_its_namesake() {
    let dir = tempfile::tempdir().unwrap();
    let lib = dir.path().join("usr/lib/llvm-14/lib");
    std::fs::create_dir_all(&lib).unwrap();
    let there = || {
        Command::new("bash")
            .args(["-c", "source scripts/lib.sh; has_libclang \"$1\"", "-"])
            .arg(dir.path())
            .env_remove("LIBCLANG_PATH")
            .current_dir(harness::root())
            .status()
            .unwrap()
            .success()
    };
    assert!(!there(), "nothing is there");
    // LLVM's tools bring it; bindgen needs the other.
    std::fs::write(lib.join("libclang-cpp.so.14"), "").unwrap();
    assert!(!there(), "taken for libclang");
    std::fs::write(lib.join("libclang-14.so.1"), "").unwrap();
    assert!(there(), "libclang was not found");
}

#[test]
fn a_clone_is_built_from_its_own_files() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("target");
    // Two clones of one package; each is asked for before it is built, as by the scripts.
    let clones = ["one", "two"].map(|name| {
        let clone = dir.path().join(name);
        std::fs::create_dir_all(clone.join("src")).unwrap();
        let manifest =
            "[package]\nname = \"said\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[workspace]\n";
        std::fs::write(clone.join("Cargo.toml"), manifest).unwrap();
        let program = format!("fn main() {{ println!(\"{name}\"); }}\n");
        std::fs::write(clone.join("src/main.rs"), program).unwrap();
        clone
    });
    let run = |clone: &Path| {
        let script = "source scripts/lib.sh; own_sources \"$1\" \"$2\" && cd \"$1\" && cargo run -q --offline";
        let out = Command::new("bash")
            .args(["-c", script, "-"])
            .args([clone, &target])
            .env("CARGO_TARGET_DIR", &target)
            .current_dir(harness::root())
            .output()
            .unwrap();
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8(out.stdout).unwrap()
    };
    for _ in 0..2 {
        assert_eq!(run(&clones[0]), "one\n");
        assert_eq!(run(&clones[1]), "two\n");
    }
}

fn alive(pid: u32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !state.is_empty() && !state.contains(") Z ")
}

fn sleeper(dir: &tempfile::TempDir) -> Process {
    let mut command = Command::new("bash");
    command.args([
        "-c",
        "trap 'echo bye; exit 7' TERM; echo started; while :; do sleep 0.05; done",
    ]);
    let mut process = Process::spawn("sleeper", dir.path(), &command);
    process.wait_for_log("started", secs(20));
    process
}

#[test]
fn processes_stop_die_pause_and_never_outlive_their_owner() {
    let dir = tempfile::tempdir().unwrap();
    let mut graceful = sleeper(&dir);
    assert_eq!(graceful.stop(secs(20)), 7);
    assert!(graceful.stdout().contains("bye"));

    let mut killed = sleeper(&dir);
    killed.kill9();
    assert_eq!(killed.code(), Some(128 + 9));
    assert!(!alive(killed.pid()));

    let paused = sleeper(&dir);
    paused.pause();
    let pid = paused.pid();
    drop(paused);
    eventually("a paused process dies when dropped", secs(20), || {
        (!alive(pid)).then_some(())
    });

    let owned = std::thread::spawn(move || {
        let dir = tempfile::tempdir().unwrap();
        let process = sleeper(&dir);
        let pid = process.pid();
        std::panic::set_hook(Box::new(|_| {}));
        let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _held = process;
            panic!("a test fails");
        }));
        let _ = std::panic::take_hook();
        assert!(died.is_err());
        pid
    });
    let pid = owned.join().unwrap();
    eventually("a process dies with a panicking test", secs(20), || {
        (!alive(pid)).then_some(())
    });
}

#[test]
fn a_command_that_ends_gives_its_code_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("bash");
    command.args(["-c", "echo out; echo err >&2; exit 3"]);
    let start = Instant::now();
    let mut process = Process::spawn("short", dir.path(), &command);
    assert_eq!(process.wait(secs(20)), 3);
    assert_eq!(
        (process.stdout().as_str(), process.log().as_str()),
        ("out\n", "err\n")
    );
    assert!(start.elapsed() < Duration::from_secs(15));
}

#[test]
fn all_engines_read_a_table_alike() {
    let Some(readers) = Readers::available() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let catalog = dir.path().join("catalog.db");
    let warehouse = format!("file://{}", dir.path().join("warehouse").display());
    readers.make_sample(&catalog, &warehouse);
    const TABLE: &str = "silver.market_ohlcv";
    let mut what = Read {
        tables: vec![TABLE],
        symbol: Some("BTCUSDT"),
        ..Read::default()
    };
    let first = readers.read(Reader::Pyiceberg, &catalog, &warehouse, &what);
    let oldest = first["tables"][TABLE]["snapshots"][0].as_i64().unwrap();
    what.snapshots.push((TABLE, oldest));
    let reports = Reader::ALL.map(|reader| {
        let report = readers.read(reader, &catalog, &warehouse, &what);
        report["tables"][TABLE].clone()
    });
    let expected = [("count", 4), ("current", 3), ("symbol", 2), ("as_of", 2)];
    for (reader, report) in Reader::ALL.iter().zip(&reports) {
        for (part, count) in expected {
            let got = match part {
                "count" => &report["count"],
                _ => &report[part]["count"],
            };
            assert_eq!(got, count, "{reader:?} {part}");
        }
        for part in ["hash", "columns", "current", "symbol", "as_of"] {
            assert_eq!(report[part], reports[0][part], "{reader:?} {part}");
        }
    }
    assert_ne!(reports[0]["hash"], reports[0]["as_of"]["hash"]);
}
