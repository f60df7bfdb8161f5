//! Both services on PostgreSQL.

use headwater::{Event, Handled, Handler, Outbox, Received};
use headwater_connect::postgres::inbox::{PostgresInbox, script};
use headwater_connect::postgres::outbox::{PostgresOutbox, install};
use headwater_connect::postgres::url::ConnectOptions;
use headwater_testkit::servers::{Database, Kafka, Postgres};
use sqlx::postgres::PgPoolOptions;
use sqlx::{PgPool, Transaction};

use super::{Arrivals, CLIENTS, Case, HANDLERS, Live, Messaging, Orders, Placed};

pub(super) async fn live(how: &Messaging, rate: u64, kafka: &Kafka) -> Case {
    let fsync = if how.no_fsync { "off" } else { "on" };
    let settings = Postgres::settings().set("fsync", fsync).set("shared_buffers", "256MB");
    let server = settings.set("max_connections", 200).start().await.expect("PostgreSQL starts");
    let (a, b) = (orders(&server).await, features(&server).await);
    let (clients, handlers) = (CLIENTS, HANDLERS as usize - 2);
    let live = Live { how, name: "postgres", rate, kafka, url: a.unix_url(), clients, handlers };
    let shop =
        Shop { pool: pool(&a, CLIENTS).await, outbox: Outbox::new(PostgresOutbox::new("public.outbox")) };
    live.run(shop, PostgresInbox::new(pool(&b, HANDLERS).await), Remember).await
}

async fn orders(server: &Postgres) -> Database {
    let database = server.create_database().await.expect("a database");
    let tables = "CREATE TABLE orders (id bigint PRIMARY KEY, customer int NOT NULL, total int NOT NULL);
        CREATE TABLE order_line (id bigint, line int, item int NOT NULL, PRIMARY KEY (id, line));
        CREATE TABLE stock (item int PRIMARY KEY, pieces int NOT NULL);
        INSERT INTO stock SELECT n, 1000000 FROM generate_series(0, 9999) n";
    database.execute(tables).await.expect("the business");
    let url = ConnectOptions::parse(database.url()).expect("a URL");
    install(&url, "public.outbox").await.expect("the outbox");
    database
}

async fn features(server: &Postgres) -> Database {
    let database = server.create_database().await.expect("a database");
    let effect = "CREATE TABLE feature (id bigserial PRIMARY KEY, order_id bigint NOT NULL)";
    database.execute(&format!("{effect}; {}", script("public"))).await.expect("the tables");
    database
}

async fn pool(database: &Database, connections: u32) -> PgPool {
    let options = PgPoolOptions::new().max_connections(connections).test_before_acquire(false);
    options.connect(database.unix_url()).await.expect("a pool")
}

#[derive(Clone)]
struct Shop {
    pool: PgPool,
    outbox: Outbox<PostgresOutbox>,
}

impl Orders for Shop {
    async fn place(&self, id: i64, item: i32, placed: impl FnOnce() -> Event + Send) {
        // Several rows of several tables, and one round trip.
        let business = "WITH placed AS (INSERT INTO orders VALUES ($1, 7, 1990)), \
             lines AS (INSERT INTO order_line VALUES ($1, 1, $2), ($1, 2, $2 + 1)) \
             UPDATE stock SET pieces = pieces - 1 WHERE item = $2";
        let mut tx = self.pool.begin().await.expect("a transaction");
        let business = sqlx::query(business).bind(id).bind(item);
        business.execute(&mut *tx).await.expect("the business");
        self.outbox.publish(&mut tx, placed()).await.expect("an event");
        tx.commit().await.expect("a commit");
    }
}

/// Writes one row, having told that it has the event.
struct Remember(Arrivals);

impl Handler<Transaction<'static, sqlx::Postgres>> for Remember {
    async fn handle(&self, tx: &mut Transaction<'static, sqlx::Postgres>, event: &Received) -> Handled {
        let placed: Placed = event.body()?;
        self.0.arrived(&placed);
        let insert = sqlx::query("INSERT INTO feature (order_id) VALUES ($1)").bind(placed.id);
        insert.execute(&mut **tx).await?;
        Ok(())
    }
}
