//! Both services on MariaDB.

use headwater::{Event, Handled, Handler, Outbox, Received};
use headwater_connect::mysql::inbox::{self, MySqlInbox};
use headwater_connect::mysql::outbox::{MySqlOutbox, install};
use headwater_connect::mysql::url::ConnectOptions;
use headwater_testkit::servers::{Kafka, MySql, MySqlDatabase};
use sqlx::mysql::MySqlPoolOptions;
use sqlx::{MySqlPool, Transaction};

use super::{Arrivals, CLIENTS, Case, HANDLERS, Live, Messaging, Orders, Placed};

pub(super) async fn live(how: &Messaging, rate: u64, kafka: &Kafka) -> Case {
    let flush = if how.no_fsync { 2 } else { 1 };
    let settings = MySql::settings().set("innodb-flush-log-at-trx-commit", flush).set("sync-binlog", 1);
    let server = settings.set("innodb-buffer-pool-size", "256M").start().await.expect("MariaDB starts");
    let (a, b) = (orders(&server).await, features(&server).await);
    let (clients, handlers) = (CLIENTS, HANDLERS as usize - 2);
    let live = Live { how, name: "mariadb", rate, kafka, url: a.url(), clients, handlers };
    let shop = Shop { pool: pool(&a, CLIENTS).await, outbox: Outbox::new(MySqlOutbox::new("outbox")) };
    live.run(shop, MySqlInbox::new(pool(&b, HANDLERS).await), Remember).await
}

async fn orders(server: &MySql) -> MySqlDatabase {
    let database = server.create_database().await.expect("a database");
    let tables = "CREATE TABLE orders (id bigint PRIMARY KEY, customer int NOT NULL, total int NOT NULL);
        CREATE TABLE order_line (id bigint, line int, item int NOT NULL, PRIMARY KEY (id, line));
        CREATE TABLE stock (item int PRIMARY KEY, pieces int NOT NULL);
        INSERT INTO stock WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < 99)
            SELECT a.n * 100 + b.n, 1000000 FROM n AS a CROSS JOIN n AS b";
    database.execute(tables).await.expect("the business");
    let url = ConnectOptions::parse(database.url()).expect("a URL");
    install(&url, "outbox").await.expect("the outbox");
    database
}

async fn features(server: &MySql) -> MySqlDatabase {
    let database = server.create_database().await.expect("a database");
    let effect = "CREATE TABLE feature (id bigint AUTO_INCREMENT PRIMARY KEY, order_id bigint NOT NULL)";
    database.execute(effect).await.expect("the table");
    let url = ConnectOptions::parse(database.url()).expect("a URL");
    inbox::install(&url).await.expect("the inbox");
    database
}

async fn pool(database: &MySqlDatabase, connections: u32) -> MySqlPool {
    let options = MySqlPoolOptions::new().max_connections(connections).test_before_acquire(false);
    options.connect(database.url()).await.expect("a pool")
}

#[derive(Clone)]
struct Shop {
    pool: MySqlPool,
    outbox: Outbox<MySqlOutbox>,
}

impl Orders for Shop {
    async fn place(&self, id: i64, item: i32, placed: impl FnOnce() -> Event + Send) {
        let business = async {
            let mut tx = self.pool.begin().await?;
            let order = sqlx::query("INSERT INTO orders VALUES (?, 7, 1990)").bind(id);
            order.execute(&mut *tx).await?;
            let lines = sqlx::query("INSERT INTO order_line VALUES (?, 1, ?), (?, 2, ?)");
            lines.bind(id).bind(item).bind(id).bind(item + 1).execute(&mut *tx).await?;
            let stock = sqlx::query("UPDATE stock SET pieces = pieces - 1 WHERE item = ?").bind(item);
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

impl Handler<Transaction<'static, sqlx::MySql>> for Remember {
    async fn handle(&self, tx: &mut Transaction<'static, sqlx::MySql>, event: &Received) -> Handled {
        let placed: Placed = event.body()?;
        self.0.arrived(&placed);
        let insert = sqlx::query("INSERT INTO feature (order_id) VALUES (?)").bind(placed.id);
        insert.execute(&mut **tx).await?;
        Ok(())
    }
}
