//! Versioned values: one version byte, then a bincode body.
//!
//! State outlives the program that wrote it, in RocksDB and in the changelog topics. So every value
//! starts with the version of its layout, every version ever written stays readable, and the bytes
//! of each are frozen as hex fixtures in the tests of the type's owner. The body's encoding is fixed
//! here, once: bincode's standard configuration (little endian, variable-length integers). No other
//! module of the project chooses an encoding for state.
//!
//! To change a type: keep the old struct as `FooV1`, raise [`Versioned::VERSION`], read version 1
//! in [`Versioned::decode_body`] and convert, add a fixture for the new bytes, never edit an old one.

use bincode::config::{self, Config};
use bincode::enc::write::Writer;
use bincode::error::{DecodeError, EncodeError};
use bincode::{BorrowDecode, Decode, Encode};

/// The longest body that is decoded, in bytes. A damaged length field must not make us allocate
/// more than any honest value holds.
pub const MAX_BODY: usize = 64 << 20;

fn config() -> impl Config {
    config::standard().with_limit::<MAX_BODY>()
}

/// A value that could not be written or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error(
        "{what}: the value is empty, not even a version byte; rebuild the store from its changelog"
    )]
    Empty { what: &'static str },
    #[error(
        "{what}: version {found} is unknown, this program reads 1 to {known}; use the newer program that wrote it"
    )]
    Version {
        what: &'static str,
        found: u8,
        known: u8,
    },
    #[error(
        "{what}: version {version} does not decode ({detail}); rebuild the store from its changelog"
    )]
    Body {
        what: &'static str,
        version: u8,
        detail: String,
    },
    #[error("{what}: does not encode ({detail})")]
    Encode { what: &'static str, detail: String },
}

/// A type kept in a state store.
pub trait Versioned: Encode + Sized {
    /// Names the type in errors.
    const WHAT: &'static str;
    /// The version [`Versioned::to_bytes`] writes; 1 or more.
    const VERSION: u8;

    /// Reads the body of any version ever written; [`Body::unknown`] for all others.
    fn decode_body(body: Body<'_>) -> Result<Self, CodecError>;

    /// Appends version byte and body to `out`.
    fn encode_to(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        encode(Self::WHAT, Self::VERSION, self, out)
    }

    /// Version byte and body as a new vector.
    fn to_bytes(&self) -> Result<Vec<u8>, CodecError> {
        let mut out = Vec::new();
        self.encode_to(&mut out)?;
        Ok(out)
    }

    /// Reads what [`Versioned::encode_to`] of this or an earlier version wrote.
    fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        Self::decode_body(Body::open(Self::WHAT, Self::VERSION, bytes)?)
    }
}

/// A value's body with its version, not yet decoded.
#[derive(Debug, Clone, Copy)]
pub struct Body<'a> {
    what: &'static str,
    version: u8,
    known: u8,
    bytes: &'a [u8],
}

impl<'a> Body<'a> {
    /// Splits off the version byte. `known` is the newest version the caller reads.
    pub fn open(what: &'static str, known: u8, bytes: &'a [u8]) -> Result<Self, CodecError> {
        match bytes.split_first() {
            None => Err(CodecError::Empty { what }),
            Some((&version, bytes)) if (1..=known).contains(&version) => Ok(Self {
                what,
                version,
                known,
                bytes,
            }),
            Some((&found, _)) => Err(CodecError::Version { what, found, known }),
        }
    }

    /// The version the value was written with.
    pub fn version(&self) -> u8 {
        self.version
    }

    /// The error for a version that [`Versioned::decode_body`] has no arm for.
    pub fn unknown<T>(&self) -> Result<T, CodecError> {
        Err(CodecError::Version {
            what: self.what,
            found: self.version,
            known: self.known,
        })
    }

    /// Decodes the whole body; left-over bytes are an error.
    pub fn read<T: Decode<()>>(self) -> Result<T, CodecError> {
        self.whole(bincode::decode_from_slice(self.bytes, config()))
    }

    /// As [`Body::read`], for types that borrow from the value (no copy of strings and bytes).
    pub fn read_borrowed<T: BorrowDecode<'a, ()>>(self) -> Result<T, CodecError> {
        self.whole(bincode::borrow_decode_from_slice(self.bytes, config()))
    }

    fn whole<T>(self, decoded: Result<(T, usize), DecodeError>) -> Result<T, CodecError> {
        let detail = match decoded {
            Ok((value, used)) if used == self.bytes.len() => return Ok(value),
            Ok((_, used)) => format!("{} bytes left over", self.bytes.len() - used),
            Err(e) => e.to_string(),
        };
        Err(CodecError::Body {
            what: self.what,
            version: self.version,
            detail,
        })
    }
}

/// Appends `version` and the body of `value` to `out`. For types that do not own their parts and so
/// cannot be [`Versioned`]. On an error `out` is as before.
pub fn encode<T: Encode>(
    what: &'static str,
    version: u8,
    value: &T,
    out: &mut Vec<u8>,
) -> Result<(), CodecError> {
    let start = out.len();
    out.push(version);
    bincode::encode_into_writer(value, Append(out), config()).map_err(|e| {
        out.truncate(start);
        let detail = e.to_string();
        CodecError::Encode { what, detail }
    })
}

/// bincode's own `Vec` writer cannot append to a buffer that is handed in.
struct Append<'a>(&'a mut Vec<u8>);

impl Writer for Append<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

/// Lower-case hex, for fixtures.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, PartialEq, Encode, Decode)]
    struct CountV1 {
        count: u32,
    }

    #[derive(Debug, Clone, PartialEq, Encode, Decode)]
    struct Count {
        count: i128,
        label: String,
        last: Option<i64>,
    }

    impl Versioned for Count {
        const WHAT: &'static str = "count";
        const VERSION: u8 = 2;

        fn decode_body(body: Body<'_>) -> Result<Self, CodecError> {
            match body.version() {
                1 => body.read().map(|old: CountV1| Self {
                    count: i128::from(old.count),
                    label: String::new(),
                    last: None,
                }),
                2 => body.read(),
                _ => body.unknown(),
            }
        }
    }

    fn unhex(text: &str) -> Vec<u8> {
        (0..text.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap())
            .collect()
    }

    // Frozen: state written with these bytes is out there. Never edit a line, only add.
    const FIXTURES: &[(&str, i128, &str, Option<i64>)] = &[
        ("0107", 7, "", None),
        ("01fb2c01", 300, "", None),
        ("020e0361626301fc3fcbc3eb", 7, "abc", Some(-1_977_738_656)),
        ("02010000", -1, "", None),
        (
            "02fefeffffffffffffffffffffffffffffff0000",
            i128::MAX,
            "",
            None,
        ),
    ];

    #[test]
    fn frozen_bytes_still_read() {
        for &(hex, count, label, last) in FIXTURES {
            let want = Count {
                count,
                label: label.to_owned(),
                last,
            };
            assert_eq!(Count::from_bytes(&unhex(hex)), Ok(want), "{hex}");
        }
    }

    #[test]
    fn the_current_version_still_writes_the_frozen_bytes() {
        for &(text, count, label, last) in FIXTURES.iter().filter(|f| f.0.starts_with("02")) {
            let value = Count {
                count,
                label: label.to_owned(),
                last,
            };
            assert_eq!(hex(&value.to_bytes().unwrap()), text);
        }
    }

    #[test]
    fn unknown_versions_truncation_and_trailing_bytes_are_refused() {
        let good = unhex("020e0361626301fc3fcbc3eb");
        assert_eq!(
            Count::from_bytes(&[]),
            Err(CodecError::Empty { what: "count" })
        );
        for version in [0u8, 3, 255] {
            let mut bytes = good.clone();
            bytes[0] = version;
            assert_eq!(
                Count::from_bytes(&bytes),
                Err(CodecError::Version {
                    what: "count",
                    found: version,
                    known: 2
                })
            );
        }
        for cut in 1..good.len() {
            assert!(matches!(
                Count::from_bytes(&good[..cut]),
                Err(CodecError::Body { .. })
            ));
        }
        let mut long = good;
        long.push(0);
        let error = Count::from_bytes(&long).unwrap_err();
        assert!(error.to_string().contains("1 bytes left over"), "{error}");
    }

    #[test]
    fn a_damaged_length_does_not_allocate() {
        // The label claims 2^63 bytes.
        let bytes = unhex("020efd000000000000008000");
        assert!(matches!(
            Count::from_bytes(&bytes),
            Err(CodecError::Body { .. })
        ));
    }

    proptest! {
        #[test]
        fn round_trip(count in any::<i128>(), label in ".{0,40}", last in any::<Option<i64>>()) {
            let value = Count { count, label, last };
            let mut bytes = b"kept".to_vec();
            value.encode_to(&mut bytes).unwrap();
            prop_assert_eq!(&bytes[..4], b"kept");
            prop_assert_eq!(Count::from_bytes(&bytes[4..]), Ok(value));
        }

        #[test]
        fn any_bytes_decode_or_fail_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Count::from_bytes(&bytes);
        }
    }
}
