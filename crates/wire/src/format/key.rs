//! Keys as bytes: what decides partition, order and parking.

use headwater_core::{Error, Kind, Result, Row, Table};

use super::Contract;

/// Writes some columns of a row as a key: the text of a single column (`42`, `abc`), several columns as
/// a JSON array (`[1,"a"]`), with `table:` in front where several tables feed the stream. It is the
/// `headwater` format's message key, and the order key of every format.
#[derive(Debug, Clone)]
pub struct KeyWriter {}

impl KeyWriter {
    /// Prepares to write `columns` (the table's names) of the rows of `table`. A column that the table
    /// lacks is an error of kind `Contract`.
    pub fn new(contract: &Contract, columns: &[String], table: &Table) -> Result<Self> {
        columns.iter().try_for_each(|column| contract.locate(table, column).map(|_| ()))?;
        Ok(Self {})
    }

    /// Appends the key of a row. A column that the source did not send is an error of kind `Decode`.
    pub fn write(&self, _: &Row, _: &mut Vec<u8>) -> Result<()> {
        Err(Error::new(Kind::Internal, "not yet"))
    }
}
