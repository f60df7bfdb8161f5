//! Keys as bytes: what decides partition, order and parking.

use headwater_core::{Result, Row, Table, Value};

use super::columns::{Exposed, Whose, named};
use super::contract::Contract;
use super::headwater::value;

/// Writes some columns of a row as a key: the text of a single column (`42`, `abc`), several columns as
/// a JSON array (`[1,"a"]`), with `table:` in front where several tables feed the stream. It is the
/// `headwater` format's message key, and the order key of every format.
///
/// A single column that is NULL is `[null]`. In a prefix, `:` and `\` have a `\` in front, so that no
/// key of one table reads as one of another.
#[derive(Debug, Clone)]
pub struct KeyWriter {
    prefix: Box<[u8]>,
    columns: Box<[Exposed]>,
    whose: Whose,
}

impl KeyWriter {
    /// Prepares to write `columns` (the table's names) of the rows of `table`. A column that the table
    /// lacks is an error of kind `Contract`.
    pub fn new(contract: &Contract, columns: &[String], table: &Table) -> Result<Self> {
        let mut prefix = Vec::new();
        if let Some(name) = &contract.key_prefix {
            for byte in name.bytes() {
                if matches!(byte, b':' | b'\\') {
                    prefix.push(b'\\');
                }
                prefix.push(byte);
            }
            prefix.push(b':');
        }
        let columns = named(contract, table, columns)?.into();
        Ok(Self { prefix: prefix.into(), columns, whose: Whose::new(contract, table) })
    }

    /// Whether there are no columns to make a key of.
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// Appends the key of a row. A column that the source did not send is an error of kind `Decode`.
    pub fn write(&self, row: &Row, out: &mut Vec<u8>) -> Result<()> {
        out.extend_from_slice(&self.prefix);
        if let [column] = &*self.columns {
            return match self.whose.key_value(row, column)? {
                Value::Bytes(kind, bytes) => {
                    let plain = value::plain(&column.ty, kind, bytes);
                    out.extend_from_slice(
                        &plain.map_err(|error| self.whose.malformed(error, &column.column))?,
                    );
                    Ok(())
                }
                _ => {
                    out.extend_from_slice(b"[null]");
                    Ok(())
                }
            };
        }
        out.push(b'[');
        for (index, column) in self.columns.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            match self.whose.key_value(row, column)? {
                Value::Bytes(kind, bytes) => value::write(out, &column.ty, kind, bytes)
                    .map_err(|error| self.whose.malformed(error, &column.column))?,
                _ => out.extend_from_slice(b"null"),
            }
        }
        out.push(b']');
        Ok(())
    }
}
