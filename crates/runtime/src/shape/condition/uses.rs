//! What an expression uses of a change.

use std::collections::{BTreeSet, HashSet};

use cel::IdedExpr;
use cel::common::ast::{EntryExpr, Expr, LiteralValue};

/// Names that an expression may use besides the change: CEL's types.
const TYPES: [&str; 11] =
    ["bool", "int", "uint", "double", "string", "bytes", "list", "map", "null_type", "type", "dyn"];

/// The columns an expression uses of one row.
#[derive(Default)]
pub struct Fields {
    /// Those it names.
    pub names: BTreeSet<String>,
    /// It uses the row as a whole: every column.
    pub open: bool,
}

/// What an expression uses of a change.
#[derive(Default)]
pub struct Uses {
    /// Of the row before.
    pub before: Fields,
    /// Of the row after.
    pub after: Fields,
    /// It asks whether a column is there, so a value that was not sent must not be left out.
    pub tests_presence: bool,
    /// A name that means nothing.
    pub unknown: Option<String>,
    names_before: bool,
    names_op: bool,
}

impl Uses {
    /// Walks an expression.
    pub fn of(expression: &IdedExpr) -> Self {
        let mut uses = Self::default();
        uses.walk(expression, &mut HashSet::new());
        uses
    }

    /// Whether it is about the change rather than about a row.
    pub fn of_change(&self) -> bool {
        self.names_before || self.names_op
    }

    fn walk<'a>(&mut self, expression: &'a IdedExpr, local: &mut HashSet<&'a str>) {
        match &expression.expr {
            Expr::Ident(name) => self.name(name, local),
            Expr::Select(select) => {
                if select.test {
                    self.tests_presence = true;
                }
                self.field(&select.operand, &select.field, local);
            }
            Expr::Call(call) => {
                if let (true, [operand, index]) = (call.func_name == "_[_]", &call.args[..])
                    && let Expr::Literal(LiteralValue::String(field)) = &index.expr
                {
                    return self.field(operand, field.inner(), local);
                }
                call.target.iter().for_each(|target| self.walk(target, local));
                call.args.iter().for_each(|arg| self.walk(arg, local));
            }
            Expr::Comprehension(loops) => {
                self.walk(&loops.iter_range, local);
                self.walk(&loops.accu_init, local);
                let names = [Some(&loops.iter_var), loops.iter_var2.as_ref(), Some(&loops.accu_var)];
                let mut inner = local.clone();
                inner.extend(names.into_iter().flatten().map(String::as_str));
                for part in [&loops.loop_cond, &loops.loop_step, &loops.result] {
                    self.walk(part, &mut inner);
                }
            }
            Expr::List(list) => list.elements.iter().for_each(|element| self.walk(element, local)),
            Expr::Map(map) => map.entries.iter().for_each(|entry| self.entry(&entry.expr, local)),
            Expr::Struct(made) => made.entries.iter().for_each(|entry| self.entry(&entry.expr, local)),
            Expr::Literal(_) | Expr::Unspecified => {}
        }
    }

    fn entry<'a>(&mut self, entry: &'a EntryExpr, local: &mut HashSet<&'a str>) {
        match entry {
            EntryExpr::StructField(field) => self.walk(&field.value, local),
            EntryExpr::MapEntry(entry) => {
                self.walk(&entry.key, local);
                self.walk(&entry.value, local);
            }
        }
    }

    /// `operand.field`: a column where the operand is a row.
    fn field<'a>(&mut self, operand: &'a IdedExpr, field: &str, local: &mut HashSet<&'a str>) {
        let row = match &operand.expr {
            Expr::Ident(name) if local.contains(name.as_str()) => None,
            Expr::Ident(name) if name == "after" => Some(&mut self.after),
            Expr::Ident(name) if name == "before" => {
                self.names_before = true;
                Some(&mut self.before)
            }
            _ => None,
        };
        match row {
            Some(row) => {
                row.names.insert(field.to_owned());
            }
            None => self.walk(operand, local),
        }
    }

    /// A name by itself.
    fn name(&mut self, name: &str, local: &HashSet<&str>) {
        match name {
            _ if local.contains(name) || name.starts_with('@') || TYPES.contains(&name) => {}
            "op" => self.names_op = true,
            "after" => self.whole(false),
            "before" => self.whole(true),
            _ => self.unknown = Some(name.to_owned()),
        }
    }

    /// A row by itself: `before == null` needs no column, but `size(after)` needs them all.
    fn whole(&mut self, before: bool) {
        let row = if before { &mut self.before } else { &mut self.after };
        row.open = true;
        self.names_before |= before;
        self.tests_presence = true;
    }
}
