//! What publishing costs a business transaction: pgbench's, with and without an event.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use headwater_connect::postgres::outbox::{PostgresOutbox, install};
use headwater_connect::postgres::url::ConnectOptions;
use headwater_core::EventId;
use headwater_core::ports::{NewEvent, OutboxWriter};
use headwater_testkit::servers::{Database, Postgres};
use sqlx::postgres::PgPoolOptions;
use sqlx::{PgPool, Postgres as Pg, Transaction};

use super::report::{Case, median};

/// How the bench of the outbox runs.
#[derive(Args, Clone)]
pub struct Outbox {
    /// How long each turn takes
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Clients at a time
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// How often the thing and its baseline take turns
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// End with one line of JSON
    #[arg(long)]
    pub json: bool,
}

/// Accounts of the business, pgbench's at scale 10.
const ACCOUNTS: i64 = 1_000_000;

/// Business transactions with `publish` in them, against the same without.
pub async fn outbox(how: &Outbox) -> Vec<Case> {
    let server = Postgres::settings().set("shared_buffers", "512MB").set("max_wal_size", "8GB");
    let server = server.start().await.expect("PostgreSQL starts");
    let database = server.create_database().await.expect("a database");
    prepare(&database).await;
    let pool = PgPoolOptions::new()
        .max_connections(how.clients as u32)
        .connect(database.url())
        .await
        .expect("a pool");
    turn(&pool, how, true).await; // to warm up
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..how.rounds {
        without.push(turn(&pool, how, false).await);
        with.push(turn(&pool, how, true).await);
    }
    let ratios = with.iter().zip(&without).map(|(with, without)| with / without).collect();
    let mut case = Case::new(format!("outbox {} clients", how.clients), "transactions/s", "ratio >= 0.78");
    case.rate = median(with);
    case.baseline = Some("without publish".to_owned());
    case.baseline_rate = Some(median(without));
    case.ratio = Some(median(ratios));
    vec![case]
}

async fn prepare(database: &Database) {
    let sql = format!(
        "create table branches (bid int primary key, balance int not null) with (fillfactor = 50);
         create table tellers (tid int primary key, bid int not null, balance int not null) with (fillfactor = 50);
         create table accounts (aid int primary key, bid int not null, balance int not null, filler char(84));
         create table history (tid int, bid int, aid int, delta int, mtime timestamptz, filler char(22));
         insert into branches select n, 0 from generate_series(1, 100) n;
         insert into tellers select n, n % 100 + 1, 0 from generate_series(1, 1000) n;
         insert into accounts select n, n % 100 + 1, 0, '' from generate_series(1, {ACCOUNTS}) n"
    );
    database.execute(&sql).await.expect("the business");
    let url = ConnectOptions::parse(database.url()).expect("a URL");
    install(&url, "public.outbox").await.expect("the outbox");
    database.execute("vacuum analyze").await.expect("vacuum");
}

/// Transactions a second, with or without an event in each.
async fn turn(pool: &PgPool, how: &Outbox, publish: bool) -> f64 {
    let done = Arc::new(AtomicU64::new(0));
    let (start, end) = (Instant::now(), Instant::now() + Duration::from_secs(how.seconds));
    let clients = (0..how.clients).map(|_| {
        let (pool, done) = (pool.clone(), Arc::clone(&done));
        tokio::spawn(async move {
            let outbox = PostgresOutbox::new("public.outbox");
            while Instant::now() < end {
                let mut transaction = pool.begin().await.expect("begin");
                let account = business(&mut transaction).await;
                if publish {
                    let event = event(account);
                    outbox.insert(&mut transaction, std::slice::from_ref(&event)).await.expect("an event");
                }
                transaction.commit().await.expect("commit");
                done.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.expect("no panic");
    }
    done.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64()
}

/// The statements of pgbench's TPC-B-like transaction.
async fn business(transaction: &mut Transaction<'_, Pg>) -> i32 {
    let account = rand::random_range(1..=ACCOUNTS) as i32;
    let (teller, branch) = (rand::random_range(1..=1000), rand::random_range(1..=100));
    let delta = rand::random_range(-5000..=5000);
    for (sql, id) in [
        ("update accounts set balance = balance + $1 where aid = $2", account),
        ("select balance + $1 from accounts where aid = $2", account),
        ("update tellers set balance = balance + $1 where tid = $2", teller),
        ("update branches set balance = balance + $1 where bid = $2", branch),
        ("insert into history (delta, aid, mtime) values ($1, $2, current_timestamp)", account),
    ] {
        sqlx::query(sql).bind(delta).bind(id).execute(&mut **transaction).await.expect("business");
    }
    account
}

fn event(account: i32) -> NewEvent {
    let now = micros();
    NewEvent {
        id: EventId::derive(now, &[&rand::random::<[u8; 16]>()]),
        stream: "accounts".into(),
        kind: "Moved".into(),
        key: Some(account.to_string()),
        payload: Some(format!(
            "{{\"account\":{account},\"delta\":1,\"balance\":2,\"note\":\"moved at the counter, as asked for\"}}"
        )),
        headers: vec![(
            "traceparent".into(),
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into(),
        )],
        version: 1,
    }
}

fn micros() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    since.as_micros() as i64
}
