//! Differences become assertions on `market.bars`: the live task compares what they expect with what it holds, and
//! alone gives out revision and system time.

use anyhow::{Context, Result};
use finlake_schemas::{Assertion, Codec, topics};

use super::compare::{Content, Difference, What};
use crate::config::Config;
use crate::ingest::{KafkaOut, Out};

/// What the assertions of replays say of where they come from.
pub const ORIGIN: &str = "replay";

/// Sends one assertion per differing bar; how many were sent. Gold follows by itself.
///
/// # Errors
/// Kafka does not take them. What was taken is harmless to send again.
pub fn send(
    config: &Config,
    codec: &Codec,
    differences: &[&Difference],
    reason: &str,
    now: i64,
) -> Result<usize> {
    let properties: Vec<(String, String)> =
        config.kafka.client_properties().0.into_iter().collect();
    let mut out = KafkaOut::new(&properties, topics::BARS)?;
    let mut sent = 0;
    for difference in differences {
        let row = match difference.what {
            What::Extra => difference.live.as_ref(),
            _ => difference.replayed.as_ref(),
        };
        let Some(Content::Bar(content)) = row.map(|r| &r.content) else {
            continue;
        };
        let (source, symbol, bar_interval, bar_start) = parse(&difference.key)?;
        let live = difference.live.as_ref();
        // The same correction of the same version is the same assertion.
        let version = live.map_or(0, |r| r.sys_from).to_be_bytes();
        let assertion = Assertion {
            assertion_id: finlake_schemas::hash128(&difference.key, &version).to_be_bytes(),
            source,
            symbol,
            bar_interval,
            bar_start,
            expected_sys_from: live.map(|r| r.sys_from),
            expected_revision: live.map(|r| r.revision),
            content: **content,
            retracted: difference.what == What::Extra,
            origin: ORIGIN,
            reason,
            sent_at: now,
        };
        let (mut key, mut value) = (Vec::new(), Vec::new());
        assertion.key(&mut key);
        codec.encode_assertion(&assertion, &mut value)?;
        out.send(&key, &value)?;
        sent += 1;
    }
    out.finish()?;
    Ok(sent)
}

/// source, symbol, interval and start (µs) of a bar's key.
fn parse(key: &[u8]) -> Result<(&str, &str, &str, i64)> {
    let text = std::str::from_utf8(key).context("a key that is not text")?;
    let mut parts = text.rsplitn(3, ':');
    let start = parts.next().and_then(|s| s.parse().ok());
    let interval = parts.next();
    let rest = parts.next().and_then(|r| r.split_once(':'));
    match (start, interval, rest) {
        (Some(start), Some(interval), Some((source, symbol))) => {
            Ok((source, symbol, interval, start))
        }
        _ => anyhow::bail!("{text} is not the key of a bar"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_taken_apart_as_it_was_put_together() {
        let mut key = Vec::new();
        finlake_schemas::keys::bar("binance", "BTCUSDT", "5m", 1_700_000_000_000_000, &mut key);
        let parts = parse(&key).unwrap();
        assert_eq!(parts, ("binance", "BTCUSDT", "5m", 1_700_000_000_000_000));
        assert!(parse(b"binance").is_err());
    }
}
