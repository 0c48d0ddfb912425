//! Walks a request body by its layout and proves that every string, byte field and array in it
//! fits into the bytes that are there, before anything is allocated for it.
//!
//! It must never allocate in proportion to a number it read, and it bounds the total number of
//! array elements and tagged fields of a request, since each becomes a struct of some hundred
//! bytes once decoded. A layout is a string of tokens: `1 2 4 8 16` fixed bytes, `s` string,
//! `b` bytes, `[ … ]` array of structs, `( … )` array of plain values; `@a` or `@a-b` after a
//! token limits it to versions. Tagged fields at the end of each struct are implied in flexible
//! versions.

/// Most array elements and tagged fields that one request may hold in total.
const MAX_ELEMENTS: usize = 250_000;

#[derive(Debug)]
enum Kind {
    Fixed(usize),
    Str,
    Bytes,
    Structs(Vec<Field>),
    Values(Vec<Field>),
}

#[derive(Debug)]
struct Field {
    kind: Kind,
    min: i16,
    max: i16,
}

/// The parsed layout of one request type.
#[derive(Debug)]
pub struct Shape(Vec<Field>);

impl Shape {
    /// Parses a layout. Layouts are constants of this crate; an unknown token is taken as the end,
    /// which the round-trip test over all APIs would show.
    pub fn parse(layout: &str) -> Shape {
        let mut tokens = layout.split_whitespace();
        Shape(parse_fields(&mut tokens).0)
    }

    /// Checks a body. The error names the first thing that does not fit.
    pub fn check(&self, body: &[u8], version: i16, flexible: bool) -> Result<(), &'static str> {
        let mut walk = Walk {
            rest: body,
            version,
            flexible,
            elements: 0,
        };
        walk.structure(&self.0)
    }

    /// The bytes that the layout accounts for; only tests need it.
    #[cfg(test)]
    pub fn consumed(
        &self,
        body: &[u8],
        version: i16,
        flexible: bool,
    ) -> Result<usize, &'static str> {
        let mut walk = Walk {
            rest: body,
            version,
            flexible,
            elements: 0,
        };
        walk.structure(&self.0)?;
        Ok(body.len() - walk.rest.len())
    }
}

fn parse_fields<'a>(tokens: &mut impl Iterator<Item = &'a str>) -> (Vec<Field>, (i16, i16)) {
    let mut fields = Vec::new();
    while let Some(token) = tokens.next() {
        let (kind, range) = match token.split_once('@') {
            Some((k, r)) => (k, parse_range(r)),
            None => (token, (0, i16::MAX)),
        };
        let (kind, (min, max)) = match kind {
            "]" | ")" => return (fields, range),
            "s" => (Kind::Str, range),
            "b" => (Kind::Bytes, range),
            "[" => {
                let (inner, range) = parse_fields(tokens);
                (Kind::Structs(inner), range)
            }
            "(" => {
                let (inner, range) = parse_fields(tokens);
                (Kind::Values(inner), range)
            }
            n => match n.parse() {
                Ok(n) => (Kind::Fixed(n), range),
                Err(_) => return (fields, range),
            },
        };
        fields.push(Field { kind, min, max });
    }
    (fields, (0, i16::MAX))
}

fn parse_range(range: &str) -> (i16, i16) {
    match range.split_once('-') {
        Some((a, b)) => (a.parse().unwrap_or(0), b.parse().unwrap_or(i16::MAX)),
        None => (range.parse().unwrap_or(0), i16::MAX),
    }
}

struct Walk<'a> {
    rest: &'a [u8],
    version: i16,
    flexible: bool,
    elements: usize,
}

impl Walk<'_> {
    fn structure(&mut self, fields: &[Field]) -> Result<(), &'static str> {
        self.fields(fields)?;
        if self.flexible {
            let count = self.varint()?;
            self.count(count as usize)?;
            for _ in 0..count {
                self.varint()?;
                let size = self.varint()?;
                self.skip(size as usize)?;
            }
        }
        Ok(())
    }

    fn fields(&mut self, fields: &[Field]) -> Result<(), &'static str> {
        for field in fields {
            if self.version < field.min || self.version > field.max {
                continue;
            }
            match &field.kind {
                Kind::Fixed(n) => self.skip(*n)?,
                Kind::Str => {
                    let len = if self.flexible {
                        i64::from(self.varint()?) - 1
                    } else {
                        i64::from(self.i16()?)
                    };
                    self.skip_len(len)?;
                }
                Kind::Bytes => {
                    let len = if self.flexible {
                        i64::from(self.varint()?) - 1
                    } else {
                        i64::from(self.i32()?)
                    };
                    self.skip_len(len)?;
                }
                Kind::Structs(inner) => {
                    for _ in 0..self.array()? {
                        self.structure(inner)?;
                    }
                }
                Kind::Values(inner) => {
                    for _ in 0..self.array()? {
                        self.fields(inner)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn array(&mut self) -> Result<usize, &'static str> {
        let n = if self.flexible {
            i64::from(self.varint()?) - 1
        } else {
            i64::from(self.i32()?)
        };
        match n {
            -1 => Ok(0),
            n if n < 0 => Err("negative array length"),
            n => {
                let n = n as usize;
                if n > self.rest.len() {
                    return Err("array longer than the frame");
                }
                self.count(n)?;
                Ok(n)
            }
        }
    }

    fn count(&mut self, n: usize) -> Result<(), &'static str> {
        self.elements = self.elements.saturating_add(n);
        if self.elements > MAX_ELEMENTS {
            return Err("too many array elements");
        }
        Ok(())
    }

    fn skip_len(&mut self, len: i64) -> Result<(), &'static str> {
        match len {
            -1 => Ok(()),
            n if n < 0 => Err("negative length"),
            n => self.skip(n as usize),
        }
    }

    fn skip(&mut self, n: usize) -> Result<(), &'static str> {
        self.rest = self.rest.get(n..).ok_or("field longer than the frame")?;
        Ok(())
    }

    fn i16(&mut self) -> Result<i16, &'static str> {
        let (head, rest) = self
            .rest
            .split_first_chunk::<2>()
            .ok_or("frame too short")?;
        self.rest = rest;
        Ok(i16::from_be_bytes(*head))
    }

    fn i32(&mut self) -> Result<i32, &'static str> {
        let (head, rest) = self
            .rest
            .split_first_chunk::<4>()
            .ok_or("frame too short")?;
        self.rest = rest;
        Ok(i32::from_be_bytes(*head))
    }

    fn varint(&mut self) -> Result<u32, &'static str> {
        let mut value = 0u32;
        for i in 0..5 {
            let (&b, rest) = self.rest.split_first().ok_or("frame too short")?;
            self.rest = rest;
            value |= u32::from(b & 0x7f) << (i * 7);
            if b < 0x80 {
                return Ok(value);
            }
        }
        Err("varint longer than five bytes")
    }
}

/// The length of the tagged-field section that `bytes` starts with; None if it does not fit.
pub fn tagged_fields_len(bytes: &[u8]) -> Option<usize> {
    let mut walk = Walk {
        rest: bytes,
        version: 0,
        flexible: true,
        elements: 0,
    };
    walk.structure(&[]).ok()?;
    Some(bytes.len() - walk.rest.len())
}
