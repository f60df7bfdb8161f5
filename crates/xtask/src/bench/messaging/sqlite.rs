//! Both services on SQLite, each with a file of its own.

use std::path::Path;
use std::time::Duration;

use headwater::{Event, Handled, Handler, Outbox, Received};
use headwater_connect::sqlite::inbox::{SCRIPT, SqliteInbox};
use headwater_connect::sqlite::outbox::{SqliteOutbox, install};
use headwater_testkit::servers::Kafka;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{SqlitePool, Transaction};

use super::{Arrivals, Case, Live, Messaging, Orders, Placed};

pub(super) async fn live(how: &Messaging, rate: u64, kafka: &Kafka) -> Case {
    let dir = tempfile::tempdir().expect("a directory");
    let (a, b) = (dir.path().join("orders.db"), dir.path().join("features.db"));
    let full = !how.no_fsync;
    let (shop, features) = (pool(&a, full).await, pool(&b, full).await);
    let tables = "CREATE TABLE orders (id INTEGER PRIMARY KEY, customer INT NOT NULL, total INT NOT NULL);
        CREATE TABLE order_line (id INT, line INT, item INT NOT NULL, PRIMARY KEY (id, line)) WITHOUT ROWID;
        CREATE TABLE stock (item INTEGER PRIMARY KEY, pieces INT NOT NULL);
        INSERT INTO stock WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < 9999)
            SELECT n, 1000000 FROM n";
    sqlx::raw_sql(tables).execute(&shop).await.expect("the business");
    install(&a, "outbox").expect("the outbox");
    let effect = "CREATE TABLE feature (id INTEGER PRIMARY KEY, order_id INT NOT NULL)";
    sqlx::raw_sql(effect).execute(&features).await.expect("the table");
    sqlx::raw_sql(SCRIPT).execute(&features).await.expect("the inbox");
    let url = format!("sqlite://{}", a.display());
    // One writes at a time.
    let live = Live { how, name: "sqlite", rate, kafka, url: &url, clients: 1, handlers: 1 };
    let shop = Shop { pool: shop, outbox: Outbox::new(SqliteOutbox::new("outbox")) };
    live.run(shop, SqliteInbox::new(features), Remember).await
}

async fn pool(file: &Path, full: bool) -> SqlitePool {
    let options = SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(if full { SqliteSynchronous::Full } else { SqliteSynchronous::Normal })
        .busy_timeout(Duration::from_secs(30));
    SqlitePoolOptions::new().max_connections(3).connect_with(options).await.expect("a pool")
}

#[derive(Clone)]
struct Shop {
    pool: SqlitePool,
    outbox: Outbox<SqliteOutbox>,
}

impl Orders for Shop {
    async fn place(&self, id: i64, item: i32, placed: impl FnOnce() -> Event + Send) {
        let business = async {
            let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
            let order = sqlx::query("INSERT INTO orders VALUES ($1, 7, 1990)").bind(id);
            order.execute(&mut *tx).await?;
            let lines = sqlx::query("INSERT INTO order_line VALUES ($1, 1, $2), ($1, 2, $2 + 1)");
            lines.bind(id).bind(item).execute(&mut *tx).await?;
            let stock = sqlx::query("UPDATE stock SET pieces = pieces - 1 WHERE item = $1").bind(item);
            stock.execute(&mut *tx).await?;
            Ok::<_, sqlx::Error>(tx)
        };
        let mut tx = business.await.expect("the business");
        self.outbox.publish(&mut tx, placed()).await.expect("an event");
        tx.commit().await.expect("a commit");
    }
}

/// Writes one row, having told that it has the event.
struct Remember(Arrivals);

impl Handler<Transaction<'static, sqlx::Sqlite>> for Remember {
    async fn handle(&self, tx: &mut Transaction<'static, sqlx::Sqlite>, event: &Received) -> Handled {
        let placed: Placed = event.body()?;
        self.0.arrived(&placed);
        let insert = sqlx::query("INSERT INTO feature (order_id) VALUES ($1)").bind(placed.id);
        insert.execute(&mut **tx).await?;
        Ok(())
    }
}
