//! The indexes of the tables that Headwater makes: whether each is as it should be, and how its owner mends one while
//! a service is at work. What an earlier version made otherwise does its work, and reads more than it needs.

use headwater_core::Result;
use headwater_core::ports::Finding;
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::client::{Connection, Mode, QueryRow, quote_ident, quote_literal};
use super::inbox;
use super::outbox::{self, Names};
use super::url::ConnectOptions;

/// An index as `headwater init` makes it. Names are not quoted.
pub(super) struct Index {
    /// Its schema, and its table's.
    pub schema: String,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Its columns as the catalogue has them: `()` where it is no column but something computed.
    pub columns: &'static str,
    /// What is computed.
    pub computed: String,
    /// Of which rows it is.
    pub rows: Rows,
}

/// Which rows an index has.
#[derive(Clone, Copy)]
pub(super) enum Rows {
    All,
    /// Those with a key.
    Keyed,
    /// Those in these states.
    In(&'static [&'static str]),
}

impl Rows {
    /// As the catalogue has it; empty: all.
    fn printed(self) -> String {
        match self {
            Self::All => String::new(),
            Self::Keyed => "(key IS NOT NULL)".to_owned(),
            Self::In([state]) => format!("(state = '{state}'::text)"),
            Self::In(states) => {
                let states: Vec<String> = states.iter().map(|state| format!("'{state}'::text")).collect();
                format!("(state = ANY (ARRAY[{}]))", states.join(", "))
            }
        }
    }

    fn sql(self) -> String {
        match self {
            Self::All => String::new(),
            Self::Keyed => " WHERE key IS NOT NULL".to_owned(),
            Self::In([state]) => format!(" WHERE state = '{state}'"),
            Self::In(states) => format!(" WHERE state IN ('{}')", states.join("', '")),
        }
    }
}

impl Index {
    /// Makes it under a name; `how` stands before that.
    pub fn sql(&self, how: &str, name: &str) -> String {
        let columns = self.columns.replace("()", &self.computed);
        let rows = self.rows.sql();
        let (name, schema, table) = (quote_ident(name), quote_ident(&self.schema), quote_ident(&self.table));
        format!("CREATE INDEX {how}{name} ON {schema}.{table} ({columns}){rows}")
    }

    fn state(&self, name: &str, there: &[There]) -> State {
        let of = |there: &&There| there.schema == self.schema && there.name == name;
        match there.iter().find(of) {
            None => State::Missing,
            Some(there) if !there.valid => State::Invalid,
            Some(there) => {
                let is = (&*there.table, &*there.columns, &*there.rows);
                let right = is == (&*self.table, self.columns, &*self.rows.printed());
                if right { State::Right } else { State::Other }
            }
        }
    }

    /// What is wrong with it, and what mends it while others write to the table: the new one is made beside the old
    /// one. `None` where it is as it should be.
    fn finding(&self, there: &[There]) -> Option<Finding> {
        let aside = self.aside();
        let (state, beside) = (self.state(&self.name, there), self.state(&aside, there));
        let full = |name: &str| full(&self.schema, name);
        let (create, drop) = (
            |name: &str| self.sql("CONCURRENTLY ", name),
            |name: &str| format!("DROP INDEX CONCURRENTLY {}", full(name)),
        );
        let mut steps = Vec::new();
        match (state, beside) {
            (State::Right, _) => return None,
            (State::Missing, State::Missing) => steps.push(create(&self.name)),
            _ => {
                match beside {
                    State::Right => {}
                    State::Missing => steps.push(create(&aside)),
                    State::Invalid | State::Other => steps.extend([drop(&aside), create(&aside)]),
                }
                if state != State::Missing {
                    steps.push(drop(&self.name));
                }
                steps.push(format!("ALTER INDEX {} RENAME TO {}", full(&aside), quote_ident(&self.name)));
            }
        }
        let what = match state {
            State::Missing => "is missing",
            State::Invalid => "is not valid",
            _ => "is not as `headwater init` makes it",
        };
        let unless = if state == State::Invalid || beside == State::Invalid { UNLESS } else { "" };
        let hint = format!(
            "{unless}as the owner, each statement by itself and in no transaction; nobody is held up:\n{};",
            steps.join(";\n")
        );
        Some(Finding::warning(format!("the index {} {what}", full(&self.name)), hint))
    }

    /// How the new one is called until the old one is gone.
    fn aside(&self) -> String {
        format!("{}_new", self.name)
    }
}

/// What is not valid may be on its way.
const UNLESS: &str = "unless a CREATE INDEX CONCURRENTLY is at work: ";

/// How an index is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Missing,
    /// Left behind by a CREATE or DROP INDEX CONCURRENTLY that failed: nothing reads it.
    Invalid,
    Other,
    Right,
}

/// An index that is there.
pub(super) struct There {
    schema: String,
    table: String,
    name: String,
    columns: String,
    valid: bool,
    rows: String,
}

impl There {
    pub fn of_sqlx(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            schema: row.try_get(0)?,
            table: row.try_get(1)?,
            name: row.try_get(2)?,
            columns: row.try_get(3)?,
            valid: row.try_get(4)?,
            rows: row.try_get(5)?,
        })
    }

    fn of(row: &QueryRow) -> Result<Self> {
        let text = |at: usize| row.text(at).map(str::to_owned);
        Ok(Self {
            schema: text(0)?,
            table: text(1)?,
            name: text(2)?,
            columns: text(3)?,
            valid: row.is_true(4),
            rows: text(5)?,
        })
    }
}

/// Asks for the indexes of an outbox, where it is Headwater's own, and of every inbox of the database.
pub(super) fn question(outbox: Option<&Names>) -> String {
    let outbox = outbox.map(|names| {
        let (outbox, lease) = (quote_literal(&names.outbox()), quote_literal(&names.lease()));
        format!(" OR of.oid = CASE WHEN to_regclass({lease}) IS NOT NULL THEN to_regclass({outbox}) END")
    });
    format!(
        "SELECT nspname::text, of.relname::text, index.relname::text, \
         string_agg(coalesce(attname::text, '()'), ', ' ORDER BY at), indisvalid, \
         coalesce(pg_get_expr(indpred, indrelid), '') \
         FROM pg_index JOIN pg_class AS index ON index.oid = indexrelid JOIN pg_class AS of ON of.oid = indrelid \
         JOIN pg_namespace ON pg_namespace.oid = of.relnamespace \
         CROSS JOIN LATERAL unnest(indkey::smallint[]) WITH ORDINALITY AS part (number, at) \
         LEFT JOIN pg_attribute ON attrelid = indrelid AND attnum = number AND number > 0 \
         WHERE of.relname IN ('{}', '{}'){} GROUP BY 1, 2, 3, 5, 6 ORDER BY 1, 2, 3",
        inbox::TABLES[0],
        inbox::TABLES[1],
        outbox.unwrap_or_default()
    )
}

/// What is wrong with the indexes that are there, or should be.
pub(super) fn findings(outbox: Option<&Names>, there: &[There]) -> Vec<Finding> {
    let has =
        |schema: &str, table: &str| there.iter().any(|there| there.schema == schema && there.table == table);
    let mut wanted: Vec<Index> = outbox.map(outbox::indexes).into_iter().flatten().collect();
    let mut schemas: Vec<&str> = there.iter().map(|there| there.schema.as_str()).collect();
    schemas.dedup();
    wanted.extend(schemas.into_iter().flat_map(inbox::indexes));
    // Each table has one at least, of its primary key.
    wanted.retain(|index| has(&index.schema, &index.table));
    let (mut findings, mut named) = (Vec::new(), Vec::new());
    for index in &wanted {
        if let Some(finding) = index.finding(there) {
            findings.push(finding);
            named.extend([full(&index.schema, &index.name), full(&index.schema, &index.aside())]);
        }
    }
    let rest = there.iter().filter(|there| !there.valid).map(|there| full(&there.schema, &there.name));
    findings.extend(rest.filter(|name| !named.contains(name)).map(|name| {
        let hint = format!("{UNLESS}as the owner: DROP INDEX CONCURRENTLY {name};");
        Finding::warning(format!("the index {name} is not valid: nothing reads it"), hint)
    }));
    findings
}

/// Looks by a connection.
pub(super) async fn look(connection: &mut Connection, outbox: Option<&str>) -> Result<Vec<Finding>> {
    let outbox = outbox.map(Names::new);
    let rows = connection.query(&question(outbox.as_ref())).await?;
    let there: Vec<There> = rows.iter().map(There::of).collect::<Result<_>>()?;
    Ok(findings(outbox.as_ref(), &there))
}

/// What an owner has to mend in a database where the tables are made already: of an outbox, and of every inbox.
pub async fn to_mend(url: &ConnectOptions, outbox: Option<&str>) -> Result<Vec<Finding>> {
    let mut connection = Connection::connect(url, Mode::Sql).await?;
    look(&mut connection, outbox).await
}

fn full(schema: &str, name: &str) -> String {
    format!("{}.{}", quote_ident(schema), quote_ident(name))
}
