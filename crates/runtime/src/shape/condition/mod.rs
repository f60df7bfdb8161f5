//! A stream's condition: which rows belong to it.
//!
//! A condition over `after` alone says which rows the stream holds: it is asked of a row as it was and
//! as it became, so that a row which enters it is a create and one which leaves it a delete. A
//! condition that names `before` or `op` is asked once of the change itself, which passes or is dropped.

mod uses;
mod values;

use std::collections::HashMap;
use std::sync::Arc;

use cel::objects::{Key, Map};
use cel::{Context, Env, Program, Value as Cel};
use headwater_core::{Change, Error, Kind, Op, Result, Row, Table, Value};

use uses::{Fields, Uses};

/// What a condition says of a row or a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It holds.
    Yes,
    /// It does not hold.
    No,
    /// It cannot be told: this column's value was not sent.
    Unknown(Arc<str>),
    /// It cannot be evaluated, and why.
    Broken(String),
}

/// A condition, parsed once for its stream.
pub struct Condition {
    text: String,
    program: Program,
    uses: Uses,
    env: Arc<Env>,
}

impl Condition {
    /// Parses it. An error of kind `Config` for text that is not CEL or names something unknown.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = || Error::new(Kind::Config, format!("the condition `{text}` cannot be understood"));
        let program = Program::compile(text).map_err(|errors| wrong().because(errors.to_string()))?;
        let uses = Uses::of(program.expression());
        if let Some(unknown) = &uses.unknown {
            return Err(wrong()
                .because(format!("nothing is called \"{unknown}\""))
                .hint("a condition is about before.COLUMN, after.COLUMN and op"));
        }
        Ok(Self { text: text.to_owned(), program, uses, env: Arc::new(Env::stdlib()) })
    }

    /// The condition for the columns of one table. An error of kind `Contract` when it needs a column
    /// that the table lacks.
    pub fn bind(self: &Arc<Self>, table: &Arc<Table>) -> Result<Bound> {
        let columns = |fields: &Fields| -> Result<Vec<(usize, Arc<str>)>> {
            if fields.open {
                let named = table.columns.iter().enumerate();
                return Ok(named.map(|(at, column)| (at, Arc::from(column.name.as_str()))).collect());
            }
            let find = |name: &String| match table.column(name) {
                Some(at) => Ok((at, Arc::from(name.as_str()))),
                None => Err(self.lacks(name, table)),
            };
            fields.names.iter().map(find).collect()
        };
        let (before, after) = (columns(&self.uses.before)?, columns(&self.uses.after)?);
        Ok(Bound { condition: Arc::clone(self), table: Arc::clone(table), before, after })
    }

    fn lacks(&self, name: &str, table: &Table) -> Error {
        let doing = format!("the condition `{}` needs column {name} of {}", self.text, table.full_name());
        let error = Error::new(Kind::Contract, format!("{doing}, which has none"));
        let near = crate::names::nearest(name, table.columns.iter().map(|column| column.name.as_str()));
        match near {
            Some(near) => error.hint(format!("did you mean {near}?")),
            None => error.hint("change the stream's `where`"),
        }
    }
}

/// A condition for one shape of one table.
pub struct Bound {
    condition: Arc<Condition>,
    table: Arc<Table>,
    before: Vec<(usize, Arc<str>)>,
    after: Vec<(usize, Arc<str>)>,
}

/// What a condition makes of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It is no event.
    Drop,
    /// It is an event of this op.
    Pass(Op),
    /// It cannot be decided, and why.
    Undecided(String),
}

impl Bound {
    /// What becomes of a change of a row (never of a truncate).
    pub fn decide(&self, change: &Change) -> Decision {
        let decision = if self.condition.uses.of_change() {
            self.pass_or_drop(change)
        } else {
            self.enter_or_leave(change)
        };
        decision.unwrap_or_else(|why| Decision::Undecided(format!("{why} (`{}`)", self.condition.text)))
    }

    fn pass_or_drop(&self, change: &Change) -> Result<Decision, String> {
        let before = Rows { row: change.before.as_ref(), under: None };
        let after = Rows { row: change.after.as_ref(), under: change.before.as_ref() };
        match self.ask(change.op, before, after) {
            Verdict::Yes => Ok(Decision::Pass(change.op)),
            Verdict::No => Ok(Decision::Drop),
            other => Err(other.why_not()),
        }
    }

    fn enter_or_leave(&self, change: &Change) -> Result<Decision, String> {
        let none = Rows { row: None, under: None };
        let is = match &change.after {
            None => Verdict::No,
            after => self.ask(change.op, none, Rows { row: after.as_ref(), under: change.before.as_ref() }),
        };
        let was = || match &change.before {
            None => None,
            before => match self.ask(change.op, none, Rows { row: before.as_ref(), under: None }) {
                Verdict::Yes => Some(true),
                Verdict::No => Some(false),
                // A row that could not be judged then may have been let in: it counts as not known.
                Verdict::Unknown(_) | Verdict::Broken(_) => None,
            },
        };
        Ok(match (change.op, is) {
            (_, verdict @ (Verdict::Unknown(_) | Verdict::Broken(_))) => return Err(verdict.why_not()),
            (Op::Read | Op::Create | Op::Truncate, Verdict::Yes) => Decision::Pass(change.op),
            (Op::Read | Op::Create | Op::Truncate, Verdict::No) => Decision::Drop,
            (Op::Update | Op::Delete, Verdict::Yes) if was() == Some(false) => Decision::Pass(Op::Create),
            (Op::Update | Op::Delete, Verdict::Yes) => Decision::Pass(change.op),
            (Op::Update | Op::Delete, Verdict::No) if was() == Some(false) => Decision::Drop,
            (Op::Update | Op::Delete, Verdict::No) => Decision::Pass(Op::Delete),
        })
    }

    fn ask(&self, op: Op, before: Rows<'_>, after: Rows<'_>) -> Verdict {
        let mut missing = None;
        let before = self.value(before, &self.before, &mut missing);
        let after = self.value(after, &self.after, &mut missing);
        let (before, after) = match (before, after) {
            (Ok(before), Ok(after)) => (before, after),
            (Err(why), _) | (_, Err(why)) => return Verdict::Broken(why),
        };
        if let (Some(column), true) = (&missing, self.condition.uses.tests_presence) {
            return Verdict::Unknown(Arc::clone(column));
        }
        let mut context = Context::with_env(Arc::clone(&self.condition.env));
        context.add_variable_from_value("before", before);
        context.add_variable_from_value("after", after);
        context.add_variable_from_value("op", op.as_str());
        match (self.condition.program.execute(&context), missing) {
            (Ok(Cel::Bool(true)), _) => Verdict::Yes,
            (Ok(Cel::Bool(false)), _) => Verdict::No,
            (Ok(other), _) => {
                Verdict::Broken(format!("the condition gave {other:?}, neither true nor false"))
            }
            (Err(_), Some(column)) => Verdict::Unknown(column),
            (Err(error), None) => Verdict::Broken(format!("the condition failed: {error}")),
        }
    }

    /// The row as a map of the columns the condition uses; those that were not sent are left out.
    fn value(
        &self,
        rows: Rows<'_>,
        columns: &[(usize, Arc<str>)],
        missing: &mut Option<Arc<str>>,
    ) -> Result<Cel, String> {
        if rows.row.is_none() {
            return Ok(Cel::Null);
        }
        let mut map = HashMap::with_capacity(columns.len());
        for (at, name) in columns {
            let Some(column) = self.table.columns.get(*at) else { continue };
            match rows.value(*at) {
                Value::Absent | Value::Unchanged => *missing = Some(Arc::clone(name)),
                value => {
                    let value =
                        values::cel(value, &column.ty).map_err(|why| format!("column {name}: {why}"))?;
                    map.insert(Key::String(Arc::new(name.to_string())), value);
                }
            }
        }
        Ok(Cel::Map(Map { map: Arc::new(map) }))
    }
}

/// A row, and the one that has the values which this one says are unchanged.
#[derive(Clone, Copy)]
struct Rows<'a> {
    row: Option<&'a Row>,
    under: Option<&'a Row>,
}

impl<'a> Rows<'a> {
    fn value(self, at: usize) -> Value<'a> {
        match (self.row.map_or(Value::Absent, |row| row.value(at)), self.under) {
            (Value::Unchanged, Some(under)) => under.value(at),
            (value, _) => value,
        }
    }
}

impl Verdict {
    fn why_not(self) -> String {
        match self {
            Self::Unknown(column) => {
                format!("the condition needs column {column}, whose value the source did not send")
            }
            Self::Broken(why) => why,
            Self::Yes | Self::No => String::new(),
        }
    }
}

#[cfg(test)]
mod tests;
