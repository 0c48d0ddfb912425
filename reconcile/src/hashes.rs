//! One hash per row of a batch, over the columns asked for: names, whether a cell is null, bytes.
//!
//! Pure. Equal cells give equal hashes whoever built the batch, so a table's rows, rows rebuilt
//! from a topic and rows of a shadow table are compared without keeping them.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::DataType;
use finlake_schemas::hash128;

use crate::columns::BadColumn;

/// Hashes of the rows, over these columns in this order.
///
/// # Errors
/// A column that the batch does not have, or one of a type that no table of FinLake's has.
pub fn rows<'a>(
    batch: &RecordBatch,
    columns: impl IntoIterator<Item = &'a str>,
) -> Result<Vec<u128>, BadColumn> {
    let n = batch.num_rows();
    let mut rows = vec![0u128; n];
    for name in columns {
        let bad = || BadColumn(name.to_owned());
        let column = batch.column_by_name(name).ok_or_else(bad)?;
        let mut each = |i: usize, bytes: &[u8]| {
            // Order of columns is fixed, so a rotation keeps equal cells of two columns apart.
            rows[i] = rows[i].rotate_left(7);
            if column.is_valid(i) {
                rows[i] ^= hash128(name.as_bytes(), bytes);
            }
        };
        let data = column.to_data();
        match column.data_type() {
            t if t.primitive_width().is_some() => {
                let width = t.primitive_width().unwrap_or(1);
                let bytes = &data.buffers()[0].as_slice()[data.offset() * width..];
                for i in 0..n {
                    each(i, &bytes[i * width..(i + 1) * width]);
                }
            }
            DataType::Utf8 => {
                let texts = column.as_string::<i32>();
                for i in 0..n {
                    each(i, texts.value(i).as_bytes());
                }
            }
            DataType::Binary => {
                let bytes = column.as_binary::<i32>();
                for i in 0..n {
                    each(i, bytes.value(i));
                }
            }
            DataType::Boolean => {
                let flags = column.as_boolean();
                for i in 0..n {
                    each(i, &[u8::from(flags.value(i))]);
                }
            }
            _ => return Err(bad()),
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringArray};

    use super::*;

    fn batch(numbers: &[Option<i64>], texts: &[&str]) -> RecordBatch {
        let a: ArrayRef = Arc::new(Int64Array::from(numbers.to_vec()));
        let b: ArrayRef = Arc::new(StringArray::from(texts.to_vec()));
        RecordBatch::try_from_iter_with_nullable([("a", a, true), ("b", b, true)]).unwrap()
    }

    #[test]
    fn a_row_is_its_cells_wherever_it_stands() {
        let all = batch(&[Some(1), None, Some(0)], &["x", "y", "y"]);
        let hashes = rows(&all, ["a", "b"]).unwrap();
        let tail = rows(&all.slice(1, 2), ["a", "b"]).unwrap();
        assert_eq!(tail, hashes[1..]);
        assert_ne!(hashes[1], hashes[2], "null is not zero");
        assert_eq!(
            rows(&batch(&[Some(1)], &["x"]), ["a", "b"]).unwrap()[0],
            hashes[0]
        );
        let texts = rows(&all, ["b"]).unwrap();
        assert_eq!(texts[1], texts[2], "columns left out do not count");
        assert!(rows(&all, ["c"]).is_err());
    }
}
