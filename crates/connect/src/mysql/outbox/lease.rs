//! Sharing the lanes of an outbox among the relays that are alive.

use headwater_core::ports::{Lane, Lease, LeaseAsk};
use sqlx::mysql::MySqlRow;
use sqlx::{AssertSqlSafe, MySqlConnection, Row};

use super::Names;
use crate::outbox::share;
use crate::store::micros;

/// The statements.
#[derive(Debug)]
pub(super) struct Leases {
    lease: String,
    forget: String,
    live: String,
    leave: String,
    renew: String,
    live_now: String,
    take: String,
    held: String,
}

impl Leases {
    pub fn new(names: &Names) -> Self {
        let (lease, relay) = (names.lease(), names.relay());
        let until = "UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND";
        Self {
            forget: format!("DELETE FROM {relay} WHERE `until` < UTC_TIMESTAMP(6) - INTERVAL 1 DAY"),
            live: format!(
                "INSERT INTO {relay} (`until`, `relay`) VALUES ({until}, ?) ON DUPLICATE KEY UPDATE `until` = VALUES(`until`)"
            ),
            leave: format!("DELETE FROM {relay} WHERE `relay` = ?"),
            // What has run out is taken anew, under another epoch: what was asked before may arrive late.
            renew: format!(
                "UPDATE {lease} SET `until` = {until} WHERE `relay` = ? AND `until` > UTC_TIMESTAMP(6)"
            ),
            live_now: format!(
                "SELECT alive.`relay`, COUNT(lease.`lane`) FROM {relay} AS alive \
                 LEFT JOIN {lease} AS lease ON lease.`relay` = alive.`relay` AND lease.`until` > UTC_TIMESTAMP(6) \
                 WHERE alive.`until` > UTC_TIMESTAMP(6) GROUP BY alive.`relay`"
            ),
            take: format!(
                "UPDATE {lease} SET `relay` = ?, `epoch` = `epoch` + 1, `until` = {until} \
                 WHERE `until` < UTC_TIMESTAMP(6) ORDER BY `lane` LIMIT ?"
            ),
            held: format!(
                "SELECT `lane`, `epoch` FROM {lease} WHERE `relay` = ? AND `until` > UTC_TIMESTAMP(6) ORDER BY `lane`"
            ),
            lease,
        }
    }

    /// See [`OutboxStore::lease`](headwater_core::ports::OutboxStore::lease). Each statement commits by itself: a
    /// relay that stands still in the middle of a transaction would keep its lanes locked.
    pub async fn lease(&self, on: &mut MySqlConnection, ask: &LeaseAsk) -> sqlx::Result<Vec<Lease>> {
        if !ask.release.is_empty() {
            let sql = format!(
                "UPDATE {} SET `relay` = NULL, `until` = '1970-01-01' WHERE `relay` = ? AND (`lane`, `epoch`) IN ({})",
                self.lease,
                ask.release
                    .iter()
                    .map(|(lane, epoch)| format!("({lane}, {epoch})"))
                    .collect::<Vec<_>>()
                    .join(", ")
            );
            sqlx::query(AssertSqlSafe(sql)).persistent(false).bind(&ask.relay).execute(&mut *on).await?;
        }
        let ttl = micros(ask.ttl);
        if ask.leaving {
            sqlx::query(AssertSqlSafe(&*self.leave)).bind(&ask.relay).execute(&mut *on).await?;
        } else if ask.renew {
            sqlx::query(AssertSqlSafe(&*self.live)).bind(ttl).bind(&ask.relay).execute(&mut *on).await?;
            sqlx::query(AssertSqlSafe(&*self.forget)).execute(&mut *on).await?;
        }
        if ask.renew {
            sqlx::query(AssertSqlSafe(&*self.renew)).bind(ttl).bind(&ask.relay).execute(&mut *on).await?;
        }
        let live = sqlx::query(AssertSqlSafe(&*self.live_now)).fetch_all(&mut *on).await?;
        let live = live.iter().map(|row| {
            let (relay, lanes): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
            Ok((relay, lanes.unsigned_abs()))
        });
        let live = live.collect::<sqlx::Result<_>>()?;
        let fair = if ask.leaving { 0 } else { share(&ask.relay, &live) };
        let held = self.held(on, &ask.relay).await?;
        let many = fair.saturating_sub(held.len() as u64);
        let held = if many == 0 {
            held
        } else {
            let take = sqlx::query(AssertSqlSafe(&*self.take)).bind(&ask.relay).bind(ttl).bind(many);
            take.execute(&mut *on).await?;
            self.held(on, &ask.relay).await?
        };
        let lease = |(at, (lane, epoch))| Lease { lane, epoch, wanted: at as u64 >= fair };
        Ok(held.into_iter().enumerate().map(lease).collect())
    }

    async fn held(&self, on: &mut MySqlConnection, relay: &str) -> sqlx::Result<Vec<(Lane, u64)>> {
        let held = sqlx::query(AssertSqlSafe(&*self.held)).bind(relay).fetch_all(on).await?;
        held.iter().map(lane_and_epoch).collect()
    }
}

/// Of a row that has these first.
pub(super) fn lane_and_epoch(row: &MySqlRow) -> sqlx::Result<(Lane, u64)> {
    Ok((row.try_get::<u8, _>(0)?.into(), row.try_get::<i64, _>(1)?.unsigned_abs()))
}

/// Lanes as a list in SQL.
pub(super) fn lanes(lanes: impl Iterator<Item = Lane>) -> String {
    lanes.map(|lane| lane.to_string()).collect::<Vec<_>>().join(", ")
}
