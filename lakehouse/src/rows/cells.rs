//! Columns under construction, cell by cell, for tables with few rows per commit.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryBuilder, BooleanBuilder, Date32Builder, Decimal128Builder, Float64Builder,
    Int32Builder, Int64Builder, StringBuilder, TimestampMicrosecondBuilder,
};

use crate::error::{LakeError, Result};
use crate::tables::{ColType, Table, instant_type};

/// A column.
pub(super) enum Cells {
    Str(StringBuilder),
    Int(Int32Builder),
    Long(Int64Builder),
    Bool(BooleanBuilder),
    Double(Float64Builder),
    Dec(Decimal128Builder),
    Instant(TimestampMicrosecondBuilder),
    Date(Date32Builder),
    Bytes(BinaryBuilder),
}

impl Cells {
    pub fn new(ty: ColType) -> Cells {
        match ty {
            ColType::Str => Cells::Str(StringBuilder::new()),
            ColType::Int => Cells::Int(Int32Builder::new()),
            ColType::Long => Cells::Long(Int64Builder::new()),
            ColType::Bool => Cells::Bool(BooleanBuilder::new()),
            ColType::Double => Cells::Double(Float64Builder::new()),
            ColType::Dec8 | ColType::Dec16 => {
                Cells::Dec(Decimal128Builder::new().with_data_type(ty.arrow()))
            }
            ColType::Instant => {
                Cells::Instant(TimestampMicrosecondBuilder::new().with_data_type(instant_type()))
            }
            ColType::Date => Cells::Date(Date32Builder::new()),
            ColType::Bytes => Cells::Bytes(BinaryBuilder::new()),
        }
    }

    pub fn finish(&mut self) -> ArrayRef {
        match self {
            Cells::Str(b) => Arc::new(b.finish()),
            Cells::Int(b) => Arc::new(b.finish()),
            Cells::Long(b) => Arc::new(b.finish()),
            Cells::Bool(b) => Arc::new(b.finish()),
            Cells::Double(b) => Arc::new(b.finish()),
            Cells::Dec(b) => Arc::new(b.finish()),
            Cells::Instant(b) => Arc::new(b.finish()),
            Cells::Date(b) => Arc::new(b.finish()),
            Cells::Bytes(b) => Arc::new(b.finish()),
        }
    }
}

/// One cell to be appended.
#[derive(Debug, Clone, Copy)]
pub(super) enum Cell<'a> {
    Str(&'a str),
    Text(Option<&'a str>),
    Int(i32),
    IntOrNull(Option<i32>),
    Long(i64),
    Bool(bool),
    BoolOrNull(Option<bool>),
    Double(Option<f64>),
    Dec(i128),
    DecOrNull(Option<i128>),
    Instant(Option<i64>),
    Date(Option<i32>),
    Bytes(Option<&'a [u8]>),
}

/// Appends a row.
///
/// # Errors
/// `Internal` if the cells are not the table's columns: a defect.
pub(super) fn push_row(table: Table, columns: &mut [Cells], cells: &[Cell<'_>]) -> Result<()> {
    if cells.len() != columns.len() {
        return Err(LakeError::Internal(format!(
            "{} cells for the {} columns of {table}",
            cells.len(),
            columns.len(),
        )));
    }
    for (i, (column, cell)) in columns.iter_mut().zip(cells).enumerate() {
        match (column, cell) {
            (Cells::Str(b), Cell::Str(v)) => b.append_value(v),
            (Cells::Str(b), Cell::Text(v)) => b.append_option(*v),
            (Cells::Int(b), Cell::Int(v)) => b.append_value(*v),
            (Cells::Int(b), Cell::IntOrNull(v)) => b.append_option(*v),
            (Cells::Long(b), Cell::Long(v)) => b.append_value(*v),
            (Cells::Bool(b), Cell::Bool(v)) => b.append_value(*v),
            (Cells::Bool(b), Cell::BoolOrNull(v)) => b.append_option(*v),
            (Cells::Double(b), Cell::Double(v)) => b.append_option(*v),
            (Cells::Dec(b), Cell::Dec(v)) => b.append_value(*v),
            (Cells::Dec(b), Cell::DecOrNull(v)) => b.append_option(*v),
            (Cells::Instant(b), Cell::Instant(v)) => b.append_option(*v),
            (Cells::Date(b), Cell::Date(v)) => b.append_option(*v),
            (Cells::Bytes(b), Cell::Bytes(v)) => b.append_option(*v),
            _ => {
                return Err(LakeError::Internal(format!(
                    "column {i} of {table} has another type"
                )));
            }
        }
    }
    Ok(())
}

/// The text of an id, in a buffer that is used again.
pub(super) fn uuid_text(scratch: &mut String, id: [u8; 16]) -> String {
    let mut out = std::mem::take(scratch);
    out.clear();
    let mut buffer = uuid::Uuid::encode_buffer();
    out.push_str(
        uuid::Uuid::from_bytes(id)
            .hyphenated()
            .encode_lower(&mut buffer),
    );
    out
}
