//! Four defects that a well-known prototype of this pattern has. Each of these tests would catch its own.

use headwater_core::ports::{Lane, Lease, NewEvent, OutboxStore, OutboxWriter, Outcome, Settled};

use super::Factory;
use super::keeping::MANY;
use super::tools::*;

fn events(many: u64) -> Vec<NewEvent> {
    (0..many).map(|n| event(&format!("k{n}"), n)).collect()
}

/// The first: no protection against concurrent recovery.
pub async fn two_relays_that_recover_at_once_never_share_a_lane<F: Factory>(factory: &F) {
    publish(factory, &events(20)).await;
    let rows = claim(factory).await;
    let relays: Vec<(String, F::Store)> = (0..8).map(|n| (format!("relay-{n}"), factory.store())).collect();
    let mut dead = vec!["dead".to_owned()];
    lease(factory, "dead").await;
    for _ in 0..20 {
        for name in dead {
            within(factory.expire(&name)).await;
        }
        // All of them connected before, so that they come at the same moment.
        let take = async |(name, store): &(String, F::Store)| within(store.lease(&ask(name))).await.unwrap();
        let given: Vec<Vec<Lease>> = futures::future::join_all(relays.iter().map(take)).await;
        let mut held: Vec<Lane> = given.iter().flat_map(|leases| lanes(leases)).collect();
        held.sort_unstable();
        let every = held.len();
        held.dedup();
        assert_eq!(held.len(), every, "a lane has two relays: {given:?}");
        assert!(!held.is_empty(), "nobody has recovered anything");
        // Who was given nothing of a lane can settle nothing of it.
        for ((name, store), leases) in relays.iter().zip(&given) {
            let mine = lanes(leases);
            let others = rows.iter().filter(|row| !mine.contains(&row.lane));
            let told: Vec<Settled> = others
                .flat_map(|row| {
                    let epochs = given.iter().flatten().filter(|lease| lease.lane == row.lane);
                    let published = settled(row, Outcome::Published);
                    epochs.map(move |lease| Settled { epoch: lease.epoch, ..published.clone() })
                })
                .collect();
            if !told.is_empty() {
                within(store.settle(name, &told)).await.unwrap();
            }
        }
        assert_eq!(factory.states().await, ["new"; 20]);
        dead = relays.iter().map(|(name, _)| name.clone()).collect();
    }
}

/// The second: recovery only at start-up.
pub async fn a_dead_relays_work_is_recovered_while_the_others_run<F: Factory>(factory: &F) {
    let all = events(20);
    lease(factory, "a").await;
    assert!(lease(factory, "b").await.is_empty(), "b has begun long before a dies");
    publish(factory, &all).await;
    let claimed = claim(factory).await;
    assert_eq!(claimed.len(), 20, "a has them on their way");
    within(factory.expire("a")).await;
    assert_eq!(lease(factory, "b").await.len(), usize::from(factory.lanes()), "when b renews its leases");
    assert_eq!(ids(&claim(factory).await), ids_of(&all));
}

/// The third: recovery by a full scan.
pub async fn recovery_reads_what_is_left_and_not_the_table<F: Factory>(factory: &F) {
    factory.add_done(MANY).await;
    let all = events(20);
    publish(factory, &all).await;
    lease(factory, "a").await;
    let before = factory.rows_read().await;
    within(factory.expire("a")).await;
    assert_eq!(lease(factory, "b").await.len(), usize::from(factory.lanes()));
    assert_eq!(ids(&resume(factory).await.rows), ids_of(&all));
    let read = factory.rows_read().await - before;
    assert!(read < 2_000, "{read} rows were read to find 20");
}

/// The fourth: the event is stored outside the business transaction.
pub async fn an_event_is_part_of_the_business_transaction<F: Factory>(factory: &F) {
    for (n, commits) in [(1, false), (2, true)] {
        let mut transaction = within(factory.begin()).await;
        within(factory.effect(&mut transaction, "order")).await;
        within(factory.writer().insert(&mut transaction, &[event("order", n)])).await.unwrap();
        within(factory.effect(&mut transaction, "order")).await;
        if commits {
            within(factory.commit(transaction)).await;
        } else {
            within(factory.rollback(transaction)).await;
        }
        let expected = if commits { (2, 1) } else { (0, 0) };
        assert_eq!((factory.effects("order").await, claim(factory).await.len()), expected);
    }
    let mut dropped = within(factory.begin()).await;
    within(factory.writer().insert(&mut dropped, &[event("order", 3)])).await.unwrap();
    within(factory.effect(&mut dropped, "order")).await;
    drop(dropped);
    publish(factory, &[event("order", 4)]).await;
    assert_eq!(
        (factory.effects("order").await, claim(factory).await.len()),
        (2, 2),
        "who dies has done neither"
    );
}
