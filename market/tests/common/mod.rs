//! Reads recorded market data for tests. It is not part of the repository: where it is missing a
//! test says so and passes.

#![allow(dead_code)]

use std::io::Read;
use std::path::PathBuf;

use finlake_market::{Ohlcv, Point, Trade};
use finlake_schemas::{Dec8, Dec16};
use serde_json::Value;

/// Path of a recorded file, or `None` with a note on the terminal.
pub fn recorded(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../shared/data")
        .join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("NOT CHECKED: no recorded data at {}", path.display());
    None
}

/// A recorded file as text, unpacked if its name ends in `.gz`.
pub fn text(name: &str) -> Option<String> {
    let bytes = std::fs::read(recorded(name)?).unwrap();
    if name.ends_with(".gz") {
        let mut text = String::new();
        flate2::read::MultiGzDecoder::new(&bytes[..])
            .read_to_string(&mut text)
            .unwrap();
        return Some(text);
    }
    Some(String::from_utf8(bytes).unwrap())
}

/// JSON text or number as an exact decimal, by the digits that were sent.
pub fn dec(v: &Value) -> Dec8 {
    match v {
        Value::String(s) => Dec8::parse(s).unwrap(),
        other => Dec8::parse(&other.to_string()).unwrap(),
    }
}

pub fn trade(id: i64, time: i64, price: Dec8, quantity: Dec8, taker_buy: bool, n: i64) -> Trade {
    Trade {
        at: Point { time, id },
        price,
        quantity,
        quote: Dec16(price.0 * quantity.0),
        taker_buy,
        trades: n,
    }
}

pub fn fold<'a>(trades: impl IntoIterator<Item = &'a Trade>) -> Option<Ohlcv> {
    let mut trades = trades.into_iter();
    let mut bar = Ohlcv::of(trades.next()?);
    for t in trades {
        bar.fold(t).unwrap();
    }
    Some(bar)
}

/// A fixed scramble: the order of arrival must not matter.
pub fn shuffle<T>(list: &mut [T]) {
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    for i in (1..list.len()).rev() {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        list.swap(i, (seed % (i as u64 + 1)) as usize);
    }
}
