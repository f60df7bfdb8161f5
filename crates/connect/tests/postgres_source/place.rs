//! What tests do to the server beside the source.

use std::time::{Duration, Instant};

use headwater_connect::postgres::client::{Connection, Mode};
use headwater_connect::postgres::lsn;
use headwater_connect::postgres::url::ConnectOptions;

use crate::support::Place;

impl Place {
    /// A session of the owner.
    pub async fn session(&self) -> Connection {
        let options = ConnectOptions::parse(self.database.unix_url()).unwrap();
        let mut session = Connection::connect(&options, Mode::Sql).await.unwrap();
        session.query("SET search_path = public").await.unwrap();
        session
    }

    /// Runs statements, each in a transaction of its own.
    pub async fn each(&self, sql: &str) {
        let mut session = self.session().await;
        for statement in sql.split(';').filter(|statement| !statement.trim().is_empty()) {
            session.query(statement).await.unwrap();
        }
    }

    /// `COPY table FROM STDIN`.
    pub async fn copy_in(&self, table: &str, lines: &str) {
        let mut connection = self.database.connect().await.unwrap();
        let mut copy = connection.copy_in_raw(&format!("COPY {table} FROM STDIN")).await.unwrap();
        copy.send(lines.as_bytes()).await.unwrap();
        copy.finish().await.unwrap();
    }

    /// What the server holds as confirmed.
    pub async fn confirmed(&self) -> u64 {
        let sql = format!(
            "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = '{}'",
            self.names.slot
        );
        lsn::parse(&self.query(&sql).await[0]).unwrap()
    }

    /// The end of the log.
    pub async fn end(&self) -> u64 {
        lsn::parse(&self.query("SELECT pg_current_wal_lsn()::text").await[0]).unwrap()
    }

    /// Whether the slot is in use.
    pub async fn is_active(&self) -> bool {
        let sql =
            format!("SELECT active::text FROM pg_replication_slots WHERE slot_name = '{}'", self.names.slot);
        self.query(&sql).await == ["true"]
    }

    /// Has the server end the process that serves our slot, and waits until it is gone.
    pub async fn end_replication(&self) {
        let sql = format!(
            "SELECT pg_terminate_backend(active_pid)::text FROM pg_replication_slots WHERE slot_name = '{}' AND active",
            self.names.slot
        );
        self.query(&sql).await;
        self.wait_for("the slot to be free", async |place| !place.is_active().await).await;
    }

    /// Waits until it is so.
    pub async fn wait_for(&self, what: &str, is: impl AsyncFn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !is(self).await {
            assert!(Instant::now() < deadline, "waited too long for {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
