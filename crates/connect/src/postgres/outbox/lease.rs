//! Sharing the lanes of an outbox among the relays that are alive.

use std::collections::BTreeMap;
use std::time::Duration;

use headwater_core::ports::{Lane, Lease, LeaseAsk};
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::Names;
use crate::outbox::share;

/// The statements.
#[derive(Debug)]
pub(super) struct Leases {
    live: String,
    forget: String,
    leave: String,
    release: String,
    renew: String,
    live_now: String,
    take: String,
    held: String,
}

impl Leases {
    pub fn new(names: &Names) -> Self {
        let (lease, relay) = (names.lease(), names.relay());
        let until = "clock_timestamp() + $2 * interval '1 millisecond'";
        Self {
            live: format!(
                "INSERT INTO {relay} (relay, until) VALUES ($1, {until}) \
                 ON CONFLICT (relay) DO UPDATE SET until = excluded.until"
            ),
            // Not those that another looks at now, or two could wait for each other.
            forget: format!(
                "DELETE FROM {relay} WHERE relay IN (SELECT relay FROM {relay} \
                 WHERE until < clock_timestamp() - interval '1 day' FOR UPDATE SKIP LOCKED)"
            ),
            leave: format!("DELETE FROM {relay} WHERE relay = $1"),
            release: format!(
                "UPDATE {lease} SET relay = NULL, until = '-infinity' WHERE lane IN \
                 (SELECT lane FROM {lease} WHERE relay = $1 AND (lane, epoch) IN \
                  (SELECT * FROM unnest($2::smallint[], $3::bigint[])) ORDER BY lane FOR UPDATE)"
            ),
            // In the order in which settling locks them, or the two could wait for each other. What has run out is taken
            // anew, under another epoch: what was asked before may arrive late.
            renew: format!(
                "UPDATE {lease} SET until = {until} WHERE lane IN \
                 (SELECT lane FROM {lease} WHERE relay = $1 AND until > clock_timestamp() ORDER BY lane FOR UPDATE)"
            ),
            live_now: format!(
                "SELECT alive.relay, count(lease.lane) FROM {relay} AS alive LEFT JOIN {lease} AS lease \
                 ON lease.relay = alive.relay AND lease.until > clock_timestamp() WHERE alive.until > clock_timestamp() GROUP BY alive.relay"
            ),
            take: format!(
                "UPDATE {lease} SET relay = $1, epoch = epoch + 1, until = {until} WHERE lane IN \
                 (SELECT lane FROM {lease} WHERE until < clock_timestamp() \
                  ORDER BY lane LIMIT $3 FOR UPDATE SKIP LOCKED)"
            ),
            held: format!(
                "SELECT lane, epoch FROM {lease} WHERE relay = $1 AND until > clock_timestamp() ORDER BY lane"
            ),
        }
    }

    /// See [`OutboxStore::lease`](headwater_core::ports::OutboxStore::lease). Each statement commits by itself: a
    /// relay that stands still in the middle of a transaction would keep its lanes locked.
    pub async fn lease(&self, on: &mut PgConnection, ask: &LeaseAsk) -> sqlx::Result<Vec<Lease>> {
        if !ask.release.is_empty() {
            let (lanes, epochs): (Vec<i16>, Vec<i64>) =
                ask.release.iter().map(|(lane, epoch)| (*lane as i16, epoch.cast_signed())).unzip();
            let release =
                sqlx::query(AssertSqlSafe(&*self.release)).bind(&ask.relay).bind(lanes).bind(epochs);
            release.execute(&mut *on).await?;
        }
        let ttl = millis(ask.ttl);
        if ask.leaving {
            sqlx::query(AssertSqlSafe(&*self.leave)).bind(&ask.relay).execute(&mut *on).await?;
        } else if ask.renew {
            sqlx::query(AssertSqlSafe(&*self.live)).bind(&ask.relay).bind(ttl).execute(&mut *on).await?;
            sqlx::query(AssertSqlSafe(&*self.forget)).execute(&mut *on).await?;
        }
        if ask.renew {
            sqlx::query(AssertSqlSafe(&*self.renew)).bind(&ask.relay).bind(ttl).execute(&mut *on).await?;
        }
        let live = sqlx::query(AssertSqlSafe(&*self.live_now)).fetch_all(&mut *on).await?;
        let live = live.iter().map(|row| {
            let (relay, lanes): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
            Ok((relay, lanes.unsigned_abs()))
        });
        let live: BTreeMap<String, u64> = live.collect::<sqlx::Result<_>>()?;
        let fair = if ask.leaving { 0 } else { share(&ask.relay, &live) };
        let held = live.get(&ask.relay).copied().unwrap_or(0);
        if held < fair {
            let take = sqlx::query(AssertSqlSafe(&*self.take)).bind(&ask.relay).bind(ttl);
            take.bind((fair - held) as i64).execute(&mut *on).await?;
        }
        let held = sqlx::query(AssertSqlSafe(&*self.held)).bind(&ask.relay).fetch_all(&mut *on).await?;
        let lease = |(at, row): (usize, &sqlx::postgres::PgRow)| {
            let (lane, epoch): (i16, i64) = (row.try_get(0)?, row.try_get(1)?);
            Ok(Lease { lane: lane as Lane, epoch: epoch as u64, wanted: at as u64 >= fair })
        };
        held.iter().enumerate().map(lease).collect()
    }
}

pub(super) fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}
