//! The codec whole: frames, ids, classes of errors. The Avro in it is tested in `avro/oracle.rs`.

use proptest::prelude::*;

use super::*;
use crate::decimal::Dec8;
use crate::records::{
    ActionKind, BarContent, Basis, InputRange, Origin, OutputCount, Stage, WindowMetrics,
};

fn sample() -> Tick<'static> {
    Tick {
        source: "binance",
        symbol: "BTCUSDT",
        trade_id: 3_735_683_259,
        price: Dec8(6_183_763_000_000),
        quantity: Dec8(2_000_000),
        trade_time: 1_723_161_255_342_000,
        event_time: Some(1_723_161_255_343_000),
        buyer_maker: Some(true),
        ingest_time: Some(1_723_161_254_087_896),
        first_trade_id: None,
        last_trade_id: None,
    }
}

fn without_options(tick: Tick<'_>) -> Tick<'_> {
    Tick {
        event_time: None,
        buyer_maker: None,
        ingest_time: None,
        first_trade_id: None,
        last_trade_id: None,
        ..tick
    }
}

prop_compose! {
    fn decimals()(wide in any::<bool>(), v in any::<i128>()) -> Dec8 {
        Dec8(if wide { v % (Dec8::MAX.0 + 1) } else { v % 1_000_000_000_000_000 })
    }
}

prop_compose! {
    fn ticks()(
        source in "[a-z.]{0,12}", symbol in "\\PC{0,12}", ids in any::<[i64; 3]>(),
        price in decimals(), quantity in decimals(), times in any::<[i64; 3]>(),
        present in any::<[bool; 5]>(), maker in any::<bool>(),
    ) -> (String, String, Tick<'static>) {
        let tick = Tick {
            source: "", symbol: "", trade_id: ids[0], price, quantity, trade_time: times[0],
            event_time: present[0].then_some(times[1]),
            buyer_maker: present[1].then_some(maker),
            ingest_time: present[2].then_some(times[2]),
            first_trade_id: present[3].then_some(ids[1]),
            last_trade_id: present[4].then_some(ids[2]),
        };
        (source, symbol, tick)
    }
}

proptest! {
    #[test]
    fn ticks_round_trip((source, symbol, tick) in ticks()) {
        let tick = Tick { source: &source, symbol: &symbol, ..tick };
        let codec = Codec::offline();
        let mut bytes = Vec::new();
        codec.encode_tick(&tick, 2, &mut bytes).unwrap();
        prop_assert_eq!(codec.decode_tick(&bytes), Ok(tick));
        bytes.clear();
        codec.encode_tick(&tick, 1, &mut bytes).unwrap();
        prop_assert_eq!(codec.decode_tick(&bytes), Ok(without_options(tick)));
    }

    #[test]
    fn noise_never_panics(
        noise in proptest::collection::vec(any::<u8>(), 0..200),
        id in 0u32..11,
    ) {
        let mut framed = Vec::new();
        put_header(id, &mut framed);
        framed.extend_from_slice(&noise);
        let codec = Codec::offline();
        for bytes in [&noise, &framed] {
            let _ = codec.decode_tick(bytes);
            let _ = codec.decode_bar(bytes);
            let _ = codec.decode_metrics(bytes);
            let _ = codec.decode_ledger(bytes);
            let _ = codec.decode_break(bytes);
            let _ = codec.decode_bars_input(bytes);
        }
    }
}

#[test]
fn lies_about_lengths_cost_nothing() {
    let codec = Codec::offline();
    // A length of 2^62, and a negative one.
    for length in [
        &[0x80u8, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01][..],
        &[0x01],
    ] {
        let mut bytes = vec![0, 0, 0, 0, 2];
        bytes.extend_from_slice(length);
        assert_eq!(
            codec.decode_tick(&bytes).unwrap_err().class(),
            crate::dlq::MALFORMED
        );
    }
    // A ledger entry that claims an array of 2^40 elements.
    let mut entry = Vec::new();
    codec.encode_ledger(&sample_ledger(), &mut entry).unwrap();
    let mut hostile = entry[..HEADER + 1 + 7 + 1 + 1 + 8].to_vec();
    hostile.extend_from_slice(&[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01]);
    assert!(codec.decode_ledger(&hostile).is_err());
}

#[test]
fn ignored_arrays_of_nothing_are_bounded() {
    let json = Kind::Tick.versions()[0].replace(
        r#""fields": ["#,
        r#""fields": [{"name": "padding", "type": {"type": "array", "items": "null"}}, "#,
    );
    let codec = Codec::offline_with(&[(77, &json)]);
    let mut bytes = vec![0, 0, 0, 0, 77];
    // 2^61 nulls in no bytes at all.
    bytes.extend_from_slice(&[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x40]);
    let started = std::time::Instant::now();
    assert_eq!(
        codec.decode_tick(&bytes).unwrap_err().class(),
        crate::dlq::MALFORMED
    );
    assert!(started.elapsed() < std::time::Duration::from_secs(5));
}

#[test]
fn errors_have_their_classes() {
    let codec = Codec::offline();
    let class = |bytes: &[u8]| {
        codec
            .decode_tick(bytes)
            .map(|t| t.trade_id)
            .map_err(|e| e.class())
    };
    assert_eq!(class(b""), Err("malformed"));
    assert_eq!(class(b"{\"json\":1}"), Err("malformed"));
    assert_eq!(class(&[0, 0, 0, 0]), Err("malformed"));
    assert_eq!(class(&[0, 0, 0, 9, 9, 1, 2]), Err("unknown_schema"));
    // A bar's schema in the topic of trades.
    assert_eq!(class(&[0, 0, 0, 0, 3, 1, 2]), Err("unknown_schema"));
    // And in the topic of bars.
    let strange = codec.decode_bars_input(&[0, 0, 0, 0, 3, 1, 2]).unwrap_err();
    assert_eq!(strange.class(), "unknown_schema");
    let strange = codec.decode_bars_input(&[0, 0, 0, 0, 99, 1]).unwrap_err();
    assert_eq!(strange, DecodeError::UnknownSchema { id: 99 });

    let mut bytes = Vec::new();
    codec.encode_tick(&sample(), 2, &mut bytes).unwrap();
    assert_eq!(class(&bytes), Ok(sample().trade_id));
    bytes.push(0);
    assert_eq!(class(&bytes), Err("malformed"));
    bytes.truncate(bytes.len() - 2);
    assert_eq!(class(&bytes), Err("malformed"));
}

#[test]
fn decimals_of_other_clients() {
    // source "b", symbol "B", id 1, price of `price` bytes, quantity 1 byte, time 1.
    let datum = |price: &[u8]| {
        let mut bytes = vec![0, 0, 0, 0, 1, 2, b'b', 2, b'B', 2, (price.len() as u8) << 1];
        bytes.extend_from_slice(price);
        bytes.extend_from_slice(&[2, 5, 2]);
        bytes
    };
    let codec = Codec::offline();
    let price = |bytes: &[u8]| {
        codec
            .decode_tick(&datum(bytes))
            .map(|tick| tick.price.0)
            .map_err(|e| e.class())
    };
    assert_eq!(price(&[1]), Ok(1));
    assert_eq!(price(&[0xff]), Ok(-1));
    let mut padded = [0u8; 20];
    padded[19] = 7;
    assert_eq!(price(&padded), Ok(7));
    padded[0] = 1;
    assert_eq!(price(&padded), Err("overflow"));
    assert_eq!(price(&[0x7f; 16]), Err("overflow"));
    assert_eq!(price(&[]), Err("malformed"));
}

#[test]
fn foreign_writers_are_read_by_name() {
    // Other order, an unknown field, an int for a long, a plain type where ours is a union,
    // decimals of less precision.
    let json = r#"{"type": "record", "name": "Tick", "namespace": "com.acme", "fields": [
        {"name": "trade_time", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "venue", "type": {"type": "map", "values": "string"}},
        {"name": "quantity", "type": {"type": "bytes", "logicalType": "decimal", "precision": 38, "scale": 8}},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 38, "scale": 8}},
        {"name": "trade_id", "type": "int"},
        {"name": "buyer_maker", "type": "boolean"},
        {"name": "symbol", "type": "string"},
        {"name": "source", "type": "string"}
    ]}"#;
    let codec = Codec::offline_with(&[(300, json)]);
    assert!(codec.knows(300));
    let datum = [
        0, 0, 0, 1, 44, // frame, id 300
        4,  // time 2
        2, 2, b'k', 2, b'v', 0, // map of one
        2, 5, // quantity
        4, 0x01, 0x00, // price 256
        14,   // id 7
        1,    // maker
        2, b'S', 2, b's',
    ];
    let tick = codec.decode_tick(&datum).unwrap();
    assert_eq!(
        tick,
        Tick {
            source: "s",
            symbol: "S",
            trade_id: 7,
            price: Dec8(256),
            quantity: Dec8(5),
            trade_time: 2,
            event_time: None,
            buyer_maker: Some(true),
            ingest_time: None,
            first_trade_id: None,
            last_trade_id: None,
        }
    );
}

#[test]
fn many_writer_schemas_find_their_slots() {
    let json = Kind::Tick.versions()[0];
    let others: Vec<_> = (100..250).map(|id| (id, json)).collect();
    let codec = Codec::offline_with(&others);
    let mut bytes = Vec::new();
    codec.encode_tick(&sample(), 1, &mut bytes).unwrap();
    for (id, _) in others {
        bytes[1..HEADER].copy_from_slice(&u32::to_be_bytes(id));
        assert_eq!(codec.decode_tick(&bytes), Ok(without_options(sample())));
    }
    assert!(!codec.knows(99));
    assert_eq!(codec.resolve(99), Ok(Resolved::Unknown));
    assert!(codec.knows(99));
}

#[test]
fn unencodable_values_leave_no_bytes() {
    let codec = Codec::offline();
    let mut out = vec![1, 2, 3];
    let wide = Tick {
        price: Dec8(i128::MAX),
        ..sample()
    };
    assert!(codec.encode_tick(&wide, 2, &mut out).is_err());
    assert!(codec.encode_tick(&sample(), 3, &mut out).is_err());
    let bar = Bar {
        close: Dec8(i128::MAX),
        ..sample_bar()
    };
    assert!(codec.encode_bar(&bar, &mut out).is_err());
    assert_eq!(out, [1, 2, 3]);
}

fn sample_bar() -> Bar<'static> {
    Bar {
        source: "binance",
        symbol: "BTCUSDT",
        bar_interval: "1m",
        bar_start: 60_000_000,
        bar_end: 120_000_000,
        trade_date: 0,
        tick_id: crate::keys::bar_id("binance", "BTCUSDT", "1m", 60_000_000),
        open: Dec8(1),
        high: Dec8::MAX,
        low: Dec8(-5),
        close: Dec8(2),
        volume: Dec8(3),
        quote_volume: crate::Dec16::MAX,
        trade_count: 4,
        taker_buy_base: Dec8(1),
        taker_buy_quote: crate::Dec16(1),
        vwap: Dec8(1),
        first_trade_time: 60_000_001,
        first_trade_id: 1,
        last_trade_time: 119_999_999,
        last_trade_id: 4,
        stage: Stage::Checkpoint,
        revision: 0,
        origin: Origin::Trades,
        basis: Basis::AsQuoted,
        basis_at: None,
        retracted: false,
        commit: 9,
        ticks_offset: 10,
        bars_offset: 11,
        sys_from: 12,
        prev_sys_from: Some(11),
    }
}

fn sample_ledger() -> LedgerEntry {
    LedgerEntry {
        app_id: "finlake".to_owned(),
        task: 3,
        commit: 9,
        system_time: 1_723_161_255_342_000,
        stream_times: vec![("binance".to_owned(), 5)],
        inputs: vec![InputRange {
            topic: "market.ticks".to_owned(),
            start: 0,
            end: 10,
            records: 9,
            hash: u128::MAX - 1,
            accepted: 7,
            duplicates: 1,
            rejected: 1,
            skipped: 1,
        }],
        outputs: vec![OutputCount {
            topic: "market.ohlcv".to_owned(),
            count: 1,
            hash: 1,
        }],
        corrections: 0,
        totals: vec![("records".to_owned(), 9)],
        schema_ids: vec![1, 2],
        prev_hash: 0,
        last: false,
        heartbeat: false,
    }
}

#[test]
fn other_records_round_trip() {
    let codec = Codec::offline();
    let mut bytes = Vec::new();
    for (stage, origin, basis) in [
        (Stage::Forming, Origin::Trades, Basis::AsQuoted),
        (Stage::Closed, Origin::Vendor, Basis::SplitAdjusted),
    ] {
        let bar = Bar {
            stage,
            origin,
            basis,
            ..sample_bar()
        };
        bytes.clear();
        codec.encode_bar(&bar, &mut bytes).unwrap();
        assert_eq!(codec.decode_bar(&bytes), Ok(bar));
        assert_eq!(Stage::from_symbol(stage.as_str()), Some(stage));
        assert_eq!(Origin::from_symbol(origin.as_str()), Some(origin));
        assert_eq!(Basis::from_symbol(basis.as_str()), Some(basis));
    }

    let metrics = Metrics {
        source: "binance",
        symbol: "BTCUSDT",
        trade_date: 19_943,
        metric_id: crate::keys::metrics_id("binance", "BTCUSDT", 19_943),
        close: Dec8(1),
        observations: 31,
        return_1: Some(-0.25),
        windows: vec![
            WindowMetrics {
                n: 30,
                ret: Some(0.5),
                volatility: Some(0.7),
                sharpe: None,
            },
            WindowMetrics {
                n: 90,
                ret: None,
                volatility: None,
                sharpe: None,
            },
        ],
        periods: 365,
        risk_free: 0.02,
        valid_from: 5,
        revision: 1,
        retracted: false,
        commit: 2,
        ticks_offset: 3,
        bars_offset: 4,
        sys_from: 5,
        prev_sys_from: None,
    };
    bytes.clear();
    codec.encode_metrics(&metrics, &mut bytes).unwrap();
    assert_eq!(codec.decode_metrics(&bytes), Ok(metrics));

    bytes.clear();
    codec.encode_ledger(&sample_ledger(), &mut bytes).unwrap();
    assert_eq!(codec.decode_ledger(&bytes), Ok(sample_ledger()));
    bytes.push(0);
    assert!(codec.decode_ledger(&bytes).is_err());
}

#[test]
fn records_of_market_bars_are_told_apart() {
    let codec = Codec::offline();
    let (vendor, action, assertion) = (
        VendorBar {
            source: "yahoo",
            symbol: "NVDA",
            bar_interval: "1d",
            bar_start: 1,
            bar_end: 2,
            trade_date: 3,
            open: Dec8(4),
            high: Dec8(5),
            low: Dec8(6),
            close: Dec8(7),
            volume: Dec8(8),
            basis: Basis::SplitAdjusted,
            basis_at: Some(9),
            ingest_time: None,
        },
        CorporateAction {
            source: "yahoo",
            symbol: "NVDA",
            ex_date: 19_884,
            kind: ActionKind::Split,
            ratio_to: Dec8::from_int(10),
            ratio_from: Dec8::from_int(1),
            amount: Dec8(0),
            currency: None,
            retracted: false,
            ingest_time: Some(1),
        },
        Assertion {
            assertion_id: [7; 16],
            source: "binance",
            symbol: "BTCUSDT",
            bar_interval: "1m",
            bar_start: 60_000_000,
            expected_sys_from: Some(12),
            expected_revision: Some(0),
            content: BarContent::of(&sample_bar()),
            retracted: true,
            origin: "replay",
            reason: "late trades",
            sent_at: 13,
        },
    );
    let mut bytes = Vec::new();
    codec.encode_vendor_bar(&vendor, &mut bytes).unwrap();
    assert_eq!(
        codec.decode_bars_input(&bytes),
        Ok(BarsInput::Vendor(vendor))
    );
    bytes.clear();
    codec.encode_action(&action, &mut bytes).unwrap();
    assert_eq!(
        codec.decode_bars_input(&bytes),
        Ok(BarsInput::Action(action))
    );
    bytes.clear();
    codec.encode_assertion(&assertion, &mut bytes).unwrap();
    assert_eq!(
        codec.decode_bars_input(&bytes),
        Ok(BarsInput::Assertion(assertion))
    );
    assert_eq!(codec.decode_assertion(&bytes), Ok(assertion));
}

#[test]
fn aggregate_trades_count_for_what_they_stand_for() {
    assert_eq!(sample().trades(), 1);
    let aggregate = Tick {
        first_trade_id: Some(10),
        last_trade_id: Some(12),
        ..sample()
    };
    assert_eq!(aggregate.trades(), 3);
    let hostile = Tick {
        first_trade_id: Some(i64::MIN),
        last_trade_id: Some(i64::MAX),
        ..sample()
    };
    assert_eq!(hostile.trades(), i64::MAX);
    let mut key = Vec::new();
    sample().key(&mut key);
    assert_eq!(key, b"binance:BTCUSDT");
}
