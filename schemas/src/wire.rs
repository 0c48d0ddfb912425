//! How single fields look in Avro: serde helpers for the derives in `records`.
//!
//! The codec hands serde schemas without logical types, so a decimal arrives here as the bytes it
//! is, with no decimal library of narrower range in between.

use serde::de::{self, Visitor};

use crate::decimal::{from_be_bytes, to_be_bytes};

/// Borrows the bytes of an Avro `bytes` or `fixed`.
pub(crate) struct BorrowedBytes;

impl<'de> Visitor<'de> for BorrowedBytes {
    type Value = &'de [u8];

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Avro bytes")
    }

    fn visit_borrowed_bytes<E: de::Error>(self, bytes: &'de [u8]) -> Result<&'de [u8], E> {
        Ok(bytes)
    }
}

macro_rules! decimal_bytes {
    ($module:ident, $name:ident) => {
        pub(crate) mod $module {
            use serde::{Deserializer, Serializer, de, ser};

            use super::{BorrowedBytes, from_be_bytes, to_be_bytes};
            use crate::decimal::$name;

            pub(crate) fn serialize<S: Serializer>(v: &$name, s: S) -> Result<S::Ok, S::Error> {
                if !v.in_range() {
                    return Err(ser::Error::custom("decimal of more than 38 digits"));
                }
                let (bytes, start) = to_be_bytes(v.0);
                s.serialize_bytes(&bytes[start..])
            }

            pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<$name, D::Error> {
                let bytes = d.deserialize_bytes(BorrowedBytes)?;
                from_be_bytes(bytes).map($name).map_err(de::Error::custom)
            }
        }
    };
}

decimal_bytes!(dec8, Dec8);
decimal_bytes!(dec16, Dec16);

/// A UUID as Avro text.
pub(crate) mod uuid_text {
    use serde::{Deserialize, Deserializer, Serializer, de};
    use uuid::Uuid;

    pub(crate) fn serialize<S: Serializer>(id: &[u8; 16], s: S) -> Result<S::Ok, S::Error> {
        let mut text = Uuid::encode_buffer();
        s.serialize_str(Uuid::from_bytes(*id).hyphenated().encode_lower(&mut text))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<[u8; 16], D::Error> {
        let text = <&'de str>::deserialize(d)?;
        Uuid::try_parse(text)
            .map(Uuid::into_bytes)
            .map_err(de::Error::custom)
    }
}

/// A 128-bit hash as Avro fixed(16), big-endian.
pub(crate) mod hash {
    use serde::{Deserializer, Serializer, de};

    use super::BorrowedBytes;

    pub(crate) fn serialize<S: Serializer>(hash: &u128, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(&hash.to_be_bytes())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<u128, D::Error> {
        let bytes = d.deserialize_bytes(BorrowedBytes)?;
        <[u8; 16]>::try_from(bytes)
            .map(u128::from_be_bytes)
            .map_err(de::Error::custom)
    }
}

macro_rules! pairs {
    ($module:ident, $name:literal, $value:literal) => {
        pub(crate) mod $module {
            use serde::{Deserialize, Deserializer, Serialize, Serializer};

            #[derive(Serialize)]
            struct Item<'a> {
                #[serde(rename = $name)]
                name: &'a str,
                #[serde(rename = $value)]
                value: i64,
            }

            #[derive(Deserialize)]
            struct OwnedItem {
                #[serde(rename = $name)]
                name: String,
                #[serde(rename = $value)]
                value: i64,
            }

            pub(crate) fn serialize<S: Serializer>(
                pairs: &[(String, i64)],
                s: S,
            ) -> Result<S::Ok, S::Error> {
                let items: Vec<_> = pairs
                    .iter()
                    .map(|(name, value)| Item {
                        name,
                        value: *value,
                    })
                    .collect();
                items.serialize(s)
            }

            pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
                d: D,
            ) -> Result<Vec<(String, i64)>, D::Error> {
                let items = Vec::<OwnedItem>::deserialize(d)?;
                Ok(items.into_iter().map(|i| (i.name, i.value)).collect())
            }
        }
    };
}

pairs!(stream_times, "source", "time");
pairs!(totals, "name", "value");
