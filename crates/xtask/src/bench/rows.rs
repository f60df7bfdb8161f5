//! The rows of the benches: about 150 bytes of text each, six columns.

use headwater_testkit::servers::{Database, Postgres};

use sqlx::{Executor, Row};

use super::Transport;

/// The slot that holds the loaded changes; each run reads from a copy of it.
const BASE: &str = "bench_base";

/// The publication of the bench's table.
pub const PUBLICATION: &str = "bench";

/// A server with the table `public.bench`.
pub struct Loaded {
    /// Where it is.
    pub database: Database,
    /// The server; stops when dropped.
    pub server: Postgres,
    slots: usize,
}

impl Loaded {
    /// Starts a server and makes the table, its publication and the base slot.
    pub async fn start() -> Self {
        let settings = Postgres::settings()
            .set("shared_buffers", "256MB")
            .set("max_wal_size", "16GB")
            .set("checkpoint_timeout", "1h")
            .set("autovacuum", "off")
            .set("synchronous_commit", "off");
        let server = settings.start().await.expect("PostgreSQL starts");
        let database = server.create_database().await.expect("a database");
        let sql = format!(
            "create table bench (id bigint primary key, customer int not null, amount numeric(12,2) not null,
                 status text not null, note text not null, created timestamptz not null);
             create publication {PUBLICATION} for table bench"
        );
        database.execute(&sql).await.expect("the table");
        let slot = format!("select pg_create_logical_replication_slot('{BASE}', 'pgoutput')");
        database.execute(&slot).await.expect("the base slot");
        Self { database, server, slots: 0 }
    }

    /// Inserts `rows` rows in transactions of `transaction` rows.
    pub async fn insert(&self, rows: u64, transaction: u64) {
        let sql = format!(
            "do $$ declare at bigint := 0; begin
               while at < {rows} loop
                 insert into bench select n, n % 5000, (n % 100000) / 100.0, 'shipped',
                     'order ' || n || ' placed by web checkout, gift wrapped, leave at the door', now()
                   from generate_series(at + 1, least(at + {transaction}, {rows})) n;
                 commit;
                 at := at + {transaction};
               end loop;
             end $$"
        );
        self.database.execute(&sql).await.expect("the rows");
    }

    /// Empties the table and moves the base slot to now.
    pub async fn clear(&self) {
        self.database.execute("truncate bench").await.expect("truncate");
        let sql = format!("select pg_replication_slot_advance('{BASE}', pg_current_wal_lsn())");
        self.database.execute(&sql).await.expect("the base slot moves");
    }

    /// A new slot that stands where the base slot stands.
    pub async fn slot(&mut self) -> String {
        self.slots += 1;
        let slot = format!("bench_{}", self.slots);
        let sql = format!("select pg_copy_logical_replication_slot('{BASE}', '{slot}')");
        self.database.execute(&sql).await.expect("a copy of the slot");
        slot
    }

    /// Drops a slot once nobody reads it any more.
    pub async fn drop_slot(&self, slot: &str) {
        let sql = format!(
            "do $$ begin
               while exists (select from pg_replication_slots where slot_name = '{slot}' and active) loop
                 perform pg_sleep(0.01);
               end loop;
               perform pg_drop_replication_slot('{slot}');
             end $$"
        );
        self.database.execute(&sql).await.expect("the slot goes");
    }

    /// Where the log ends now.
    pub async fn end(&self) -> String {
        let mut connection = self.database.connect().await.expect("a connection");
        let row =
            connection.fetch_one("select pg_current_wal_lsn()::text").await.expect("the end of the log");
        row.get(0)
    }

    /// Its address.
    pub fn url(&self, transport: Transport) -> &str {
        match transport {
            Transport::Tcp => self.database.url(),
            Transport::Unix => self.database.unix_url(),
        }
    }
}
