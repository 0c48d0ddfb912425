//! How one Rust type is written, read as our newest schema lays it out, and read as another
//! writer laid it out. Resolution follows the Avro specification: promotions of numbers, text for
//! bytes and bytes for text, unions on either side.

use uuid::Uuid;

use super::cursor::{Cursor, Fault, NO_BRANCH, UNFIT};
use super::plan::Wire;
use super::put;
use crate::decimal::{Dec8, Dec16, DecimalError, from_be_bytes};

/// A field's type.
pub(crate) trait Slot<'a>: Sized {
    /// What stands where the writer has no such field: the default of our schema, which is the
    /// zero of its type (a test looks).
    fn zero() -> Self;
    /// Reads what [`Slot::put`] wrote.
    fn own(c: &mut Cursor<'a>) -> Result<Self, Fault>;
    /// Reads what another schema's writer wrote.
    fn via(c: &mut Cursor<'a>, wire: &Wire) -> Result<Self, Fault>;
    /// Appends the value; `Overflow` if it does not fit its type. Something may stand in `out`
    /// then.
    fn put(&self, out: &mut Vec<u8>) -> Result<(), Fault>;
}

/// A record, see the macro in `records.rs`.
pub(crate) trait Record<'a>: Slot<'a> {
    /// Its fields in the order of our newest schema.
    #[cfg(test)]
    const FIELDS: &'static [&'static str];
    /// Reads a record that holds the first `fields` fields of our newest schema, as ours.
    fn prefix(c: &mut Cursor<'a>, fields: usize) -> Result<Self, Fault>;
}

/// Follows the writer's unions to the branch that was written.
#[inline]
pub(crate) fn branch<'w>(c: &mut Cursor<'_>, mut wire: &'w Wire) -> Result<&'w Wire, Fault> {
    while let Wire::Union(branches) = wire {
        wire = branches.get(c.index()?).ok_or(NO_BRANCH)?;
    }
    Ok(wire)
}

macro_rules! plain {
    ($type:ty, $zero:expr, $own:ident, |$value:ident, $out:ident| $put:expr, $($wire:pat => |$c:ident| $read:expr),+) => {
        impl<'a> Slot<'a> for $type {
            #[inline(always)]
            fn zero() -> Self {
                $zero
            }
            #[inline(always)]
            fn own(c: &mut Cursor<'a>) -> Result<Self, Fault> {
                c.$own()
            }
            fn via(c: &mut Cursor<'a>, wire: &Wire) -> Result<Self, Fault> {
                match branch(c, wire)? {
                    $($wire => { let $c = c; $read })+
                    _ => Err(UNFIT),
                }
            }
            #[inline(always)]
            fn put(&self, $out: &mut Vec<u8>) -> Result<(), Fault> {
                let $value = self;
                $put;
                Ok(())
            }
        }
    };
}

plain!(i64, 0, long, |v, out| put::long(*v, out),
    Wire::Long => |c| c.long(), Wire::Int => |c| c.int().map(i64::from));
plain!(i32, 0, int, |v, out| put::long(i64::from(*v), out), Wire::Int => |c| c.int());
plain!(bool, false, boolean, |v, out| out.push(u8::from(*v)), Wire::Boolean => |c| c.boolean());
plain!(f64, 0.0, double, |v, out| out.extend_from_slice(&v.to_le_bytes()),
    Wire::Double => |c| c.double(),
    Wire::Float => |c| c.float().map(f64::from),
    Wire::Int => |c| c.int().map(f64::from),
    // Avro promotes a long to a double, near enough.
    Wire::Long => |c| c.long().map(|v| v as f64));
plain!(&'a str, "", text, |v, out| put::bytes(v.as_bytes(), out),
    Wire::String | Wire::Bytes => |c| c.text());

impl<'a> Slot<'a> for String {
    fn zero() -> Self {
        String::new()
    }
    #[inline]
    fn own(c: &mut Cursor<'a>) -> Result<Self, Fault> {
        c.text().map(str::to_owned)
    }
    fn via(c: &mut Cursor<'a>, wire: &Wire) -> Result<Self, Fault> {
        <&str>::via(c, wire).map(str::to_owned)
    }
    #[inline]
    fn put(&self, out: &mut Vec<u8>) -> Result<(), Fault> {
        put::bytes(self.as_bytes(), out);
        Ok(())
    }
}

#[inline(always)]
fn unscaled(bytes: &[u8]) -> Result<i128, Fault> {
    match from_be_bytes(bytes) {
        Ok(value) => Ok(value),
        Err(DecimalError::Overflow) => Err(Fault::Overflow("")),
        Err(_) => Err(Fault::Bad("a decimal has no bytes")),
    }
}

macro_rules! decimal {
    ($type:ident) => {
        impl<'a> Slot<'a> for $type {
            #[inline(always)]
            fn zero() -> Self {
                $type(0)
            }
            #[inline(always)]
            fn own(c: &mut Cursor<'a>) -> Result<Self, Fault> {
                unscaled(c.bytes()?).map($type)
            }
            fn via(c: &mut Cursor<'a>, wire: &Wire) -> Result<Self, Fault> {
                let bytes = match branch(c, wire)? {
                    Wire::Bytes => c.bytes()?,
                    _ => return Err(UNFIT),
                };
                unscaled(bytes).map($type)
            }
            #[inline(always)]
            fn put(&self, out: &mut Vec<u8>) -> Result<(), Fault> {
                if !self.in_range() {
                    return Err(Fault::Overflow(""));
                }
                put::decimal(self.0, out);
                Ok(())
            }
        }
    };
}

decimal!(Dec8);
decimal!(Dec16);

/// A UUID, as Avro text.
impl<'a> Slot<'a> for [u8; 16] {
    fn zero() -> Self {
        [0; 16]
    }
    #[inline]
    fn own(c: &mut Cursor<'a>) -> Result<Self, Fault> {
        match Uuid::try_parse_ascii(c.bytes()?) {
            Ok(id) => Ok(id.into_bytes()),
            Err(_) => Err(Fault::Bad("a UUID is none")),
        }
    }
    fn via(c: &mut Cursor<'a>, wire: &Wire) -> Result<Self, Fault> {
        match branch(c, wire)? {
            Wire::String | Wire::Bytes => Self::own(c),
            _ => Err(UNFIT),
        }
    }
    #[inline]
    fn put(&self, out: &mut Vec<u8>) -> Result<(), Fault> {
        let mut text = Uuid::encode_buffer();
        let text = Uuid::from_bytes(*self).hyphenated().encode_lower(&mut text);
        put::bytes(text.as_bytes(), out);
        Ok(())
    }
}

/// A 128-bit hash, as fixed(16), big-endian.
impl<'a> Slot<'a> for u128 {
    fn zero() -> Self {
        0
    }
    #[inline]
    fn own(c: &mut Cursor<'a>) -> Result<Self, Fault> {
        c.chunk().map(|bytes| u128::from_be_bytes(*bytes))
    }
    fn via(c: &mut Cursor<'a>, wire: &Wire) -> Result<Self, Fault> {
        match branch(c, wire)? {
            Wire::Fixed(16) => Self::own(c),
            _ => Err(UNFIT),
        }
    }
    #[inline]
    fn put(&self, out: &mut Vec<u8>) -> Result<(), Fault> {
        out.extend_from_slice(&self.to_be_bytes());
        Ok(())
    }
}

/// A union of null and one type, null first.
impl<'a, T: Slot<'a>> Slot<'a> for Option<T> {
    #[inline(always)]
    fn zero() -> Self {
        None
    }
    #[inline(always)]
    fn own(c: &mut Cursor<'a>) -> Result<Self, Fault> {
        let branch = match c.rest {
            // One byte, nearly always; longer spellings of 0 and 1 are legal all the same.
            [byte @ (0 | 2), rest @ ..] => {
                c.rest = rest;
                usize::from(*byte >> 1)
            }
            _ => c.index()?,
        };
        match branch {
            0 => Ok(None),
            1 => T::own(c).map(Some),
            _ => Err(NO_BRANCH),
        }
    }
    fn via(c: &mut Cursor<'a>, wire: &Wire) -> Result<Self, Fault> {
        match branch(c, wire)? {
            Wire::Null => Ok(None),
            some => T::via(c, some).map(Some),
        }
    }
    #[inline(always)]
    fn put(&self, out: &mut Vec<u8>) -> Result<(), Fault> {
        match self {
            None => out.push(0),
            Some(value) => {
                out.push(2);
                value.put(out)?;
            }
        }
        Ok(())
    }
}

impl<'a, T: Slot<'a>> Slot<'a> for Vec<T> {
    fn zero() -> Self {
        Vec::new()
    }
    fn own(c: &mut Cursor<'a>) -> Result<Self, Fault> {
        array(c, T::own)
    }
    fn via(c: &mut Cursor<'a>, wire: &Wire) -> Result<Self, Fault> {
        match branch(c, wire)? {
            Wire::Array(items) => array(c, |c| T::via(c, items)),
            _ => Err(UNFIT),
        }
    }
    fn put(&self, out: &mut Vec<u8>) -> Result<(), Fault> {
        if !self.is_empty() {
            put::long(self.len() as i64, out);
            self.iter().try_for_each(|item| item.put(out))?;
        }
        out.push(0);
        Ok(())
    }
}

fn array<'a, T>(
    c: &mut Cursor<'a>,
    mut item: impl FnMut(&mut Cursor<'a>) -> Result<T, Fault>,
) -> Result<Vec<T>, Fault> {
    let mut items = Vec::new();
    loop {
        let count = c.block()?;
        if count == 0 {
            return Ok(items);
        }
        // Nothing is reserved for what a count promises: elements pay with their bytes.
        for _ in 0..count {
            items.push(item(c)?);
        }
    }
}

/// An enum whose symbols stand in our schema in the order of its variants.
macro_rules! enumeration {
    ($($type:ty),+) => {$(
        impl<'a> $crate::avro::slot::Slot<'a> for $type {
            #[inline(always)]
            fn zero() -> Self {
                <$type>::ALL[0]
            }
            #[inline(always)]
            fn own(c: &mut $crate::avro::Cursor<'a>) -> Result<Self, $crate::avro::Fault> {
                let at = c.index()?;
                <$type>::ALL.get(at).copied().ok_or($crate::avro::cursor::NO_BRANCH)
            }
            fn via(
                c: &mut $crate::avro::Cursor<'a>,
                wire: &$crate::avro::plan::Wire,
            ) -> Result<Self, $crate::avro::Fault> {
                match $crate::avro::slot::branch(c, wire)? {
                    $crate::avro::plan::Wire::Enum(ours) => {
                        let at = ours.get(c.index()?).ok_or($crate::avro::cursor::NO_BRANCH)?;
                        // A symbol that our schema does not have leads nowhere.
                        at.and_then(|at| <$type>::ALL.get(usize::from(at)).copied())
                            .ok_or($crate::avro::cursor::NO_BRANCH)
                    }
                    _ => Err($crate::avro::cursor::UNFIT),
                }
            }
            #[inline(always)]
            fn put(&self, out: &mut Vec<u8>) -> Result<(), $crate::avro::Fault> {
                out.push((*self as u8) << 1);
                Ok(())
            }
        }
    )+};
}
pub(crate) use enumeration;
