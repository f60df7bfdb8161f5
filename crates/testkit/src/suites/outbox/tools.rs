//! What the tests of the suite share.

use std::time::Duration;

use headwater_core::EventId;
use headwater_core::ports::{
    Claim, ClaimLimit, Claimed, ClaimedRow, Lane, Lease, LeaseAsk, NewEvent, OutboxStore, OutboxWriter,
    Outcome, Settled,
};

pub use super::super::bus::tools::within;
use super::Factory;

/// A transaction of a service.
pub type Tx<F> = <<F as Factory>::Writer as OutboxWriter>::Transaction<'static>;

/// Longer than any test.
pub const LONG: Duration = Duration::from_secs(600);

/// No limit.
pub const ALL: ClaimLimit = ClaimLimit { rows: 100_000, bytes: 1 << 30 };

/// Event number `n` of a key.
pub fn event(key: &str, n: u64) -> NewEvent {
    NewEvent {
        id: EventId::derive(1_700_000_000_000_000, &[key.as_bytes(), &n.to_be_bytes()]),
        stream: "orders".into(),
        kind: "Placed".into(),
        key: Some(key.into()),
        payload: Some(format!("{{\"n\":{n}}}")),
        headers: vec![("a".into(), "1".into()), ("b \"".into(), "2".into())],
        version: 2,
    }
}

/// Writes events in a transaction of their own.
pub async fn publish<F: Factory>(factory: &F, events: &[NewEvent]) {
    let mut transaction = within(factory.begin()).await;
    within(factory.writer().insert(&mut transaction, events)).await.unwrap();
    within(factory.commit(transaction)).await;
}

/// Asks for every lane.
pub fn claims<F: Factory>(factory: &F, above: i64, resume: bool) -> Vec<Claim> {
    let all = |lane| Claim { lane, above, known: Vec::new(), retries: true, resume };
    (0..factory.lanes()).map(all).collect()
}

/// All that is due.
pub async fn claim<F: Factory>(factory: &F) -> Vec<ClaimedRow> {
    within(factory.store().claim(&claims(factory, 0, false), ALL)).await.unwrap().rows
}

/// All that is due, after what waits behind nothing was let go.
pub async fn resume<F: Factory>(factory: &F) -> Claimed {
    within(factory.store().claim(&claims(factory, 0, true), ALL)).await.unwrap()
}

/// The events of rows, whatever their lanes, in the order of their sequence.
pub fn ids(rows: &[ClaimedRow]) -> Vec<EventId> {
    let mut rows: Vec<_> = rows.iter().map(|row| (row.sequence, row.id)).collect();
    rows.sort_unstable();
    rows.into_iter().map(|(_, id)| id).collect()
}

/// The ids of events.
pub fn ids_of(events: &[NewEvent]) -> Vec<EventId> {
    events.iter().map(|event| event.id).collect()
}

/// What a relay asks that stays.
pub fn ask(relay: &str) -> LeaseAsk {
    LeaseAsk { relay: relay.into(), ttl: LONG, release: Vec::new(), renew: true, leaving: false }
}

/// What a relay is given.
pub async fn lease<F: Factory>(factory: &F, relay: &str) -> Vec<Lease> {
    within(factory.store().lease(&ask(relay))).await.unwrap()
}

/// The lanes of leases, with their epochs.
pub fn with_epochs(leases: &[Lease]) -> Vec<(Lane, u64)> {
    leases.iter().map(|lease| (lease.lane, lease.epoch)).collect()
}

/// The lanes of leases.
pub fn lanes(leases: &[Lease]) -> Vec<Lane> {
    leases.iter().map(|lease| lease.lane).collect()
}

/// What became of a row that was worked under the first epoch of its lane.
pub fn settled(row: &ClaimedRow, outcome: Outcome) -> Settled {
    Settled { lane: row.lane, epoch: 1, sequence: row.sequence, id: row.id, outcome }
}

/// It will be tried again after a while.
pub fn retry(after: Duration) -> Outcome {
    Outcome::Retry { attempts: 1, after, error: "not now".into() }
}

/// It waits for a person.
pub fn parked() -> Outcome {
    Outcome::Parked { attempts: 3, error: "no \0 stock".into() }
}

/// Settles for a relay that holds all of these lanes.
pub async fn settle<F: Factory>(factory: &F, relay: &str, settled: &[Settled]) {
    let lost = within(factory.store().settle(relay, settled)).await.unwrap();
    assert!(lost.is_empty(), "{relay} has lost {lost:?}");
}

/// Settles every row the same, in order.
pub async fn settle_all<F: Factory>(factory: &F, relay: &str, rows: &[ClaimedRow], outcome: Outcome) {
    let all: Vec<Settled> = rows.iter().map(|row| settled(row, outcome.clone())).collect();
    settle(factory, relay, &all).await;
}
