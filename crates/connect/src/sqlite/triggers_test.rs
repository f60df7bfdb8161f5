//! Whatever statement runs, what the triggers wrote down, replayed, is what the table holds.

use std::collections::HashMap;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rusqlite::Connection;
use rusqlite::types::Value;

use super::install::bring_in_step;
use super::plan::Wanted;

/// The tables that are tried: each has `k`, `a`, `b` and `c`, and rows that conflict in several ways.
const TABLES: [(&str, &str); 9] = [
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

struct Trial {
    what: String,
    conn: Connection,
    random: StdRng,
    latest_only: bool,
    log: Vec<String>,
}

type Rows = HashMap<String, i64>;

impl Trial {
    fn new(what: &str, tables: &str, seed: u64, recursive: bool) -> Self {
        let mut conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(tables).unwrap();
        conn.execute_batch(&format!("pragma recursive_triggers = {recursive}; pragma foreign_keys = on"))
            .unwrap();
        let wanted = Wanted { tables: &["*".to_owned()], outbox: None, only: true, read: 0 };
        bring_in_step(&mut conn, wanted).unwrap();
        let what = format!("{what}, seed {seed}, recursive {recursive}");
        Self { what, conn, random: StdRng::seed_from_u64(seed), latest_only: false, log: Vec::new() }
    }

    fn run(&mut self, statements: usize, later: &str) {
        self.conn.execute_batch(later).unwrap();
        for _ in 0..statements {
            let sql = self.statement();
            // Constraint violations are part of the game.
            let result = self.conn.execute(&sql, []);
            self.log.push(format!("{sql} -> {result:?}"));
            self.compare();
        }
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
        let width: usize = self
            .conn
            .query_row("select count(*) from pragma_table_xinfo('t')", [], |r| r.get(0))
            .map(|n: i64| n as usize)
            .unwrap();
        for (op, row, key) in self.read("select * from headwater_change order by id", 4, width) {
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
        for (_, row, _) in self.read("select 'x', 'x', 'x', 'x', * from t", 4, width) {
            *table.entry(row).or_default() += 1;
        }
        if rows != table {
            self.fail(&format!("replayed: {rows:#?}\nthe table: {table:#?}"));
        }
    }

    /// Each row's op, its values after the first `skip`, and the first of them.
    fn read(&self, sql: &str, skip: usize, width: usize) -> Vec<(String, String, String)> {
        let mut statement = self.conn.prepare(sql).unwrap();
        let rows = statement.query_map([], |row| {
            let value = |at: usize| row.get::<_, Value>(at).map(|value| format!("{value:?}"));
            let values: Vec<String> = (skip..skip + width).map(value).collect::<Result<_, _>>()?;
            Ok((row.get::<_, String>(2)?, values.join(" "), values[0].clone()))
        });
        rows.unwrap().map(Result::unwrap).collect()
    }

    fn fail(&self, why: &str) -> ! {
        panic!("{}: {why}\nafter:\n{}", self.what, self.log.join("\n"));
    }
}
