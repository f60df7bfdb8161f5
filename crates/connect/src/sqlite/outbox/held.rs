//! The lease that a source holds while it reads an outbox by triggers: relays have nothing to do meanwhile.

use std::time::{Duration, Instant};

use headwater_core::{Error, Kind, Result};
use rusqlite::{Connection, params};

use super::layout::{exists, is_own};
use super::lease::millis;
use super::{Names, TRIGGERS};
use crate::sqlite::errors::Sql as _;
use crate::store::now;

/// A lease, and when it was renewed.
pub(crate) struct Held {
    table: String,
    lease: Duration,
    owner: String,
    /// Under which it was taken. One that has run out is never renewed: it is taken anew, under another epoch, by a
    /// source that looks at its triggers again. A relay may have been there meanwhile, and taken them away.
    epoch: i64,
    /// Until when it is ours, in milliseconds since 1970: a clock that goes on while the machine sleeps.
    until: i64,
    renew: String,
    release: String,
    renewed: Instant,
    lost: bool,
}

impl Held {
    /// Takes it; `None` where there is no outbox of Headwater's own layout. `Busy` while a relay has it.
    pub fn take(conn: &Connection, source: &str, table: &str, lease: Duration) -> Result<Option<Self>> {
        if !exists(conn, table)? || !is_own(conn, table)? {
            return Ok(None);
        }
        let of = Names::new(table).lease();
        let owner = format!("{TRIGGERS}{source}");
        let now = now() / 1_000;
        let until = now.saturating_add(millis(lease));
        // Nobody else has this name: one process at a time captures a database.
        let take = format!(
            "UPDATE {of} SET relay = ?1, epoch = epoch + 1, until = ?2 \
             WHERE lane = 0 AND (relay IS ?1 OR until < ?3) RETURNING epoch"
        );
        let doing = || format!("taking the lease of the outbox {table}");
        let mut take = conn.prepare(&take).sql(doing)?;
        let taken = take.query_map(params![owner, until, now], |row| row.get(0)).sql(doing)?;
        // To its end: only then it is committed.
        let taken = taken.collect::<rusqlite::Result<Vec<i64>>>().sql(doing)?;
        let Some(epoch) = taken.first().copied() else {
            let error = Error::new(Kind::Busy, format!("the outbox {table} is being emptied by a relay"));
            return Err(error.hint(
                "an outbox is emptied by relays or read by triggers: stop the one, and the other goes on by itself; \
                 `relay` of the source says which",
            ));
        };
        Ok(Some(Self {
            table: table.to_owned(),
            lease,
            owner,
            epoch,
            until,
            renew: format!(
                "UPDATE {of} SET until = ?1 WHERE lane = 0 AND relay = ?2 AND epoch = ?3 AND until >= ?4"
            ),
            release: format!("UPDATE {of} SET relay = NULL, until = 0 WHERE relay = ?1 AND epoch = ?2"),
            renewed: Instant::now(),
            lost: false,
        }))
    }

    /// In how long it has to be renewed.
    pub fn due_in(&self, now: Instant) -> Duration {
        (self.renewed + self.lease / 3).saturating_duration_since(now)
    }

    /// Renews it where it is time. What fails now is tried again.
    pub fn renew(&mut self, conn: &Connection) {
        if self.due_in(Instant::now()).is_zero() && self.renew_now(conn).is_err() {
            // Soon, but not at once.
            self.renewed += Duration::from_millis(100);
        }
    }

    fn renew_now(&mut self, conn: &Connection) -> Result<()> {
        let now = now() / 1_000;
        let until = now.saturating_add(millis(self.lease));
        let doing = || format!("renewing the lease of the outbox {}", self.table);
        let mut renew = conn.prepare_cached(&self.renew).sql(doing)?;
        match renew.execute(params![until, self.owner, self.epoch, now]).sql(doing)? {
            0 => self.lost = true,
            _ => self.until = until,
        }
        self.renewed = Instant::now();
        Ok(())
    }

    /// An error once a relay may have it.
    pub fn check(&self) -> Result<()> {
        if !self.lost && now() / 1_000 <= self.until {
            return Ok(());
        }
        let what = format!("the lease of the outbox {} was not renewed in time", self.table);
        Err(Error::new(Kind::Busy, what))
    }

    /// Gives it back. Where that fails it runs out.
    pub fn release(&self, conn: &Connection) {
        if let Err(error) = conn.execute(&self.release, params![self.owner, self.epoch]) {
            tracing::debug!("giving back the lease of the outbox {}: {error}", self.table);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::make;
    use super::*;

    const LEASE: Duration = Duration::from_secs(60);

    fn take(conn: &Connection) -> Held {
        Held::take(conn, "s", "outbox", LEASE).unwrap().unwrap()
    }

    fn row(conn: &Connection) -> (Option<String>, i64, i64) {
        let sql = "SELECT relay, epoch, until FROM outbox_lease";
        conn.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap()
    }

    #[test]
    fn a_lease_that_ran_out_is_taken_anew_and_never_renewed() {
        let conn = Connection::open_in_memory().unwrap();
        make(&conn, "outbox").unwrap();
        let mut held = take(&conn);
        held.renew_now(&conn).unwrap();
        held.check().unwrap();
        assert_eq!(row(&conn).1, 1, "what has not run out keeps its epoch");
        conn.execute("UPDATE outbox_lease SET until = 5", []).unwrap();
        held.renew_now(&conn).unwrap();
        assert_eq!(row(&conn), (Some("log:s".into()), 1, 5), "it is not prolonged");
        assert_eq!(held.check().unwrap_err().kind(), Kind::Busy);
        let again = take(&conn);
        again.check().unwrap();
        held.release(&conn);
        held.renew_now(&conn).unwrap();
        assert_eq!(row(&conn), (Some("log:s".into()), 2, again.until), "who had it before has no say");
        again.release(&conn);
        assert_eq!(row(&conn), (None, 2, 0));
    }

    #[test]
    fn who_stood_still_for_longer_knows_before_it_asks() {
        let conn = Connection::open_in_memory().unwrap();
        make(&conn, "outbox").unwrap();
        let held = Held { until: now() / 1_000 - 1, ..take(&conn) };
        assert_eq!(held.check().unwrap_err().kind(), Kind::Busy);
    }
}
