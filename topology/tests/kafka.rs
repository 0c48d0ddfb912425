//! The rdkafka binding against a broker: devkafka, or a real Kafka named by
//! `FINLAKE_KAFKA_BOOTSTRAP` (fault tests are skipped there).

mod support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use finlake_devkafka::Fault;
use finlake_topology::kafka::AttachedConsumer;
use finlake_topology::state::{Budget, StateDb};
use finlake_topology::{Error, Event, PollLimits, RecordBatch};
use support::cluster::{Cluster, Death, KILLED, Runner};

const WITHIN: Duration = Duration::from_secs(60);

fn logs() {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| "warn".into());
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_test_writer()
        .try_init();
}

#[test]
fn drains_what_is_there_exactly_once() {
    logs();
    let c = Cluster::new();
    c.feed(500);
    c.feed_transaction(false);
    c.feed_transaction(true);
    let folder = tempfile::tempdir().unwrap();
    let db = StateDb::open(folder.path(), Budget::default()).unwrap();
    let run = Runner::start(c.thread("a", &db));
    run.control.drain.store(true, Ordering::Relaxed);
    run.join().unwrap();
    assert!(c.caught_up(), "{:?} {:?}", c.committed(), c.input_ends());
    c.check();
    // A restart finds its store up to date; a lost store is restored.
    for db in [db, StateDb::memory()] {
        c.feed(20);
        let run = Runner::start(c.thread("a", &db));
        run.control.drain.store(true, Ordering::Relaxed);
        run.join().unwrap();
        c.check();
    }
}

#[test]
fn survives_a_death_at_every_step() {
    logs();
    let c = Cluster::new();
    c.feed(30);
    let folder = tempfile::tempdir().unwrap();
    let open = |n: usize| StateDb::open(folder.path().join(n.to_string()), Budget::default());
    let mut db = open(0).unwrap();
    for (n, death) in [
        Death::AfterSend,
        Death::AfterFlush,
        Death::AfterOffsets,
        Death::BeforeCommit,
        Death::AfterCommit,
    ]
    .into_iter()
    .enumerate()
    {
        let mut thread = c.thread("a", &db);
        let at = thread.broker_mut().death.clone();
        let run = Runner::start(thread);
        c.wait_caught_up(WITHIN);
        *at.lock() = Some(death);
        c.feed(30);
        let error = run.join().unwrap_err();
        assert!(error.message().contains(KILLED), "{error}");
        if n % 2 == 1 {
            db = open(n).unwrap();
        }
    }
    let run = Runner::start(c.thread("a", &db));
    c.wait_caught_up(WITHIN);
    run.stop();
    c.check();
}

#[test]
fn partitions_move_between_two_threads_and_stay_paired() {
    logs();
    let c = Cluster::new();
    c.feed(200);
    let (one, two) = (StateDb::memory(), StateDb::memory());
    let a = Runner::start(c.thread("a", &one));
    c.wait_caught_up(WITHIN);
    let b = Runner::start(c.thread("b", &two));
    for _ in 0..20 {
        c.feed(20);
        std::thread::sleep(Duration::from_millis(100));
    }
    c.wait_caught_up(WITHIN);
    a.leave();
    c.feed(50);
    c.wait_caught_up(WITHIN);
    b.stop();
    c.check();
}

#[test]
fn a_pause_beyond_the_transaction_timeout_is_survived() {
    logs();
    let Some(c) = Cluster::faulty() else { return };
    c.feed(20);
    let thread_db = StateDb::memory();
    let mut thread = c.thread("a", &thread_db);
    let death = thread.broker_mut().death.clone();
    let run = Runner::start(thread);
    c.wait_caught_up(WITHIN);
    *death.lock() = Some(Death::Pause(5_000));
    c.feed(20);
    c.wait_caught_up(WITHIN);
    run.stop();
    c.check();
}

#[test]
fn a_second_process_with_the_same_id_stops_the_first() {
    logs();
    let c = Cluster::new();
    c.feed(20);
    let (one, two) = (StateDb::memory(), StateDb::memory());
    let a = Runner::start(c.thread("a", &one));
    c.wait_caught_up(WITHIN);
    let b = Runner::start(c.thread("a", &two));
    for _ in 0..100 {
        c.feed(5);
        std::thread::sleep(Duration::from_millis(100));
        if a.ended() {
            break;
        }
    }
    let error = a.join().unwrap_err();
    assert!(error.message().contains("another process"), "{error}");
    c.wait_caught_up(WITHIN);
    b.stop();
    c.check();
}

/// Feeds while `faults` are injected one after the other.
fn survives(faults: impl Fn(&Cluster)) {
    logs();
    let Some(c) = Cluster::faulty() else { return };
    c.feed(20);
    let db = StateDb::memory();
    let run = Runner::start(c.thread("a", &db));
    c.wait_caught_up(WITHIN);
    for _ in 0..3 {
        faults(&c);
        c.feed(20);
        c.wait_caught_up(WITHIN);
        assert_eq!(c.dev.as_ref().unwrap().faults().outstanding(), 0);
    }
    run.stop();
    c.check();
}

#[test]
fn an_end_txn_without_an_answer() {
    survives(|c| {
        let faults = c.dev.as_ref().unwrap().faults();
        faults.inject_end_txn(true, Fault::DropReply, 1);
    });
    survives(|c| {
        let faults = c.dev.as_ref().unwrap().faults();
        faults.inject_end_txn(true, Fault::Withhold, 1);
    });
    survives(|c| {
        let faults = c.dev.as_ref().unwrap().faults();
        faults.inject_end_txn(true, Fault::CloseBefore, 1);
    });
}

#[test]
fn a_stale_generation_and_an_unknown_member() {
    for code in [22, 25] {
        survives(|c| {
            let faults = c.dev.as_ref().unwrap().faults();
            assert!(faults.inject("TxnOffsetCommit", Fault::Error(code), 1));
        });
    }
}

#[test]
fn a_session_that_is_lost() {
    survives(|c| {
        let faults = c.dev.as_ref().unwrap().faults();
        assert!(faults.inject("Heartbeat", Fault::Error(25), 1));
        while faults.outstanding() > 0 {
            std::thread::sleep(Duration::from_millis(50));
        }
    });
}

#[test]
fn connections_that_are_cut() {
    survives(|c| {
        for _ in 0..5 {
            c.dev.as_ref().unwrap().faults().cut_connections();
            c.feed(5);
            std::thread::sleep(Duration::from_millis(30));
        }
    });
}

#[test]
fn errors_at_start_name_the_topic() {
    logs();
    let c = Cluster::new();
    let mut t = c.thread("a", &StateDb::memory());
    t.start().unwrap();
    drop(t);
    // The same application with one topic more.
    let mut b = finlake_topology::TopologyBuilder::<support::toy::Toy>::new();
    b.source(&format!("{}-in", c.app));
    let missing = format!("{}-nowhere", c.app);
    b.source(&missing);
    let topology = b.build().unwrap();
    let start = || {
        let broker = finlake_topology::KafkaBroker::new(&topology, c.config("a")).unwrap();
        finlake_topology::StreamThread::new(
            &topology,
            broker,
            StateDb::memory(),
            finlake_topology::ThreadConfig::new(&c.app),
            finlake_topology::Hooks::default(),
        )
        .start()
    };
    let error = start().unwrap_err();
    assert!(
        matches!(&error, Error::Fatal(m) if m.contains(&missing) && m.contains("4 partitions")),
        "{error}"
    );
    c.create(&missing, 3);
    let error = start().unwrap_err();
    assert!(error.message().contains("has 3 partitions"), "{error}");
}

/// A member of a group of its own on a topic of one partition.
fn member(c: &Cluster, group: &str, instance: &str) -> AttachedConsumer {
    let topic = format!("{group}-in");
    AttachedConsumer::new(&c.config(instance), group, &[topic]).unwrap()
}

/// Polls until there is an event.
fn event(of: &mut AttachedConsumer) -> Event {
    let begin = std::time::Instant::now();
    let mut batch = RecordBatch::default();
    loop {
        batch.clear();
        let wait = Duration::from_millis(20);
        if let Some(event) = of.poll(&mut batch, PollLimits::default(), wait).unwrap() {
            return event;
        }
        assert!(begin.elapsed() < WITHIN, "no event");
    }
}

/// A thread that fails between an event and its answer must still come to its end, or nobody hears of it.
#[test]
fn closes_with_an_answer_outstanding() {
    logs();
    let c = Cluster::new();
    let group = |n: u32| {
        let group = format!("{}-closing{n}", c.app);
        c.create(&format!("{group}-in"), 1);
        group
    };
    let closes = |what: &str, member: AttachedConsumer| {
        let (ended, end) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            drop(member);
            ended.send(()).unwrap();
        });
        let ended = end.recv_timeout(Duration::from_secs(20));
        assert!(ended.is_ok(), "{what}: the member does not close");
    };

    let first = group(1);
    let mut a = member(&c, &first, "a");
    a.subscribe().unwrap();
    assert!(matches!(event(&mut a), Event::Assigned(p) if p == [0]));
    closes("assigned a partition", a);

    let second = group(2);
    let (mut a, mut b) = (member(&c, &second, "a"), member(&c, &second, "b"));
    a.subscribe().unwrap();
    assert!(matches!(event(&mut a), Event::Assigned(p) if p == [0]));
    a.accept_assigned().unwrap();
    b.subscribe().unwrap();
    // The first joins again, or the second waits for it.
    let answering = std::thread::spawn(move || {
        let mut batch = RecordBatch::default();
        for _ in 0..100 {
            batch.clear();
            let polled = a.poll(&mut batch, PollLimits::default(), Duration::from_millis(20));
            match polled.unwrap() {
                Some(Event::Assigned(_)) => a.accept_assigned().unwrap(),
                Some(Event::Revoked(p) | Event::Lost(p)) => a.release(&p).unwrap(),
                None => {}
            }
        }
        a
    });
    assert!(matches!(event(&mut b), Event::Assigned(p) if p.is_empty()));
    closes("assigned nothing", b);
    closes("nothing outstanding", answering.join().unwrap());

    let third = group(3);
    let mut a = member(&c, &third, "a");
    a.subscribe().unwrap();
    assert!(matches!(event(&mut a), Event::Assigned(p) if p == [0]));
    a.accept_assigned().unwrap();
    a.unsubscribe();
    assert!(matches!(event(&mut a), Event::Revoked(p) if p == [0]));
    closes("revoked", a);
}
