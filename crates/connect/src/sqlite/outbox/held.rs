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
    take: String,
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
        let mut held = Self {
            table: table.to_owned(),
            lease,
            owner: format!("{TRIGGERS}{source}"),
            take: format!(
                "UPDATE {of} SET relay = ?1, epoch = epoch + (relay IS NOT ?1), until = ?2 \
                 WHERE lane = 0 AND (relay IS ?1 OR until < ?3)"
            ),
            release: format!("UPDATE {of} SET relay = NULL, until = 0 WHERE relay = ?1"),
            renewed: Instant::now(),
            lost: false,
        };
        held.renew_now(conn)?;
        held.check()?;
        Ok(Some(held))
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
        let mut take = conn.prepare_cached(&self.take).sql(doing)?;
        self.lost = take.execute(params![self.owner, until, now]).sql(doing)? == 0;
        self.renewed = Instant::now();
        Ok(())
    }

    /// An error when a relay has it.
    pub fn check(&self) -> Result<()> {
        if !self.lost {
            return Ok(());
        }
        let error = Error::new(Kind::Busy, format!("the outbox {} is being emptied by a relay", self.table));
        Err(error.hint(
            "an outbox is emptied by relays or read by triggers: stop the one, and the other goes on by itself; \
             `relay` of the source says which",
        ))
    }

    /// Gives it back. Where that fails it runs out.
    pub fn release(&self, conn: &Connection) {
        if let Err(error) = conn.execute(&self.release, params![self.owner]) {
            tracing::debug!("giving back the lease of the outbox {}: {error}", self.table);
        }
    }
}
