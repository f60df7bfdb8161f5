//! What the catalog knows that the log does not say: primary keys, and types that are not built in.

use std::collections::HashMap;
use std::sync::Arc;

use headwater_core::{Column, ColumnType, Error, Field, Identity, Kind, Result, Table};
use headwater_wire::pgoutput::{Relation, ReplicaIdentity};

use super::client::{Connection, QueryRow, quote_literal};
use super::types::built_in;

/// Types may nest (arrays of composites of domains ...), but not without end.
const DEPTH: usize = 16;

/// Asks the catalog, and remembers what types are. As the log is older than the catalog, what is gone
/// there is taken as the log says it.
pub struct Catalog {
    connection: Connection,
    types: HashMap<u32, Known>,
}

/// What the catalog says of a type that is not built in.
#[derive(Debug, Clone)]
enum Known {
    Type(ColumnType),
    /// A domain: its base type's own identifier and modifier.
    Domain(u32, i32),
}

/// A column before its type is looked up.
pub struct RawColumn<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its type's object identifier.
    pub type_oid: u32,
    /// Its type's modifier.
    pub modifier: i32,
    /// Whether the log calls it part of the replica identity.
    pub identity: bool,
}

impl Catalog {
    /// A catalog that asks over `connection`.
    pub fn new(connection: Connection) -> Self {
        Self { connection, types: HashMap::new() }
    }

    /// The table that a Relation message describes, under the name (schema and name) that it has to us.
    pub async fn relation(
        &mut self,
        relation: &Relation<'_>,
        (schema, name): (&str, &str),
    ) -> Result<Arc<Table>> {
        let columns = relation.columns.iter().map(|column| RawColumn {
            name: column.name,
            type_oid: column.type_oid,
            modifier: column.modifier,
            identity: column.key,
        });
        let columns: Vec<RawColumn<'_>> = columns.collect();
        self.table(relation.oid, schema, name, relation.identity, &columns).await
    }

    /// A table of these columns.
    pub async fn table(
        &mut self,
        oid: u32,
        schema: &str,
        name: &str,
        identity: ReplicaIdentity,
        columns: &[RawColumn<'_>],
    ) -> Result<Arc<Table>> {
        // Under these the log does not say what the key is: every column is marked, or none. It is asked for
        // as it is now, which for a change from before the key was altered is another than it was then.
        let ask = matches!(identity, ReplicaIdentity::Full | ReplicaIdentity::Nothing);
        let keys = if ask { self.primary_key(oid).await? } else { Vec::new() };
        let mut described = Vec::with_capacity(columns.len());
        for column in columns {
            let key = if ask { keys.iter().any(|key| key == column.name) } else { column.identity };
            let ty = self.column_type(column.type_oid, column.modifier, DEPTH).await?;
            described.push(Column { name: column.name.to_owned(), ty, key });
        }
        let identity = match identity {
            ReplicaIdentity::Full => Identity::Full,
            ReplicaIdentity::Default if described.iter().any(|column| column.key) => Identity::Key,
            ReplicaIdentity::Index => Identity::Key,
            ReplicaIdentity::Default | ReplicaIdentity::Nothing => Identity::Nothing,
        };
        let (schema, name) = (schema.to_owned(), name.to_owned());
        Ok(Arc::new(Table { schema, name, columns: described, identity }))
    }

    async fn primary_key(&mut self, oid: u32) -> Result<Vec<String>> {
        let sql = format!(
            "select a.attname from pg_index i
             join pg_attribute a on a.attrelid = i.indrelid and a.attnum = any(i.indkey[0:i.indnkeyatts - 1])
             where i.indrelid = {oid} and i.indisprimary"
        );
        self.connection.query(&sql).await?.iter().map(|row| row.text(0).map(str::to_owned)).collect()
    }

    /// Whether it is this table that has the name (schema and name) now.
    pub async fn is_called(&mut self, oid: u32, (schema, name): (&str, &str)) -> Result<bool> {
        let sql = format!(
            "select from pg_class c join pg_namespace n on n.oid = c.relnamespace
             where c.oid = {oid} and n.nspname = {} and c.relname = {}",
            quote_literal(schema),
            quote_literal(name)
        );
        Ok(!self.connection.query(&sql).await?.is_empty())
    }

    /// Asks something else of the catalog.
    pub async fn query(&mut self, sql: &str) -> Result<Vec<QueryRow>> {
        self.connection.query(sql).await
    }

    async fn column_type(&mut self, oid: u32, modifier: i32, depth: usize) -> Result<ColumnType> {
        if let Some(ty) = built_in(oid, modifier) {
            return Ok(ty);
        }
        let known = match self.types.get(&oid) {
            Some(known) => known.clone(),
            None => {
                let known = Box::pin(self.look_up(oid, depth)).await?;
                self.types.insert(oid, known.clone());
                known
            }
        };
        match known {
            Known::Type(ty) => Ok(ty),
            Known::Domain(base, modifier) if depth > 0 => {
                Box::pin(self.column_type(base, modifier, depth - 1)).await
            }
            Known::Domain(..) => Err(too_deep(oid)),
        }
    }

    async fn look_up(&mut self, oid: u32, depth: usize) -> Result<Known> {
        if depth == 0 {
            return Err(too_deep(oid));
        }
        let sql = format!(
            "select t.typtype, format_type(t.oid, null), t.typbasetype, t.typtypmod, t.typelem, t.typcategory,
                 t.typrelid, e.extname, t.typname, t.typdelim
             from pg_type t
             left join pg_depend d on d.classid = 'pg_type'::regclass and d.objid = t.oid and d.deptype = 'e'
             left join pg_extension e on e.oid = d.refobjid
             where t.oid = {oid}"
        );
        let rows = self.connection.query(&sql).await?;
        let Some(row) = rows.first() else {
            // Dropped since: its text is passed on.
            return Ok(Known::Type(ColumnType::Other(format!("type {oid}"))));
        };
        // `box[]` has semicolons, `int2vector` and `oidvector` (22, 30) spaces where an array has commas.
        let array = row.text(5)? == "A" && row.text(9)? == "," && !matches!(oid, 22 | 30);
        Ok(Known::Type(match (row.text(0)?, row.text(8)?, row.get(7)) {
            ("d", ..) => return Ok(Known::Domain(row.number(2)?, row.number(3)?)),
            ("e", ..) => ColumnType::Enum,
            ("r" | "m", ..) => ColumnType::Range,
            ("c", ..) => self.composite(row.number(6)?, depth).await?,
            _ if array => {
                let element = Box::pin(self.column_type(row.number(4)?, -1, depth - 1)).await?;
                ColumnType::Array(Box::new(element))
            }
            (_, "hstore", Some("hstore")) => ColumnType::Hstore,
            (_, "citext", Some("citext")) => ColumnType::Text,
            _ => ColumnType::Other(row.text(1)?.to_owned()),
        }))
    }

    async fn composite(&mut self, relation: u32, depth: usize) -> Result<ColumnType> {
        let sql = format!(
            "select attname, atttypid, atttypmod from pg_attribute
             where attrelid = {relation} and attnum > 0 and not attisdropped order by attnum"
        );
        let mut fields = Vec::new();
        for row in self.connection.query(&sql).await? {
            let ty = Box::pin(self.column_type(row.number(1)?, row.number(2)?, depth - 1)).await?;
            fields.push(Field { name: row.text(0)?.to_owned(), ty });
        }
        Ok(ColumnType::Composite(fields.into()))
    }
}

fn too_deep(oid: u32) -> Error {
    Error::new(Kind::Decode, format!("type {oid} nests more than {DEPTH} levels deep"))
}
