//! Whatever statement runs, what the triggers wrote down, replayed, is what the table holds; and it ends as it
//! does in a database without them.

use std::collections::HashMap;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rusqlite::Connection;
use rusqlite::config::DbConfig;
use rusqlite::types::Value;

use super::install::bring_in_step;
use super::plan::Wanted;

/// The tables that are tried: each has `k`, `a`, `b` and `c`, and rows that conflict in several ways.
const TABLES: [(&str, &str); 10] = [
    ("integer key", "create table t (k integer primary key, a text collate nocase unique, b, c int)"),
    ("no key", "create table t (k, a, b, c)"),
    ("text key", "create table t (k text primary key, a, b unique, c, unique (a, c))"),
    (
        "without rowid",
        "create table t (k text collate nocase, a, b unique, c, primary key (k, a)) without rowid",
    ),
    ("one key without rowid", "create table t (k primary key, a unique, b, c) without rowid"),
    (
        "partial and expression indexes",
        "create table t (k integer primary key, a, b, c);
         create unique index i1 on t (lower(a) desc) where c > 0;
         create unique index i2 on t (b collate nocase, (c % 3));",
    ),
    (
        "generated columns",
        "create table t (k integer primary key, a, b, c int, g as (lower(a)) unique, s as (c + 1) stored)",
    ),
    (
        "a virtual column that is unique in part",
        "create table t (k integer primary key, g as (coalesce(a, 'none')), a, b, c int);
         create unique index i on t (g, c) where b > 0 or \"b\" is \"x\";",
    ),
    (
        "replace by declaration",
        "create table t (k integer primary key on conflict replace, a unique on conflict replace,
                         b not null on conflict replace default 2 unique on conflict ignore, c)",
    ),
    (
        "foreign keys",
        "create table t (k integer primary key, a unique, b references t (k) on delete cascade,
                         c references t (a) on delete set null deferrable initially deferred)",
    ),
];

/// How many random runs are tried of each; raise it for a longer search.
const SEEDS: u64 = 12;

#[test]
fn replayed_changes_are_the_table() {
    for (what, table) in TABLES {
        for seed in 0..SEEDS {
            for recursive in [false, true] {
                Trial::new(what, table, seed, recursive).run(60, "");
            }
        }
    }
}

#[test]
fn triggers_of_the_application_do_not_disturb() {
    let own = [
        (
            "touch",
            "create trigger touch after update on t begin update t set c = c + 1 where k = new.k and c < 3; end",
        ),
        (
            "fix",
            "create trigger fix after insert on t when new.c is null begin update t set c = 1 where k = new.k; end",
        ),
        (
            "gone",
            "create trigger gone after insert on t when new.c = 4 begin delete from t where k = new.k; end",
        ),
        (
            "instead",
            "create trigger instead before insert on t begin delete from t where a = new.a and c = 0; end",
        ),
        ("first", "create trigger first before insert on t begin update t set c = 2 where a = new.a; end"),
        ("skip", "create trigger skip before insert on t when new.c = 5 begin select raise(ignore); end"),
        (
            "again",
            "create trigger again after delete on t when old.c = 2 begin insert or ignore into t values (old.k, old.a, 9, 1); end",
        ),
    ];
    for (what, trigger) in own {
        for (_, table) in [TABLES[0], TABLES[4]] {
            for seed in 0..SEEDS / 2 {
                for recursive in [false, true] {
                    Trial::new(what, &format!("{table}; {trigger}"), seed, recursive).run(40, "");
                }
            }
        }
    }
}

/// A trigger made after Headwater's runs before them: then only the last change written counts.
#[test]
fn a_later_trigger_never_takes_a_row_back() {
    for seed in 0..SEEDS {
        let mut trial = Trial::new("later", TABLES[0].1, seed, false);
        trial.latest_only = true;
        let touch = "create trigger touch after update on t when new.c < 3
                     begin update t set c = c + 1 where k = new.k; end;
                     create trigger fix after insert on t when new.c is null
                     begin update t set c = 1 where k = new.k; end;";
        trial.run(60, touch);
    }
}

/// A row whose foreign key points at itself is updated again by the cascade, before its own AFTER trigger.
#[test]
fn a_cascade_to_the_row_itself_never_takes_it_back() {
    let table = "create table t (k integer primary key, a unique, b, c references t (a) on update cascade
                                 deferrable initially deferred)";
    for seed in 0..SEEDS {
        let mut trial = Trial::new("cascade to itself", table, seed, false);
        trial.latest_only = true;
        trial.run(60, "");
    }
}

/// A dump and its restore give other rowids to rows without an INTEGER PRIMARY KEY; notes keep the old ones.
#[test]
fn rowids_that_move_take_no_row_away() {
    for seed in 0..SEEDS * 4 {
        let table = "create table t (k text primary key not null, a, b unique, c, unique (a, c))";
        let mut trial = Trial::new("moving rowids", table, seed, seed % 2 == 0);
        trial.latest_only = true;
        for _ in 0..8 {
            trial.run(8, "");
            trial.restore();
        }
    }
}

/// Expressions of unique indexes may fail: they are asked only of rows that SQLite asks them of.
#[test]
fn expressions_that_would_fail_are_not_asked() {
    let table = "create table t (k integer primary key, a check (a is null or t.a <> 'no'), b, c);
                 create unique index i1 on t (json_extract(a, \"$[0]\")) where t.b = 1;
                 create unique index i2 on t (abs(c) desc, lower(\"a\")) where \"a\" is not \"bad\" and b <> 2;";
    let mut trial = Trial::new("failing expressions", table, 0, false);
    for sql in [
        "insert into t values (1, 'bad', 0, 0), (2, '[2]', 1, 0), (3, '[3]', 1, 0)",
        "insert into t values (4, 'worse', 0, 4), (5, 'bad', 0, -9223372036854775808)",
        "insert into t values (6, 'x', 2, -9223372036854775808), (7, 'y', 2, -9223372036854775808)",
        "update t set a = 'worst' where k = 1",
        "update t set b = 3 where k = 4",
        "update t set b = 1, a = '[4]' where k = 4",
        "insert or ignore into t values (8, 'no', 1, 8)",
        "insert or replace into t values (9, '[2]', 1, 9), (10, 'bad', 0, -9223372036854775808)",
        "update or replace t set b = 1, a = '[3]' where k = 9",
        "replace into t (a, b, c) values ('[4]', 1, 10)",
        "delete from t where b <> 1",
    ] {
        trial.execute(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
    assert!(trial.execute("insert into t values (12, 'bad', 1, 12)").is_err(), "SQLite asks of it");
}

/// A table of several million rows is not read for a row that is written.
#[test]
fn expressions_are_looked_up_by_their_index() {
    let table = "create table t (k integer primary key, a, b, c);
                 create unique index i on t (b, json_extract(a, '$.k')) where t.c is not null and b > 0;
                 create unique index j on t (lower(a));";
    let trial = Trial::new("plans", table, 0, false);
    trial.conn.set_db_config(DbConfig::SQLITE_DBCONFIG_TRIGGER_EQP, true).unwrap();
    for sql in ["insert into t values (1, 2, 3, 4)", "update t set a = 1 where k = 1"] {
        let mut statement = trial.conn.prepare(&format!("explain query plan {sql}")).unwrap();
        let steps = statement.query_map([], |row| row.get::<_, String>(3)).unwrap();
        let steps: Vec<String> = steps.map(Result::unwrap).collect();
        let searches = |index: &str| {
            steps.iter().any(|step| step.starts_with(&format!("SEARCH t USING INDEX {index} ")))
        };
        assert!(searches("i") && searches("j"), "{steps:#?}");
    }
}

struct Trial {
    what: String,
    conn: Connection,
    /// The same without triggers.
    alone: Connection,
    random: StdRng,
    latest_only: bool,
    log: Vec<String>,
}

type Rows = HashMap<String, i64>;

impl Trial {
    fn new(what: &str, tables: &str, seed: u64, recursive: bool) -> Self {
        let open = || {
            let conn = Connection::open_in_memory().unwrap();
            let switches = format!("pragma recursive_triggers = {recursive}; pragma foreign_keys = on");
            conn.execute_batch(&format!("{tables}; {switches}")).unwrap();
            // Strings in double quotes are strings in the schema only.
            conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false).unwrap();
            conn
        };
        let (mut conn, alone) = (open(), open());
        if recursive {
            // Any delete trigger, even one that does nothing, then makes some REPLACEs fail.
            alone.execute_batch("create trigger idle after delete on t begin select 1; end").unwrap();
        }
        let wanted = Wanted { tables: &["*".to_owned()], outbox: None, only: true, read: 0 };
        bring_in_step(&mut conn, wanted).unwrap();
        let what = format!("{what}, seed {seed}, recursive {recursive}");
        Self { what, conn, alone, random: StdRng::seed_from_u64(seed), latest_only: false, log: Vec::new() }
    }

    fn run(&mut self, statements: usize, later: &str) {
        self.conn.execute_batch(later).unwrap();
        self.alone.execute_batch(later).unwrap();
        for _ in 0..statements {
            let sql = self.statement();
            // Constraint violations are part of the game.
            let _ = self.execute(&sql);
        }
    }

    fn execute(&mut self, sql: &str) -> rusqlite::Result<usize> {
        let (result, alone) = (self.conn.execute(sql, []), self.alone.execute(sql, []));
        self.log.push(format!("{sql} -> {result:?}"));
        if result != alone {
            self.fail(&format!("without triggers {alone:?}"));
        }
        self.compare();
        result
    }

    /// Gives all rows other rowids, as a restored dump does.
    fn restore(&mut self) {
        for conn in [&self.conn, &self.alone] {
            conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false).unwrap();
            conn.execute_batch(
                "create temp table dump as select * from t order by rowid; delete from t;
                 insert into t select * from dump; drop table dump",
            )
            .unwrap();
            conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, true).unwrap();
        }
        self.log.push("restored".into());
    }

    fn value(&mut self) -> String {
        match self.random.random_range(0..9) {
            0 => "NULL".into(),
            1 => "'x'".into(),
            2 => "'X'".into(),
            3 => "'1'".into(),
            n => (n - 4).to_string(),
        }
    }

    fn row(&mut self) -> String {
        format!("({}, {}, {}, {})", self.value(), self.value(), self.value(), self.value())
    }

    fn statement(&mut self) -> String {
        let or = ["", "or replace", "or ignore", "or fail", "or abort", "or rollback"];
        let or = or[self.random.random_range(0..or.len())];
        let column = ["k", "a", "b", "c"][self.random.random_range(0..4)];
        let (value, other) = (self.value(), self.value());
        match self.random.random_range(0..10) {
            0..=3 => {
                let rows: Vec<String> = (0..self.random.random_range(1..4)).map(|_| self.row()).collect();
                format!("insert {or} into t (k, a, b, c) values {}", rows.join(", "))
            }
            4 => format!("insert into t (k, a, b, c) values {} on conflict do nothing", self.row()),
            5 => format!(
                "insert into t (k, a, b, c) values {} on conflict do update set {column} = excluded.{column}, c = {value}",
                self.row()
            ),
            6 => format!("insert {or} into t (k, a, b, c) select {value}, a, b, c from t limit 2"),
            7 => format!("update {or} t set {column} = {value} where c is {other} or k is {other}"),
            8 => format!("update {or} t set k = k + 1, {column} = {value}"),
            _ => format!("delete from t where {column} is {value}"),
        }
    }

    /// Replays all changes from the beginning and holds the outcome against the table.
    fn compare(&self) {
        let mut rows = Rows::new();
        let mut latest: HashMap<String, Option<String>> = HashMap::new();
        let columns = "select group_concat(name) from pragma_table_xinfo('t') where hidden <> 2";
        let columns: String = self.conn.query_row(columns, [], |row| row.get(0)).unwrap();
        let width = columns.split(',').count();
        for (op, row, key) in read(&self.conn, "select * from headwater_change order by id", 4, width) {
            if !self.latest_only {
                match op.as_str() {
                    "c" | "u" => *rows.entry(row.clone()).or_default() += 1,
                    _ => {
                        let count = rows.get_mut(&row).filter(|count| **count > 0);
                        *count.unwrap_or_else(|| self.fail(&format!("{op} of {row}, which is not there"))) -=
                            1;
                    }
                }
            }
            match op.as_str() {
                "d" | "b" => latest.insert(key, None),
                _ => latest.insert(key, Some(row)),
            };
        }
        if self.latest_only {
            latest.into_values().flatten().for_each(|row| *rows.entry(row).or_default() += 1);
        }
        rows.retain(|_, count| *count > 0);
        let mut table = Rows::new();
        let standing = format!("select 'x', 'x', 'x', 'x', {columns} from t");
        for (_, row, _) in read(&self.conn, &standing, 4, width) {
            *table.entry(row).or_default() += 1;
        }
        if rows != table {
            self.fail(&format!("replayed: {rows:#?}\nthe table: {table:#?}"));
        }
    }

    fn fail(&self, why: &str) -> ! {
        panic!("{}: {why}\nafter:\n{}", self.what, self.log.join("\n"));
    }
}

/// Each row's op, its values after the first `skip`, and the first of them.
fn read(conn: &Connection, sql: &str, skip: usize, width: usize) -> Vec<(String, String, String)> {
    let mut statement = conn.prepare(sql).unwrap();
    let rows = statement.query_map([], |row| {
        let value = |at: usize| row.get::<_, Value>(at).map(|value| format!("{value:?}"));
        let values: Vec<String> = (skip..skip + width).map(value).collect::<Result<_, _>>()?;
        Ok((row.get::<_, String>(2)?, values.join(" "), values[0].clone()))
    });
    rows.unwrap().map(Result::unwrap).collect()
}
