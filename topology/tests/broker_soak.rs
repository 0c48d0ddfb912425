//! Processes come, go, die and move over a real client; what is committed is
//! the fold of the input all the same. `FINLAKE_SOAK_ROUNDS` (20) and
//! `FINLAKE_SEED` choose how long and which.

mod support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use finlake_devkafka::Fault;
use finlake_topology::Error;
use finlake_topology::state::StateDb;
use support::cluster::{Cluster, Death, KILLED, Runner};

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }

    fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

struct Instance {
    name: &'static str,
    db: StateDb,
    up: Option<(Runner, std::sync::Arc<parking_lot::Mutex<Option<Death>>>)>,
}

impl Instance {
    fn start(&mut self, c: &Cluster) {
        if self.up.is_none() {
            let mut thread = c.thread(self.name, &self.db);
            let death = thread.broker_mut().death.clone();
            self.up = Some((Runner::start(thread), death));
        }
    }

    fn reap(&mut self) {
        if self.up.as_ref().is_some_and(|(run, _)| run.ended()) {
            let ended = self.join();
            assert!(ended.is_err(), "{} ended by itself", self.name);
        }
    }

    /// Wait for its end: a stop that was asked for, or a death on command.
    fn join(&mut self) -> Result<(), ()> {
        let Some((run, _)) = self.up.take() else {
            return Ok(());
        };
        match run.join() {
            Ok(()) => Ok(()),
            Err(Error::Fatal(why)) if why.contains(KILLED) => Err(()),
            Err(other) => panic!("{}: {other}", self.name),
        }
    }

    fn stop(&mut self, leave: bool) {
        if let Some((run, _)) = &self.up {
            run.control.leave.store(leave, Ordering::Relaxed);
            run.control.stop.store(true, Ordering::Relaxed);
        }
        let _ = self.join();
    }
}

fn env(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.and_then(|v| v.parse().ok()).unwrap_or(default)
}

#[test]
fn random_deaths_moves_and_cuts() {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| "error".into());
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_test_writer()
        .try_init();
    let nanos = std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
    let seed = env("FINLAKE_SEED", u64::from(nanos));
    println!("FINLAKE_SEED={seed}");
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let c = Cluster::new();
    let mut all: Vec<Instance> = ["a", "b", "c"]
        .map(|name| Instance {
            name,
            db: StateDb::memory(),
            up: None,
        })
        .into();
    all[0].start(&c);
    for _ in 0..env("FINLAKE_SOAK_ROUNDS", 20) {
        c.feed(1 + random.below(20) as i64);
        for i in &mut all {
            i.reap();
        }
        let who = random.below(3) as usize;
        match random.below(9) {
            0..=2 => all[who].start(&c),
            3 => all[who].stop(random.below(2) == 0),
            4..=5 => {
                if let Some((_, death)) = &all[who].up {
                    *death.lock() = Some(random.pick(&[
                        Death::AfterSend,
                        Death::AfterFlush,
                        Death::AfterOffsets,
                        Death::BeforeCommit,
                        Death::AfterCommit,
                    ]));
                }
            }
            6 => {
                if all[who].up.is_none() {
                    all[who].db = StateDb::memory();
                }
            }
            7 => c.feed_transaction(random.below(2) == 0),
            _ => match &c.dev {
                Some(dev) if random.below(2) == 0 => dev.faults().cut_connections(),
                Some(dev) => {
                    let fault = random.pick(&[0, 1, 2]);
                    let fault =
                        [Fault::DropReply, Fault::CloseBefore, Fault::Withhold][fault].clone();
                    dev.faults().inject_end_txn(true, fault, 1);
                }
                None => {}
            },
        }
        std::thread::sleep(Duration::from_millis(50 + random.below(700)));
    }
    for i in &mut all {
        if let Some((_, death)) = &i.up {
            *death.lock() = None;
        }
        i.reap();
        i.start(&c);
    }
    c.wait_caught_up(Duration::from_secs(90));
    for i in &mut all {
        i.reap();
        i.stop(false);
    }
    c.check();
}

/// What is injected hits whoever commits next, the soak's own feeder too.
#[test]
fn the_feeder_outlives_the_faults() {
    let Some(c) = Cluster::faulty() else { return };
    let faults = c.dev.as_ref().unwrap().faults();
    for fault in [Fault::DropReply, Fault::CloseBefore, Fault::Withhold] {
        faults.inject_end_txn(true, fault, 1);
        c.feed_transaction(false);
        assert_eq!(faults.outstanding(), 0);
    }
}
