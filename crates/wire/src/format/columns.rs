//! The columns a contract exposes, found in a table.

use headwater_core::{ColumnType, Error, Kind, Result, Row, Table, Value};

use super::contract::Contract;
use super::json;
use super::malformed::Malformed;

/// A column that a contract names, with all that can be known before a row is seen.
#[derive(Debug, Clone)]
pub(super) struct Exposed {
    /// Its place in the table's rows.
    pub(super) at: usize,
    /// Its name in the table.
    pub(super) column: String,
    /// The name consumers see, as JSON with a comma in front and a colon behind.
    pub(super) field: Box<[u8]>,
    /// What its values are.
    pub(super) ty: ColumnType,
}

/// The stream and the table, for errors.
#[derive(Debug, Clone)]
pub(super) struct Whose {
    stream: String,
    table: String,
}

impl Whose {
    pub(super) fn new(contract: &Contract, table: &Table) -> Self {
        Self { stream: contract.stream.to_string(), table: table.full_name() }
    }

    /// The error of a value that is malformed.
    #[cold]
    pub(super) fn malformed(&self, malformed: Malformed, column: &str) -> Error {
        malformed.of(&self.stream, &self.table, column)
    }

    /// The value of a key column, which a row must have.
    pub(super) fn key_value<'r>(&self, row: &'r Row, key: &Exposed) -> Result<Value<'r>> {
        match row.value(key.at) {
            Value::Absent | Value::Unchanged => Err(self.no_key(&key.column)),
            value => Ok(value),
        }
    }

    #[cold]
    fn no_key(&self, column: &str) -> Error {
        let (stream, table) = (&self.stream, &self.table);
        Error::new(
            Kind::Decode,
            format!("stream {stream}: a row of {table} came without its key column \"{column}\""),
        )
        .hint(format!(
            "make the key part of the table's replica identity: ALTER TABLE {table} REPLICA IDENTITY FULL"
        ))
    }
}

/// The exposed columns, in the contract's order.
pub(super) fn exposed(contract: &Contract, table: &Table) -> Result<Vec<Exposed>> {
    contract.columns.iter().map(|(column, name)| find(contract, table, column, name)).collect()
}

/// The named columns, under the names consumers see.
pub(super) fn named(contract: &Contract, table: &Table, columns: &[String]) -> Result<Vec<Exposed>> {
    columns.iter().map(|column| find(contract, table, column, contract.exposed(column))).collect()
}

fn find(contract: &Contract, table: &Table, column: &str, name: &str) -> Result<Exposed> {
    let at = contract.locate(table, column)?;
    let ty = table.columns.get(at).map_or(ColumnType::Text, |column| column.ty.clone());
    Ok(Exposed { at, column: column.to_owned(), field: json::field(name), ty })
}
