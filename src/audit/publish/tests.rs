//! Writers of breaks that meet, against the development broker.

use finlake_devkafka::{Config as BrokerConfig, DevKafka, Fault};
use finlake_reconcile::{Finding, Layer, resolved};
use finlake_schemas::registry::Subject;
use finlake_schemas::{BreakKind, BreakStatus};

use super::*;
use crate::config::Inputs;
use crate::parts;

struct Fixture {
    _data: tempfile::TempDir,
    broker: DevKafka,
    config: Config,
    codec: Codec,
}

impl Fixture {
    fn new() -> Fixture {
        let data = tempfile::tempdir().unwrap();
        let broker = DevKafka::start(BrokerConfig {
            auto_create_topics: false,
            ..BrokerConfig::default()
        })
        .unwrap();
        let set = |key: &str, value: &str| (key.to_owned(), value.to_owned(), "--set".to_owned());
        let inputs = Inputs {
            data: Some(data.path().to_owned()),
            overrides: vec![
                set("kafka.bootstrap_servers", &broker.bootstrap()),
                set("registry.url", &broker.registry_url().unwrap()),
                set("kafka.partitions", "2"),
            ],
            ..Inputs::default()
        };
        let config = Config::load(&inputs).unwrap();
        let topology = crate::commands::topology::offline(&config).unwrap();
        let wanted = crate::topics::wanted(&config, &topology);
        futures::executor::block_on(crate::topics::ensure(&config, &wanted)).unwrap();
        let codec = Codec::connect(parts::registry(&config), &Subject::all()).unwrap();
        Fixture {
            _data: data,
            broker,
            config,
            codec,
        }
    }

    fn publish(&self, decide: impl FnMut(&Breaks) -> Result<Vec<Break>>) -> Result<Published> {
        Publisher::new(&self.config).publish(&self.codec, decide)
    }

    /// Statuses of every committed record, in the order of each partition.
    fn records(&self) -> Vec<BreakStatus> {
        let topic = Topic::open(&self.config, topics::BREAKS).unwrap();
        let mut all = Vec::new();
        let bounds = topic.settled(&self.config).unwrap();
        topic
            .read(&bounds, |m| {
                let found = super::super::breaks::decode(&self.codec, m.value.unwrap())?;
                all.push(found.status);
                Ok(true)
            })
            .unwrap();
        all
    }
}

fn opened() -> Break {
    let finding = Finding::new(BreakKind::Missing, Layer::Silver, "silver.x", "k", "row");
    finding.to_break("reconcile", 10)
}

fn explained(open: &Break) -> Break {
    Break {
        status: BreakStatus::Explained,
        system_time: open.system_time + 1,
        ..open.clone()
    }
}

/// What `finlake breaks explain` decides.
fn explain(known: &Breaks) -> Vec<Break> {
    let open = known.values().filter(|b| b.status == BreakStatus::Opened);
    open.map(explained).collect()
}

#[test]
fn a_writer_that_was_overtaken_decides_anew() {
    let fixture = Fixture::new();
    fixture.publish(|_| Ok(vec![opened()])).unwrap();
    let mut seen = Vec::new();
    let first = fixture.publish(|known| {
        seen.push(known[&opened().break_id].status);
        // The first look comes before the turn; in the turn itself the other one comes in between.
        if seen.len() == 2 {
            let other = fixture.publish(|known| {
                let open = known.values().filter(|b| b.status == BreakStatus::Opened);
                Ok(open.map(|b| resolved(b, 50)).collect())
            })?;
            assert_eq!(other.written.len(), 1);
        }
        Ok(explain(known))
    });
    let first = first.unwrap();
    assert_eq!(
        seen,
        [
            BreakStatus::Opened,
            BreakStatus::Opened,
            BreakStatus::Resolved
        ]
    );
    assert_eq!(first.written, []);
    assert_eq!(
        first.known[&opened().break_id].status,
        BreakStatus::Resolved
    );
    assert_eq!(
        fixture.records(),
        [BreakStatus::Opened, BreakStatus::Resolved],
        "the explanation that came too late is not in the topic"
    );
}

#[test]
fn who_has_nothing_to_change_takes_no_turn() {
    let fixture = Fixture::new();
    fixture.publish(|_| Ok(vec![opened()])).unwrap();
    let mut asked = 0;
    let written = fixture
        .publish(|known| {
            asked += 1;
            // Inside of the other one's turn.
            if asked == 2 {
                let mut looked = 0;
                let idle = fixture.publish(|known| {
                    looked += 1;
                    assert_eq!(known.len(), 1);
                    Ok(Vec::new())
                })?;
                assert_eq!((looked, idle.written.len()), (1, 0));
            }
            Ok(explain(known))
        })
        .unwrap()
        .written;
    assert_eq!((asked, written.len()), (2, 1), "nobody was fenced");
    assert_eq!(
        Known::read(&fixture.config, &fixture.codec).unwrap()[&opened().break_id].status,
        BreakStatus::Explained
    );
}

/// Applications are not alone: the topic is the cluster's.
#[test]
fn writers_of_two_applications_take_turns_too() {
    let fixture = Fixture::new();
    fixture.publish(|_| Ok(vec![opened()])).unwrap();
    let mut other = fixture.config.clone();
    other.kafka.application_id = "other".to_owned();
    let mut asked = 0;
    fixture
        .publish(|known| {
            asked += 1;
            if asked == 2 {
                let explains = |known: &Breaks| Ok(explain(known));
                Publisher::new(&other).publish(&fixture.codec, explains)?;
            }
            Ok(explain(known))
        })
        .unwrap();
    assert_eq!(asked, 3);
    assert_eq!(
        fixture.records(),
        [BreakStatus::Opened, BreakStatus::Explained]
    );
}

/// What the caller tells of is what was written, though the broker never said so.
#[test]
fn a_commit_that_nobody_acknowledged_is_found_and_not_repeated() {
    let fixture = Fixture::new();
    let faults = fixture.broker.faults();
    faults.inject_end_txn(true, Fault::Withhold, 1);
    let opens = |known: &Breaks| {
        Ok(if known.is_empty() {
            vec![opened()]
        } else {
            vec![]
        })
    };
    let published = fixture.publish(opens).unwrap();
    assert_eq!(faults.outstanding(), 0);
    assert_eq!(published.written, [opened()]);
    assert_eq!(fixture.records(), [BreakStatus::Opened]);
}

#[test]
fn what_came_to_nothing_is_sent_again() {
    let fixture = Fixture::new();
    let faults = fixture.broker.faults();
    // INVALID_PRODUCER_EPOCH: as a writer that was fenced is told.
    assert!(faults.inject("AddPartitionsToTxn", Fault::Error(47), 1));
    let opens = |known: &Breaks| {
        Ok(if known.is_empty() {
            vec![opened()]
        } else {
            vec![]
        })
    };
    let published = fixture.publish(opens).unwrap();
    assert_eq!(faults.outstanding(), 0);
    assert_eq!(published.written, [opened()]);
    assert_eq!(fixture.records(), [BreakStatus::Opened]);
}

#[test]
fn a_writer_that_died_in_the_middle_holds_nobody_up() {
    let fixture = Fixture::new();
    let turn = Turn::take(&fixture.config);
    let dead = turn.unwrap_or_else(|_| panic!("no turn"));
    dead.producer.begin_transaction().unwrap();
    assert!(dead.send(&fixture.codec, &[opened()]).is_ok());
    let began = Instant::now();
    let published = fixture.publish(|known| {
        assert!(known.is_empty(), "its record is not committed");
        Ok(vec![opened()])
    });
    assert_eq!(published.unwrap().written.len(), 1);
    assert!(began.elapsed() < TIMEOUT, "{:?}", began.elapsed());
    assert!(dead.producer.commit_transaction(TIMEOUT).is_err());
    assert_eq!(fixture.records(), [BreakStatus::Opened]);
}

#[test]
fn a_refusal_says_what_to_grant_and_is_not_tried_again() {
    for code in [
        RDKafkaErrorCode::TransactionalIdAuthorizationFailed,
        RDKafkaErrorCode::TopicAuthorizationFailed,
    ] {
        let Lost::Stop(e) = lost(KafkaError::MessageProduction(code), "send") else {
            panic!("{code} is tried again")
        };
        let text = format!("{e:#}");
        assert!(text.contains("Write") && text.contains(TURN), "{text}");
    }
    let passing = KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut);
    assert!(matches!(lost(passing, "flush"), Lost::Again(_)));
}

#[test]
fn the_callers_refusal_writes_nothing() {
    let fixture = Fixture::new();
    let error = fixture.publish(|_| Err(Error::msg("no such break")));
    assert_eq!(error.unwrap_err().to_string(), "no such break");
    assert_eq!(fixture.records(), []);
}
