//! Exact decimals on `i128`: prices and quantities ([`Dec8`], decimal(38,8)) and their products
//! ([`Dec16`], decimal(38,16)).
//!
//! Pure. Nothing here rounds except [`Dec16::div_half_even`] and the `to_f64` conversions that
//! Gold statistics use; everything else is exact or says that it cannot be.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// First unscaled value that does not fit 38 decimal digits.
const LIMIT: i128 = 100_000_000_000_000_000_000_000_000_000_000_000_000;

/// Why a text or a byte string is not a decimal of the asked scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DecimalError {
    /// Not of the form `[+-]digits[.digits]`; exponents are refused, not guessed.
    #[error("not a plain decimal number")]
    Syntax,
    /// Digits other than zero beyond the scale.
    #[error("more digits after the point than the scale holds")]
    Inexact,
    /// 38 digits do not hold it.
    #[error("does not fit 38 digits")]
    Overflow,
}

/// Scale 8, as Avro and Iceberg decimal(38,8). The field is the value × 10^8.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Dec8(pub i128);

/// Scale 16, as Avro and Iceberg decimal(38,16). The field is the value × 10^16.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Dec16(pub i128);

macro_rules! decimal {
    ($name:ident, $scale:literal) => {
        impl $name {
            /// Digits after the point.
            pub const SCALE: u32 = $scale;
            /// Zero.
            pub const ZERO: Self = Self(0);
            /// The largest value of 38 digits.
            pub const MAX: Self = Self(LIMIT - 1);

            /// Exact. Error if digits other than zero lie beyond the scale.
            pub fn parse(text: &str) -> Result<Self, DecimalError> {
                Self::parse_bytes(text.as_bytes())
            }

            /// As [`Self::parse`], from ASCII bytes.
            pub fn parse_bytes(text: &[u8]) -> Result<Self, DecimalError> {
                parse_scaled(text, $scale).map(Self)
            }

            /// From the unscaled value; error if it has more than 38 digits.
            pub fn from_unscaled(unscaled: i128) -> Result<Self, DecimalError> {
                if fits(unscaled) {
                    Ok(Self(unscaled))
                } else {
                    Err(DecimalError::Overflow)
                }
            }

            /// A whole number.
            pub const fn from_int(n: i64) -> Self {
                Self(n as i128 * 10i128.pow($scale))
            }

            /// `None` beyond 38 digits.
            #[inline]
            pub fn checked_add(self, other: Self) -> Option<Self> {
                let sum = self.0.checked_add(other.0)?;
                fits(sum).then_some(Self(sum))
            }

            /// `None` beyond 38 digits.
            #[inline]
            pub fn checked_sub(self, other: Self) -> Option<Self> {
                let difference = self.0.checked_sub(other.0)?;
                fits(difference).then_some(Self(difference))
            }

            /// Whether the value has at most 38 digits (the field is public).
            #[inline]
            pub fn in_range(self) -> bool {
                fits(self.0)
            }

            /// Nearest double, to within one unit in the last place; for statistics only.
            pub fn to_f64(self) -> f64 {
                self.0 as f64 / 10f64.powi($scale)
            }
        }

        impl FromStr for $name {
            type Err = DecimalError;
            fn from_str(text: &str) -> Result<Self, DecimalError> {
                Self::parse(text)
            }
        }

        /// Plain notation without trailing zeros; `{:#}` prints every digit of the scale.
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_scaled(f, self.0, $scale)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_scaled(f, self.0, $scale)
            }
        }

        /// As text: a JSON number would be read as a double.
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

decimal!(Dec8, 8);
decimal!(Dec16, 16);

impl Dec8 {
    /// Exact product; `None` beyond 38 digits.
    // Not `std::ops::Mul`: it can fail, and its type is another.
    #[allow(clippy::should_implement_trait)]
    #[inline]
    pub fn mul(self, other: Dec8) -> Option<Dec16> {
        let product = match (i64::try_from(self.0), i64::try_from(other.0)) {
            // i64 x i64 cannot leave i128, and one machine instruction does it.
            (Ok(a), Ok(b)) => i128::from(a) * i128::from(b),
            _ => self.0.checked_mul(other.0)?,
        };
        fits(product).then_some(Dec16(product))
    }

    /// The same value at scale 16; `None` beyond 38 digits.
    pub fn to_dec16(self) -> Option<Dec16> {
        let scaled = self.0.checked_mul(100_000_000)?;
        fits(scaled).then_some(Dec16(scaled))
    }
}

impl Dec16 {
    /// `self / divisor` at scale 8, rounded half to even: a volume-weighted average price from a
    /// quote volume and a volume. `None` if the divisor is zero or the result leaves 38 digits.
    pub fn div_half_even(self, divisor: Dec8) -> Option<Dec8> {
        if divisor.0 == 0 {
            return None;
        }
        // Scale 16 over scale 8 is scale 8: no rescaling, so no loss before the rounding.
        let quotient = self.0.checked_div(divisor.0)?;
        let remainder = self.0.checked_rem(divisor.0)?;
        let twice = remainder.unsigned_abs().checked_mul(2)?;
        let away = match twice.cmp(&divisor.0.unsigned_abs()) {
            std::cmp::Ordering::Less => false,
            std::cmp::Ordering::Greater => true,
            std::cmp::Ordering::Equal => quotient % 2 != 0,
        };
        let step = if (self.0 < 0) == (divisor.0 < 0) {
            1
        } else {
            -1
        };
        let rounded = if away {
            quotient.checked_add(step)?
        } else {
            quotient
        };
        fits(rounded).then_some(Dec8(rounded))
    }
}

#[inline]
fn fits(unscaled: i128) -> bool {
    unscaled.unsigned_abs() < LIMIT.unsigned_abs()
}

fn parse_scaled(text: &[u8], scale: u32) -> Result<i128, DecimalError> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        rest => (false, rest),
    };
    // Most numbers fit 18 digits: one u64 accumulator does them, without i128 arithmetic.
    let unscaled = match parse_short(digits, scale) {
        Some(value) => i128::from(value),
        None => parse_long(digits, scale)?,
    };
    Ok(if negative { -unscaled } else { unscaled })
}

/// `None` means "not decided here", never "wrong".
#[inline]
fn parse_short(digits: &[u8], scale: u32) -> Option<i64> {
    if digits.len() > 19 || digits.is_empty() {
        return None;
    }
    let mut value: u64 = 0;
    let mut point = None;
    for (at, &byte) in digits.iter().enumerate() {
        let digit = byte.wrapping_sub(b'0');
        if digit < 10 {
            // At most 19 digits: below 10^19 < 2^64.
            value = value * 10 + u64::from(digit);
        } else if byte == b'.' && point.is_none() && at > 0 {
            point = Some(at);
        } else {
            return None;
        }
    }
    let fraction = match point {
        Some(at) if at + 1 < digits.len() => digits.len() - at - 1,
        Some(_) => return None,
        None => 0,
    };
    let missing = scale.checked_sub(u32::try_from(fraction).ok()?)?;
    let scaled = value.checked_mul(10u64.checked_pow(missing)?)?;
    i64::try_from(scaled).ok()
}

fn parse_long(digits: &[u8], scale: u32) -> Result<i128, DecimalError> {
    let (whole, fraction) = match digits.iter().position(|&b| b == b'.') {
        Some(at) => (&digits[..at], &digits[at + 1..]),
        None => (digits, &digits[digits.len()..]),
    };
    let pointed = whole.len() < digits.len();
    let plain = |part: &[u8]| part.iter().all(u8::is_ascii_digit);
    if whole.is_empty() || (pointed && fraction.is_empty()) || !plain(whole) || !plain(fraction) {
        return Err(DecimalError::Syntax);
    }
    let scale = scale as usize;
    if fraction.iter().skip(scale).any(|&b| b != b'0') {
        return Err(DecimalError::Inexact);
    }
    let padding = scale.saturating_sub(fraction.len());
    let mut value: i128 = 0;
    for &byte in whole
        .iter()
        .chain(fraction.iter().take(scale))
        .chain(std::iter::repeat_n(&b'0', padding))
    {
        value = value
            .checked_mul(10)
            .and_then(|v| v.checked_add(i128::from(byte - b'0')))
            .filter(|&v| fits(v))
            .ok_or(DecimalError::Overflow)?;
    }
    Ok(value)
}

fn write_scaled(f: &mut fmt::Formatter<'_>, unscaled: i128, scale: u32) -> fmt::Result {
    let unit = 10u128.pow(scale);
    let magnitude = unscaled.unsigned_abs();
    let (whole, fraction) = (magnitude / unit, magnitude % unit);
    let mut text = format!("{whole}");
    if fraction != 0 || f.alternate() {
        text.push_str(&format!(".{fraction:0width$}", width = scale as usize));
        if !f.alternate() {
            text.truncate(text.trim_end_matches('0').len());
        }
    }
    f.pad_integral(unscaled >= 0, "", &text)
}

/// Reads the big-endian two's complement bytes of an Avro decimal.
///
/// # Errors
/// `Syntax` for no bytes at all, `Overflow` beyond 38 digits. Longer than 16 bytes is accepted
/// only where the excess is sign extension.
#[inline]
pub(crate) fn from_be_bytes(bytes: &[u8]) -> Result<i128, DecimalError> {
    let Some(&first) = bytes.first() else {
        return Err(DecimalError::Syntax);
    };
    let negative = first & 0x80 != 0;
    if let (4..=8, Some(head), Some(tail)) = (bytes.len(), bytes.first_chunk(), bytes.last_chunk())
    {
        // Two loads of four bytes; where they overlap they hold the same bits.
        let high = i64::from(i32::from_be_bytes(*head)) << (8 * (bytes.len() - 4));
        return Ok(i128::from(high | i64::from(u32::from_be_bytes(*tail))));
    }
    if bytes.len() < 4 {
        let mut value: i64 = if negative { -1 } else { 0 };
        for &byte in bytes {
            value = (value << 8) | i64::from(byte);
        }
        return Ok(i128::from(value));
    }
    let mut rest = bytes;
    let extension = if negative { 0xff } else { 0x00 };
    while rest.len() > 16 {
        if rest[0] != extension || (rest[1] & 0x80 != 0) != negative {
            return Err(DecimalError::Overflow);
        }
        rest = &rest[1..];
    }
    let mut value: i128 = if negative { -1 } else { 0 };
    for &byte in rest {
        value = (value << 8) | i128::from(byte);
    }
    if fits(value) {
        Ok(value)
    } else {
        Err(DecimalError::Overflow)
    }
}

/// Big-endian two's complement and where its shortest form starts.
#[inline]
pub(crate) fn to_be_bytes(unscaled: i128) -> ([u8; 16], usize) {
    let significant = (unscaled ^ (unscaled >> 127)).leading_zeros();
    // At least one bit is left for the sign, so 1 to 16 bytes.
    let start = (significant.saturating_sub(1) / 8) as usize;
    (unscaled.to_be_bytes(), start.min(15))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_unscaled() -> impl Strategy<Value = i128> {
        prop_oneof![
            -LIMIT + 1..LIMIT,
            -1_000_000_000_000_000i128..1_000_000_000_000_000,
            any::<i8>().prop_map(i128::from),
        ]
    }

    #[test]
    fn parses_what_exchanges_write() {
        assert_eq!(Dec8::parse("61837.63000000"), Ok(Dec8(6_183_763_000_000)));
        assert_eq!(Dec8::parse("0.00000001"), Ok(Dec8(1)));
        assert_eq!(Dec8::parse("0.000000010000"), Ok(Dec8(1)));
        assert_eq!(Dec8::parse("-2"), Ok(Dec8(-200_000_000)));
        assert_eq!(Dec8::parse("+2"), Ok(Dec8(200_000_000)));
        assert_eq!(
            Dec8::parse("999999999999999999999999999999.99999999"),
            Ok(Dec8::MAX)
        );
    }

    #[test]
    fn refuses_what_it_would_have_to_guess() {
        for text in [
            "", "-", ".", "1.", ".5", "1e5", "1,5", "1.2.3", " 1", "1 ", "--1", "0x1", "NaN", "1_0",
        ] {
            assert_eq!(Dec8::parse(text), Err(DecimalError::Syntax), "{text:?}");
        }
        assert_eq!(Dec8::parse("0.000000001"), Err(DecimalError::Inexact));
        assert_eq!(
            Dec8::parse("1000000000000000000000000000000"),
            Err(DecimalError::Overflow)
        );
    }

    #[test]
    fn displays_short_and_full() {
        assert_eq!(Dec8(6_183_763_000_000).to_string(), "61837.63");
        assert_eq!(format!("{:#}", Dec8(6_183_763_000_000)), "61837.63000000");
        assert_eq!(Dec8(-1).to_string(), "-0.00000001");
        assert_eq!(Dec8(0).to_string(), "0");
        assert_eq!(format!("{:#}", Dec8(0)), "0.00000000");
        assert_eq!(Dec16(1).to_string(), "0.0000000000000001");
        assert_eq!(Dec8::from_int(7).to_string(), "7");
    }

    #[test]
    fn rounds_half_to_even() {
        let vwap = |quote: i128, volume: i128| Dec16(quote).div_half_even(Dec8(volume));
        assert_eq!(vwap(5, 2), Some(Dec8(2)));
        assert_eq!(vwap(7, 2), Some(Dec8(4)));
        assert_eq!(vwap(-5, 2), Some(Dec8(-2)));
        assert_eq!(vwap(-7, 2), Some(Dec8(-4)));
        assert_eq!(vwap(8, 3), Some(Dec8(3)));
        assert_eq!(vwap(7, 3), Some(Dec8(2)));
        assert_eq!(vwap(1, 0), None);
        assert_eq!(vwap(0, 5), Some(Dec8(0)));
    }

    /// Schoolbook product of two magnitudes in base 10^9: an independent check on `mul`.
    fn product_digits(a: u128, b: u128) -> Vec<u32> {
        const BASE: u128 = 1_000_000_000;
        let limbs = |mut v: u128| {
            let mut out = Vec::new();
            while v > 0 {
                out.push(v % BASE);
                v /= BASE;
            }
            out
        };
        let (x, y) = (limbs(a), limbs(b));
        let mut out = vec![0u128; x.len() + y.len() + 1];
        for (i, p) in x.iter().enumerate() {
            for (j, q) in y.iter().enumerate() {
                out[i + j] += p * q;
            }
            for k in 0..out.len() - 1 {
                out[k + 1] += out[k] / BASE;
                out[k] %= BASE;
            }
        }
        while out.last() == Some(&0) {
            out.pop();
        }
        out.into_iter().map(|v| v as u32).collect()
    }

    proptest! {
        #[test]
        fn text_round_trip(v in any_unscaled()) {
            prop_assert_eq!(Dec8::parse(&Dec8(v).to_string()), Ok(Dec8(v)));
            prop_assert_eq!(Dec8::parse(&format!("{:#}", Dec8(v))), Ok(Dec8(v)));
            prop_assert_eq!(Dec16::parse(&Dec16(v).to_string()), Ok(Dec16(v)));
        }

        #[test]
        fn short_and_long_parsers_agree(whole in "[0-9]{1,12}", fraction in "[0-9]{0,9}") {
            let text = if fraction.is_empty() { whole } else { format!("{whole}.{fraction}") };
            if let Some(short) = parse_short(text.as_bytes(), 8) {
                prop_assert_eq!(parse_long(text.as_bytes(), 8), Ok(i128::from(short)));
            }
        }

        #[test]
        fn parsing_never_panics(text in "\\PC{0,60}") {
            let _ = Dec8::parse(&text);
        }

        #[test]
        fn avro_bytes_round_trip_and_are_shortest(v in any_unscaled()) {
            let (bytes, start) = to_be_bytes(v);
            prop_assert_eq!(from_be_bytes(&bytes[start..]), Ok(v));
            prop_assert_eq!(from_be_bytes(&bytes), Ok(v));
            if start < 15 {
                let shorter = from_be_bytes(&bytes[start + 1..]);
                prop_assert_ne!(shorter, Ok(v));
            }
            let mut padded = vec![if v < 0 { 0xff } else { 0 }; 9];
            padded.extend_from_slice(&bytes);
            prop_assert_eq!(from_be_bytes(&padded), Ok(v));
        }

        #[test]
        fn avro_bytes_of_any_length_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(v) = from_be_bytes(&bytes) {
                prop_assert!(fits(v));
            }
        }

        #[test]
        fn products_are_exact(a in any_unscaled(), b in any_unscaled()) {
            let digits = product_digits(a.unsigned_abs(), b.unsigned_abs());
            match Dec8(a).mul(Dec8(b)) {
                Some(product) => {
                    prop_assert_eq!(product_digits(product.0.unsigned_abs(), 1), digits);
                    prop_assert_eq!(product.0.signum(), a.signum() * b.signum());
                }
                None => prop_assert!(digits.len() > 4),
            }
        }

        #[test]
        fn division_is_nearest(n in any_unscaled(), d in any_unscaled()) {
            prop_assume!(d != 0);
            if let Some(q) = Dec16(n).div_half_even(Dec8(d)) {
                // |n - q d| <= |d| / 2, checked where the product fits.
                if let Some(back) = q.0.checked_mul(d) {
                    let error = (n - back).unsigned_abs();
                    prop_assert!(error * 2 <= d.unsigned_abs());
                    if error * 2 == d.unsigned_abs() {
                        prop_assert_eq!(q.0 % 2, 0);
                    }
                }
            }
        }
    }
}
