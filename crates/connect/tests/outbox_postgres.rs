//! The outbox on PostgreSQL does what every outbox must.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::{Duration, Instant};

use headwater_connect::postgres::outbox::{PostgresOutbox, PostgresOutboxStore, install, remove};
use headwater_connect::postgres::url::ConnectOptions;
use headwater_core::ports::{
    Claim, ClaimLimit, Finding, LANES, Lane, LeaseAsk, NewEvent, OutboxStore as _, Severity, Shelf,
};
use headwater_testkit::servers::{Database, Postgres, Proxy, free_port};
use headwater_testkit::suites::outbox::{
    Factory, Tx, who_goes_silent_while_settling_keeps_no_lane, who_hears_nothing_asks_again,
    who_is_not_there_is_said_at_once, who_is_refused_takes_no_lock, who_reads_for_long_is_not_waited_for,
};
use sqlx::{AssertSqlSafe, Executor, PgConnection, PgPool, Row};

struct OnPostgres {
    database: Database,
    url: ConnectOptions,
    pool: PgPool,
}

impl OnPostgres {
    async fn new() -> Self {
        let database = Postgres::shared().await.unwrap().create_database().await.unwrap();
        let url = ConnectOptions::parse(database.url()).unwrap();
        assert!(install(&url, "public.outbox").await.unwrap());
        assert!(!install(&url, "public.outbox").await.unwrap(), "what is there is left as it is");
        database.execute("CREATE TABLE effect (text text NOT NULL)").await.unwrap();
        let pool = PgPool::connect(database.url()).await.unwrap();
        Self { database, url, pool }
    }

    async fn run(&self, sql: String) {
        self.pool.execute(AssertSqlSafe(sql)).await.unwrap();
    }

    async fn lock_rows(transaction: &mut Tx<Self>) {
        transaction.execute("SELECT FROM outbox FOR UPDATE").await.unwrap();
    }

    /// Runs a statement that is the owner's. It may wait for who has published and not committed; nobody waits for it.
    async fn while_others_publish(&self, sql: String) {
        let mut begun = self.begin().await;
        self.insert_plainly(&mut begun, &event()).await;
        let pool = self.pool.clone();
        let running = tokio::spawn(async move { pool.execute(AssertSqlSafe(sql)).await });
        let deadline = Instant::now() + Duration::from_secs(30);
        while !running.is_finished() && !self.somebody_waits().await {
            assert!(Instant::now() < deadline, "it neither ends nor waits");
        }
        let mut publishing = self.begin().await;
        publishing.execute("SET LOCAL lock_timeout = '5s'").await.unwrap();
        self.insert_plainly(&mut publishing, &event()).await;
        self.commit(publishing).await;
        self.commit(begun).await;
        running.await.unwrap().unwrap();
    }

    /// Whether somebody waits for a lock.
    async fn somebody_waits(&self) -> bool {
        let waiting = "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        sqlx::query_scalar(waiting).fetch_one(&self.pool).await.unwrap()
    }
}

impl Factory for OnPostgres {
    type Writer = PostgresOutbox;
    type Store = PostgresOutboxStore;

    fn writer(&self) -> PostgresOutbox {
        PostgresOutbox::new("public.outbox")
    }

    fn store(&self) -> PostgresOutboxStore {
        PostgresOutboxStore::new(&self.url, "public.outbox")
    }

    fn shelf(&self, owner: &str) -> Box<dyn Shelf> {
        Box::new(self.store().shelf(owner))
    }

    async fn begin(&self) -> Tx<Self> {
        self.pool.begin().await.unwrap()
    }

    async fn commit(&self, transaction: Tx<Self>) {
        transaction.commit().await.unwrap();
    }

    async fn rollback(&self, transaction: Tx<Self>) {
        transaction.rollback().await.unwrap();
    }

    async fn insert_plainly(&self, transaction: &mut Tx<Self>, event: &NewEvent) {
        let insert = "INSERT INTO outbox (stream, type, key, payload) VALUES ($1, $2, $3, $4::json)";
        let insert = sqlx::query(insert).bind(event.stream.clone()).bind(event.kind.clone());
        let insert = insert.bind(event.key.clone()).bind(event.payload.clone());
        insert.execute(&mut **transaction).await.unwrap();
    }

    async fn seen(&self, transaction: &mut Tx<Self>, key: &str) -> i64 {
        let count = sqlx::query_scalar("SELECT count(*) FROM outbox WHERE key = $1").bind(key.to_owned());
        count.fetch_one(&mut **transaction).await.unwrap()
    }

    async fn effect(&self, transaction: &mut Tx<Self>, text: &str) {
        let insert = sqlx::query("INSERT INTO effect VALUES ($1)").bind(text.to_owned());
        insert.execute(&mut **transaction).await.unwrap();
    }

    async fn effects(&self, text: &str) -> i64 {
        let count = sqlx::query_scalar("SELECT count(*) FROM effect WHERE text = $1").bind(text.to_owned());
        count.fetch_one(&self.pool).await.unwrap()
    }

    async fn states(&self) -> Vec<String> {
        sqlx::query_scalar("SELECT state FROM outbox ORDER BY seq").fetch_all(&self.pool).await.unwrap()
    }

    async fn expire(&self, relay: &str) {
        self.run(format!("UPDATE outbox_lease SET until = '-infinity' WHERE relay = '{relay}'")).await;
        self.run(format!("UPDATE outbox_relay SET until = '-infinity' WHERE relay = '{relay}'")).await;
    }

    async fn add_done(&self, many: u64) {
        self.run(format!(
            "INSERT INTO outbox (stream, type, key, payload, state, settled_at) SELECT 'orders', 'Placed', n::text, \
             '{{}}', 'published', clock_timestamp() FROM generate_series(1, {many}) n"
        ))
        .await;
        self.run("ANALYZE outbox".into()).await;
    }

    async fn add_waiting(&self, name: &str, keys: u64, many: u64) {
        let insert = |state: &str, many: u64| {
            format!(
                "INSERT INTO outbox (stream, type, key, payload, state) SELECT 'orders', 'Placed', \
                 '{name}' || (n % {keys}), '{{}}', '{state}' FROM generate_series(1, {many}) n"
            )
        };
        self.run(format!("{}; {}", insert("parked", keys), insert("waiting", many))).await;
        self.run("ANALYZE outbox".into()).await;
    }

    /// A session that has ended has written what it counted.
    async fn rows_read(&self) -> u64 {
        let mut connection = self.database.connect().await.unwrap();
        let others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
             AND application_name = 'headwater'";
        let deadline = Instant::now() + Duration::from_secs(30);
        while connection.fetch_one(others).await.unwrap().get::<i64, _>(0) > 0 {
            assert!(Instant::now() < deadline, "a store has left a session behind");
            tokio::task::yield_now().await;
        }
        let read = "SELECT (seq_tup_read + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes \
             WHERE relname = 'outbox'))::bigint FROM pg_stat_user_tables WHERE relname = 'outbox'";
        connection.fetch_one(read).await.unwrap().get::<i64, _>(0).unsigned_abs()
    }
}

headwater_testkit::outbox_suite!(OnPostgres::new().await);

/// Only who may have drawn a lower sequence holds the horizon back: no other database's transaction, however old,
/// and none that has not written to this outbox.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_transaction_elsewhere_holds_nothing_up() {
    let factory = OnPostgres::new().await;
    let other = Postgres::shared().await.unwrap().create_database().await.unwrap();
    let other = PgPool::connect(other.url()).await.unwrap();
    let mut far = other.begin().await.unwrap();
    far.execute("CREATE TABLE t (); SELECT pg_current_xact_id()").await.unwrap();
    let mut near = factory.pool.begin().await.unwrap();
    near.execute("INSERT INTO effect VALUES ('x'); SELECT count(*) FROM outbox").await.unwrap();
    let mut transaction = factory.begin().await;
    factory.insert_plainly(&mut transaction, &event()).await;
    factory.commit(transaction).await;
    let store = factory.store();
    let all = |lane: Lane| Claim { lane, above: 0, known: Vec::new(), retries: false, resume: false };
    let claims: Vec<Claim> = (0..LANES).map(all).collect();
    let limit = ClaimLimit { rows: 100, bytes: 1 << 20 };
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let claimed = store.claim(&claims, limit).await.unwrap();
        assert_eq!(claimed.rows.len(), 1);
        if claimed.horizon >= claimed.rows[0].sequence {
            break;
        }
        assert!(Instant::now() < deadline, "the horizon stays at {}", claimed.horizon);
        tokio::task::yield_now().await;
    }
    drop((far, near));
}

/// Settling locks the leases of its lanes in their order. Renewing does so too, in whatever order they lie: else each
/// could have what the other waits for.
#[tokio::test(flavor = "multi_thread")]
async fn renewing_and_settling_never_wait_for_each_other() {
    let factory = OnPostgres::new().await;
    let ask = || LeaseAsk {
        relay: "a".into(),
        ttl: Duration::from_secs(600),
        release: Vec::new(),
        renew: true,
        leaving: false,
    };
    factory.store().lease(&ask()).await.unwrap();
    let reversed = "CREATE TABLE kept AS SELECT * FROM outbox_lease; TRUNCATE outbox_lease; \
         INSERT INTO outbox_lease SELECT * FROM kept ORDER BY lane DESC";
    factory.run(reversed.into()).await;
    let mut settling = factory.begin().await;
    settling.execute("SELECT FROM outbox_lease WHERE lane = 0 FOR SHARE").await.unwrap();
    let store = factory.store();
    let renewing = tokio::spawn(async move { store.lease(&ask()).await });
    until_one_waits(&factory.pool).await;
    settling.execute("SELECT FROM outbox_lease WHERE lane = 7 FOR SHARE").await.unwrap();
    factory.rollback(settling).await;
    assert_eq!(renewing.await.unwrap().unwrap().len(), usize::from(LANES));
}

/// A statement whose asker has gone lets rows go: whoever asks meanwhile does not take the rest for let go.
#[tokio::test(flavor = "multi_thread")]
async fn what_two_let_go_at_once_is_let_go_whole() {
    let factory = OnPostgres::new().await;
    factory.add_waiting("one", 1, 30_000).await;
    let ask = LeaseAsk {
        relay: "a".into(),
        ttl: Duration::from_secs(600),
        release: Vec::new(),
        renew: true,
        leaving: false,
    };
    let store = factory.store();
    store.lease(&ask).await.unwrap();
    factory.run("DELETE FROM outbox WHERE state <> 'waiting'".into()).await;
    let lane: i16 =
        sqlx::query_scalar("SELECT lane FROM outbox LIMIT 1").fetch_one(&factory.pool).await.unwrap();
    let mut gone = factory.begin().await;
    let resume = sqlx::query(AssertSqlSafe(store.statements()[3])).bind(lane);
    resume.bind([i64::MIN]).bind([i64::MAX]).execute(&mut *gone).await.unwrap();
    let claim = Claim { lane: lane as Lane, above: 0, known: Vec::new(), retries: true, resume: true };
    let limit = ClaimLimit { rows: 1, bytes: 1 << 20 };
    let asked = tokio::spawn(async move {
        let mut claimed = store.claim(std::slice::from_ref(&claim), limit).await.unwrap();
        while !claimed.resuming.is_empty() {
            claimed = store.claim(std::slice::from_ref(&claim), limit).await.unwrap();
        }
    });
    until_one_waits(&factory.pool).await;
    factory.commit(gone).await;
    asked.await.unwrap();
    assert!(factory.states().await.iter().all(|state| state == "new"), "some wait, and nobody knows");
}

/// Until a statement waits for a lock.
async fn until_one_waits(pool: &PgPool) {
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid IN \
         (SELECT pid FROM pg_stat_activity WHERE datname = current_database())";
    let deadline = Instant::now() + Duration::from_secs(30);
    while sqlx::query_scalar::<_, i64>(waits).fetch_one(pool).await.unwrap() == 0 {
        assert!(Instant::now() < deadline, "nobody waits");
        tokio::task::yield_now().await;
    }
}

/// How the server would do it.
async fn plan(connection: &mut PgConnection, sql: &str, arguments: &str) -> String {
    let prepare = format!("DEALLOCATE ALL; PREPARE asked AS {sql}");
    sqlx::raw_sql(AssertSqlSafe(prepare)).execute(&mut *connection).await.unwrap();
    let explain = format!("EXPLAIN EXECUTE asked ({arguments})");
    let plan = sqlx::raw_sql(AssertSqlSafe(explain)).fetch_all(connection).await.unwrap();
    plan.iter().map(|row| row.get::<String, _>(0)).collect::<Vec<_>>().join("\n")
}

/// Whatever is done: each statement goes by its own small index.
#[tokio::test(flavor = "multi_thread")]
async fn plans_name_the_partial_indexes() {
    let factory = OnPostgres::new().await;
    factory.add_done(1_000_000).await;
    let store = factory.store();
    let arguments = ["'{0,1}', '{0,7}', 100, '{5,8}'", "'{0,1}', 100", "0", "0, '{0}', '{9}'", "0"];
    let indexes = ["outbox_new", "outbox_heads", "outbox_heads", "outbox_waiting", "outbox_done"];
    let mut connection = factory.database.connect().await.unwrap();
    for ((sql, arguments), index) in store.statements().into_iter().zip(arguments).zip(indexes) {
        let plan = plan(&mut connection, sql, arguments).await;
        assert!(plan.contains(index) && !plan.contains("Seq Scan"), "{plan}");
    }
}

/// The statistics say that nothing is new, and nothing waits: what is written down of rows is searched for by their ids all
/// the same, not among all that is new by now.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_down_goes_by_ids_whatever_the_statistics_say() {
    let factory = OnPostgres::new().await;
    factory.add_done(50_000).await;
    factory.run("ANALYZE outbox".into()).await;
    let (store, mut connection) = (factory.store(), factory.database.connect().await.unwrap());
    let [.., resume, _, settle] = store.statements();
    let nothing = "'r', '{0}', '{1}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}'";
    for (sql, arguments, updates) in [(resume, "0, '{0}', '{9}'", 1), (settle, nothing, 3)] {
        let plan = plan(&mut connection, sql, arguments).await;
        assert_eq!(
            plan.matches("on outbox_pkey").count() + plan.matches("using outbox_pkey").count(),
            updates,
            "{plan}"
        );
    }
}

/// A standby says of itself that it takes no writes, as does this.
#[tokio::test(flavor = "multi_thread")]
async fn check_finds_a_server_that_takes_no_writes() {
    let factory = OnPostgres::new().await;
    let errors = async || -> Vec<Finding> {
        let findings = factory.store().check().await.unwrap();
        findings.into_iter().filter(|finding| finding.severity == Severity::Error).collect()
    };
    assert_eq!(errors().await, []);
    let name = factory.pool.fetch_one("SELECT current_database()").await.unwrap().get::<String, _>(0);
    factory.run(format!("ALTER DATABASE {name} SET default_transaction_read_only = on")).await;
    let found = errors().await;
    assert!(found.len() == 1 && found[0].message.contains("takes no writes"), "{found:?}");
}

/// However it is asked for: a table of another layout is somebody's.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_another_layout_is_not_dropped() {
    let factory = OnPostgres::new().await;
    factory.run("CREATE TABLE orders (id bigint PRIMARY KEY, state text)".into()).await;
    let refused = remove(&factory.url, "public.orders", true).await.unwrap_err();
    assert!(refused.hint_text().unwrap().contains("another layout"), "{refused}");
    factory.run("INSERT INTO orders VALUES (1, 'new')".into()).await;
    assert!(remove(&factory.url, "public.outbox", false).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_is_counted_without_a_lock() {
    let factory = OnPostgres::new().await;
    who_is_refused_takes_no_lock(&factory, remove(&factory.url, "public.outbox", false)).await;
}

/// What was published before it is gone is not lost: who has yet to commit is waited for, and counts. Whoever
/// publishes waits meanwhile, so what is done is not read again.
#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_that_a_transaction_publishes_to_is_not_dropped() {
    const MANY: u64 = 50_000;
    let factory = OnPostgres::new().await;
    factory.add_done(MANY).await;
    let mut transaction = factory.begin().await;
    factory.insert_plainly(&mut transaction, &event()).await;
    let before = factory.rows_read().await;
    let url = factory.url.clone();
    let removal = tokio::spawn(async move { remove(&url, "public.outbox", false).await });
    let deadline = Instant::now() + Duration::from_secs(30);
    while !factory.somebody_waits().await {
        assert!(Instant::now() < deadline && !removal.is_finished(), "it does not wait");
    }
    factory.commit(transaction).await;
    let refused = removal.await.unwrap().unwrap_err();
    assert!(refused.to_string().contains("written just now"), "{refused}");
    let read = factory.rows_read().await - before;
    assert!(read < 2 * MANY, "{read} rows were read");
    factory.run("UPDATE outbox SET state = 'published'".into()).await;
    assert!(remove(&factory.url, "public.outbox", false).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_that_is_read_for_long_is_not_dropped() {
    let factory = OnPostgres::new().await;
    who_reads_for_long_is_not_waited_for(&factory, async || {
        remove(&factory.url, "public.outbox", true).await
    })
    .await;
}

/// `check` says which index an earlier version made otherwise, and how it is made anew.
#[tokio::test(flavor = "multi_thread")]
async fn indexes_of_an_earlier_version_are_found_and_mended() {
    let factory = OnPostgres::new().await;
    let indexes = async || -> Vec<Finding> {
        let findings = factory.store().check().await.unwrap();
        findings.into_iter().filter(|finding| finding.message.contains("index")).collect()
    };
    assert_eq!(indexes().await, []);
    let earlier = "DROP INDEX outbox_new, outbox_waiting, outbox_heads, outbox_done; \
         CREATE INDEX outbox_new ON outbox (lane, seq) WHERE state <> 'published'; \
         CREATE INDEX outbox_waiting ON outbox (lane, seq) WHERE state = 'waiting'; \
         CREATE INDEX outbox_heads ON outbox (lane, next_try, stream, key) WHERE state IN ('retrying', 'parked'); \
         CREATE INDEX outbox_done ON outbox (settled_at)";
    factory.run(earlier.into()).await;
    let found = indexes().await;
    assert_eq!(found.len(), 4, "{found:?}");
    for finding in found {
        assert_eq!(finding.severity, Severity::Warning);
        for step in steps(&finding) {
            factory.while_others_publish(step).await;
        }
    }
    assert_eq!(indexes().await, []);
}

/// The server would cut the names of what belongs to it.
#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_has_no_name_that_is_too_long() {
    let factory = OnPostgres::new().await;
    let named = |bytes: usize| format!("second.{}", "o".repeat(bytes));
    factory.run("CREATE SCHEMA second".into()).await;
    let refused = install(&factory.url, &named(49)).await.unwrap_err();
    assert!(refused.to_string().contains("too long"), "{refused}");
    assert!(install(&factory.url, &named(48)).await.unwrap());
    let found = PostgresOutboxStore::new(&factory.url, &named(48)).check().await.unwrap();
    assert!(!found.iter().any(|finding| finding.message.contains("index")), "{found:?}");
}

/// A CREATE INDEX CONCURRENTLY that failed leaves an index that is written to and never read.
#[tokio::test(flavor = "multi_thread")]
async fn indexes_that_are_not_valid_are_found_and_mended() {
    let factory = OnPostgres::new().await;
    let indexes = async || -> Vec<Finding> {
        let findings = factory.store().check().await.unwrap();
        findings.into_iter().filter(|finding| finding.message.contains("index")).collect()
    };
    let earlier = "DROP INDEX outbox_waiting, outbox_heads, outbox_done; \
         CREATE INDEX outbox_waiting ON outbox (lane, seq) WHERE state = 'waiting'; \
         CREATE INDEX outbox_done_new ON outbox (settled_at) WHERE state IN ('published', 'dropped')";
    factory.run(earlier.into()).await;
    let mut publishing = factory.begin().await;
    factory.insert_plainly(&mut publishing, &event()).await;
    // Stopped while it waits for that one.
    for index in
        ["outbox_waiting_new ON outbox (lane)", "outbox_heads ON outbox (lane)", "mine ON outbox (type)"]
    {
        let mut connection = factory.database.connect().await.unwrap();
        connection.execute("SET lock_timeout = 1").await.unwrap();
        let create = format!("CREATE INDEX CONCURRENTLY {index}");
        let failed = connection.execute(AssertSqlSafe(create)).await.unwrap_err();
        assert!(failed.to_string().contains("lock timeout"), "{failed}");
    }
    factory.rollback(publishing).await;
    let found = indexes().await;
    let said: Vec<&str> = found.iter().map(|finding| &*finding.message).collect();
    assert_eq!(
        said,
        [
            "the index \"public\".\"outbox_waiting\" is not as `headwater init` makes it",
            "the index \"public\".\"outbox_heads\" is not valid",
            "the index \"public\".\"outbox_done\" is missing",
            "the index \"public\".\"mine\" is not valid: nothing reads it",
        ]
    );
    assert!(found[0].hint.as_ref().unwrap().starts_with("unless a CREATE INDEX CONCURRENTLY is at work"));
    for step in found.iter().flat_map(steps) {
        factory.run(step).await;
    }
    assert_eq!(indexes().await, []);
    factory.run("DROP INDEX outbox_new".into()).await;
    for step in indexes().await.iter().flat_map(steps) {
        factory.run(step).await;
    }
    assert_eq!(indexes().await, []);
    let left = "SELECT count(*) FROM pg_indexes WHERE tablename = 'outbox'";
    assert_eq!(sqlx::query_scalar::<_, i64>(left).fetch_one(&factory.pool).await.unwrap(), 5);
}

/// The statements of a hint.
fn steps(finding: &Finding) -> Vec<String> {
    let hint = finding.hint.as_ref().unwrap();
    let (_, steps) = hint.split_once("as the owner").unwrap();
    let (_, steps) = steps.split_once(':').unwrap();
    steps.split_terminator(';').map(|step| step.trim().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_goes_silent_while_settling_keeps_no_lane() {
    let factory = OnPostgres::new().await;
    let proxy = Proxy::start(("127.0.0.1", Postgres::shared().await.unwrap().port())).await.unwrap();
    let url = ConnectOptions::parse(&factory.database.url_through(&proxy)).unwrap();
    let store = PostgresOutboxStore::new(&url, "public.outbox");
    let (lock, waits) = (OnPostgres::lock_rows, async || factory.somebody_waits().await);
    who_goes_silent_while_settling_keeps_no_lane(&factory, (store, &proxy), lock, waits).await;
    assert_eq!(factory.states().await, ["published"], "and what it asked for is done");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_said_at_once() {
    let factory = OnPostgres::new().await;
    let url = ConnectOptions::parse(&factory.database.url_at(free_port())).unwrap();
    who_is_not_there_is_said_at_once(PostgresOutboxStore::new(&url, "public.outbox")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_hears_nothing_asks_again() {
    let factory = OnPostgres::new().await;
    let proxy = Proxy::start(("127.0.0.1", Postgres::shared().await.unwrap().port())).await.unwrap();
    let url = ConnectOptions::parse(&factory.database.url_through(&proxy)).unwrap();
    let store = PostgresOutboxStore::new(&url, "public.outbox");
    let (lock, waits) = (OnPostgres::lock_rows, async || factory.somebody_waits().await);
    who_hears_nothing_asks_again(&factory, (store, &proxy), lock, waits).await;
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
