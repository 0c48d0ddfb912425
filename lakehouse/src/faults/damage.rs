//! Damage to a table from outside, as a broken engine or disk would do it: positions and authority
//! stay, rows or columns do not. For tests of what must find it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::RecordBatch;
use iceberg::TableUpdate;
use iceberg::spec::{NestedField, Operation, PrimitiveType, Schema, Type};

use crate::commit::{Change, Committed, Committer};
use crate::error::{LakeError, Result};
use crate::lake::Lakehouse;
use crate::split::Splitter;
use crate::tables::Table;
use crate::writer::FileWriter;

/// Puts other rows into the place of a data file, by a `replace` commit that leaves the table's
/// authority intact. `change` gets all rows and columns of the file and returns rows of the same
/// columns. Returns the new file; `None` if no rows were left.
///
/// # Errors
/// `Config` if the file is not live, `Conflict` if a sink interferes, and whatever `change` gives.
pub async fn tamper(
    lake: &Lakehouse,
    table: Table,
    path: &str,
    change: impl FnOnce(RecordBatch) -> Result<RecordBatch>,
) -> Result<Option<String>> {
    let mut committer = Committer::open(lake, table).await?;
    let metadata = committer.base().metadata();
    let files = FileWriter::new(lake, committer.def(), metadata)?;
    let splitter = Splitter::new(committer.def(), metadata)?;
    let file = committer
        .base()
        .files()
        .find(|f| f.path.as_ref() == path)
        .cloned()
        .ok_or_else(|| LakeError::Config(format!("{path} is no live file of {table}")))?;
    let rows = change(files.read(path, None).await?)?;
    let mut added = Vec::new();
    if rows.num_rows() > 0 {
        let dir = splitter.dir(&file.partition);
        let written = files
            .write(file.kind, file.partition.clone(), &dir, &[rows], false)
            .await?;
        added.push(Arc::new(written));
    }
    let new = added.first().map(|f| f.file_path().to_string());
    let change = Change {
        added,
        removed: BTreeSet::from([file.path.clone()]),
        operation: Operation::Replace,
        expected: BTreeMap::new(),
        positions: BTreeMap::new(),
        summary: HashMap::from([("finlake.kind".to_string(), "damage".to_string())]),
    };
    match committer.commit(&change).await? {
        Committed::Done(_) => Ok(new),
        Committed::Replan => Err(LakeError::Conflict { table, tries: 1 }),
    }
}

/// A change of a table's columns behind FinLake's back.
#[derive(Debug, Clone, PartialEq)]
pub enum Alteration {
    /// The column goes.
    Drop(String),
    /// The column gets another name and keeps its id, as an engine renames.
    Rename(String, String),
    /// The column gets another type and keeps its id.
    Retype(String, PrimitiveType),
    /// A column comes.
    Add(String, PrimitiveType),
}

/// Changes the columns of a table. Data files stay as they are.
///
/// # Errors
/// `Config` if there is no such column, `Storage` if Iceberg refuses the schema, `Conflict`.
pub async fn alter(lake: &Lakehouse, table: Table, alteration: &Alteration) -> Result<()> {
    for _ in 0..5 {
        let base = lake.existing(table).await?;
        let schema = base.metadata.current_schema();
        let mut known = matches!(alteration, Alteration::Add(..));
        let mut fields = Vec::new();
        for f in schema.as_struct().fields() {
            let mut field = (**f).clone();
            match alteration {
                Alteration::Drop(name) if *name == f.name => {
                    known = true;
                    continue;
                }
                Alteration::Rename(from, to) if *from == f.name => {
                    known = true;
                    field.name = to.clone();
                }
                Alteration::Retype(name, ty) if *name == f.name => {
                    known = true;
                    field.field_type = Box::new(Type::Primitive(ty.clone()));
                }
                _ => {}
            }
            fields.push(Arc::new(field));
        }
        if let Alteration::Add(name, ty) = alteration {
            let id = base.metadata.last_column_id() + 1;
            let ty = Type::Primitive(ty.clone());
            fields.push(Arc::new(NestedField::optional(id, name, ty)));
        }
        if !known {
            return Err(LakeError::Config(format!("{table} has no such column")));
        }
        let schema = Schema::builder().with_fields(fields).build()?;
        let updates = vec![
            TableUpdate::AddSchema { schema },
            // The one just added.
            TableUpdate::SetCurrentSchema { schema_id: -1 },
        ];
        if lake.update(table, &base, updates).await? {
            return Ok(());
        }
    }
    Err(LakeError::Conflict { table, tries: 5 })
}
