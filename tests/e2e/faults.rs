//! Bad input: every malformed record is in the DLQ with its reason, the good ones between them are in the tables.

use finlake::demo::market::Message;
use finlake::generate::Rng;
use finlake_devkafka::DevKafka;
use finlake_schemas::{Codec, Dec8, Tick, topics};

use crate::exact::{World, market};
use crate::harness::secs;
use crate::rows;

/// The message again, its tick changed.
fn altered(m: &Message, codec: &Codec, change: impl FnOnce(&mut Tick<'_>)) -> Option<Message> {
    let mut tick = codec.decode_tick(&m.value).ok()?;
    change(&mut tick);
    let mut value = Vec::new();
    codec.encode_tick(&tick, 2, &mut value).unwrap();
    let key = m.key.clone();
    Some(Message { key, value })
}

/// Damages a message in one of many ways.
fn damage(m: &mut Message, rng: &mut Rng, codec: &Codec) {
    match rng.below(8) {
        6 => {
            let negative = |t: &mut Tick<'_>| t.price = Dec8(-t.price.0);
            *m = altered(m, codec, negative).unwrap_or_else(|| m.clone());
        }
        7 => {
            let time = [-1, 4_102_444_800_000_000, i64::MAX, i64::MIN][rng.below(4) as usize];
            *m = altered(m, codec, |t| t.trade_time = time).unwrap_or_else(|| m.clone());
        }
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
        damage(&mut m, &mut rng, &world.codec);
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

/// Rejected by a setting, the setting mended, redriven: each trade is in the tables then, once.
#[test]
fn redriven_after_the_fix_they_are_in_the_tables() {
    let broker = DevKafka::start(finlake_devkafka::Config::default()).unwrap();
    let world = World::at(broker.bootstrap(), "1m,1h,1d");
    world.create_topics();
    let good = market(&world, 31, 4, 2_000);
    let ahead = jiff::Timestamp::now().as_microsecond() + 3_600_000_000;
    let mut early = 0;
    let messages: Vec<Message> = (0..)
        .zip(&good)
        .filter_map(|(i, m)| {
            // Not those that no setting mends.
            let tick = world.codec.decode_tick(&m.value).ok()?;
            let mut key = Vec::new();
            tick.key(&mut key);
            if key != m.key || tick.price.0 <= 0 {
                return None;
            }
            let early_one = altered(m, &world.codec, |t| {
                t.trade_time = ahead + i;
                t.trade_id = (1 << 41) + i;
            });
            early += i64::from(early_one.is_some());
            early_one
        })
        .collect();
    world.produce(&messages);
    world.finish("a");
    let count = |sql: &str| rows::ask(&world.data(), sql)[0].parse::<i64>().unwrap();
    let trades = "select coalesce(sum(trade_count), 0) from silver.market_ohlcv \
                  where is_current and bar_interval = '1m'";
    assert_eq!(count(trades), 0, "an hour ahead of their record: rejected");
    let letters = world.read(topics::DLQ);
    assert_eq!(letters.len() as i64, early);

    // One in the middle, by its place: those before it are still to be redriven.
    let (at, _) = letters.iter().find(|(l, _)| l.offset >= 1).unwrap();
    let (partition, offset) = (at.partition.to_string(), at.offset.to_string());
    let redrive = |args: &[&str]| {
        let ran = world
            .finlake("a")
            .args(["dlq", "redrive", "--output", "json"]);
        ran.args(args).run(secs(60)).ok().json()
    };
    let place = ["--partition", &partition, "--from", &offset];
    let one = redrive(&[&place[..], &["--to", &offset]].concat());
    assert_eq!(one["rows"][0]["redriven"], 1, "{one}");
    let rest = redrive(&["--class", "future", "--dry-run"]);
    assert_eq!(rest["rows"][0]["would_redrive"], early, "{rest}");
    let end = i64::MAX.to_string();
    redrive(&[&place[..], &["--to", &end, "--dry-run"]].concat());

    for _ in 0..2 {
        // The second time there is nothing left to do.
        let redrive = ["dlq", "redrive", "--class", "future"];
        world.finlake("a").args(redrive).run(secs(60)).ok();
        world
            .finlake("a")
            .set("stream.max_ahead", "2h")
            .args(["run", "--until-caught-up"])
            .run(secs(120))
            .ok();
        assert_eq!(count(trades), early);
        let records = count("select count(*) from bronze.market_ticks");
        assert_eq!(records, 2 * early + 1);
    }
}

#[test]
fn a_sink_far_ahead_of_the_ledger_goes_on() {
    let broker = DevKafka::start(finlake_devkafka::Config::default()).unwrap();
    let world = World::at(broker.bootstrap(), "1m,1h,1d");
    world.create_topics();
    // One symbol, one partition: more than the sink lets wait.
    let messages = market(&world, 3, 1, 400_000);
    let bytes: usize = messages.iter().map(|m| m.key.len() + m.value.len()).sum();
    assert!(bytes > 20 << 20, "{bytes} bytes do not fill the sink");
    world.produce(&messages);
    let mut sink = world.finlake("s").args(["run", "--roles", "sink"]).spawn();
    sink.wait_for_log("the sink goes on after", secs(60));
    std::thread::sleep(secs(4));
    let stream = world.finlake("a");
    stream
        .args(["run", "--roles", "stream", "--until-caught-up"])
        .run(secs(120))
        .ok();
    let by = std::time::Instant::now() + secs(60);
    let count = "select count(*) from bronze.market_ticks";
    while rows::ask(&world.data(), count) != [messages.len().to_string()] {
        assert!(
            std::time::Instant::now() < by && sink.is_running(),
            "{:?} of {} rows: {}",
            rows::ask(&world.data(), count),
            messages.len(),
            sink.tail()
        );
        std::thread::sleep(secs(1));
    }
    assert_eq!(sink.stop(secs(60)), 0, "{}", sink.tail());
}
