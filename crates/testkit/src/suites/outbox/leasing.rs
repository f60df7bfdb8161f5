//! Which relay works which lane.

use std::time::{Duration, Instant};

use headwater_core::ports::{ClaimedRow, Lane, Lease, LeaseAsk, NewEvent, OutboxStore, Outcome, Settled};

use super::Factory;
use super::tools::*;
use crate::servers::Proxy;

/// The second is given half, as soon as the first gives it back; nobody is given what another has.
pub async fn lanes_are_shared_among_relays<F: Factory>(factory: &F) {
    let all: Vec<Lane> = (0..factory.lanes()).collect();
    let first = lease(factory, "a").await;
    assert_eq!(lanes(&first), all);
    assert!(first.iter().all(|lease| lease.epoch == 1 && !lease.wanted), "{first:?}");
    assert!(lease(factory, "b").await.is_empty());
    let first = lease(factory, "a").await;
    let wanted: Vec<Lease> = first.iter().filter(|lease| lease.wanted).copied().collect();
    let release = with_epochs(&wanted);
    assert_eq!(release.len(), all.len() / 2);
    let kept =
        within(factory.store().lease(&LeaseAsk { release: release.clone(), ..ask("a") })).await.unwrap();
    assert_eq!(kept.len(), all.len() - release.len());
    let second = lease(factory, "b").await;
    assert_eq!(lanes(&second), lanes(&wanted));
    assert!(second.iter().all(|lease| lease.epoch == 2 && !lease.wanted), "{second:?}");
    assert!(lease(factory, "a").await.iter().all(|lease| lease.epoch == 1 && !lease.wanted));
}

/// Between two renewals a relay hears that another waits, and finds what is free; what it holds lasts no longer for it.
pub async fn a_look_takes_what_is_free_and_prolongs_nothing<F: Factory>(factory: &F) {
    let look = async |relay: &str| {
        let ask = LeaseAsk { renew: false, ttl: Duration::ZERO, ..ask(relay) };
        within(factory.store().lease(&ask)).await.unwrap()
    };
    let first = lease(factory, "a").await;
    assert!(look("a").await.iter().all(|lease| !lease.wanted));
    assert!(lease(factory, "b").await.is_empty());
    let wanted = |leases: &[Lease]| leases.iter().filter(|lease| lease.wanted).count();
    let looked = look("a").await;
    assert_eq!((looked.len(), wanted(&looked)), (first.len(), first.len() / 2), "b waits for half");
    assert!(lease(factory, "b").await.is_empty(), "a look of no length has ended a's leases");
    let leaving = LeaseAsk { leaving: true, release: with_epochs(&first), ..ask("a") };
    within(factory.store().lease(&leaving)).await.unwrap();
    let ask = LeaseAsk { renew: false, ..ask("b") };
    assert_eq!(within(factory.store().lease(&ask)).await.unwrap().len(), first.len());
}

/// Whose lanes have passed to another is told, and writes nothing.
pub async fn a_zombie_settles_nothing<F: Factory>(factory: &F) {
    let events: Vec<NewEvent> = (0..50).map(|n| event(&format!("k{n}"), n)).collect();
    publish(factory, &events).await;
    lease(factory, "a").await;
    lease(factory, "b").await;
    let rows = claim(factory).await;
    let published = |epoch| {
        let published = |row: &ClaimedRow| Settled { epoch, ..settled(row, Outcome::Published) };
        rows.iter().map(published).collect::<Vec<_>>()
    };
    within(factory.expire("a")).await;
    let taken = lease(factory, "b").await;
    assert_eq!(taken.len(), usize::from(factory.lanes()));
    assert!(taken.iter().all(|lease| lease.epoch == 2));
    let zombie = factory.store();
    let mut lost = within(zombie.settle("a", &published(1))).await.unwrap();
    lost.sort_unstable();
    let mut worked: Vec<Lane> = rows.iter().map(|row| row.lane).collect();
    worked.sort_unstable();
    worked.dedup();
    assert_eq!(lost, worked, "it is told of all");
    assert_eq!(
        within(zombie.settle("a", &published(2))).await.unwrap().len(),
        worked.len(),
        "nor by guessing"
    );
    assert_eq!(
        within(zombie.settle("b", &published(1))).await.unwrap().len(),
        worked.len(),
        "nor by an old epoch"
    );
    assert_eq!(factory.states().await, ["new"; 50]);
    let back = lease(factory, "a").await;
    assert!(back.is_empty(), "what it had is another's: {back:?}");
    settle(factory, "b", &published(2)).await;
    assert_eq!(factory.states().await, ["published"; 50]);
}

/// A relay that lost a lane and got it back may have something to say of both times.
pub async fn of_two_epochs_the_newer_counts<F: Factory>(factory: &F) {
    publish(factory, &[event("k", 1), event("k", 2)]).await;
    lease(factory, "a").await;
    within(factory.expire("a")).await;
    lease(factory, "b").await;
    within(factory.expire("b")).await;
    assert!(lease(factory, "a").await.iter().all(|lease| lease.epoch == 3));
    let told: Vec<Settled> = claim(factory)
        .await
        .iter()
        .zip([3, 1])
        .map(|(row, epoch)| Settled { epoch, ..settled(row, Outcome::Published) })
        .collect();
    assert!(within(factory.store().settle("a", &told)).await.unwrap().is_empty(), "the lane is its own");
    assert_eq!(factory.states().await, ["published", "new"]);
}

/// Nobody waits for the leases of a relay that has ended as it should.
pub async fn who_leaves_gives_all_back_at_once<F: Factory>(factory: &F) {
    let release = with_epochs(&lease(factory, "a").await);
    let leaving = LeaseAsk { leaving: true, release, ..ask("a") };
    assert!(within(factory.store().lease(&leaving)).await.unwrap().is_empty());
    let next = lease(factory, "b").await;
    assert_eq!(next.len(), usize::from(factory.lanes()));
    assert!(next.iter().all(|lease| lease.epoch == 2 && !lease.wanted));
}

/// What has run out is not prolonged, nor is it looked at as one's own: who had it last gets it under a new epoch, too.
/// What it asked before, and gave up, may arrive late, and is refused then.
pub async fn who_is_late_has_its_lanes_under_a_new_epoch<F: Factory>(factory: &F) {
    publish(factory, &[event("k", 1)]).await;
    let first = with_epochs(&lease(factory, "a").await);
    let row = claim(factory).await.remove(0);
    for (renew, epoch) in [(true, 2), (false, 3)] {
        within(factory.expire("a")).await;
        let again = within(factory.store().lease(&LeaseAsk { renew, ..ask("a") })).await.unwrap();
        assert_eq!(again.len(), usize::from(factory.lanes()));
        assert!(again.iter().all(|lease| lease.epoch == epoch), "{again:?}");
        let late = settled(&row, Outcome::Waiting);
        assert_eq!(within(factory.store().settle("a", &[late])).await.unwrap(), [row.lane]);
        let late = LeaseAsk { release: first.clone(), renew: false, ..ask("a") };
        assert_eq!(within(factory.store().lease(&late)).await.unwrap(), again, "nor is it given back");
    }
    assert!(lease(factory, "a").await.iter().all(|lease| lease.epoch == 3), "what has not run out stays");
    assert_eq!(factory.states().await, ["new"]);
}

/// Who stops gives back what is idle, is given nothing any more, and keeps the rest as long as it says so.
pub async fn who_is_leaving_keeps_what_it_does_not_give_back<F: Factory>(factory: &F) {
    let all: Vec<Lane> = (0..factory.lanes()).collect();
    let held = with_epochs(&lease(factory, "a").await);
    let leaving = |release: &[(Lane, u64)], ttl| {
        let ask = LeaseAsk { leaving: true, release: release.to_vec(), ttl, ..ask("a") };
        let store = factory.store();
        async move { within(store.lease(&ask)).await.unwrap() }
    };
    let kept = leaving(&held[1..], LONG).await;
    assert_eq!(kept, [Lease { lane: 0, epoch: 1, wanted: true }]);
    assert_eq!(lanes(&lease(factory, "b").await), all[1..], "b alone shares, and gets what is free");
    // It renews: to no length at all.
    leaving(&[], Duration::ZERO).await;
    let deadline = Instant::now() + LONG / 20;
    while lease(factory, "b").await.len() < all.len() {
        assert!(Instant::now() < deadline, "what it keeps is not renewed");
    }
}

/// Also when it passes to who had it before: what was begun then is another's.
pub async fn an_epoch_rises_whenever_a_lane_passes_on<F: Factory>(factory: &F) {
    publish(factory, &[event("k", 1)]).await;
    lease(factory, "a").await;
    let row = claim(factory).await.remove(0);
    within(factory.expire("a")).await;
    lease(factory, "b").await;
    within(factory.expire("b")).await;
    let again = lease(factory, "a").await;
    assert!(again.iter().all(|lease| lease.epoch == 3), "{again:?}");
    let late = settled(&row, Outcome::Published);
    assert_eq!(within(factory.store().settle("a", &[late])).await.unwrap(), [row.lane]);
    assert_eq!(factory.states().await, ["new"]);
}

/// A question whose server vanishes may be given up, more often than a store has connections, and is asked anew: `store`
/// reaches the server through `proxy`. For `lock` and `waits` see [`who_goes_silent_while_settling_keeps_no_lane`].
pub async fn who_hears_nothing_asks_again<F: Factory>(
    factory: &F,
    (store, proxy): (F::Store, &Proxy),
    lock: impl AsyncFn(&mut Tx<F>),
    waits: impl AsyncFn() -> bool,
) {
    publish(factory, &(0..7).map(|n| event("k", n)).collect::<Vec<_>>()).await;
    lease(factory, "a").await;
    let rows = claim(factory).await;
    let briefly = Duration::from_secs(1);
    for row in &rows {
        let mut transaction = factory.begin().await;
        lock(&mut transaction).await;
        let told = [settled(row, Outcome::Published)];
        let mut settling = Box::pin(store.settle("a", &told));
        let waiting = async {
            while !waits().await {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            answer = &mut settling => panic!("settling does not wait for the row: {answer:?}"),
            () = within(waiting) => proxy.abandon(),
        }
        within(factory.rollback(transaction)).await;
        if tokio::time::timeout(briefly, &mut settling).await.is_ok() {
            // It was another that waited, and this was asked over a connection that is well.
            continue;
        }
        drop(settling);
        // Those that it has beside are silent, too, and are closed one after the other.
        let deadline = Instant::now() + LONG / 10;
        while let Err(error) = within(store.claim(&claims(factory, 0, false), ALL)).await {
            assert!(error.is_retryable() && Instant::now() < deadline, "it does not ask anew: {error}");
        }
    }
}

/// A server that takes no connections is said, and not that it was waited for in vain.
pub async fn who_is_not_there_is_said_at_once(store: impl OutboxStore) {
    let begun = Instant::now();
    for error in [store.lease(&ask("a")).await.unwrap_err(), store.check().await.unwrap_err()] {
        assert!(error.is_retryable() && error.to_string().contains("refused"), "{error}");
    }
    assert!(begun.elapsed() < LONG / 20, "{:?}", begun.elapsed());
}

/// Nor does one that goes silent while it settles keep its lanes longer than its lease and a few seconds. Not every
/// outbox has a network: `store` reaches the database through `proxy`; `lock` locks the rows in a transaction, and
/// `waits` says whether somebody waits for such a lock.
pub async fn who_goes_silent_while_settling_keeps_no_lane<F: Factory>(
    factory: &F,
    (store, proxy): (F::Store, &Proxy),
    lock: impl AsyncFn(&mut Tx<F>),
    waits: impl AsyncFn() -> bool,
) {
    publish(factory, &[event("k", 1)]).await;
    lease(factory, "a").await;
    let row = claim(factory).await.remove(0);
    let mut transaction = factory.begin().await;
    lock(&mut transaction).await;
    let settling = tokio::spawn(async move { store.settle("a", &[settled(&row, Outcome::Published)]).await });
    let deadline = Instant::now() + LONG / 20;
    while !within(waits()).await {
        assert!(Instant::now() < deadline && !settling.is_finished(), "settling does not wait for the row");
        tokio::task::yield_now().await;
    }
    proxy.hold();
    factory.rollback(transaction).await;
    within(factory.expire("a")).await;
    while lease(factory, "b").await.len() < usize::from(factory.lanes()) {
        assert!(Instant::now() < deadline, "its lanes stay locked");
        tokio::task::yield_now().await;
    }
    settling.abort();
}
