//! `headwater init`, and what `headwater check` says.

use headwater_connect::settings::Outbox;
use headwater_connect::sqlite::{install, remove, script};
use headwater_core::Kind;
use headwater_core::ports::Severity;
use rusqlite::Connection;

use crate::tools::Shop;

const TABLES: &str = "create table t (id integer primary key, a); create table u (a unique, b)";

fn ours(shop: &Shop) -> Vec<String> {
    let sql = "select type || ' ' || name || ' ' || ifnull(sql, '') from sqlite_schema where name like 'headwater%' or name = 'outbox' order by 1";
    let mut statement = shop.conn.prepare(sql).unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

fn names(tables: &[&str]) -> Vec<String> {
    tables.iter().map(|&table| table.to_owned()).collect()
}

#[test]
fn twice_is_once_and_more_can_be_added() {
    let shop = Shop::new(TABLES);
    let outbox = Outbox::new("outbox");
    let done = install(&shop.path, &names(&["t"]), Some(&outbox)).unwrap();
    assert_eq!(done.len(), 5, "{done:?}");
    assert!(done[4].contains("PRAGMA busy_timeout") && done[4].contains("BEGIN IMMEDIATE"), "{done:?}");
    let first = ours(&shop);
    assert_eq!(install(&shop.path, &names(&["main.t"]), Some(&outbox)).unwrap(), [""; 0]);
    assert_eq!(ours(&shop), first);
    assert_eq!(script(&shop.path, &names(&["t"]), Some(&outbox)).unwrap(), "");
    let done = install(&shop.path, &names(&["u"]), None).unwrap();
    assert_eq!(done, ["table \"u\" is captured from now on"]);
    assert_eq!(ours(&shop).len(), first.len() + 5);
}

#[test]
fn the_script_does_the_same() {
    let (by_script, by_hand) = (Shop::new(TABLES), Shop::new(TABLES));
    let outbox = Outbox::new("outbox");
    let sql = script(&by_script.path, &names(&["*"]), Some(&outbox)).unwrap();
    assert!(ours(&by_script).is_empty(), "printing changed the database");
    by_script.execute(&sql);
    install(&by_hand.path, &names(&["*"]), Some(&outbox)).unwrap();
    assert_eq!(ours(&by_script), ours(&by_hand));
    assert_eq!(script(&by_script.path, &names(&["*"]), Some(&outbox)).unwrap(), "");
}

/// Conditions of indexes may name their table; a table may be called as a trigger calls its rows.
#[test]
fn conditions_that_name_their_table() {
    for install_it in [true, false] {
        let mut sql = String::new();
        for (table, deleted) in
            [("t", "t.deleted"), ("a b", "main.\"a b\".deleted"), ("new", "deleted"), ("Old", "deleted")]
        {
            sql += &format!(
                "create table \"{table}\" (a, b, deleted);
                 create unique index \"i{table}\" on \"{table}\" (a, lower(b)) where {deleted} is null;"
            );
        }
        let shop = Shop::new(&sql);
        let by_name = names(&["t", "a b", "new", "Old"]);
        match install_it {
            true => assert!(!install(&shop.path, &by_name, None).unwrap().is_empty()),
            false => shop.execute(&script(&shop.path, &by_name, None).unwrap()),
        }
        for table in &by_name {
            shop.execute(&format!(
                "insert into \"{table}\" values (1, 'x', null), (1, 'x', 2);
                 replace into \"{table}\" values (1, 'X', null)"
            ));
        }
        let told: String =
            shop.one("select group_concat(op, '') from (select op from headwater_change order by id)");
        assert_eq!(told, "ccdc".repeat(4));
    }
}

/// What would break the application's writes is refused, not printed.
#[test]
fn a_script_is_tried_before_it_is_printed() {
    let shop = Shop::new("create table old (a, b); create unique index i on old (a) where old.b is null");
    let tables = names(&["old"]);
    for error in [script(&shop.path, &tables, None).err(), install(&shop.path, &tables, None).err()] {
        let error = error.expect("refused");
        assert_eq!(error.kind(), Kind::Refused);
        assert!(error.to_string().contains("the triggers for table \"old\" do not fit it"), "{error}");
    }
    assert!(ours(&shop).is_empty());
    shop.execute("insert into old values (1, null)");
}

/// The command line shell of the system is another, often older SQLite: it runs the script and the triggers.
#[test]
fn the_systems_sqlite_understands_it() {
    let shop = Shop::new(TABLES);
    let sql = script(&shop.path, &names(&["*"]), None).unwrap();
    let writes =
        "insert into t values (1, 'a'); insert or replace into u values ('x', 1), ('x', 2); delete from t;";
    // By a file: an argument that begins with a comment would be an option.
    let file = shop.dir.path().join("script.sql");
    std::fs::write(&file, format!("{sql}{writes}")).unwrap();
    let read = format!(".read '{}'", file.display());
    let output = std::process::Command::new("sqlite3").arg("-bail").arg(&shop.path).arg(read).output();
    let output = output.expect("the sqlite3 command is there: scripts/test installs it");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told: String =
        shop.one("select group_concat(op, '') from (select op from headwater_change order by id)");
    assert_eq!(told, "ccdcd");
}

#[test]
fn nothing_stays_after_remove() {
    let shop = Shop::new(TABLES);
    install(&shop.path, &names(&["*"]), Some(&Outbox::new("outbox"))).unwrap();
    shop.execute("insert into t values (1, 'a')");
    assert!(!remove(&shop.path, &[]).unwrap().is_empty());
    assert_eq!(ours(&shop).len(), 1, "only the outbox stays");
    shop.execute("insert into t values (2, 'a'); insert into outbox (stream, type) values ('x', 'y')");
    assert!(remove(&shop.path, &[]).unwrap().is_empty());
}

#[test]
fn the_triggers_of_one_table_can_be_removed() {
    let shop = Shop::new(TABLES);
    install(&shop.path, &names(&["*"]), None).unwrap();
    let all = ours(&shop).len();
    assert_eq!(remove(&shop.path, &names(&["main.t"])).unwrap(), ["table \"t\" is no longer captured"]);
    assert_eq!(ours(&shop).len(), all - 5);
    assert_eq!(remove(&shop.path, &names(&["t"])).unwrap(), [""; 0]);
    assert!(remove(&shop.path, &names(&["orders"])).unwrap_err().to_string().contains("no table \"orders\""));
}

#[test]
fn errors_say_what_to_do() {
    let shop = Shop::new(TABLES);
    let error = install(&shop.path, &names(&["orders"]), None).unwrap_err();
    assert_eq!(error.kind(), Kind::Refused);
    assert!(
        error.to_string().contains("there is no table \"orders\"")
            && error.to_string().contains("marker, t, u")
    );
    // SQLite would not mind, but changes carry the catalogue's spelling, and streams go by it.
    let outbox = Outbox::new("U");
    for (tables, outbox, right) in
        [(&["T"], None, "\"t\""), (&["main.T"], None, "\"t\""), (&["t"], Some(&outbox), "\"u\"")]
    {
        let error = install(&shop.path, &names(tables), outbox).unwrap_err();
        assert_eq!(error.kind(), Kind::Refused);
        assert!(error.hint_text().unwrap().contains(&format!("write {right}")), "{error}");
    }
    let error = install(&shop.dir.path().join("none.db"), &names(&["*"]), None).unwrap_err();
    assert!(error.to_string().contains("there is no database"), "{error}");
    std::fs::write(shop.dir.path().join("text.db"), "a".repeat(5000)).unwrap();
    let error = install(&shop.dir.path().join("text.db"), &names(&["*"]), None).unwrap_err();
    assert_eq!(error.kind(), Kind::Refused);
    assert!(error.to_string().contains("not a database"), "{error}");
    shop.execute(&format!(
        "create table huge ({})",
        (0..1999).map(|at| format!("c{at}")).collect::<Vec<_>>().join(", ")
    ));
    let error = install(&shop.path, &names(&["*"]), None).unwrap_err();
    assert!(error.to_string().contains("\"huge\" has 1999 columns"), "{error}");
    assert!(ours(&shop).is_empty());
}

#[tokio::test]
async fn without_install_only_init_installs() {
    let shop = Shop::new(TABLES);
    let mut config = shop.config(&["t"]);
    config.install = false;
    let error = shop.refusal(config.clone(), None).await;
    assert_eq!(error.kind(), Kind::Refused);
    let command =
        format!("headwater init 'sqlite://{}' --tables 't,marker' --no-outbox;", shop.path.display());
    assert!(error.to_string().contains(&command), "{error}");
    install(&shop.path, &names(&["t", "marker"]), None).unwrap();
    drop(shop.read(config.clone(), None).await);
    config.outbox = Some(Outbox::new("what's new"));
    let error = shop.refusal(config.clone(), None).await.to_string();
    assert!(error.contains(r"--outbox 'what'\''s new'; or set install = true"), "{error}");
    config.tables.clear();
    let error = shop.refusal(config, None).await.to_string();
    assert!(error.contains(r"--tables 'what'\''s new' --outbox"), "{error}");
}

#[tokio::test]
async fn check_finds_what_is_missing_and_changes_nothing() {
    let shop = Shop::new(TABLES);
    let mut config = shop.config(&["t", "u"]);
    config.install = false;
    let worst = |findings: &[headwater_core::ports::Finding], severity| {
        findings
            .iter()
            .filter(|one| one.severity == severity)
            .map(|one| one.message.clone())
            .collect::<Vec<_>>()
    };
    let findings = shop.connector(config.clone()).check().await.unwrap().findings;
    assert_eq!(worst(&findings, Severity::Error).len(), 4, "{findings:?}");
    assert!(
        findings.iter().any(|one| one.hint.as_deref().is_some_and(|hint| hint.contains("headwater init")))
    );
    assert!(ours(&shop).is_empty());
    install(&shop.path, &config.tables, None).unwrap();
    let findings = shop.connector(config.clone()).check().await.unwrap().findings;
    assert_eq!(worst(&findings, Severity::Error), [""; 0]);
    assert_eq!(
        worst(&findings, Severity::Warning),
        [
            "table \"u\" has no primary key: the whole row is its events' key, so a row that is updated becomes another one"
        ]
    );
    assert!(findings.iter().any(|finding| finding.message.contains("BEGIN IMMEDIATE")), "{findings:?}");
    shop.execute("alter table t add column z");
    let findings = shop.connector(config.clone()).check().await.unwrap().findings;
    assert!(
        worst(&findings, Severity::Warning).iter().any(|text| text.contains("\"t\" was altered")),
        "{findings:?}"
    );
    shop.execute("drop table u");
    shop.conn.pragma_update(None, "journal_mode", "delete").unwrap();
    let findings = shop.connector(config).check().await.unwrap().findings;
    assert!(worst(&findings, Severity::Warning).iter().any(|text| text.contains("journal mode is delete")));
    assert!(worst(&findings, Severity::Warning).iter().any(|text| text.contains("\"u\" is not there")));
    let gone = shop.connector(headwater_connect::sqlite::SqliteConfig::new("/nowhere/shop.db", &["t"]));
    assert_eq!(
        worst(&gone.check().await.unwrap().findings, Severity::Error),
        ["there is no database at /nowhere/shop.db"]
    );
    assert!(Connection::open(&shop.path).is_ok());
}
