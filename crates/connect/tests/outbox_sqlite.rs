//! The outbox on SQLite does what every outbox must.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use headwater_connect::sqlite::outbox::{
    SqliteOutbox, SqliteOutboxStore, install, removal_script, remove, script,
};
use headwater_core::ports::{
    Claim, ClaimLimit, ClaimedRow, Lane, LeaseAsk, NewEvent, OutboxStore as _, OutboxWriter as _, Outcome,
    Settled, Severity, Shelf, ShelfFilter,
};
use headwater_core::{CellKind, Value};
use headwater_testkit::suites::outbox::{Factory, Tx};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use sqlx::{AssertSqlSafe, Executor, Row, SqlitePool};

struct OnSqlite {
    _dir: tempfile::TempDir,
    path: PathBuf,
    pool: SqlitePool,
}

impl OnSqlite {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("service.db");
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .busy_timeout(Duration::from_secs(30));
        let pool = SqlitePoolOptions::new().max_connections(16).connect_with(options).await.unwrap();
        pool.execute("CREATE TABLE effect (text TEXT NOT NULL)").await.unwrap();
        assert!(install(&path, "outbox").unwrap());
        assert!(!install(&path, "main.outbox").unwrap(), "what is there is left as it is");
        Self { _dir: dir, path, pool }
    }

    async fn run(&self, sql: String) {
        self.pool.execute(AssertSqlSafe(sql)).await.unwrap();
    }
}

impl Factory for OnSqlite {
    type Writer = SqliteOutbox;
    type Store = SqliteOutboxStore;

    fn writer(&self) -> SqliteOutbox {
        SqliteOutbox::new("outbox")
    }

    fn store(&self) -> SqliteOutboxStore {
        SqliteOutboxStore::new(&self.path, "outbox")
    }

    fn shelf(&self, owner: &str) -> Box<dyn Shelf> {
        Box::new(self.store().shelf(owner))
    }

    fn lanes(&self) -> Lane {
        1
    }

    fn concurrent(&self) -> bool {
        false
    }

    async fn begin(&self) -> Tx<Self> {
        self.pool.begin_with("BEGIN IMMEDIATE").await.unwrap()
    }

    async fn commit(&self, transaction: Tx<Self>) {
        transaction.commit().await.unwrap();
    }

    async fn rollback(&self, transaction: Tx<Self>) {
        transaction.rollback().await.unwrap();
    }

    async fn insert_plainly(&self, transaction: &mut Tx<Self>, event: &NewEvent) {
        let insert = "INSERT INTO outbox (stream, type, key, payload) VALUES (?, ?, ?, ?)";
        let insert = sqlx::query(insert).bind(event.stream.clone()).bind(event.kind.clone());
        let insert = insert.bind(event.key.clone()).bind(event.payload.clone());
        insert.execute(&mut **transaction).await.unwrap();
    }

    async fn seen(&self, transaction: &mut Tx<Self>, key: &str) -> i64 {
        let count = sqlx::query_scalar("SELECT count(*) FROM outbox WHERE key = ?").bind(key.to_owned());
        count.fetch_one(&mut **transaction).await.unwrap()
    }

    async fn effect(&self, transaction: &mut Tx<Self>, text: &str) {
        let insert = sqlx::query("INSERT INTO effect VALUES (?)").bind(text.to_owned());
        insert.execute(&mut **transaction).await.unwrap();
    }

    async fn effects(&self, text: &str) -> i64 {
        let count = sqlx::query_scalar("SELECT count(*) FROM effect WHERE text = ?").bind(text.to_owned());
        count.fetch_one(&self.pool).await.unwrap()
    }

    async fn states(&self) -> Vec<String> {
        sqlx::query_scalar("SELECT state FROM outbox ORDER BY seq").fetch_all(&self.pool).await.unwrap()
    }

    async fn expire(&self, relay: &str) {
        self.run(format!("UPDATE outbox_lease SET until = 0 WHERE relay = '{relay}'")).await;
        self.run(format!("UPDATE outbox_relay SET until = 0 WHERE relay = '{relay}'")).await;
    }

    async fn add_done(&self, many: u64) {
        self.run(format!(
            "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {many}) \
             INSERT INTO outbox (stream, type, key, payload, state, settled_at) SELECT 'orders', 'Placed', n, '{{}}', \
             'published', created_at FROM n, (SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) \
             AS created_at)"
        ))
        .await;
        self.run("ANALYZE".into()).await;
    }

    async fn add_waiting(&self, name: &str, keys: u64, many: u64) {
        for (state, many) in [("parked", keys), ("waiting", many)] {
            self.run(format!(
                "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {many}) \
                 INSERT INTO outbox (stream, type, key, payload, state) SELECT 'orders', 'Placed', '{name}' || (n % {keys}), \
                 '{{}}', '{state}' FROM n"
            ))
            .await;
        }
        self.run("ANALYZE".into()).await;
    }

    /// Nothing is walked but small indexes, and of those of what is done only where it was settled long ago, and of
    /// what waits only where a key begins.
    async fn rows_read(&self) -> u64 {
        for statement in self.store().statements() {
            let plan = format!("EXPLAIN QUERY PLAN {statement}");
            let steps = self.pool.fetch_all(AssertSqlSafe(plan)).await.unwrap();
            for step in steps.iter().map(|row| row.get::<String, _>(3)) {
                let small = ["new", "heads", "due"]
                    .iter()
                    .any(|index| step.contains(&format!("INDEX outbox_{index}")));
                let no_table = ["json_each", "first", "(subquery"];
                let walks = step.strip_prefix("SCAN ").is_some_and(|what| {
                    !no_table.iter().any(|of_a_few_rows| what.starts_with(of_a_few_rows))
                });
                assert!(!walks || small, "{step}: {statement}");
            }
        }
        0
    }
}

headwater_testkit::outbox_suite!(OnSqlite::new().await);

fn claims(resume: bool) -> [Claim; 1] {
    [Claim { lane: 0, above: 0, known: Vec::new(), retries: true, resume }]
}

const ALL: ClaimLimit = ClaimLimit { rows: 1_000, bytes: 1 << 20 };

/// By the program that people use, which may be older: what `init --print` shows, an INSERT, the removal.
#[tokio::test]
async fn plain_sql_does_all_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("service.db");
    let shell = |sql: &str| {
        let output = std::process::Command::new("sqlite3").arg("-bail").arg(&path).arg(sql).output().unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).unwrap()),
            false => Err(String::from_utf8(output.stderr).unwrap()),
        }
    };
    shell(&script("outbox")).unwrap();
    shell(
        "INSERT INTO outbox (stream, type, key, payload) VALUES ('orders', 'Placed', 'ü ', '{\"a\": 1.50}');
         INSERT INTO outbox (id, stream, type, key, headers, version) VALUES \
             ('A18F85D0-C334-7123-8567-89ABCDEF0123', 'orders', 'Paid', 'ü ', '{\"h\": \"1\"}', 3);",
    )
    .unwrap();
    let store = SqliteOutboxStore::new(&path, "outbox");
    let rows = store.claim(&claims(false), ALL).await.unwrap().rows;
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[1].id.to_string(), "a18f85d0-c334-7123-8567-89abcdef0123");
    let id = rows[0].id.to_string();
    assert!(&id[14..15] == "7" && "89ab".contains(&id[19..20]), "{id}");
    let drawn = i64::from_str_radix(&id.replace('-', "")[..12], 16).unwrap();
    assert_eq!(drawn, rows[0].created_at / 1_000, "its time is the row's");
    for wrong in [
        "INSERT INTO outbox (stream, type, payload) VALUES ('orders', 'x', 'no json')",
        "INSERT INTO outbox (stream, type, headers) VALUES ('orders', 'x', '[1]')",
        "INSERT INTO outbox (id, stream, type) VALUES ('no uuid', 'orders', 'x')",
        "INSERT INTO outbox (stream) VALUES ('orders')",
    ] {
        shell(wrong).expect_err(wrong);
    }
    let refused = remove(&path, "outbox", false).unwrap_err();
    assert!(refused.to_string().contains("2 events"), "{refused}");
    assert!(remove(&path, "outbox", true).unwrap());
    assert!(!remove(&path, "outbox", true).unwrap());
    let error = store.claim(&claims(false), ALL).await.unwrap_err();
    assert!(error.hint_text().unwrap().contains("headwater init"), "{error}");
    shell(&(script("outbox") + &removal_script("outbox"))).unwrap();
    assert_eq!(shell("SELECT count(*) FROM sqlite_schema WHERE name LIKE 'outbox%'").unwrap().trim(), "0");
}

/// What was made for another purpose is named, not guessed at.
#[tokio::test]
async fn a_table_that_init_did_not_make_is_refused() {
    let factory = OnSqlite::new().await;
    factory.run("CREATE TABLE events (id TEXT, aggregatetype TEXT, type TEXT, payload TEXT)".into()).await;
    let store = SqliteOutboxStore::new(&factory.path, "events");
    let error = store.claim(&claims(false), ALL).await.unwrap_err();
    assert!(!error.is_retryable() && error.hint_text().unwrap().contains("headwater init"), "{error}");
}

/// However it is asked for: a table of another layout is somebody's.
#[tokio::test]
async fn a_table_of_another_layout_is_not_dropped() {
    let factory = OnSqlite::new().await;
    factory.run("CREATE TABLE orders (id INTEGER PRIMARY KEY, state TEXT)".into()).await;
    for force in [false, true] {
        let refused = remove(&factory.path, "orders", force).unwrap_err();
        assert!(refused.hint_text().unwrap().contains("another layout"), "{refused}");
    }
    factory.run("INSERT INTO orders VALUES (1, 'new')".into()).await;
}

/// Drivers bind bytes where texts belong, and SQLite keeps what they bind. That is read as text; what is none reaches
/// the relay as it is, which parks it, and no row stands in the way of others.
#[tokio::test]
async fn whatever_was_written_is_read() {
    let factory = OnSqlite::new().await;
    let store = factory.store();
    let ask = LeaseAsk {
        relay: "r".into(),
        ttl: Duration::from_secs(60),
        release: Vec::new(),
        renew: true,
        leaving: false,
    };
    store.lease(&ask).await.unwrap();
    factory
        .run(
            "INSERT INTO outbox (stream, type, key, payload, headers, version) VALUES \
             (CAST('orders' AS BLOB), CAST('Placed' AS BLOB), CAST('k' AS BLOB), CAST('{\"n\":1}' AS BLOB), '{}', 1), \
             (CAST('orders' AS BLOB), 'Placed', CAST('k' AS BLOB), '{}', NULL, 3000000000), \
             (CAST(x'ff' AS TEXT), 'Placed', CAST(x'fe' AS TEXT), NULL, NULL, 'x')"
                .into(),
        )
        .await;
    let claimed = store.claim(&claims(true), ALL).await.unwrap();
    let said: Vec<_> = claimed.rows.iter().map(|row| (&*row.stream, row.key.as_deref())).collect();
    assert_eq!(said, [("orders", Some("k")), ("orders", Some("k")), ("\u{fffd}", Some("\u{fffd}"))]);
    let payload = claimed.table.unwrap().column("payload").unwrap();
    assert_eq!(claimed.rows[0].row.value(payload), Value::Bytes(CellKind::Text, b"{\"n\":1}"));
    let settled = |at: usize, outcome: Outcome| {
        let row: &ClaimedRow = &claimed.rows[at];
        Settled { lane: 0, epoch: 1, sequence: row.sequence, id: row.id, outcome }
    };
    let parked = || Outcome::Parked { attempts: 1, error: "no".into() };
    let told = [settled(0, parked()), settled(1, Outcome::Waiting), settled(2, parked())];
    store.settle("r", &told).await.unwrap();
    let claimed = store.claim(&claims(true), ALL).await.unwrap();
    assert_eq!((claimed.rows.len(), claimed.blocked.len()), (0, 2));
    let shelf = store.shelf("shop");
    let lines = shelf.list(&ShelfFilter::default()).await.unwrap();
    assert_eq!(lines.iter().map(|line| line.waiting).collect::<Vec<_>>(), [1, 0]);
    assert_eq!(shelf.show(&ShelfFilter::default()).await.unwrap().len(), 3);
    let first = ShelfFilter { id: Some(lines[0].id), ..ShelfFilter::default() };
    assert_eq!(shelf.drop(&first).await.unwrap(), 1);
    let next = store.claim(&claims(true), ALL).await.unwrap().rows;
    assert!(next.len() == 1 && next[0].again, "the next of its key");
}

/// Nobody is held up while it is counted: a refusal waits for no writer, and is none.
#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_is_counted_without_a_lock() {
    let factory = OnSqlite::new().await;
    let insert = "INSERT INTO outbox (stream, type) VALUES ('orders', 'Placed')";
    factory.run(insert.into()).await;
    let mut publishing = factory.pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
    publishing.execute(insert).await.unwrap();
    let removal = || {
        let path = factory.path.clone();
        tokio::task::spawn_blocking(move || remove(&path, "outbox", false))
    };
    let refused = removal().await.unwrap().unwrap_err();
    assert!(refused.to_string().contains("1 events of outbox"), "{refused}");
    publishing.execute("UPDATE outbox SET state = 'published' WHERE seq = 1").await.unwrap();
    publishing.commit().await.unwrap();
    assert!(removal().await.unwrap().is_err(), "and the other event");
    factory.run("UPDATE outbox SET state = 'published'".into()).await;
    assert!(removal().await.unwrap().unwrap());
}

/// `check` says which index is missing, and how it is made.
#[tokio::test]
async fn a_missing_index_is_found_and_mended() {
    let factory = OnSqlite::new().await;
    factory.run("DROP INDEX outbox_due".into()).await;
    let store = factory.store();
    let error = store.claim(&claims(false), ALL).await.unwrap_err();
    assert!(error.hint_text().unwrap().contains("headwater check"), "{error}");
    let found = store.check().await.unwrap();
    assert_eq!((found.len(), found[0].severity), (1, Severity::Error), "{found:?}");
    let (_, mends) = found[0].hint.as_ref().unwrap().split_once(": ").unwrap();
    factory.run(mends.to_owned()).await;
    assert!(store.check().await.unwrap().iter().all(|finding| finding.severity != Severity::Error));
    store.claim(&claims(true), ALL).await.unwrap();
}

/// A commit wakes who waits, long before its time.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_is_woken_by_a_commit() {
    let factory = OnSqlite::new().await;
    let store = factory.store();
    let long = Duration::from_secs(60);
    for n in 0..20 {
        let mut claimed = store.claim(&claims(false), ALL).await.unwrap().rows.len();
        assert_eq!(claimed, n);
        let begun = Instant::now();
        let write = async {
            let mut transaction = factory.begin().await;
            factory.insert_plainly(&mut transaction, &event()).await;
            factory.commit(transaction).await;
        };
        let wait = async {
            // Something else may have been written, too.
            while claimed == n {
                store.wait(long).await;
                claimed = store.claim(&claims(false), ALL).await.unwrap().rows.len();
            }
        };
        tokio::join!(wait, write);
        assert!(begun.elapsed() < long, "it was not woken");
    }
    assert!(!store.wait(Duration::from_millis(20)).await, "nothing was written since");
}

/// An application that commits one transaction after the other leaves the lock for moments only.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_gets_its_turn_however_busy_the_application_is() {
    // Without WAL its readers wait too.
    for mode in ["wal", "delete"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("service.db");
        let conn = rusqlite::Connection::open(&path).unwrap();
        conn.busy_timeout(Duration::from_secs(60)).unwrap();
        let tables = "CREATE TABLE effect (text TEXT NOT NULL)";
        conn.execute_batch(&format!("PRAGMA journal_mode = {mode}; PRAGMA synchronous = OFF; {tables}"))
            .unwrap();
        install(&path, "outbox").unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let busy = std::thread::spawn(move || {
            let rows = "INSERT INTO effect VALUES ('x'); ".repeat(200);
            while !stopped.load(Ordering::Relaxed) {
                conn.execute_batch(&format!("BEGIN IMMEDIATE; {rows} COMMIT")).unwrap();
            }
        });
        let store = SqliteOutboxStore::new(&path, "outbox");
        let ask = LeaseAsk {
            relay: "r".into(),
            ttl: Duration::from_secs(60),
            release: vec![],
            renew: true,
            leaving: false,
        };
        let begun = Instant::now();
        for _ in 0..100 {
            store.lease(&ask).await.unwrap();
            store.claim(&claims(false), ALL).await.unwrap();
            store.settle("r", &[]).await.unwrap();
        }
        let took = begun.elapsed();
        stop.store(true, Ordering::Relaxed);
        busy.join().unwrap();
        assert!(took < Duration::from_secs(60), "{mode}: 200 short transactions took {took:?}");
    }
}

/// Of a plain INSERT the sequence rises with the commits, and what was deleted gives no number back.
#[tokio::test]
async fn a_sequence_is_never_used_again() {
    let factory = OnSqlite::new().await;
    let insert = async || {
        let mut transaction = factory.begin().await;
        factory.insert_plainly(&mut transaction, &event()).await;
        factory.commit(transaction).await;
    };
    insert().await;
    let claimed = factory.store().claim(&claims(false), ALL).await.unwrap();
    assert_eq!(claimed.horizon, claimed.rows[0].sequence);
    factory.run("DELETE FROM outbox".into()).await;
    insert().await;
    let next = factory.store().claim(&claims(false), ALL).await.unwrap();
    assert!(next.rows[0].sequence > claimed.horizon);
}

/// A relay takes away the triggers by which a source read the outbox: nobody would read what they write.
#[tokio::test]
async fn a_relay_takes_the_place_of_triggers() {
    let factory = OnSqlite::new().await;
    let outbox = headwater_connect::settings::Outbox::new("outbox");
    headwater_connect::sqlite::install(&factory.path, &[], Some(&outbox)).unwrap();
    let triggers = async || -> i64 {
        let count = "SELECT count(*) FROM sqlite_schema WHERE type = 'trigger'";
        factory.pool.fetch_one(count).await.unwrap().get(0)
    };
    assert_eq!(triggers().await, 2);
    let ask = LeaseAsk {
        relay: "r".into(),
        ttl: Duration::from_secs(60),
        release: Vec::new(),
        renew: true,
        leaving: false,
    };
    assert_eq!(factory.store().lease(&ask).await.unwrap().len(), 1);
    assert_eq!(triggers().await, 0);
    let mut transaction = factory.begin().await;
    factory.writer().insert(&mut transaction, &[event()]).await.unwrap();
    factory.commit(transaction).await;
    assert_eq!(factory.store().claim(&claims(true), ALL).await.unwrap().rows.len(), 1);
}

fn event() -> NewEvent {
    NewEvent {
        id: headwater_core::EventId::from_bytes([7; 16]),
        stream: "orders".into(),
        kind: "Placed".into(),
        key: Some("a".into()),
        payload: Some("{}".into()),
        headers: Vec::new(),
        version: 1,
    }
}
