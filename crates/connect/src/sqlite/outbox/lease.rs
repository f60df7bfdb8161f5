//! Which of the relays that are alive empties an outbox.

use std::collections::BTreeMap;
use std::time::Duration;

use headwater_core::ports::{Lane, Lease, LeaseAsk};
use sqlx::{AssertSqlSafe, Row, Sqlite, Transaction};

use super::Names;
use super::layout::LANES;
use super::pools::Pools;
use crate::outbox::share_of;
use crate::store::now;

/// The statements.
#[derive(Debug)]
pub(super) struct Leases {
    live: String,
    forget: String,
    leave: String,
    release: String,
    triggers: [String; 2],
    renew: String,
    live_now: String,
    take: String,
    held: String,
}

/// A relay that was not heard of for so long is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(24 * 60 * 60);

impl Leases {
    pub fn new(names: &Names) -> Self {
        let (lease, relay) = (names.lease(), names.relay());
        Self {
            live: format!(
                "INSERT INTO {relay} (relay, until) VALUES (?1, ?2) ON CONFLICT (relay) DO UPDATE SET until = ?2"
            ),
            forget: format!("DELETE FROM {relay} WHERE until < ?1"),
            leave: format!("DELETE FROM {relay} WHERE relay = ?1"),
            release: format!(
                "UPDATE {lease} SET relay = NULL, until = 0 WHERE relay = ?1 AND lane = ?2 AND epoch = ?3"
            ),
            triggers: ["insert", "settle"].map(|word| names.drop_trigger(word)),
            // What has run out is taken anew, under another epoch: what was asked before may arrive late.
            renew: format!("UPDATE {lease} SET until = ?2 WHERE relay = ?1 AND until >= ?3"),
            live_now: format!(
                "SELECT alive.relay, count(lease.lane) FROM {relay} AS alive LEFT JOIN {lease} AS lease \
                 ON lease.relay = alive.relay AND lease.until >= ?1 WHERE alive.until > ?1 GROUP BY alive.relay"
            ),
            take: format!(
                "UPDATE {lease} SET relay = ?1, epoch = epoch + 1, until = ?2 WHERE lane IN \
                 (SELECT lane FROM {lease} WHERE until < ?3 ORDER BY lane LIMIT ?4)"
            ),
            held: format!("SELECT lane, epoch FROM {lease} WHERE relay = ?1 AND until >= ?2 ORDER BY lane"),
        }
    }

    /// See [`OutboxStore::lease`](headwater_core::ports::OutboxStore::lease).
    pub async fn lease(&self, pools: &Pools, ask: &LeaseAsk) -> sqlx::Result<Vec<Lease>> {
        let mut transaction = pools.write().await?;
        let leases = self.share(&mut transaction, ask).await?;
        transaction.commit().await?;
        Ok(leases)
    }

    async fn share(&self, on: &mut Transaction<'_, Sqlite>, ask: &LeaseAsk) -> sqlx::Result<Vec<Lease>> {
        for (lane, epoch) in &ask.release {
            let release = sqlx::query(AssertSqlSafe(&*self.release)).bind(&*ask.relay).bind(*lane);
            let release = release.bind(epoch.cast_signed());
            release.execute(&mut **on).await?;
        }
        let now = now() / 1_000;
        let until = now.saturating_add(millis(ask.ttl));
        if ask.leaving {
            sqlx::query(AssertSqlSafe(&*self.leave)).bind(&*ask.relay).execute(&mut **on).await?;
        } else if ask.renew {
            sqlx::query(AssertSqlSafe(&*self.live)).bind(&*ask.relay).bind(until).execute(&mut **on).await?;
            let forgotten = now.saturating_sub(millis(FORGOTTEN));
            sqlx::query(AssertSqlSafe(&*self.forget)).bind(forgotten).execute(&mut **on).await?;
        }
        if ask.renew {
            let renew = sqlx::query(AssertSqlSafe(&*self.renew)).bind(&*ask.relay).bind(until).bind(now);
            renew.execute(&mut **on).await?;
        }
        let alive = self.alive(on, now).await?;
        let fair = if ask.leaving { 0 } else { share_of(LANES, &ask.relay, &alive) };
        let held = alive.get(&ask.relay).copied().unwrap_or(0);
        if held < fair {
            let take = sqlx::query(AssertSqlSafe(&*self.take)).bind(&*ask.relay).bind(until).bind(now);
            take.bind((fair - held) as i64).execute(&mut **on).await?;
        }
        let held = sqlx::query(AssertSqlSafe(&*self.held)).bind(&*ask.relay).bind(now);
        let held = held.fetch_all(&mut **on).await?;
        // Those by which a source read the outbox: what they write down from now on nobody would read.
        for drop in self.triggers.iter().filter(|_| !held.is_empty()) {
            sqlx::query(AssertSqlSafe(&**drop)).execute(&mut **on).await?;
        }
        let lease = |(at, row): (usize, &sqlx::sqlite::SqliteRow)| {
            let (lane, epoch): (u16, i64) = (row.try_get(0)?, row.try_get(1)?);
            Ok(Lease { lane: lane as Lane, epoch: epoch.unsigned_abs(), wanted: at as u64 >= fair })
        };
        held.iter().enumerate().map(lease).collect()
    }

    /// How many lanes each relay has that is alive.
    async fn alive(&self, on: &mut Transaction<'_, Sqlite>, now: i64) -> sqlx::Result<BTreeMap<String, u64>> {
        let live = sqlx::query(AssertSqlSafe(&*self.live_now)).bind(now).fetch_all(&mut **on).await?;
        let pair = |row: &sqlx::sqlite::SqliteRow| {
            let (relay, lanes): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
            Ok((relay, lanes.unsigned_abs()))
        };
        live.iter().map(pair).collect()
    }
}

pub(super) fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}
