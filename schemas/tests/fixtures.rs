//! Every version of every record that was ever written, frozen as bytes: they must decode to the
//! same values for ever, and what we write today must be these bytes.
//!
//! A new schema version adds a file; `cargo test -p finlake-schemas --test fixtures -- --ignored`
//! writes those that are missing and never touches one that is there.

use std::path::PathBuf;

use apache_avro::types::Value;
use finlake_schemas::{
    ActionKind, Assertion, Bar, BarContent, BarsInput, Basis, Break, BreakKind, BreakStatus, Codec,
    CorporateAction, Dec8, Dec16, InputRange, Kind, Kline, LedgerEntry, Metrics, Origin,
    OutputCount, Severity, Stage, Tick, VendorBar, WindowMetrics, keys,
};

const V1: Tick<'static> = Tick {
    source: "binance",
    symbol: "BTCUSDT",
    trade_id: 3_735_683_259,
    price: Dec8(6_183_763_000_000),
    quantity: Dec8(2_000_000),
    trade_time: 1_723_161_255_342_000,
    event_time: None,
    buyer_maker: None,
    ingest_time: None,
    first_trade_id: None,
    last_trade_id: None,
};

const V2: Tick<'static> = Tick {
    source: "binance.agg",
    symbol: "SUSHIUSDT",
    trade_id: 75_219_316,
    price: Dec8(761_100_000),
    quantity: Dec8(200_000_000),
    trade_time: 1_626_992_742_289_739,
    event_time: Some(1_626_992_742_300_000),
    buyer_maker: Some(false),
    ingest_time: Some(1_626_992_742_400_000),
    first_trade_id: Some(150_000_001),
    last_trade_id: Some(150_000_007),
};

fn bar() -> Bar<'static> {
    Bar {
        source: "binance",
        symbol: "BTCUSDT",
        bar_interval: "5m",
        bar_start: 1_723_161_300_000_000,
        bar_end: 1_723_161_600_000_000,
        trade_date: 19_943,
        tick_id: keys::bar_id("binance", "BTCUSDT", "5m", 1_723_161_300_000_000),
        open: Dec8(6_183_764_000_000),
        high: Dec8(6_186_251_000_000),
        low: Dec8(6_169_000_000_001),
        close: Dec8(-1),
        volume: Dec8(12_345_678_901),
        quote_volume: Dec16(7_634_000_000_000_000_000_000),
        trade_count: 8_863,
        taker_buy_base: Dec8(0),
        taker_buy_quote: Dec16(-128),
        vwap: Dec8(6_175_000_000_000),
        first_trade_time: 1_723_161_300_010_000,
        first_trade_id: 3_735_684_000,
        last_trade_time: 1_723_161_599_990_000,
        last_trade_id: 3_735_692_862,
        stage: Stage::Closed,
        revision: 2,
        origin: Origin::Trades,
        basis: Basis::AsQuoted,
        basis_at: Some(19_944),
        retracted: false,
        commit: 77,
        ticks_offset: 9_001,
        bars_offset: 3,
        sys_from: 1_723_161_601_000_000,
        prev_sys_from: Some(1_723_161_600_500_000),
    }
}

fn metrics() -> Metrics<'static> {
    Metrics {
        source: "binance",
        symbol: "BTCUSDT",
        trade_date: 19_943,
        metric_id: keys::metrics_id("binance", "BTCUSDT", 19_943),
        close: Dec8(6_185_000_000_000),
        observations: 31,
        return_1: Some(0.015_625),
        windows: vec![
            WindowMetrics {
                n: 30,
                ret: Some(-0.25),
                volatility: Some(0.5),
                sharpe: Some(-1.5),
            },
            WindowMetrics {
                n: 90,
                ret: None,
                volatility: None,
                sharpe: None,
            },
        ],
        periods: 365,
        risk_free: 0.03125,
        valid_from: 1_723_161_600_000_000,
        revision: 0,
        retracted: true,
        commit: 78,
        ticks_offset: 9_002,
        bars_offset: 3,
        sys_from: 1_723_161_602_000_000,
        prev_sys_from: None,
    }
}

fn ledger() -> LedgerEntry {
    LedgerEntry {
        app_id: "finlake".to_owned(),
        task: 3,
        commit: 78,
        system_time: 1_723_161_602_000_000,
        stream_times: vec![
            ("binance".to_owned(), 1_723_161_601_999_000),
            ("kraken".to_owned(), -1),
        ],
        inputs: vec![
            InputRange {
                topic: "market.ticks".to_owned(),
                start: 9_001,
                end: 9_013,
                records: 10,
                hash: 0x0123_4567_89ab_cdef_fedc_ba98_7654_3210,
                accepted: 7,
                duplicates: 2,
                rejected: 1,
                skipped: 2,
            },
            InputRange {
                topic: "market.bars".to_owned(),
                start: 3,
                end: 3,
                records: 0,
                hash: 0,
                accepted: 0,
                duplicates: 0,
                rejected: 0,
                skipped: 0,
            },
        ],
        outputs: vec![OutputCount {
            topic: "market.ohlcv".to_owned(),
            count: 4,
            hash: u128::MAX,
        }],
        corrections: 1,
        totals: vec![("records".to_owned(), 9_010)],
        schema_ids: vec![1, 2],
        prev_hash: 42,
        last: true,
        heartbeat: false,
    }
}

fn kline() -> Kline<'static> {
    Kline {
        source: "binance",
        symbol: "BTCUSDT",
        bar_interval: "5m",
        bar_start: 1_723_161_300_000_000,
        bar_end: 1_723_161_600_000_000,
        open: Dec8(6_183_764_000_000),
        high: Dec8(6_186_251_000_000),
        low: Dec8(6_169_000_000_001),
        close: Dec8(6_170_000_000_000),
        volume: Dec8(12_345_678_901),
        trade_count: 8_863,
        quote_volume: Some(Dec16(7_634_000_000_000_000_000_000)),
        taker_buy_base: Some(Dec8(0)),
        taker_buy_quote: None,
        closed: true,
        event_time: Some(1_723_161_600_012_000),
        ingest_time: None,
    }
}

fn vendor_bar() -> VendorBar<'static> {
    VendorBar {
        source: "yahoo",
        symbol: "NVDA",
        bar_interval: "1d",
        bar_start: 1_626_652_800_000_000,
        bar_end: 1_626_739_200_000_000,
        trade_date: 18_827,
        open: Dec8(1_890_000_000),
        high: Dec8(1_901_000_000),
        low: Dec8(1_850_000_000),
        close: Dec8(1_877_970_000),
        volume: Dec8(74_906_000_000_000_000),
        basis: Basis::SplitAdjusted,
        basis_at: Some(20_779),
        ingest_time: Some(1_795_300_000_000_000),
    }
}

fn action() -> CorporateAction<'static> {
    CorporateAction {
        source: "yahoo",
        symbol: "NVDA",
        ex_date: 18_828,
        kind: ActionKind::Dividend,
        ratio_to: Dec8(100_000_000),
        ratio_from: Dec8(100_000_000),
        amount: Dec8(4_000_000),
        currency: Some("USD"),
        retracted: false,
        ingest_time: None,
    }
}

fn assertion() -> Assertion<'static> {
    let bar = bar();
    Assertion {
        assertion_id: [0x5a; 16],
        source: bar.source,
        symbol: bar.symbol,
        bar_interval: bar.bar_interval,
        bar_start: bar.bar_start,
        expected_sys_from: Some(bar.sys_from),
        expected_revision: Some(bar.revision),
        content: BarContent::of(&Bar {
            close: Dec8(6_170_000_000_000),
            ..bar
        }),
        retracted: false,
        origin: "replay",
        reason: "late trades of 2024-08-08",
        sent_at: 1_723_248_001_000_000,
    }
}

fn found() -> Break {
    let (layer, table) = ("silver", "silver.market_ohlcv");
    let key = "binance:BTCUSDT:5m:1723161300000000";
    Break {
        break_id: keys::break_id(BreakKind::ValueDrift, layer, table, key, "close"),
        kind: BreakKind::ValueDrift,
        severity: Severity::Material,
        layer: layer.to_owned(),
        table: table.to_owned(),
        key: key.to_owned(),
        cause: "close".to_owned(),
        source: Some("binance".to_owned()),
        symbol: Some("BTCUSDT".to_owned()),
        trade_date: Some(19_943),
        status: BreakStatus::Opened,
        expected: Some("61700".to_owned()),
        actual: None,
        detail: "recomputed from Bronze; replay repairs it".to_owned(),
        found_by: "reconcile".to_owned(),
        system_time: 1_723_248_000_000_000,
    }
}

fn encoded(name: &str) -> Vec<u8> {
    let codec = Codec::offline();
    let mut out = Vec::new();
    match name {
        "tick.v1" => codec.encode_tick(&V1, 1, &mut out),
        "tick.v2" => codec.encode_tick(&V2, 2, &mut out),
        "bar.v1" => codec.encode_bar(&bar(), &mut out),
        "metrics.v1" => codec.encode_metrics(&metrics(), &mut out),
        "ledger.v1" => codec.encode_ledger(&ledger(), &mut out),
        "vendor_bar.v1" => codec.encode_vendor_bar(&vendor_bar(), &mut out),
        "corporate_action.v1" => codec.encode_action(&action(), &mut out),
        "assertion.v1" => codec.encode_assertion(&assertion(), &mut out),
        "break.v1" => codec.encode_break(&found(), &mut out),
        "kline.v1" => codec.encode_kline(&kline(), &mut out),
        other => panic!("no sample of {other}"),
    }
    .unwrap();
    out
}

const NAMES: [&str; 10] = [
    "tick.v1",
    "tick.v2",
    "bar.v1",
    "metrics.v1",
    "ledger.v1",
    "vendor_bar.v1",
    "corporate_action.v1",
    "assertion.v1",
    "break.v1",
    "kline.v1",
];

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/{name}.hex"))
}

fn frozen(name: &str) -> Vec<u8> {
    let text = std::fs::read_to_string(path(name))
        .unwrap_or_else(|e| panic!("{}: {e}", path(name).display()));
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits
        .chunks(2)
        .map(|pair| (pair[0] * 16 + pair[1]) as u8)
        .collect()
}

#[test]
fn frozen_bytes_decode_to_the_same_values() {
    let codec = Codec::offline();
    assert_eq!(codec.decode_tick(&frozen("tick.v1")), Ok(V1));
    assert_eq!(codec.decode_tick(&frozen("tick.v2")), Ok(V2));
    assert_eq!(codec.decode_bar(&frozen("bar.v1")), Ok(bar()));
    assert_eq!(codec.decode_metrics(&frozen("metrics.v1")), Ok(metrics()));
    assert_eq!(codec.decode_ledger(&frozen("ledger.v1")), Ok(ledger()));
    assert_eq!(codec.decode_break(&frozen("break.v1")), Ok(found()));
    assert_eq!(codec.decode_kline(&frozen("kline.v1")), Ok(kline()));
    let input = |name: &str, expected: BarsInput<'_>| {
        assert_eq!(codec.decode_bars_input(&frozen(name)), Ok(expected));
    };
    input("vendor_bar.v1", BarsInput::Vendor(vendor_bar()));
    input("corporate_action.v1", BarsInput::Action(action()));
    input("assertion.v1", BarsInput::Assertion(assertion()));
}

#[test]
fn todays_bytes_are_the_frozen_ones() {
    for name in NAMES {
        assert_eq!(encoded(name), frozen(name), "{name}");
    }
}

/// The reference implementation of Avro, with logical types, reads what ours writes.
#[test]
fn the_reference_implementation_agrees() {
    let read = |name: &str, schema: &str| -> Vec<(String, Value)> {
        let bytes = frozen(name);
        let schema = apache_avro::Schema::parse_str(schema).unwrap();
        let mut datum = &bytes[5..];
        let reader = apache_avro::reader::datum::GenericDatumReader::builder(&schema)
            .build()
            .unwrap();
        let value = reader.read_value(&mut datum).unwrap();
        assert!(datum.is_empty(), "{name}: bytes are left");
        match value {
            Value::Record(fields) => fields,
            other => panic!("{name}: {other:?}"),
        }
    };
    let field = |fields: &[(String, Value)], name: &str| -> Value {
        fields.iter().find(|(n, _)| n == name).unwrap().1.clone()
    };
    let unscaled = |value: Value| -> Vec<u8> {
        match value {
            Value::Decimal(decimal) => Vec::<u8>::try_from(decimal).unwrap(),
            other => panic!("{other:?}"),
        }
    };
    let big = |bytes: Vec<u8>| {
        bytes
            .iter()
            .fold(if bytes[0] & 0x80 == 0 { 0i128 } else { -1 }, |v, b| {
                (v << 8) | i128::from(*b)
            })
    };

    let [v1, v2] = [Kind::Tick.versions()[0], Kind::Tick.versions()[1]];
    let tick = read("tick.v1", v1);
    assert_eq!(field(&tick, "symbol"), Value::String("BTCUSDT".to_owned()));
    assert_eq!(big(unscaled(field(&tick, "price"))), V1.price.0);
    assert_eq!(
        field(&tick, "trade_time"),
        Value::TimestampMicros(V1.trade_time)
    );
    let tick = read("tick.v2", v2);
    assert_eq!(
        field(&tick, "last_trade_id"),
        Value::Union(1, Box::new(Value::Long(150_000_007)))
    );

    let fields = read("bar.v1", Kind::Bar.newest());
    assert_eq!(big(unscaled(field(&fields, "close"))), -1);
    assert_eq!(
        big(unscaled(field(&fields, "quote_volume"))),
        bar().quote_volume.0
    );
    assert_eq!(field(&fields, "stage"), Value::Enum(2, "closed".to_owned()));
    assert_eq!(field(&fields, "trade_date"), Value::Date(19_943));
    read("metrics.v1", Kind::Metrics.newest());
    let fields = read("assertion.v1", Kind::Assertion.newest());
    assert_eq!(
        field(&fields, "assertion_id"),
        Value::Uuid(uuid::Uuid::from_bytes([0x5a; 16]))
    );
    let fields = read("break.v1", Kind::Break.newest());
    assert_eq!(
        field(&fields, "kind"),
        Value::Enum(2, "VALUE_DRIFT".to_owned())
    );
    read("vendor_bar.v1", Kind::VendorBar.newest());
    let fields = read("kline.v1", Kind::Kline.newest());
    assert_eq!(field(&fields, "closed"), Value::Boolean(true));
    read("corporate_action.v1", Kind::Action.newest());
    let fields = read("ledger.v1", Kind::Ledger.newest());
    assert_eq!(
        field(&fields, "prev_hash"),
        Value::Fixed(16, 42u128.to_be_bytes().to_vec())
    );
}

#[test]
#[ignore = "writes the fixtures that are missing"]
fn write_missing() {
    for name in NAMES {
        if path(name).exists() {
            continue;
        }
        let hex: String = encoded(name).iter().map(|b| format!("{b:02x}")).collect();
        std::fs::write(path(name), hex + "\n").unwrap();
    }
}
