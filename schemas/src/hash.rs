//! The content hash of records: order-independent, so that two readers of the same records agree
//! however they were batched.

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// xxh3_128 over key ‖ value. Sums of it wrap modulo 2^128.
#[inline]
pub fn hash128(key: &[u8], value: &[u8]) -> u128 {
    // One-shot hashing of a joined copy beats the streaming state by far for records this small,
    // and a trade fits the smaller copy, which costs less to clear.
    match key.len() + value.len() {
        0..=128 => joined::<128>(key, value),
        129..=1024 => joined::<1024>(key, value),
        _ => {
            let mut state = Xxh3::new();
            state.update(key);
            state.update(value);
            state.digest128()
        }
    }
}

/// `N` is at least the length of both.
#[inline]
fn joined<const N: usize>(key: &[u8], value: &[u8]) -> u128 {
    let mut copy = [0u8; N];
    let length = key.len() + value.len();
    copy[..key.len()].copy_from_slice(key);
    copy[key.len()..length].copy_from_slice(value);
    xxh3_128(&copy[..length])
}

/// A wrapping sum of [`hash128`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum128(pub u128);

impl Sum128 {
    /// Adds one record.
    #[inline]
    pub fn add(&mut self, key: &[u8], value: &[u8]) {
        self.0 = self.0.wrapping_add(hash128(key, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_ways_agree() {
        for length in [
            0usize, 1, 100, 128, 129, 240, 241, 1_023, 1_024, 1_025, 2_000,
        ] {
            let all: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
            for cut in [0, length / 3, length] {
                let (key, value) = all.split_at(cut);
                assert_eq!(hash128(key, value), xxh3_128(&all), "{length} cut at {cut}");
            }
        }
    }

    #[test]
    fn frozen() {
        // Ledger entries on disk hold this function's values: it must never change.
        assert_eq!(
            hash128(b"binance:BTCUSDT", b"value"),
            xxh3_128(b"binance:BTCUSDTvalue")
        );
        assert_eq!(hash128(b"", b""), 0x99aa06d3014798d86001c324468d497f);
    }

    #[test]
    fn sums_do_not_depend_on_order() {
        let (mut a, mut b) = (Sum128::default(), Sum128::default());
        a.add(b"k", b"1");
        a.add(b"k", b"2");
        b.add(b"k", b"2");
        b.add(b"k", b"1");
        assert_eq!(a, b);
    }
}
