//! Reads Avro's primitives off a byte slice.

/// Why bytes are not what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Not a datum of its schema.
    Bad(&'static str),
    /// A decimal of more than 38 digits, in this field.
    Overflow(&'static str),
}

impl Fault {
    /// Names the field that overflowed, unless an inner one is named already.
    #[cold]
    pub(crate) fn at(self, field: &'static str) -> Fault {
        match self {
            Fault::Overflow("") => Fault::Overflow(field),
            other => other,
        }
    }
}

pub(crate) const TRUNCATED: Fault = Fault::Bad("it ends before its last field");
/// The writer's schema allows a branch that the reader's field cannot hold.
pub(crate) const UNFIT: Fault = Fault::Bad("a value of a type that its field cannot hold");

#[inline]
fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

pub(crate) struct Cursor<'a> {
    pub(crate) rest: &'a [u8],
    /// Elements of arrays and maps that may still come. No honest datum has more of them than
    /// bytes, so an invented count of elements without bytes costs nothing.
    elements: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(datum: &'a [u8]) -> Cursor<'a> {
        Cursor {
            rest: datum,
            elements: datum.len(),
        }
    }

    /// Zigzag varint of at most ten bytes.
    #[inline]
    pub(crate) fn long(&mut self) -> Result<i64, Fault> {
        let Some(&word) = self.rest.first_chunk::<8>() else {
            return self.long_by_bytes();
        };
        // Eight bytes at once: the first one without its high bit is the last of the number.
        let word = u64::from_le_bytes(word);
        let ends = !word & 0x8080_8080_8080_8080;
        if ends == 0 {
            return self.long_by_bytes();
        }
        let bits = ends.trailing_zeros();
        let length = (bits as usize + 1) / 8;
        let mut x = word & (u64::MAX >> (63 - bits)) & 0x7f7f_7f7f_7f7f_7f7f;
        // Close the gaps that the high bits leave, pairwise: 7 + 7, 14 + 14, 28 + 28 bits.
        x = (x & 0x007f_007f_007f_007f) | ((x & 0x7f00_7f00_7f00_7f00) >> 1);
        x = (x & 0x0000_3fff_0000_3fff) | ((x & 0x3fff_0000_3fff_0000) >> 2);
        x = (x & 0x0000_0000_0fff_ffff) | ((x & 0x0fff_ffff_0000_0000) >> 4);
        self.rest = &self.rest[length..];
        Ok(unzigzag(x))
    }

    fn long_by_bytes(&mut self) -> Result<i64, Fault> {
        let mut value: u64 = 0;
        for (at, &byte) in self.rest.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte & 0x80 == 0 {
                if at == 9 && byte > 1 {
                    break;
                }
                self.rest = &self.rest[at + 1..];
                return Ok(unzigzag(value));
            }
        }
        Err(Fault::Bad("a number is truncated or exceeds 64 bits"))
    }

    #[inline]
    pub(crate) fn int(&mut self) -> Result<i32, Fault> {
        i32::try_from(self.long()?).map_err(|_| Fault::Bad("a number exceeds 32 bits"))
    }

    #[inline]
    pub(crate) fn float(&mut self) -> Result<f32, Fault> {
        Ok(f32::from_le_bytes(*self.chunk()?))
    }

    #[inline]
    pub(crate) fn double(&mut self) -> Result<f64, Fault> {
        Ok(f64::from_le_bytes(*self.chunk()?))
    }

    /// Exactly `N` bytes.
    #[inline]
    pub(crate) fn chunk<const N: usize>(&mut self) -> Result<&'a [u8; N], Fault> {
        let (chunk, rest) = self.rest.split_first_chunk::<N>().ok_or(TRUNCATED)?;
        self.rest = rest;
        Ok(chunk)
    }

    #[inline]
    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8], Fault> {
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or(TRUNCATED)?;
        self.rest = rest;
        Ok(bytes)
    }

    /// A length, then as many bytes.
    #[inline]
    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], Fault> {
        let length = match self.rest {
            [byte, rest @ ..] if byte & 0x81 == 0 => {
                self.rest = rest;
                usize::from(*byte >> 1)
            }
            _ => usize::try_from(self.long()?).map_err(|_| Fault::Bad("a negative length"))?,
        };
        self.take(length)
    }

    #[inline]
    pub(crate) fn text(&mut self) -> Result<&'a str, Fault> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Fault::Bad("a text is not UTF-8"))
    }

    #[inline]
    pub(crate) fn boolean(&mut self) -> Result<bool, Fault> {
        match self.rest {
            [byte @ (0 | 1), rest @ ..] => {
                self.rest = rest;
                Ok(*byte == 1)
            }
            [] => Err(TRUNCATED),
            _ => Err(Fault::Bad("a boolean is neither 0 nor 1")),
        }
    }

    /// The number of a union's branch or of an enum's symbol.
    #[inline]
    pub(crate) fn index(&mut self) -> Result<usize, Fault> {
        match self.rest {
            // One byte, nearly always; longer spellings of small numbers are legal all the same.
            [byte, rest @ ..] if byte & 0x81 == 0 => {
                self.rest = rest;
                Ok(usize::from(*byte >> 1))
            }
            _ => usize::try_from(self.long()?).map_err(|_| NO_BRANCH),
        }
    }

    /// The element count of the next block of an array or a map; 0 ends it.
    pub(crate) fn block(&mut self) -> Result<usize, Fault> {
        let count = self.long()?;
        if count < 0 {
            // The block's size in bytes follows; the elements say it themselves.
            self.long()?;
        }
        let count = usize::try_from(count.unsigned_abs()).unwrap_or(usize::MAX);
        match self.elements.checked_sub(count) {
            Some(left) => {
                self.elements = left;
                Ok(count)
            }
            None => Err(Fault::Bad("more elements than bytes")),
        }
    }
}

pub(crate) const NO_BRANCH: Fault = Fault::Bad("a union or an enum has no such branch");
