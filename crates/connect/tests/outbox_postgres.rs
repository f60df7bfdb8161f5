//! The outbox on PostgreSQL, as writers and relays see it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::time::Duration;

use headwater_connect::postgres::outbox::{PostgresOutbox, PostgresOutboxStore, install};
use headwater_connect::postgres::url::ConnectOptions;
use headwater_core::EventId;
use headwater_core::ports::{
    Claim, ClaimLimit, Lease, LeaseAsk, NewEvent, OutboxStore, OutboxWriter, Outcome, Settled,
};
use headwater_testkit::servers::{Database, Postgres};
use sqlx::{AssertSqlSafe, Executor, PgPool, Row};

const LONG: Duration = Duration::from_secs(60);
const LIMIT: ClaimLimit = ClaimLimit { rows: 100_000, bytes: 1 << 30 };

async fn outbox() -> (Database, PgPool, PostgresOutboxStore) {
    let database = Postgres::shared().await.unwrap().create_database().await.unwrap();
    let url = ConnectOptions::parse(database.url()).unwrap();
    assert!(install(&url, "public.outbox").await.unwrap());
    assert!(!install(&url, "public.outbox").await.unwrap(), "what is there is left as it is");
    let pool = PgPool::connect(database.url()).await.unwrap();
    (database, pool, PostgresOutboxStore::new(&url, "public.outbox"))
}

fn event(key: &str, n: u64) -> NewEvent {
    NewEvent {
        id: EventId::derive(1_700_000_000_000_000, &[key.as_bytes(), &n.to_be_bytes()]),
        stream: "orders".into(),
        kind: "Placed".into(),
        key: Some(key.into()),
        payload: Some(format!("{{\"n\":{n}}}")),
        headers: vec![("a".into(), "1".into()), ("b \"".into(), "2".into())],
        version: 2,
    }
}

fn ask(relay: &str, ttl: Duration) -> LeaseAsk {
    LeaseAsk { relay: relay.into(), ttl, release: Vec::new(), leaving: false }
}

async fn claim_all(store: &PostgresOutboxStore) -> Vec<headwater_core::ports::ClaimedRow> {
    let claims: Vec<Claim> =
        (0..8).map(|lane| Claim { lane, above: 0, retries: true, resume: false }).collect();
    store.claim(&claims, LIMIT).await.unwrap().rows
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_there_when_its_transaction_has_committed_and_not_before() {
    let (_database, pool, store) = outbox().await;
    let outbox = PostgresOutbox::new("public.outbox");
    let mut rolled_back = pool.begin().await.unwrap();
    outbox.insert(&mut rolled_back, &[event("a", 1)]).await.unwrap();
    rolled_back.rollback().await.unwrap();
    let mut transaction = pool.begin().await.unwrap();
    outbox.insert(&mut transaction, &[event("a", 2)]).await.unwrap();
    outbox.insert(&mut transaction, &[event("b", 3), event("a", 4)]).await.unwrap();
    assert!(claim_all(&store).await.is_empty());
    transaction.commit().await.unwrap();
    let rows = claim_all(&store).await;
    assert_eq!(rows.len(), 3);
    let first = rows.iter().find(|row| row.id == event("a", 2).id).unwrap();
    assert_eq!((&*first.stream, first.key.as_deref(), first.again), ("orders", Some("a"), false));
    let row = pool.fetch_one("select headers::text, version from outbox order by seq limit 1").await.unwrap();
    assert_eq!(row.get::<String, _>(0), "{\"a\":\"1\",\"b \\\"\":\"2\"}");
    assert_eq!(row.get::<i32, _>(1), 2);
}

/// Nothing but the key's lock keeps these in order: the history is written in the same transactions, after
/// the event, by a counter that is read under no lock of its own.
#[tokio::test(flavor = "multi_thread")]
async fn within_a_key_the_sequence_follows_commits_with_16_writers() {
    let (database, pool, _store) = outbox().await;
    // What a writer sees of its key when it holds the lock is what was committed before.
    let writers = (0..16).map(|writer: u64| {
        let url = database.url().to_owned();
        tokio::spawn(async move {
            let pool = PgPool::connect(&url).await.unwrap();
            let outbox = PostgresOutbox::new("public.outbox");
            for n in 0..40 {
                let mut transaction = pool.begin().await.unwrap();
                let key = format!("k{}", (writer + n) % 3);
                outbox.insert(&mut transaction, &[event(&key, writer * 1000 + n)]).await.unwrap();
                let seen = "update outbox set error = (select count(*)::text from outbox o where o.key = $1) \
                     where id = $2";
                let id = sqlx::types::Uuid::from_bytes(*event(&key, writer * 1000 + n).id.as_bytes());
                sqlx::query(seen).bind(&key).bind(id).execute(&mut *transaction).await.unwrap();
                transaction.commit().await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let rows = pool.fetch_all("select key, error from outbox order by seq").await.unwrap();
    let mut seen: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for row in rows {
        seen.entry(row.get(0)).or_default().push(row.get::<String, _>(1).parse().unwrap());
    }
    for (key, counts) in seen {
        let expected: Vec<u32> = (1..=counts.len() as u32).collect();
        assert_eq!(counts, expected, "{key}: each sees all that have a lower sequence, itself the last");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lanes_are_shared_taken_over_and_guarded() {
    let (_database, pool, store) = outbox().await;
    let lanes = |leases: &[Lease]| leases.iter().map(|lease| lease.lane).collect::<Vec<_>>();
    let first = store.lease(&ask("a", LONG)).await.unwrap();
    assert_eq!(lanes(&first), (0..8).collect::<Vec<_>>());
    assert!(first.iter().all(|lease| lease.epoch == 1 && !lease.wanted));
    assert!(store.lease(&ask("b", LONG)).await.unwrap().is_empty());
    let wanted: Vec<Lease> = store.lease(&ask("a", LONG)).await.unwrap();
    let release: Vec<_> = wanted.iter().filter(|lease| lease.wanted).map(|lease| lease.lane).collect();
    assert_eq!(release.len(), 4);
    store.lease(&LeaseAsk { release: release.clone(), ..ask("a", LONG) }).await.unwrap();
    let second = store.lease(&ask("b", LONG)).await.unwrap();
    assert_eq!(lanes(&second), release);
    assert!(second.iter().all(|lease| lease.epoch == 2));

    // a is not heard of any more: b takes its lanes over, and what a settles then is refused.
    let mut transaction = pool.begin().await.unwrap();
    let outbox = PostgresOutbox::new("public.outbox");
    let events: Vec<NewEvent> = (0..50).map(|n| event(&format!("k{n}"), n)).collect();
    outbox.insert(&mut transaction, &events).await.unwrap();
    transaction.commit().await.unwrap();
    let rows = claim_all(&store).await;
    let settled = |epoch| {
        let published = |row: &headwater_core::ports::ClaimedRow| Settled {
            lane: row.lane,
            epoch,
            sequence: row.sequence,
            id: row.id,
            outcome: Outcome::Published,
        };
        rows.iter().filter(|row| !release.contains(&row.lane)).map(published).collect::<Vec<_>>()
    };
    pool.execute("update outbox_lease set until = '-infinity' where relay = 'a'").await.unwrap();
    pool.execute("delete from outbox_relay where relay = 'a'").await.unwrap();
    assert_eq!(store.lease(&ask("b", LONG)).await.unwrap().len(), 8);
    let stale = settled(1);
    assert!(!stale.is_empty());
    let lost = store.settle("a", &stale).await.unwrap();
    assert!(!lost.is_empty(), "a is told");
    assert_eq!(claim_all(&store).await.len(), 50, "nothing was written");
    assert!(store.settle("b", &settled(2)).await.unwrap().is_empty());
    assert_eq!(claim_all(&store).await.len(), 50 - stale.len());
    let gone = LeaseAsk { leaving: true, release: (0..8).collect(), ..ask("b", LONG) };
    assert!(store.lease(&gone).await.unwrap().is_empty());
    assert_eq!(store.lease(&ask("c", LONG)).await.unwrap().len(), 8, "at once");
}

/// What is published is never read again, however much of it there is.
#[tokio::test(flavor = "multi_thread")]
async fn no_statement_walks_what_is_done() {
    let (_database, pool, _store) = outbox().await;
    let many: u64 = std::env::var("HEADWATER_MANY").map_or(100_000, |_| 1_000_000);
    let done = format!(
        "insert into outbox (stream, type, key, payload, state, settled_at) select 'orders', 'Placed', n::text, '{{}}', \
         'published', clock_timestamp() from generate_series(1, {many}) n"
    );
    pool.execute(AssertSqlSafe(done)).await.unwrap();
    pool.execute("insert into outbox (stream, type, key, payload) select 'orders', 'Placed', n::text, '{}' from generate_series(1, 50) n")
        .await
        .unwrap();
    pool.execute("analyze outbox").await.unwrap();
    let url = ConnectOptions::parse(_database.url()).unwrap();
    let store = PostgresOutboxStore::new(&url, "public.outbox");
    let scans = async || -> (i64, i64) {
        let sql = "select seq_scan, seq_tup_read from pg_stat_user_tables where relname = 'outbox'";
        pool.execute("select pg_stat_force_next_flush()").await.ok();
        let row = pool.fetch_one(sql).await.unwrap();
        (row.get(0), row.get(1))
    };
    let before = scans().await;
    let leases = store.lease(&ask("a", LONG)).await.unwrap();
    let resume: Vec<Claim> = leases
        .iter()
        .map(|lease| Claim { lane: lease.lane, above: 0, retries: true, resume: true })
        .collect();
    let rows = store.claim(&resume, LIMIT).await.unwrap().rows;
    assert_eq!(rows.len(), 50);
    let outcome = |n: usize| match n % 3 {
        0 => Outcome::Published,
        1 => Outcome::Retry { attempts: 1, after: Duration::ZERO, error: "no".into() },
        _ => Outcome::Parked { attempts: 9, error: "no".into() },
    };
    let settled: Vec<Settled> = rows
        .iter()
        .enumerate()
        .map(|(n, row)| Settled {
            lane: row.lane,
            epoch: 1,
            sequence: row.sequence,
            id: row.id,
            outcome: outcome(n),
        })
        .collect();
    assert!(store.settle("a", &settled).await.unwrap().is_empty());
    assert_eq!(claim_all(&store).await.len(), 17, "those that are tried again");
    assert_eq!(store.clean(LONG).await.unwrap(), 0);
    assert_eq!(store.clean(Duration::ZERO).await.unwrap(), 1_000, "in small batches");
    // The server's counters come from its sessions as they become idle; those of the store have.
    drop(store);
    assert_eq!(scans().await, before, "a table was read from end to end");
}
