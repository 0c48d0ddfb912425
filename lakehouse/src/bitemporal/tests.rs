use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// A key's rows, open and closed, driven by the general rules.
#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    rows: Vec<Row<u8>>,
}

impl Model {
    fn open(&self) -> (Vec<usize>, Vec<Row<u8>>) {
        self.rows
            .iter()
            .enumerate()
            .filter(|(_, r)| r.sys.to == OPEN_END)
            .map(|(i, r)| (i, r.clone()))
            .unzip()
    }

    fn apply(&mut self, valid: Span, payload: Option<u8>, s: i64) -> Delta<u8> {
        let (at, open) = self.open();
        let delta = match payload {
            Some(p) => assert_over(&open, valid, &p, s).unwrap(),
            None => retract_over(&open, valid, s).unwrap(),
        };
        for (i, to) in &delta.closed {
            self.rows[at[*i]].sys.to = *to;
        }
        self.rows.extend(delta.opened.clone());
        delta
    }

    fn as_of(&self, valid: i64, sys: i64) -> Vec<u8> {
        self.rows
            .iter()
            .filter(|r| r.valid.contains(valid) && r.sys.contains(sys))
            .map(|r| r.payload)
            .collect()
    }
}

/// Key, system time, version replaced, payload.
type Record = (Vec<u8>, i64, Option<i64>, Option<u8>);

fn span() -> impl Strategy<Value = Span> {
    (0i64..20, 1i64..12, any::<bool>()).prop_map(|(from, len, open)| Span {
        from,
        to: if open { OPEN_END } else { from + len },
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// INV-2, 3, 4, 5, 6 over random assertions and retractions with any valid interval.
    #[test]
    fn general_rules(ops in prop::collection::vec((span(), prop::option::of(0u8..3)), 1..25)) {
        let mut model = Model::default();
        let mut answers: BTreeMap<i64, Vec<Vec<u8>>> = BTreeMap::new();
        for (n, (valid, payload)) in ops.iter().enumerate() {
            let s = n as i64 + 1;
            let before = model.clone();
            model.apply(*valid, *payload, s);
            // The newest op holds over its interval, elsewhere nothing changed.
            for t in 0..40 {
                let now = model.as_of(t, s);
                if valid.contains(t) {
                    prop_assert_eq!(&now, &payload.iter().copied().collect::<Vec<_>>());
                } else {
                    prop_assert_eq!(&now, &before.as_of(t, OPEN_END - 1));
                }
                prop_assert!(now.len() <= 1, "INV-2 at {t}/{s}");
            }
            for (i, r) in model.rows.iter().enumerate() {
                prop_assert!(r.valid.is_valid() && r.sys.is_valid(), "INV-3 {r:?}");
                if let Some(old) = before.rows.get(i)
                    && old.sys.to != OPEN_END
                {
                    prop_assert_eq!(old, r, "INV-4");
                }
            }
            answers.insert(s, (0..40).map(|t| model.as_of(t, s)).collect());
            for (s, then) in &answers {
                let now: Vec<_> = (0..40).map(|t| model.as_of(t, *s)).collect();
                prop_assert_eq!(&now, then, "INV-5: as of {} changed", s);
            }
        }
        // INV-6: whatever was closed at s was superseded over its valid time by rows that start
        // at s, or retracted at s.
        for r in model.rows.iter().filter(|r| r.sys.to != OPEN_END) {
            let (op_valid, payload) = ops[r.sys.to as usize - 1];
            prop_assert!(r.valid.overlaps(op_valid));
            for t in (0..40).filter(|t| r.valid.contains(*t)) {
                let now = model.as_of(t, r.sys.to);
                prop_assert_eq!(now.is_empty(), payload.is_none() && op_valid.contains(t));
            }
        }
    }

    /// Asserting what holds is no new version, however it is split.
    #[test]
    fn no_op(valid in span(), p in 0u8..3) {
        let mut model = Model::default();
        model.apply(valid, Some(p), 1);
        let delta = model.apply(valid, Some(p), 2);
        prop_assert!(delta.closed.is_empty() && delta.opened.is_empty());
    }

    /// `chain`, in batches split at random, gives the same rows as the general rules applied one
    /// record at a time.
    #[test]
    fn chain_equals_the_general_rules(
        ops in prop::collection::vec((0u8..4, prop::option::of(0u8..5)), 1..60),
        splits in prop::collection::vec(1usize..9, 1..30),
    ) {
        let mut models: BTreeMap<u8, Model> = BTreeMap::new();
        let mut open: BTreeMap<u8, i64> = BTreeMap::new();
        let mut records: Vec<Record> = vec![];
        for (n, (key, payload)) in ops.iter().enumerate() {
            let s = n as i64 * 10 + 10;
            let prev = open.get(key).copied();
            if payload.is_none() && prev.is_none() {
                continue;
            }
            let model = models.entry(*key).or_default();
            let delta = model.apply(Span::since(0), *payload, s);
            if delta.closed.is_empty() && delta.opened.is_empty() {
                continue; // a no-op makes no record
            }
            match payload {
                Some(_) => open.insert(*key, s),
                None => open.remove(key),
            };
            records.push((vec![*key], s, prev, *payload));
        }
        // The table: rows as (key, sys, payload).
        let mut table: Vec<(Vec<u8>, Span, u8)> = vec![];
        let mut rest = records.as_slice();
        let mut splits = splits.iter().cycle();
        while !rest.is_empty() {
            let (batch, tail) = rest.split_at((*splits.next().unwrap()).min(rest.len()));
            rest = tail;
            let incoming: Vec<Incoming> = batch
                .iter()
                .map(|(k, s, prev, p)| Incoming {
                    key: k,
                    sys_from: *s,
                    prev: *prev,
                    retracted: p.is_none(),
                })
                .collect();
            let c = chain(&incoming).unwrap();
            prop_assert_eq!(c.fates.len(), batch.len());
            for closing in &c.closings {
                let key = &batch[closing.record].0;
                let mut hits = table
                    .iter_mut()
                    .filter(|(k, sys, _)| k == key && sys.to == OPEN_END);
                let hit = hits.next().unwrap();
                prop_assert!(hits.next().is_none(), "INV-2");
                prop_assert_eq!(hit.1.from, closing.prev);
                hit.1.to = closing.sys_to;
            }
            for i in &c.fresh {
                let key = &batch[*i].0;
                prop_assert!(!table.iter().any(|(k, sys, _)| k == key && sys.to == OPEN_END));
            }
            for ((k, s, _, p), fate) in batch.iter().zip(&c.fates) {
                let to = match fate {
                    Fate::Open => OPEN_END,
                    Fate::Closed { sys_to } => *sys_to,
                    Fate::Gone => continue,
                };
                table.push((k.clone(), Span { from: *s, to }, p.unwrap()));
            }
        }
        let mut expected: Vec<(Vec<u8>, Span, u8)> = models
            .iter()
            .flat_map(|(k, m)| m.rows.iter().map(|r| (vec![*k], r.sys, r.payload)))
            .collect();
        expected.sort();
        table.sort();
        prop_assert_eq!(table, expected);
    }
}

fn record(key: &[u8], sys_from: i64, prev: Option<i64>, retracted: bool) -> Incoming<'_> {
    Incoming {
        key,
        sys_from,
        prev,
        retracted,
    }
}

#[test]
fn broken_chains_are_refused() {
    let refused = |records: &[Incoming]| chain(records).unwrap_err();
    assert_eq!(
        refused(&[record(b"a", 5, Some(5), false)]).1,
        Violation::SystemTime { at: 5, open: 5 }
    );
    assert_eq!(
        refused(&[record(b"a", 1, None, false), record(b"a", 2, None, false)]),
        (1, Violation::AlreadyOpen { open: 1 })
    );
    assert_eq!(
        refused(&[
            record(b"a", 3, None, false),
            record(b"a", 4, Some(2), false)
        ])
        .1,
        Violation::WrongPredecessor {
            prev: 2,
            open: Some(3)
        }
    );
    assert_eq!(
        refused(&[record(b"a", 3, None, true)]).1,
        Violation::NothingToRetract
    );
    assert_eq!(
        refused(&[
            record(b"a", 3, Some(1), true),
            record(b"a", 4, Some(3), false)
        ])
        .1,
        Violation::WrongPredecessor {
            prev: 3,
            open: None
        }
    );
}

#[test]
fn reassertion_after_a_retraction_is_a_first_version() {
    let c = chain(&[
        record(b"a", 3, Some(1), true),
        record(b"a", 4, None, false),
        record(b"b", 4, None, false),
    ])
    .unwrap();
    assert_eq!(c.fates, [Fate::Gone, Fate::Open, Fate::Open]);
    assert_eq!(c.fresh, [2]);
    assert_eq!(c.closings.len(), 1);
}

#[test]
fn system_time_must_move() {
    let open = [Row {
        valid: Span::since(0),
        sys: Span::since(7),
        payload: 1u8,
    }];
    assert_eq!(
        assert_over(&open, Span::since(0), &2, 7).unwrap_err(),
        Violation::SystemTime { at: 7, open: 7 }
    );
    assert!(retract_over(&open, Span { from: 3, to: 3 }, 9).is_err());
}
