//! What a writer's schema means for a reader's record, worked out once per writer schema.

use std::collections::BTreeMap;

use apache_avro::Schema;
use apache_avro::schema::RecordSchema;

use super::cursor::{Cursor, Fault, NO_BRANCH};
use super::slot::Record;
use crate::codec::DecodeError;

/// How a value lies on the wire, and, inside of records, which field of ours it fills.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wire {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    String,
    Fixed(usize),
    /// The place of each of the writer's symbols among ours.
    Enum(Box<[Option<u8>]>),
    Union(Box<[Wire]>),
    Array(Box<Wire>),
    /// Of values; the keys are text.
    Map(Box<Wire>),
    Record(Box<[Step]>),
}

/// One field of the writer's, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    /// Place of the field in our newest schema; `None` where ours has none.
    pub(crate) field: Option<u16>,
    pub(crate) wire: Wire,
}

/// A writer's schema, ready to decode a record with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Field for field the first so many of our newest schema: every version of ours is.
    Own(usize),
    /// Anything else that can be resolved.
    Foreign(Wire),
}

impl Plan {
    /// Compiles a writer's record against our newest one, both without logical types. Whether
    /// ours can read it at all was asked before.
    ///
    /// # Errors
    /// Says what in the writer's schema is beyond us.
    pub(crate) fn new(writer: &Schema, reader: &Schema) -> Result<Plan, String> {
        if let (Schema::Record(theirs), Schema::Record(ours)) = (writer, reader)
            && is_prefix(theirs, ours)
        {
            return Ok(Plan::Own(theirs.fields.len()));
        }
        Plan::foreign(writer, reader)
    }

    pub(super) fn foreign(writer: &Schema, reader: &Schema) -> Result<Plan, String> {
        let mut compiler = Compiler {
            writer: names(writer),
            reader: names(reader),
            left: 10_000,
        };
        compiler
            .wire(writer, Some(reader), MAX_DEPTH)
            .map(Plan::Foreign)
    }

    /// Decodes a whole datum.
    #[inline(always)]
    pub(crate) fn decode<'a, T: Record<'a>>(
        &self,
        datum: &'a [u8],
        id: u32,
    ) -> Result<T, DecodeError> {
        let mut cursor = Cursor::new(datum);
        let record = match self {
            Plan::Own(fields) => T::prefix(&mut cursor, *fields),
            Plan::Foreign(wire) => T::via(&mut cursor, wire),
        };
        match record {
            Ok(record) if cursor.rest.is_empty() => Ok(record),
            Ok(_) => Err(failed(id, Fault::Bad("bytes after its end"))),
            Err(fault) => Err(failed(id, fault)),
        }
    }
}

#[cold]
fn failed(id: u32, fault: Fault) -> DecodeError {
    match fault {
        Fault::Bad(why) => DecodeError::Malformed {
            id,
            why: why.to_owned(),
        },
        Fault::Overflow(field) => DecodeError::Overflow { field },
    }
}

/// Nested types beyond this are refused, and with them recursive schemas, so that no datum can
/// recurse deeper than its schema is written.
const MAX_DEPTH: usize = 16;

fn is_prefix(theirs: &RecordSchema, ours: &RecordSchema) -> bool {
    theirs.fields.len() <= ours.fields.len()
        && theirs.fields.iter().zip(&ours.fields).all(|(t, o)| {
            t.name == o.name && t.schema.canonical_form() == o.schema.canonical_form()
        })
}

/// Every named type of a schema, by its full name.
fn names(schema: &Schema) -> BTreeMap<String, &Schema> {
    let mut all = BTreeMap::new();
    collect(schema, &mut all);
    all
}

fn collect<'s>(schema: &'s Schema, all: &mut BTreeMap<String, &'s Schema>) {
    if let Some(name) = schema.name() {
        if matches!(schema, Schema::Ref { .. }) {
            return;
        }
        all.insert(name.fullname(None).to_string(), schema);
    }
    match schema {
        Schema::Record(record) => {
            for field in &record.fields {
                collect(&field.schema, all);
            }
        }
        Schema::Array(array) => collect(&array.items, all),
        Schema::Map(map) => collect(&map.types, all),
        Schema::Union(union) => union.variants().iter().for_each(|v| collect(v, all)),
        _ => {}
    }
}

struct Compiler<'s> {
    writer: BTreeMap<String, &'s Schema>,
    reader: BTreeMap<String, &'s Schema>,
    /// Types that may still be laid out: a schema may refer to one type exponentially often.
    left: usize,
}

impl<'s> Compiler<'s> {
    /// `reader` is `None` for what is skipped.
    fn wire(
        &mut self,
        writer: &'s Schema,
        reader: Option<&'s Schema>,
        depth: usize,
    ) -> Result<Wire, String> {
        self.left = self.left.checked_sub(1).ok_or("it has too many types")?;
        let depth = depth
            .checked_sub(1)
            .ok_or("its types are nested too deeply, or refer to themselves")?;
        let writer = resolved(writer, &self.writer)?;
        let reader = match reader {
            Some(schema) => Some(resolved(schema, &self.reader)?),
            None => None,
        };
        Ok(match writer {
            Schema::Null => Wire::Null,
            Schema::Boolean => Wire::Boolean,
            Schema::Int => Wire::Int,
            Schema::Long => Wire::Long,
            Schema::Float => Wire::Float,
            Schema::Double => Wire::Double,
            Schema::Bytes => Wire::Bytes,
            Schema::String => Wire::String,
            Schema::Fixed(fixed) => Wire::Fixed(fixed.size),
            Schema::Enum(theirs) => {
                let ours = reader.and_then(|r| self.alike(r, |s| matches!(s, Schema::Enum(_))));
                let ours = match ours {
                    Some(Schema::Enum(ours)) => ours.symbols.as_slice(),
                    _ => &[],
                };
                let place = |symbol| {
                    let at = ours.iter().position(|o| o == symbol)?;
                    u8::try_from(at).ok()
                };
                Wire::Enum(theirs.symbols.iter().map(place).collect())
            }
            Schema::Union(union) => {
                let mut branches = Vec::with_capacity(union.variants().len());
                for variant in union.variants() {
                    branches.push(self.wire(variant, reader, depth)?);
                }
                Wire::Union(branches.into())
            }
            Schema::Array(array) => {
                let ours = reader.and_then(|r| self.alike(r, |s| matches!(s, Schema::Array(_))));
                let items = match ours {
                    Some(Schema::Array(ours)) => Some(&*ours.items),
                    _ => None,
                };
                Wire::Array(Box::new(self.wire(&array.items, items, depth)?))
            }
            Schema::Map(map) => Wire::Map(Box::new(self.wire(&map.types, None, depth)?)),
            Schema::Record(theirs) => {
                let ours = reader.and_then(|r| self.alike(r, |s| matches!(s, Schema::Record(_))));
                let ours = match ours {
                    Some(Schema::Record(ours)) => ours.fields.as_slice(),
                    _ => &[],
                };
                let mut steps = Vec::with_capacity(theirs.fields.len());
                for field in &theirs.fields {
                    let at = ours.iter().position(|o| o.name == field.name);
                    let reader = at.map(|at| &ours[at].schema);
                    steps.push(Step {
                        // Our records have a few dozen fields.
                        field: at.and_then(|at| u16::try_from(at).ok()),
                        wire: self.wire(&field.schema, reader, depth)?,
                    });
                }
                Wire::Record(steps.into())
            }
            other => return Err(format!("it holds {other:?}, which is not read here")),
        })
    }

    /// The reader's schema, or that branch of its union, which is of the writer's sort. Ours has
    /// at most one of each.
    fn alike(&self, reader: &'s Schema, fits: impl Fn(&Schema) -> bool) -> Option<&'s Schema> {
        match reader {
            Schema::Union(union) => union
                .variants()
                .iter()
                .filter_map(|v| resolved(v, &self.reader).ok())
                .find(|v| fits(v)),
            one => fits(one).then_some(one),
        }
    }
}

fn resolved<'s>(
    schema: &'s Schema,
    names: &BTreeMap<String, &'s Schema>,
) -> Result<&'s Schema, String> {
    match schema {
        Schema::Ref { name } => {
            let name = name.fullname(None).to_string();
            names
                .get(&name)
                .copied()
                .ok_or(format!("it refers to `{name}`, which it does not define"))
        }
        other => Ok(other),
    }
}

/// Steps over a value that no field of ours takes.
pub(crate) fn skip(c: &mut Cursor<'_>, wire: &Wire) -> Result<(), Fault> {
    match wire {
        Wire::Null => {}
        Wire::Boolean => drop(c.boolean()?),
        Wire::Int => drop(c.int()?),
        Wire::Long => drop(c.long()?),
        Wire::Float => drop(c.float()?),
        Wire::Double => drop(c.double()?),
        Wire::Bytes => drop(c.bytes()?),
        Wire::String => drop(c.text()?),
        Wire::Fixed(size) => drop(c.take(*size)?),
        Wire::Enum(symbols) => {
            if c.index()? >= symbols.len() {
                return Err(NO_BRANCH);
            }
        }
        Wire::Union(branches) => {
            let branch = branches.get(c.index()?).ok_or(NO_BRANCH)?;
            skip(c, branch)?;
        }
        Wire::Array(items) => loop {
            let count = c.block()?;
            if count == 0 {
                break;
            }
            for _ in 0..count {
                skip(c, items)?;
            }
        },
        Wire::Map(values) => loop {
            let count = c.block()?;
            if count == 0 {
                break;
            }
            for _ in 0..count {
                c.text()?;
                skip(c, values)?;
            }
        },
        Wire::Record(steps) => {
            for step in steps {
                skip(c, &step.wire)?;
            }
        }
    }
    Ok(())
}
