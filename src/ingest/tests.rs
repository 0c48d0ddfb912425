//! Forms, faults, merging; and every recorded capture that lies beside the checkout.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use finlake_schemas::Codec;
use proptest::prelude::*;

use super::csv::{FirstRow, Layout, symbol_of};
use super::files::InputError;
use super::message::{Parsed, parse_line};
use super::*;

const TRADE: &str = r#"{"e":"trade","E":1723161255343,"s":"BTCUSDT","t":3735683259,"p":"61837.63000000","q":"0.02000000","T":1723161255342,"m":true,"M":true}"#;
const AGGREGATE: &str = r#"{"e":"aggTrade","E":1626992741575,"a":16599292,"s":"CTKUSDT","p":"1.01100","q":"10","f":23961322,"l":23961325,"T":1626992741421,"m":false}"#;

fn sources() -> Sources {
    Sources::named("binance")
}

fn trade<'a>(line: &'a str, sources: &'a Sources) -> finlake_schemas::Tick<'a> {
    match parse_line(line.as_bytes(), sources) {
        Ok(Parsed::Trade(tick)) => tick,
        other => panic!("{line}: {other:?}"),
    }
}

fn fault(line: &str) -> String {
    match parse_line(line.as_bytes(), &sources()) {
        Err(fault) => fault.to_string(),
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn every_form_of_a_trade_is_the_same_trade() {
    let sources = sources();
    let bare = trade(TRADE, &sources);
    assert_eq!(
        (bare.source, bare.symbol, bare.trade_id, bare.trades()),
        ("binance", "BTCUSDT", 3_735_683_259, 1)
    );
    assert_eq!(bare.price.to_string(), "61837.63");
    assert_eq!(bare.quantity.to_string(), "0.02");
    assert_eq!(bare.trade_time, 1_723_161_255_342_000);
    assert_eq!(bare.event_time, Some(1_723_161_255_343_000));
    assert_eq!((bare.buyer_maker, bare.ingest_time), (Some(true), None));

    let envelope = format!(r#"{{"stream":"btcusdt@trade","data":{TRADE}}}"#);
    assert_eq!(trade(&envelope, &sources), bare);
    let nanos = format!("1723161254087896568 {envelope}\r\n");
    let tick = trade(&nanos, &sources);
    assert_eq!(tick.ingest_time, Some(1_723_161_254_087_896));
    let seconds = format!("1633998512.0633569: {envelope}");
    let tick = trade(&seconds, &sources);
    assert_eq!(tick.ingest_time, Some(1_633_998_512_063_356));
    // A connection set to microseconds.
    let micros = TRADE.replace("1723161255342", "1723161255342123");
    assert_eq!(trade(&micros, &sources).trade_time, 1_723_161_255_342_123);
    // The form of before June 2024, with order ids.
    let orders = TRADE.replace(r#","T""#, r#","b":88,"a":50,"T""#);
    assert_eq!(trade(&orders, &sources), bare);
}

#[test]
fn aggregate_trades_have_a_source_of_their_own() {
    let sources = sources();
    let tick = trade(AGGREGATE, &sources);
    assert_eq!((tick.source, tick.trade_id), ("binance.agg", 16_599_292));
    assert_eq!(tick.trades(), 4);
    assert_eq!(&*Sources::named("x.agg").aggregate, "x.agg");
}

#[test]
fn other_messages_are_named_and_skipped() {
    for (line, kind) in [
        (
            r#"{"stream":"b@bookTicker","data":{"u":1,"s":"B","b":"1","a":"2"}}"#,
            "bookTicker",
        ),
        (
            r#"{"stream":"b@depth@100ms","data":{"e":"depthUpdate","b":[["1","2"]],"a":[]}}"#,
            "depthUpdate",
        ),
        (r#"{"e":"kline","k":{"t":1,"T":2,"x":false}}"#, "kline"),
        (
            r#"{"stream":"!miniTicker@arr","data":[{"e":"24hrMiniTicker"}]}"#,
            "arr",
        ),
        (r#"[{"e":"trade"}]"#, "other"),
        (r#"{"result":null,"id":1}"#, "other"),
        (r#"{"lastUpdateId":1,"bids":[["1","2"]]}"#, "other"),
        (
            "wss://host/stream?streams=a@trade <-> 1633998511.159679",
            "connection",
        ),
    ] {
        assert_eq!(
            parse_line(line.as_bytes(), &sources()),
            Ok(Parsed::Skipped(kind)),
            "{line}"
        );
    }
    assert_eq!(parse_line(b" \r\n", &sources()), Ok(Parsed::Blank));
}

#[test]
fn faults_say_what_is_wrong() {
    for (line, part) in [
        ("nonsense", "receive time"),
        ("12 {}", "receive time"),
        (r#"{"e":"trade""#, "not JSON"),
        (&TRADE.replace(r#""s":"BTCUSDT","#, ""), "field s"),
        (&TRADE.replace("3735683259", "\"3735683259\""), "field t"),
        (
            &TRADE.replace("3735683259", "99999999999999999999"),
            "field t",
        ),
        (&TRADE.replace("true,\"M\"", "1,\"M\""), "field m"),
        (
            &TRADE.replace("61837.63000000", "6e4"),
            "p is not a decimal",
        ),
        (
            &TRADE.replace("0.02000000", "0.000000001"),
            "q is not a decimal",
        ),
        (&TRADE.replace("1723161255342", "123456785"), "T 123456785"),
        (&AGGREGATE.replace(r#""l":23961325,"#, ""), "field l"),
        (&format!("{TRADE}{TRADE}"), "not JSON"),
    ] {
        let said = fault(line);
        assert!(said.contains(part), "{line}: {said}");
    }
}

#[test]
fn stamps() {
    assert_eq!(micros("T", 1_735_689_600_000), Ok(1_735_689_600_000_000));
    assert_eq!(
        micros("T", 1_735_689_600_000_000),
        Ok(1_735_689_600_000_000)
    );
    assert!(micros("T", 1_735_689_600).is_err());
    assert!(micros("T", -1).is_err());
    assert_eq!(
        micros_from_seconds("1762795433.9717445"),
        Some(1_762_795_433_971_744)
    );
    assert_eq!(
        micros_from_seconds("1762795457.836747"),
        Some(1_762_795_457_836_747)
    );
    assert_eq!(
        micros_from_seconds("1762795457"),
        Some(1_762_795_457_000_000)
    );
    for bad in ["", ".", ".5", "1e9", "-1", "1.-5", "99999999999999999999"] {
        assert_eq!(micros_from_seconds(bad), None, "{bad}");
    }
}

#[test]
fn csv_layouts_are_told_by_what_stands_where() {
    let parse = |rows: &[&str]| {
        let (layout, row) = match Layout::detect(rows[0].as_bytes()).unwrap() {
            FirstRow::Header(layout) => (layout, rows[1]),
            FirstRow::Row(layout) => (layout, rows[0]),
        };
        let sources = sources();
        let tick = layout.parse_row(row.as_bytes(), "SYM", &sources).unwrap();
        (
            tick.source.to_owned(),
            tick.symbol.to_owned(),
            tick.trade_id,
            tick.trade_time,
            tick.buyer_maker,
            tick.trades(),
        )
    };
    let single = |symbol: &str| {
        (
            "binance".to_owned(),
            symbol.to_owned(),
            7,
            1_723_161_255_342_000,
            Some(true),
            1,
        )
    };
    let aggregate = (
        "binance.agg".to_owned(),
        "SYM".to_owned(),
        7,
        1_723_161_255_342_000,
        Some(false),
        3,
    );
    assert_eq!(
        parse(&["7,1.5,2,3.0,1723161255342,True,True\r\n"]),
        single("SYM")
    );
    assert_eq!(
        parse(&["7,1.5,2,3.0,1723161255342000,true,true"]),
        single("SYM")
    );
    assert_eq!(
        parse(&[
            "id,price,qty,quote_qty,time,is_buyer_maker",
            "7,1.5,2,3.0,1723161255342,true"
        ]),
        single("SYM")
    );
    assert_eq!(
        parse(&[
            "\"time\",\"symbol\",\"trade_id\",\"price\",\"quantity\",\"buyer_maker\"",
            "\"1723161255342\",\"X\",\"7\",\"1\",\"2\",\"true\""
        ]),
        single("X")
    );
    assert_eq!(
        parse(&["7,1.5,2,10,12,1723161255342,False,True"]),
        aggregate
    );
    assert_eq!(parse(&["7,1.5,2,10,12,1723161255342,false"]), aggregate);
    assert_eq!(
        parse(&[
            "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker",
            "7,1.5,2,10,12,1723161255342,false"
        ]),
        aggregate
    );
    assert_eq!(
        parse(&["a,p,q,f,l,T,m,M", "7,1.5,2,10,12,1723161255342,False,True"]),
        aggregate
    );
    for unknown in [
        "1672531436,90.54,1.1",
        "a,b,c",
        "",
        "7,1.5,2,3.0,1723161255342,maybe,True",
    ] {
        assert!(Layout::detect(unknown.as_bytes()).is_err(), "{unknown}");
    }
}

#[test]
fn symbols_in_file_names() {
    for (name, symbol) in [
        ("BTCUSDT-trades-2024-08-08.csv", Some("BTCUSDT")),
        ("BTCUSDT-aggTrades-2024-08.csv.gz", Some("BTCUSDT")),
        (
            "BTCUSDT_240628-trades-2024-06-01.csv",
            Some("BTCUSDT_240628"),
        ),
        ("1000PEPEUSDT-trades-2024-06-01.csv", Some("1000PEPEUSDT")),
        (
            "derived_vision_BTCUSDT-trades-capture-20240808.csv.gz",
            Some("BTCUSDT"),
        ),
        ("größe-trades-x.csv", None),
        ("üBTC-trades-x.csv", Some("BTC")),
        ("trades.csv", None),
        ("", None),
    ] {
        assert_eq!(symbol_of(name), symbol, "{name}");
    }
}

struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "finlake-ingest-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[derive(Default)]
struct Memory(Vec<(Vec<u8>, Vec<u8>)>);

impl Out for Memory {
    fn send(&mut self, key: &[u8], value: &[u8]) -> Result<(), IngestError> {
        self.0.push((key.to_vec(), value.to_vec()));
        Ok(())
    }

    fn finish(&mut self) -> Result<(), IngestError> {
        Ok(())
    }
}

/// All trades, the broken lines, and the inputs for their counts.
fn read(paths: &[PathBuf], options: &IngestOptions) -> (Vec<OwnedTrade>, Vec<LineIssue>, Inputs) {
    let mut inputs = open_inputs(paths, options).unwrap_or_else(|e| panic!("{e}"));
    let (mut trades, mut issues) = (Vec::new(), Vec::new());
    for item in inputs.by_ref() {
        match item {
            Ok(trade) => trades.push(trade),
            Err(InputError::Line(issue)) => issues.push(issue),
            Err(InputError::Fatal(e)) => panic!("{e}"),
        }
    }
    (trades, issues, inputs)
}

fn trade_at(id: i64, ms: i64) -> String {
    TRADE
        .replace("3735683259", &id.to_string())
        .replace("1723161255342", &ms.to_string())
}

#[test]
fn broken_lines_are_reported_with_their_number_and_counted() {
    let folder = Folder::new();
    let text = format!(
        "wss://x <-> 1.0\n{}\n\nnonsense\n{}\n{{\"e\":\"kline\"}}\n{}",
        trade_at(1, 1_723_161_255_001),
        trade_at(2, 7),
        trade_at(3, 1_723_161_255_003)
    );
    let path = folder.file("capture.jsonl", text.as_bytes());
    let codec = Codec::offline();
    let options = IngestOptions::default();
    let mut out = Memory::default();
    let inputs = open_inputs(std::slice::from_ref(&path), &options).unwrap();
    let summary = run(inputs, &codec, &mut out, &options, &mut Quiet).unwrap();
    assert_eq!((summary.trades, summary.lines, summary.broken), (2, 7, 2));
    let lines: Vec<_> = summary.issues.iter().map(|issue| issue.line).collect();
    assert_eq!(lines, [4, 5]);
    assert!(summary.issues[0].to_string().contains("capture.jsonl:4: "));
    assert_eq!(
        summary.skipped,
        [("connection".to_owned(), 1), ("kline".to_owned(), 1)]
    );
    let ids: Vec<_> = out
        .0
        .iter()
        .map(|(key, value)| {
            assert_eq!(key, b"binance:BTCUSDT");
            codec.decode_tick(value).unwrap().trade_id
        })
        .collect();
    assert_eq!(ids, [1, 3]);

    let strict = IngestOptions {
        strict: true,
        ..IngestOptions::default()
    };
    let inputs = open_inputs(&[path], &strict).unwrap();
    match run(inputs, &codec, &mut Memory::default(), &strict, &mut Quiet) {
        Err(IngestError::Strict(issue)) => assert_eq!(issue.line, 4),
        other => panic!("{other:?}"),
    }
}

#[test]
fn limit_and_progress() {
    struct Last(Option<Position>);
    impl Progress for Last {
        fn position(&mut self, position: Position) {
            self.0 = Some(position);
        }
    }
    let folder = Folder::new();
    let text: String = (0..2_500)
        .map(|i| trade_at(i, 1_723_161_255_000 + i) + "\n")
        .collect();
    let path = folder.file("a.jsonl", text.as_bytes());
    let options = IngestOptions {
        limit: Some(1_200),
        ..IngestOptions::default()
    };
    let inputs = open_inputs(&[path], &options).unwrap();
    let mut last = Last(None);
    let summary = run(
        inputs,
        &Codec::offline(),
        &mut Memory::default(),
        &options,
        &mut last,
    )
    .unwrap();
    assert_eq!(summary.trades, 1_200);
    assert_eq!(summary.first_time, Some(1_723_161_255_000_000));
    assert_eq!(summary.last_time, Some(1_723_161_256_199_000));
    let last = last.0.unwrap();
    assert_eq!(
        (last.trades, last.bytes_total),
        (1_200, Some(text.len() as u64))
    );
    assert!(last.bytes_read > 0);
}

#[test]
fn files_are_merged_by_trade_time() {
    let folder = Folder::new();
    let write = |name: &str, stamps: &[i64], first: i64| {
        let text: String = stamps
            .iter()
            .enumerate()
            .map(|(i, ms)| trade_at(first + i as i64, 1_723_161_255_000 + ms) + "\n")
            .collect();
        folder.file(name, text.as_bytes())
    };
    let paths = [
        write("a", &[1, 4, 4, 9], 100),
        write("b", &[2, 4, 10], 200),
        folder.file("empty", b""),
        write("c", &[0], 300),
    ];
    let (trades, issues, _) = read(&paths, &IngestOptions::default());
    assert!(issues.is_empty());
    let ids: Vec<_> = trades.iter().map(|t| t.trade_id).collect();
    // Of one instant, the file given first goes first.
    assert_eq!(ids, [300, 100, 200, 101, 102, 201, 103, 202]);
}

#[test]
fn compression_is_told_by_content() {
    let folder = Folder::new();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(format!("{TRADE}\n").as_bytes()).unwrap();
    let mut bytes = gzip.finish().unwrap();
    // Appended archives are one stream.
    let whole = bytes.clone();
    bytes.extend_from_slice(&whole);
    let path = folder.file("not-named-so.txt", &bytes);
    assert_eq!(read(&[path], &IngestOptions::default()).0.len(), 2);
    let path = folder.file("named.gz", format!("\u{feff}{TRADE}").as_bytes());
    assert_eq!(read(&[path], &IngestOptions::default()).0.len(), 1);

    let cut = folder.file("cut.gz", &whole[..whole.len() - 9]);
    let result = open_inputs(&[cut], &IngestOptions::default());
    assert!(matches!(result.err(), Some(IngestError::Read { .. })));
    let zip = folder.file("a.zip", b"PK\x03\x04rest");
    let said = open_inputs(&[zip], &IngestOptions::default())
        .err()
        .unwrap()
        .to_string();
    assert!(said.contains("unpack"), "{said}");
}

#[test]
fn what_cannot_be_told_is_said() {
    let folder = Folder::new();
    let csv = folder.file("trades.csv", b"7,1.5,2,3.0,1723161255342,True,True\n");
    let said = open_inputs(std::slice::from_ref(&csv), &IngestOptions::default())
        .err()
        .unwrap()
        .to_string();
    assert!(said.contains("--symbol"), "{said}");
    let options = IngestOptions {
        symbol: Some("X".to_owned()),
        ..IngestOptions::default()
    };
    assert_eq!(&*read(&[csv], &options).0[0].symbol, "X");
    let text = folder.file("a.txt", b"hello\n");
    let said = open_inputs(&[text], &IngestOptions::default())
        .err()
        .unwrap()
        .to_string();
    assert!(said.contains("--format"), "{said}");
    let missing = open_inputs(&[folder.0.join("no")], &IngestOptions::default());
    assert!(matches!(missing.err(), Some(IngestError::Read { .. })));
}

#[test]
fn a_line_without_end_costs_one_issue() {
    let folder = Folder::new();
    let mut bytes = format!("{TRADE}\n").into_bytes();
    bytes.extend(std::iter::repeat_n(b'x', (17 << 20) + 5));
    bytes.extend_from_slice(format!("\n{TRADE}\n").as_bytes());
    let path = folder.file("long", &bytes);
    let (trades, issues, _) = read(&[path], &IngestOptions::default());
    assert_eq!((trades.len(), issues.len()), (2, 1));
    assert_eq!(issues[0].line, 2);
}

proptest! {
    #[test]
    fn no_line_panics(line in proptest::collection::vec(any::<u8>(), 0..300)) {
        let sources = sources();
        let _ = parse_line(&line, &sources);
        let _ = Layout::detect(&line);
        let _ = Layout::detect(b"7,1,2,3,1723161255342,True,True").map(|first| match first {
            FirstRow::Row(layout) | FirstRow::Header(layout) => layout.parse_row(&line, "S", &sources).is_ok(),
        });
        let _ = document::kraken(&line);
        let _ = document::rest(&line, Some("S"));
    }

    #[test]
    fn no_damaged_message_panics(
        at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>(),
    ) {
        let sources = sources();
        let mut line = format!("1723161254087896568 {{\"stream\":\"a@trade\",\"data\":{TRADE}}}").into_bytes();
        let at = at.index(line.len());
        line[at] = byte;
        let _ = parse_line(&line, &sources);
        let _ = parse_line(&line[..cut.index(line.len())], &sources);
    }
}

/// Recorded data stands beside the checkout and is not part of it.
fn recorded(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../shared/data")
        .join(name);
    if !path.exists() {
        println!("{} is not there: not checked", path.display());
        return None;
    }
    Some(path)
}

fn ids_are(trades: &[OwnedTrade], first: i64, last: i64) {
    assert_eq!(trades.len() as i64, last - first + 1);
    assert!(
        trades
            .iter()
            .zip(first..)
            .all(|(trade, id)| trade.trade_id == id)
    );
}

#[test]
fn spot_captures_give_every_trade() {
    for (file, symbol, first, last, lines) in [
        (
            "ws/hft_spot_btcusdt_20240808.jsonl.gz",
            "BTCUSDT",
            3_735_683_259,
            3_735_693_015,
            41_249,
        ),
        (
            "ws/hft_spot_ethusdt_20240808.jsonl.gz",
            "ETHUSDT",
            1_520_538_925,
            1_520_545_030,
            33_618,
        ),
    ] {
        let Some(path) = recorded(file) else { return };
        let (trades, issues, inputs) = read(&[path], &IngestOptions::default());
        assert_eq!(issues, []);
        ids_are(&trades, first, last);
        assert!(
            trades
                .iter()
                .all(|t| &*t.symbol == symbol && &*t.source == "binance")
        );
        assert!(
            trades
                .iter()
                .all(|t| t.ingest_time.is_some() && t.event_time.is_some())
        );
        assert_eq!(inputs.lines(), lines);
        let skipped: u64 = inputs.skipped().iter().map(|(_, count)| count).sum();
        assert_eq!(skipped + trades.len() as u64, lines);
        assert_eq!(Some(inputs.bytes_read()), inputs.bytes_total());
    }
}

#[test]
fn captures_merge_in_order() {
    let paths: Vec<_> = [
        "ws/hft_spot_btcusdt_20240808.jsonl.gz",
        "ws/hft_spot_ethusdt_20240808.jsonl.gz",
    ]
    .iter()
    .filter_map(|name| recorded(name))
    .collect();
    if paths.len() < 2 {
        return;
    }
    let (trades, _, _) = read(&paths, &IngestOptions::default());
    assert_eq!(trades.len(), 9_757 + 6_106);
    assert!(trades.is_sorted_by_key(|t| t.trade_time));
}

#[test]
fn aggregate_captures_of_futures_and_spot() {
    if let Some(path) = recorded("ws/cryptofeed_BINANCE_FUTURES.ws.txt") {
        let options = IngestOptions {
            source: Some("binance-usdm".to_owned()),
            ..IngestOptions::default()
        };
        let (trades, issues, inputs) = read(&[path], &options);
        assert_eq!((trades.len(), issues.len()), (91, 0));
        assert!(trades.iter().all(|t| &*t.source == "binance-usdm.agg"));
        assert_eq!(trades.iter().filter(|t| t.tick().trades() > 1).count(), 27);
        let skipped: BTreeMap<_, _> = inputs.skipped().into_iter().collect();
        assert_eq!(skipped["kline"], 67);
    }
    if let Some(path) = recorded("ws/cryptofeed_BINANCE.ws.txt") {
        let (trades, issues, inputs) = read(&[path], &IngestOptions::default());
        assert_eq!((trades.len(), issues.len()), (2, 0));
        assert!(trades.iter().all(|t| &*t.source == "binance.agg"));
        let skipped: BTreeMap<_, _> = inputs.skipped().into_iter().collect();
        assert_eq!((skipped["kline"], skipped["connection"]), (2, 1));
    }
}

#[test]
fn documentation_samples_give_no_trade() {
    let Some(path) = recorded("ws/gct_binance_wsHandleData.docsample.jsonl") else {
        return;
    };
    let (trades, issues, inputs) = read(&[path], &IngestOptions::default());
    assert!(trades.is_empty());
    // Seven other events, and one trade whose stamp is made up (nine digits): reported.
    let skipped: u64 = inputs.skipped().iter().map(|(_, count)| count).sum();
    assert_eq!(skipped, 7);
    assert_eq!(issues.len(), 1);
    assert!(matches!(issues[0].fault, LineFault::Stamp { .. }));
}

#[test]
fn documents() {
    if let Some(path) = recorded("ws/nautilus_ws_spot_trade_with_order_ids.json") {
        let (trades, issues, _) = read(&[path], &IngestOptions::default());
        assert_eq!((trades.len(), issues.len()), (1, 0));
        assert_eq!(
            (trades[0].trade_id, &*trades[0].source),
            (705_291_099, "binance")
        );
    }
    if let Some(path) = recorded("trades/gct_binance_rest_trades_ETHBTC.json") {
        let (trades, issues, _) = read(&[path], &IngestOptions::default());
        assert_eq!((trades.len(), issues.len()), (1_000, 0));
        assert!(trades.iter().all(|t| &*t.symbol == "ETHBTC"));
    }
    if let Some(path) = recorded("trades/nautilus_binance_rest_trades.json") {
        let options = IngestOptions {
            symbol: Some("BTCUSDT".to_owned()),
            ..IngestOptions::default()
        };
        assert_eq!(read(&[path], &options).0.len(), 10);
    }
}

#[test]
fn archive_csv_and_capture_hold_the_same_trades() {
    let (Some(csv), Some(capture)) = (
        recorded("trades/derived_vision_BTCUSDT-trades-capture-20240808.csv.gz"),
        recorded("ws/hft_spot_btcusdt_20240808.jsonl.gz"),
    ) else {
        return;
    };
    let (from_csv, issues, _) = read(&[csv], &IngestOptions::default());
    assert_eq!(issues, []);
    let (from_capture, _, _) = read(&[capture], &IngestOptions::default());
    let plain: Vec<_> = from_capture
        .into_iter()
        .map(|trade| OwnedTrade {
            event_time: None,
            ingest_time: None,
            ..trade
        })
        .collect();
    assert_eq!(from_csv, plain);
}

/// P3: Kraken's trades folded into minutes are Kraken's own minutes.
#[test]
fn kraken_trades_make_krakens_minutes() {
    let (Some(trades), Some(bars)) = (
        recorded("pairs/kraken_XBTUSDT_trades.json"),
        recorded("pairs/kraken_XBTUSDT_ohlc_1m.json"),
    ) else {
        return;
    };
    let (trades, issues, _) = read(&[trades], &IngestOptions::default());
    assert_eq!(issues, []);
    ids_are(&trades, 10_218_208, 10_219_207);
    assert!(
        trades
            .iter()
            .all(|t| &*t.source == "kraken" && &*t.symbol == "XBTUSDT")
    );
    assert_eq!(trades[0].trade_time, 1_762_795_433_971_744);
    assert_eq!(trades[0].buyer_maker, Some(false));

    let mut minutes: BTreeMap<i64, Vec<&OwnedTrade>> = BTreeMap::new();
    for trade in &trades {
        let minute = trade.trade_time.div_euclid(60_000_000) * 60;
        minutes.entry(minute).or_default().push(trade);
    }
    let text = std::fs::read(bars).unwrap();
    let document: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let published: BTreeMap<i64, &serde_json::Value> = document["result"]["XBTUSDT"]
        .as_array()
        .unwrap()
        .iter()
        .map(|bar| (bar[0].as_i64().unwrap(), bar))
        .collect();
    let mut equal = 0;
    for (minute, trades) in &minutes {
        let prices = || trades.iter().map(|t| t.price);
        let volume = trades
            .iter()
            .try_fold(Dec8::ZERO, |sum, t| sum.checked_add(t.quantity))
            .unwrap();
        let ours = [
            prices().next().unwrap(),
            prices().max().unwrap(),
            prices().min().unwrap(),
            prices().next_back().unwrap(),
            volume,
        ];
        let bar = published[minute];
        let theirs = [1, 2, 3, 4, 6].map(|at| Dec8::parse(bar[at].as_str().unwrap()).unwrap());
        let count = bar[7].as_u64().unwrap() as usize;
        equal += usize::from(ours == theirs && count == trades.len());
    }
    // The recording begins and ends within a minute of its own.
    println!("{equal} of {} traded minutes", minutes.len());
    assert_eq!(equal, 273);
}
