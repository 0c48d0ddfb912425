//! Bad input: every malformed record is in the DLQ with its reason, the good ones between them are in the tables.

use finlake::generate::Rng;
use finlake_devkafka::DevKafka;

use crate::exact::{World, market};
use crate::rows;

/// Damages a message in one of many ways.
fn damage(m: &mut finlake::demo::market::Message, rng: &mut Rng) {
    match rng.below(6) {
        0 => {
            let n = rng.below(m.value.len() as u64) as usize;
            m.value.truncate(n);
        }
        1 => {
            m.value.clear();
            for _ in 0..rng.below(200) {
                m.value.push(rng.next_u64() as u8);
            }
        }
        2 => m.value[1..5].copy_from_slice(&(1_000_000 + rng.below(1 << 30) as u32).to_be_bytes()),
        3 => m.key = format!("sim:WRONG{}", rng.below(1000)).into_bytes(),
        4 => m.value.extend_from_slice(b"trailing"),
        _ => m.value.clear(),
    }
}

fn malformed_inputs(world: &World, bad: usize) {
    world.create_topics();
    let good = market(world, 9, 8, 10_000);
    let mut rng = Rng::new(99);
    let mut messages = Vec::with_capacity(bad + good.len());
    for i in 0..bad {
        let mut m = good[i % good.len()].clone();
        damage(&mut m, &mut rng);
        messages.push(m);
        if i % (bad / good.len()).max(1) == 0
            && let Some(m) = good.get(i / (bad / good.len()).max(1))
        {
            messages.push(m.clone());
        }
    }
    world.produce(&messages);
    world.finish("a");
    world.verify();
    assert!(rows::silver(&world.data()).len() > 100);
}

#[test]
fn malformed_records_go_to_the_dlq_and_the_good_ones_to_the_tables() {
    let broker = DevKafka::start(finlake_devkafka::Config::default()).unwrap();
    malformed_inputs(&World::at(broker.bootstrap(), "1m,1h,1d"), 20_000);
}

/// The long form: 100,000 of them.
#[test]
#[ignore = "chaos: ./test --chaos"]
fn a_hundred_thousand_malformed_records() {
    let broker = DevKafka::start(finlake_devkafka::Config::default()).unwrap();
    malformed_inputs(&World::at(broker.bootstrap(), "1m,1h,1d"), 100_000);
}
