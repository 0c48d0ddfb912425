//! Natural keys as Kafka record keys, and the surrogate ids made from them.
//!
//! Pure. Every function appends to a buffer of the caller's, so that a hot path reuses one.

use uuid::Uuid;

use crate::records::BreakKind;

/// Namespace of every FinLake surrogate id: UUIDv5 of the URL namespace and `urn:finlake`.
/// Frozen: tables hold ids made with it.
pub const NAMESPACE: Uuid = Uuid::from_u128(0x163211f9_f62b_5ffe_8e0b_ee48d8b2611a);

/// `source:symbol`.
#[inline]
pub fn input(source: &str, symbol: &str, out: &mut Vec<u8>) {
    out.reserve(source.len() + symbol.len() + 1);
    out.extend_from_slice(source.as_bytes());
    out.push(b':');
    out.extend_from_slice(symbol.as_bytes());
}

/// Whether `key` is `source:symbol`, without building it.
#[inline]
pub fn is_input(key: &[u8], source: &str, symbol: &str) -> bool {
    key.len() == source.len() + symbol.len() + 1
        && key.starts_with(source.as_bytes())
        && key[source.len()] == b':'
        && key.ends_with(symbol.as_bytes())
}

/// `source:symbol:interval:bar_start_us`.
pub fn bar(source: &str, symbol: &str, interval: &str, bar_start: i64, out: &mut Vec<u8>) {
    input(source, symbol, out);
    out.push(b':');
    out.extend_from_slice(interval.as_bytes());
    out.push(b':');
    push_i64(bar_start, out);
}

/// `source:symbol:YYYY-MM-DD`.
pub fn metrics(source: &str, symbol: &str, trade_date: i32, out: &mut Vec<u8>) {
    input(source, symbol, out);
    out.push(b':');
    out.extend_from_slice(iso_date(trade_date).as_bytes());
}

/// The task number as text.
pub fn ledger(task: i32, out: &mut Vec<u8>) {
    push_i64(i64::from(task), out);
}

/// UUIDv5 of a bar's natural key.
pub fn bar_id(source: &str, symbol: &str, interval: &str, bar_start: i64) -> [u8; 16] {
    let mut key = Vec::with_capacity(64);
    bar(source, symbol, interval, bar_start, &mut key);
    Uuid::new_v5(&NAMESPACE, &key).into_bytes()
}

/// UUIDv5 of a metrics record's natural key.
pub fn metrics_id(source: &str, symbol: &str, trade_date: i32) -> [u8; 16] {
    let mut key = Vec::with_capacity(64);
    metrics(source, symbol, trade_date, &mut key);
    Uuid::new_v5(&NAMESPACE, &key).into_bytes()
}

/// The text of a break's id: the key of `quality.breaks`.
pub fn breaks(break_id: [u8; 16], out: &mut Vec<u8>) {
    let mut text = Uuid::encode_buffer();
    let text = Uuid::from_bytes(break_id)
        .hyphenated()
        .encode_lower(&mut text);
    out.extend_from_slice(text.as_bytes());
}

/// UUIDv5 of what makes a break itself. The parts are separated by a zero byte, which none of
/// them can hold in good faith, so that no two breaks share an id by way of their spelling.
pub fn break_id(kind: BreakKind, layer: &str, table: &str, key: &str, cause: &str) -> [u8; 16] {
    let name = ["break", kind.as_str(), layer, table, key, cause].join("\0");
    Uuid::new_v5(&NAMESPACE, name.as_bytes()).into_bytes()
}

/// `YYYY-MM-DD` in the proleptic Gregorian calendar; years beyond 9999 or before 0 carry a sign,
/// as ISO 8601 wants it.
pub fn iso_date(days_since_1970: i32) -> String {
    let (year, month, day) = civil(days_since_1970);
    if (0..=9999).contains(&year) {
        format!("{year:04}-{month:02}-{day:02}")
    } else {
        format!("{year:+07}-{month:02}-{day:02}")
    }
}

/// RFC 3339 in UTC with microseconds, of microseconds since 1970; years as in [`iso_date`].
pub fn iso_instant(us: i64) -> String {
    const DAY: i64 = 86_400_000_000;
    let (days, within) = (us.div_euclid(DAY), us.rem_euclid(DAY));
    // Never beyond: an i64 of microseconds has 107 million days.
    let date = iso_date(i32::try_from(days).unwrap_or(i32::MAX));
    let (seconds, micros) = (within / 1_000_000, within % 1_000_000);
    let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{date}T{h:02}:{m:02}:{s:02}.{micros:06}Z")
}

/// Year, month and day of a day number, by eras of 400 years.
fn civil(days_since_1970: i32) -> (i64, i64, i64) {
    // Count from 0000-03-01, so that the leap day is the last of its year.
    let days = i64::from(days_since_1970) + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

fn push_i64(value: i64, out: &mut Vec<u8>) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut rest = value.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn namespace_is_what_it_says() {
        assert_eq!(
            NAMESPACE,
            Uuid::new_v5(&Uuid::NAMESPACE_URL, b"urn:finlake")
        );
    }

    #[test]
    fn keys_read_as_documented() {
        let mut key = Vec::new();
        bar("binance", "BTCUSDT", "1m", 1_723_161_300_000_000, &mut key);
        assert_eq!(key, b"binance:BTCUSDT:1m:1723161300000000");
        key.clear();
        metrics("binance", "BTCUSDT", 19_943, &mut key);
        assert_eq!(key, b"binance:BTCUSDT:2024-08-08");
        key.clear();
        ledger(3, &mut key);
        assert_eq!(key, b"3");
    }

    #[test]
    fn ids_are_frozen() {
        let id = bar_id("binance", "BTCUSDT", "1m", 1_723_161_300_000_000);
        assert_eq!(
            Uuid::from_bytes(id).to_string(),
            "60610ce3-11d5-5673-bede-da64b89d7f32"
        );
    }

    #[test]
    fn dates() {
        for (days, text) in [
            (0, "1970-01-01"),
            (-1, "1969-12-31"),
            (59, "1970-03-01"),
            (11_016, "2000-02-29"),
            (20_454, "2026-01-01"),
            (2_932_896, "9999-12-31"),
            (2_932_897, "+010000-01-01"),
        ] {
            assert_eq!(iso_date(days), text);
        }
        let _ = (iso_date(i32::MIN), iso_date(i32::MAX));
        for (us, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (-1, "1969-12-31T23:59:59.999999Z"),
            (1_767_571_200_002_003, "2026-01-05T00:00:00.002003Z"),
            (253_402_300_800_000_000, "+010000-01-01T00:00:00.000000Z"),
        ] {
            assert_eq!(iso_instant(us), text);
        }
        let _ = (iso_instant(i64::MIN), iso_instant(i64::MAX));
    }

    #[test]
    fn input_key_is_compared_whole() {
        assert!(is_input(b"a:b", "a", "b"));
        for key in [&b"a:c"[..], b"a:bb", b"aa:b", b"a-b", b"", b"b:a"] {
            assert!(!is_input(key, "a", "b"));
        }
    }

    proptest! {
        #[test]
        fn numbers_as_text(v in any::<i64>()) {
            let mut out = Vec::new();
            push_i64(v, &mut out);
            prop_assert_eq!(String::from_utf8(out).ok(), Some(v.to_string()));
        }

        #[test]
        fn dates_in_order(day in -700_000i32..2_900_000) {
            prop_assert!(iso_date(day) < iso_date(day + 1));
        }
    }
}
