//! The outbox on MySQL and MariaDB does what every outbox must.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use headwater_connect::mysql::outbox::{
    MySqlOutbox, MySqlOutboxStore, install, removal_script, remove, script, to_mend,
};
use headwater_connect::mysql::url::ConnectOptions;
use headwater_core::ports::{
    Claim, ClaimLimit, ClaimedRow, Finding, LeaseAsk, NewEvent, OutboxStore, OutboxWriter, Outcome, Settled,
    Severity, Shelf, ShelfFilter,
};
use headwater_core::{EventId, Kind};
use headwater_testkit::servers::{MySql, MySqlDatabase, Proxy, free_port};
use headwater_testkit::suites::outbox::{
    Factory, Tx, who_goes_silent_while_settling_keeps_no_lane, who_hears_nothing_asks_again,
    who_is_not_there_is_said_at_once, who_is_refused_takes_no_lock, who_reads_for_long_is_not_waited_for,
};
use sqlx::{AssertSqlSafe, Executor, MySqlPool, Row};

const LIMIT: ClaimLimit = ClaimLimit { rows: 100_000, bytes: 1 << 30 };

/// One that counts what is read of each table.
async fn server() -> &'static MySql {
    static SERVER: tokio::sync::OnceCell<MySql> = tokio::sync::OnceCell::const_new();
    let counting = MySql::settings()
        .set("performance-schema", "ON")
        .set("performance-schema-instrument", "wait/io/table/sql/handler=ON");
    SERVER.get_or_try_init(|| counting.start()).await.unwrap()
}

struct OnMySql {
    database: MySqlDatabase,
    url: ConnectOptions,
    pool: MySqlPool,
}

impl OnMySql {
    async fn new() -> Self {
        let database = server().await.create_database().await.unwrap();
        let url = ConnectOptions::parse(database.url()).unwrap();
        assert!(install(&url, "outbox").await.unwrap());
        assert!(!install(&url, "outbox").await.unwrap(), "what is there is left as it is");
        database.execute("CREATE TABLE effect (text varchar(255) NOT NULL)").await.unwrap();
        let pool = MySqlPool::connect(database.url()).await.unwrap();
        Self { database, url, pool }
    }

    async fn run(&self, sql: String) {
        self.pool.execute(AssertSqlSafe(sql)).await.unwrap();
    }

    async fn lock_rows(transaction: &mut Tx<Self>) {
        transaction.execute("SELECT * FROM outbox FOR UPDATE").await.unwrap();
    }

    /// Whether a statement that settles rows is under way.
    async fn somebody_waits(&self) -> bool {
        let waiting = "SELECT count(*) > 0 FROM information_schema.processlist \
             WHERE db = ? AND info LIKE 'UPDATE%state%published%'";
        sqlx::query_scalar(waiting).bind(self.url.database()).fetch_one(&self.pool).await.unwrap()
    }
}

impl Factory for OnMySql {
    type Writer = MySqlOutbox;
    type Store = MySqlOutboxStore;

    fn writer(&self) -> MySqlOutbox {
        MySqlOutbox::new("outbox")
    }

    fn store(&self) -> MySqlOutboxStore {
        // Its horizon moves at once.
        MySqlOutboxStore::new(&self.url, "outbox").patience(Duration::ZERO)
    }

    fn shelf(&self, owner: &str) -> Box<dyn Shelf> {
        Box::new(self.store().shelf(owner))
    }

    async fn begin(&self) -> Tx<Self> {
        let begin = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; START TRANSACTION";
        self.pool.begin_with(begin).await.unwrap()
    }

    async fn commit(&self, transaction: Tx<Self>) {
        transaction.commit().await.unwrap();
    }

    async fn rollback(&self, transaction: Tx<Self>) {
        transaction.rollback().await.unwrap();
    }

    async fn insert_plainly(&self, transaction: &mut Tx<Self>, event: &NewEvent) {
        let insert = "INSERT INTO outbox (stream, type, `key`, payload) VALUES (?, ?, ?, ?)";
        let insert = sqlx::query(insert).bind(event.stream.clone()).bind(event.kind.clone());
        let insert = insert.bind(event.key.clone()).bind(event.payload.clone());
        insert.execute(&mut **transaction).await.unwrap();
    }

    async fn seen(&self, transaction: &mut Tx<Self>, key: &str) -> i64 {
        let count = sqlx::query_scalar("SELECT count(*) FROM outbox WHERE `key` = ?").bind(key.to_owned());
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
        self.run(format!("UPDATE outbox_lease SET until = '1970-01-01' WHERE relay = '{relay}'")).await;
        self.run(format!("UPDATE outbox_relay SET until = '1970-01-01' WHERE relay = '{relay}'")).await;
    }

    async fn add_done(&self, many: u64) {
        self.run(format!(
            "INSERT INTO outbox (stream, type, `key`, payload, state, settled_at) \
             SELECT 'orders', 'Placed', a.slot * 4096 + b.slot, '{{}}', 'published', UTC_TIMESTAMP(6) \
             FROM outbox_slot a CROSS JOIN outbox_slot b LIMIT {many}"
        ))
        .await;
        self.run("ANALYZE TABLE outbox".into()).await;
    }

    async fn add_waiting(&self, name: &str, keys: u64, many: u64) {
        for (state, many) in [("parked", keys), ("waiting", many)] {
            self.run(format!(
                "INSERT INTO outbox (stream, type, `key`, payload, state) SELECT 'orders', 'Placed', \
                 CONCAT('{name}', (a.slot * 4096 + b.slot) % {keys}), '{{}}', '{state}' \
                 FROM outbox_slot a CROSS JOIN outbox_slot b WHERE a.slot * 4096 + b.slot < {many}"
            ))
            .await;
        }
        self.run("ANALYZE TABLE outbox".into()).await;
    }

    async fn rows_read(&self) -> u64 {
        let read = "SELECT CAST(COALESCE(SUM(COUNT_FETCH), 0) AS UNSIGNED) \
             FROM performance_schema.table_io_waits_summary_by_table \
             WHERE OBJECT_SCHEMA = DATABASE() AND OBJECT_NAME = 'outbox'";
        let mut connection = self.database.connect().await.unwrap();
        connection.fetch_one(read).await.unwrap().get(0)
    }
}

headwater_testkit::outbox_suite!(OnMySql::new().await);

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_said_at_once() {
    let factory = OnMySql::new().await;
    let url = ConnectOptions::parse(&factory.database.url_at(free_port())).unwrap();
    who_is_not_there_is_said_at_once(MySqlOutboxStore::new(&url, "outbox")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_goes_silent_while_settling_keeps_no_lane() {
    let factory = OnMySql::new().await;
    let proxy = Proxy::start(("127.0.0.1", server().await.port())).await.unwrap();
    let url = ConnectOptions::parse(&factory.database.url_through(&proxy)).unwrap();
    let store = MySqlOutboxStore::new(&url, "outbox");
    let (lock, waits) = (OnMySql::lock_rows, async || factory.somebody_waits().await);
    who_goes_silent_while_settling_keeps_no_lane(&factory, (store, &proxy), lock, waits).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_hears_nothing_asks_again() {
    let factory = OnMySql::new().await;
    let proxy = Proxy::start(("127.0.0.1", server().await.port())).await.unwrap();
    let url = ConnectOptions::parse(&factory.database.url_through(&proxy)).unwrap();
    let store = MySqlOutboxStore::new(&url, "outbox");
    let (lock, waits) = (OnMySql::lock_rows, async || factory.somebody_waits().await);
    who_hears_nothing_asks_again(&factory, (store, &proxy), lock, waits).await;
}

fn event(key: &str, n: u64) -> NewEvent {
    NewEvent {
        id: EventId::derive(1_700_000_000_000_000, &[key.as_bytes(), &n.to_be_bytes()]),
        stream: "orders".into(),
        kind: "Placed".into(),
        key: Some(key.into()),
        payload: Some(format!("{{\"n\":{n}}}")),
        headers: Vec::new(),
        version: 1,
    }
}

fn claims(resume: bool) -> Vec<Claim> {
    (0..8).map(|lane| Claim { lane, above: 0, known: Vec::new(), retries: true, resume }).collect()
}

async fn claim_all(store: &MySqlOutboxStore) -> Vec<ClaimedRow> {
    store.claim(&claims(false), LIMIT).await.unwrap().rows
}

fn settled(row: &ClaimedRow, outcome: Outcome) -> Settled {
    Settled { lane: row.lane, epoch: 1, sequence: row.sequence, id: row.id, outcome }
}

/// By the programs that people use: what `init --print` shows, an INSERT, the procedure, and the removal.
#[tokio::test(flavor = "multi_thread")]
async fn plain_sql_does_all_of_it() {
    let server = server().await;
    let database = server.create_database().await.unwrap();
    server.client(&database, &script("outbox").unwrap()).unwrap();
    let url = ConnectOptions::parse(database.url()).unwrap();
    let store = MySqlOutboxStore::new(&url, &format!("{}.outbox", database.name()));
    let sql = "INSERT INTO outbox (stream, type, `key`, payload) VALUES ('orders', 'Placed', 'ü ', '{\"a\": 1.50}');\n\
         START TRANSACTION;\n\
         CALL headwater_publish('orders', 'Paid', 'ü ', '{\"a\":2}', '{\"h\":\"1\"}', 3, 'A18F85D0-C334-7123-8567-89ABCDEF0123');\n\
         CALL headwater_publish('orders', 'Seen', NULL, NULL, NULL, NULL, NULL);\n\
         COMMIT;\n\
         START TRANSACTION; CALL headwater_publish('orders', 'Lost', 'a', '1', NULL, NULL, NULL); ROLLBACK;";
    server.client(&database, sql).unwrap();
    let mut rows = claim_all(&store).await;
    rows.sort_by_key(|row| row.sequence);
    assert_eq!(rows.len(), 3);
    assert_eq!(rows[0].lane, rows[1].lane, "one key, one lane");
    assert_eq!(rows[0].key.as_deref(), Some("ü "));
    assert_eq!(rows[1].id.to_string(), "a18f85d0-c334-7123-8567-89abcdef0123");
    for id in [rows[0].id, rows[2].id] {
        assert_eq!((&id.to_string()[14..15], id.to_string().len()), ("7", 36), "{id}");
        let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() as i64;
        let drawn = i64::from_str_radix(&id.to_string().replace('-', "")[..12], 16).unwrap();
        assert!((since - drawn).abs() < 60_000, "{id} is of another time");
    }
    for wrong in [
        "INSERT INTO outbox (stream, type, payload) VALUES ('orders', 'x', 'no json')",
        "INSERT INTO outbox (stream, type, headers) VALUES ('orders', 'x', '[1]')",
        "INSERT INTO outbox (id, stream, type) VALUES ('no uuid', 'orders', 'x')",
        "CALL headwater_publish('orders', 'x', 'k', 'no json', NULL, NULL, NULL)",
        "CALL headwater_publish(NULL, 'x', 'k', NULL, NULL, NULL, NULL)",
    ] {
        server.client(&database, wrong).expect_err(wrong);
    }
    assert!(!install(&url, "outbox").await.unwrap(), "it is there");
    let refused = remove(&url, "outbox", false).await.unwrap_err();
    assert!(refused.to_string().contains("3 events"), "{refused}");
    assert!(remove(&url, "outbox", true).await.unwrap());
    assert!(!remove(&url, "outbox", true).await.unwrap());
    let error = store.claim(&claims(false), LIMIT).await.unwrap_err();
    assert!(error.hint_text().unwrap().contains("headwater init"), "{error}");
    server.client(&database, &script("outbox").unwrap()).unwrap();
    let second = install(&url, "other").await.unwrap_err();
    assert_eq!(second.kind(), Kind::Refused);
    assert!(second.to_string().contains("another outbox"), "{second}");
    server.client(&database, &removal_script("outbox")).unwrap();
    let mut connection = database.connect().await.unwrap();
    let left = "SELECT (SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = DATABASE()) + \
         (SELECT COUNT(*) FROM information_schema.routines WHERE routine_schema = DATABASE())";
    assert_eq!(connection.fetch_one(left).await.unwrap().get::<i64, _>(0), 0, "nothing is left");
}

/// Whoever has gone leaves no statement behind that waits for a table which somebody alters.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_long_for_a_table() {
    let factory = OnMySql::new().await;
    let mut alters = factory.pool.acquire().await.unwrap();
    alters.execute("LOCK TABLES outbox WRITE").await.unwrap();
    let claims = [Claim { lane: 0, above: 0, known: Vec::new(), retries: true, resume: false }];
    let (store, limit) = (factory.store(), ClaimLimit { rows: 1, bytes: 1 });
    let late = tokio::time::timeout(Duration::from_secs(60), store.claim(&claims, limit)).await;
    let error = late.expect("the server ends it").unwrap_err();
    assert!(error.is_retryable(), "{error}");
    alters.execute("UNLOCK TABLES").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_is_counted_without_a_lock() {
    let factory = OnMySql::new().await;
    who_is_refused_takes_no_lock(&factory, remove(&factory.url, "outbox", false)).await;
}

/// What was published before it is gone is not lost: who has yet to commit is waited for, and counts.
#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_that_a_transaction_publishes_to_is_not_dropped() {
    let factory = OnMySql::new().await;
    let mut transaction = factory.begin().await;
    factory.writer().insert(&mut transaction, &[event("k", 1)]).await.unwrap();
    let url = factory.url.clone();
    let removal = tokio::spawn(async move { remove(&url, "outbox", false).await });
    let waits = "SELECT count(*) > 0 FROM information_schema.processlist WHERE db = ? AND state LIKE 'Waiting for table%'";
    let deadline = Instant::now() + Duration::from_secs(30);
    while !sqlx::query_scalar::<_, bool>(waits)
        .bind(factory.url.database())
        .fetch_one(&factory.pool)
        .await
        .unwrap()
    {
        assert!(Instant::now() < deadline && !removal.is_finished(), "it does not wait");
    }
    factory.commit(transaction).await;
    let refused = removal.await.unwrap().unwrap_err();
    assert!(refused.to_string().contains("written just now"), "{refused}");
    assert_eq!(claim_all(&factory.store()).await.len(), 1);
    factory.run("CREATE TABLE orders (id INT PRIMARY KEY, state INT)".into()).await;
    let foreign = remove(&factory.url, "orders", true).await.unwrap_err();
    assert!(foreign.hint_text().unwrap().contains("not made by `headwater init`"), "{foreign}");
    factory.run("INSERT INTO orders VALUES (1, 1)".into()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_that_is_read_for_long_is_not_dropped() {
    let factory = OnMySql::new().await;
    who_reads_for_long_is_not_waited_for(&factory, async || remove(&factory.url, "outbox", true).await).await;
}

/// Nothing but the key's lock keeps these in order: what a writer sees of its key when it holds the lock is what
/// was committed before.
#[tokio::test(flavor = "multi_thread")]
async fn the_procedure_takes_the_same_locks_as_the_library() {
    let OnMySql { database, pool, .. } = OnMySql::new().await;
    pool.execute("create table note (id varchar(36) character set ascii primary key, seen int)")
        .await
        .unwrap();
    let writers = (0..16).map(|writer: u64| {
        let url = database.url().to_owned();
        tokio::spawn(async move {
            let pool = MySqlPool::connect(&url).await.unwrap();
            let outbox = MySqlOutbox::new("outbox");
            for n in 0..40 {
                let begin = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; START TRANSACTION";
                let mut transaction = pool.begin_with(begin).await.unwrap();
                let (key, at) = (format!("k{}", (writer + n) % 3), writer * 1000 + n);
                if writer.is_multiple_of(2) {
                    outbox.insert(&mut transaction, &[event(&key, at)]).await.unwrap();
                } else {
                    let call = "CALL headwater_publish('orders', 'Placed', ?, '1', NULL, 1, ?)";
                    let call = sqlx::query(call).bind(&key).bind(event(&key, at).id.to_string());
                    call.execute(&mut *transaction).await.unwrap();
                }
                let count = "insert into note select ?, count(*) from outbox where `key` = ?";
                let count = sqlx::query(count).bind(event(&key, at).id.to_string()).bind(&key);
                count.execute(&mut *transaction).await.unwrap();
                transaction.commit().await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let rows =
        pool.fetch_all("select `key`, seen from outbox join note using (id) order by seq").await.unwrap();
    let mut seen: BTreeMap<String, Vec<i32>> = BTreeMap::new();
    for row in rows {
        seen.entry(row.get(0)).or_default().push(row.get(1));
    }
    for (key, counts) in seen {
        let expected: Vec<i32> = (1..=counts.len() as i32).collect();
        assert_eq!(counts, expected, "{key}: each sees all that have a lower sequence, itself the last");
    }
}

/// A key is what its bytes are: spaces at its end count, as does the case.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_what_its_bytes_are() {
    let factory = OnMySql::new().await;
    let store = factory.store();
    let ask = LeaseAsk {
        relay: "a".into(),
        ttl: Duration::from_secs(600),
        release: Vec::new(),
        renew: true,
        leaving: false,
    };
    store.lease(&ask).await.unwrap();
    let mut transaction = factory.begin().await;
    let events = [event("k", 1), event("k", 2), event("k ", 3), event("K", 4)];
    factory.writer().insert(&mut transaction, &events).await.unwrap();
    factory.commit(transaction).await;
    let rows = claim_all(&store).await;
    let of = |n: usize| rows.iter().find(|row| row.id == events[n - 1].id).unwrap();
    let parked = Outcome::Parked { attempts: 3, error: "no".into() };
    let waiting = [2, 3, 4].map(|n| settled(of(n), Outcome::Waiting));
    let told = [vec![settled(of(1), parked)], waiting.to_vec()].concat();
    assert!(store.settle("a", &told).await.unwrap().is_empty());
    let claimed = store.claim(&claims(true), LIMIT).await.unwrap();
    assert_eq!(claimed.blocked, [(of(1).lane, ("orders".to_owned(), "k".to_owned()))]);
    let mut freed: Vec<i64> = claimed.rows.iter().map(|row| row.sequence).collect();
    freed.sort_unstable();
    assert_eq!(freed, [of(3).sequence, of(4).sequence], "their keys are others");
    let shelf = store.shelf("shop");
    assert_eq!(shelf.list(&ShelfFilter::default()).await.unwrap()[0].waiting, 1);
    let filter = |key: &'static str| ShelfFilter { key: Some(key.into()), ..ShelfFilter::default() };
    assert_eq!(shelf.show(&filter("k")).await.unwrap().len(), 2);
    for other in ["k ", "K"] {
        assert_eq!(shelf.drop(&filter(other)).await.unwrap(), 0, "{other:?}");
    }
    assert_eq!(shelf.drop(&filter("k")).await.unwrap(), 1);
    let next = claim_all(&store).await.into_iter().find(|row| row.again).unwrap();
    assert_eq!(next.id, events[1].id, "the next of the key comes first");
}

/// Rows that are there and not committed hold the horizon back, as does what is missing, for a while.
#[tokio::test(flavor = "multi_thread")]
async fn the_horizon_stays_below_what_may_come() {
    let factory = OnMySql::new().await;
    let store = factory.store();
    let slow = MySqlOutboxStore::new(&factory.url, "outbox");
    let ask = LeaseAsk {
        relay: "a".into(),
        ttl: Duration::from_secs(600),
        release: Vec::new(),
        renew: true,
        leaving: false,
    };
    store.lease(&ask).await.unwrap();
    let mut late = factory.begin().await;
    factory.insert_plainly(&mut late, &event("late", 0)).await;
    let mut transaction = factory.begin().await;
    factory.writer().insert(&mut transaction, &[event("a", 1), event("b", 2)]).await.unwrap();
    factory.commit(transaction).await;
    let rows = claim_all(&store).await;
    let first = rows.iter().map(|row| row.sequence).min().unwrap();
    let done: Vec<Settled> = rows.iter().map(|row| settled(row, Outcome::Published)).collect();
    assert!(store.settle("a", &done).await.unwrap().is_empty());
    for _ in 0..3 {
        let horizon = store.claim(&claims(false), LIMIT).await.unwrap().horizon;
        assert!(horizon < first - 1, "{horizon}: the row before {first} has yet to come");
    }
    factory.commit(late).await;
    let rows = claim_all(&store).await;
    assert_eq!(rows.len(), 1);
    assert!(
        store.claim(&claims(false), LIMIT).await.unwrap().horizon < rows[0].sequence,
        "it is not settled"
    );
    assert!(store.settle("a", &[settled(&rows[0], Outcome::Published)]).await.unwrap().is_empty());
    let claimed = store.claim(&claims(false), LIMIT).await.unwrap();
    assert_eq!(claimed.horizon, first + 1, "all that was seen is decided");
    for _ in 0..3 {
        assert_eq!(slow.claim(&claims(false), LIMIT).await.unwrap().horizon, 0, "what is missing may come");
    }
}

/// A service and a relay need what the documents say, and `check` says what is missing.
#[tokio::test(flavor = "multi_thread")]
async fn ordinary_users_are_enough() {
    let factory = OnMySql::new().await;
    let name = factory.database.name();
    let user = async |role: &str, grants: &[&str]| {
        let user = format!("{role}_{name}@'127.0.0.1'");
        let mut sql = format!("CREATE USER {user} IDENTIFIED BY 's:cret'");
        for grant in grants {
            sql += &format!("; GRANT {} TO {user}", grant.replace("ON ", &format!("ON {name}.")));
        }
        factory.database.execute(&sql).await.unwrap();
        factory.database.url().replace("root@", &format!("{role}_{name}:s%3Acret@"))
    };
    let publisher = user("writes", &["INSERT ON outbox", "SELECT, UPDATE ON outbox_slot", "EXECUTE ON *"]);
    let pool = MySqlPool::connect(&publisher.await).await.unwrap();
    let mut transaction = pool.begin().await.unwrap();
    factory.writer().insert(&mut transaction, &[event("a", 1), event("b", 2)]).await.unwrap();
    let call = "CALL headwater_publish('orders', 'Placed', 'a', '1', NULL, NULL, NULL)";
    transaction.execute(call).await.unwrap();
    transaction.commit().await.unwrap();
    let rights = ["outbox", "outbox_lease", "outbox_relay"];
    let rights = rights.map(|table| format!("SELECT, INSERT, UPDATE, DELETE ON {table}"));
    let relay = user("relays", &rights.each_ref().map(String::as_str)).await;
    let store =
        MySqlOutboxStore::new(&ConnectOptions::parse(&relay).unwrap(), "outbox").patience(Duration::ZERO);
    let ask = LeaseAsk {
        relay: "a".into(),
        ttl: Duration::from_secs(600),
        release: Vec::new(),
        renew: true,
        leaving: false,
    };
    store.lease(&ask).await.unwrap();
    let rows = store.claim(&claims(true), LIMIT).await.unwrap().rows;
    let done: Vec<Settled> = rows.iter().map(|row| settled(row, Outcome::Published)).collect();
    assert!(store.settle("a", &done).await.unwrap().is_empty());
    assert!(store.claim(&claims(false), LIMIT).await.unwrap().horizon > 0);
    assert_eq!(store.clean(Duration::ZERO).await.unwrap(), 3);
    let said = |findings: Vec<Finding>| findings.iter().map(|one| one.message.clone()).collect::<Vec<_>>();
    assert_eq!(
        said(store.check().await.unwrap()),
        [
            "the outbox outbox is there, with the rights that a relay needs",
            "nothing in it waits to be published",
            "relays that work it now: a (8 lanes)",
        ]
    );
    let reader =
        user("reads", &["SELECT ON outbox", "SELECT ON outbox_lease", "SELECT ON outbox_relay"]).await;
    let reader = MySqlOutboxStore::new(&ConnectOptions::parse(&reader).unwrap(), "outbox");
    let found = said(reader.check().await.unwrap());
    assert!(found[..6].iter().all(|message| message.contains("is missing")), "{found:?}");
}

/// `check` says that an outbox is as an earlier version made it, and what mends it keeps the rows that are not published:
/// only those are copied while publishers wait.
#[tokio::test(flavor = "multi_thread")]
async fn the_layout_of_an_earlier_version_is_found_and_mended() {
    let factory = OnMySql::new().await;
    let earlier = "ALTER TABLE outbox DROP KEY work, DROP COLUMN place, ADD COLUMN due DATETIME(6) AS (CASE state \
         WHEN 'retrying' THEN next_try WHEN 'published' THEN settled_at WHEN 'dropped' THEN settled_at END) STORED, \
         ADD KEY work (queue, due, seq)";
    factory.run(earlier.into()).await;
    factory.add_waiting("k", 3, 30).await;
    factory.add_done(2_500).await;
    let store = factory.store();
    let error = store.claim(&claims(true), LIMIT).await.unwrap_err();
    assert!(error.hint_text().unwrap().contains("headwater check"), "{error}");
    let found = store.check().await.unwrap();
    assert_eq!((found.len(), found[0].severity), (1, Severity::Error), "{found:?}");
    assert_eq!(to_mend(&factory.url, "outbox").await.unwrap(), found);
    let mut owner = factory.pool.acquire().await.unwrap();
    for step in found[0].hint.as_ref().unwrap().lines().filter(|line| line.ends_with(';')) {
        let deletes = step.starts_with("DELETE");
        while owner.execute(AssertSqlSafe(step.to_owned())).await.unwrap().rows_affected() > 0 && deletes {}
        let rows = owner.fetch_one("SELECT count(*) FROM outbox").await.unwrap().get::<i64, _>(0);
        assert_eq!(rows, 33, "{step}");
    }
    assert_eq!(to_mend(&factory.url, "outbox").await.unwrap(), []);
    assert!(store.check().await.unwrap().iter().all(|finding| finding.severity != Severity::Error));
    assert_eq!(store.claim(&claims(true), LIMIT).await.unwrap().blocked.len(), 3);
    let shelf = store.shelf("shop");
    let one = ShelfFilter { key: Some("k1".into()), ..ShelfFilter::default() };
    assert_eq!(shelf.list(&one).await.unwrap()[0].waiting, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn check_finds_a_server_that_takes_no_writes() {
    let server = MySql::start().await.unwrap();
    let database = server.create_database().await.unwrap();
    let url = ConnectOptions::parse(database.url()).unwrap();
    install(&url, "outbox").await.unwrap();
    let errors = async || -> Vec<Finding> {
        let findings = MySqlOutboxStore::new(&url, "outbox").check().await.unwrap();
        findings.into_iter().filter(|finding| finding.severity == Severity::Error).collect()
    };
    assert_eq!(errors().await, []);
    database.execute("SET GLOBAL read_only = ON").await.unwrap();
    let found = errors().await;
    assert!(found.len() == 1 && found[0].message.contains("takes no writes"), "{found:?}");
}

/// What a claim does not want any more goes through its connection where that is little; else the connection
/// ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_has_enough_leaves_the_rest() {
    let factory = OnMySql::new().await;
    let store = factory.store();
    let sessions = async || -> BTreeSet<String> {
        let ids = "SELECT CAST(ID AS CHAR) FROM information_schema.PROCESSLIST WHERE DB = DATABASE()";
        sqlx::query_scalar(ids).fetch_all(&factory.pool).await.unwrap().into_iter().collect()
    };
    let publish = async |size: usize| {
        let payload = Some(format!("\"{}\"", "x".repeat(size)));
        let events: Vec<NewEvent> =
            (0..200).map(|n| NewEvent { payload: payload.clone(), ..event("k", n) }).collect();
        let mut transaction = factory.begin().await;
        factory.writer().insert(&mut transaction, &events).await.unwrap();
        factory.commit(transaction).await;
    };
    let some = async |bytes: usize| {
        let limit = ClaimLimit { bytes, ..LIMIT };
        assert!((4..=6).contains(&store.claim(&claims(false), limit).await.unwrap().rows.len()));
    };
    publish(1_000).await;
    some(5_000).await;
    let before = sessions().await;
    for _ in 0..5 {
        some(5_000).await;
    }
    assert!(before.is_subset(&sessions().await), "one was closed");
    factory.run("DELETE FROM outbox".into()).await;
    publish(100_000).await;
    for _ in 0..5 {
        some(500_000).await;
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    while before.is_subset(&sessions().await) {
        assert!(Instant::now() < deadline, "what was left was read all the same");
    }
}
