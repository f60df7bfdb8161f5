//! Rows that cannot be published now, and what waits behind them.

use std::time::{Duration, Instant};

use headwater_core::ports::{Claim, ClaimLimit, ClaimedRow, NewEvent, OutboxStore, Outcome, ShelfFilter};

use super::Factory;
use super::tools::*;

fn row<'a>(rows: &'a [ClaimedRow], event: &NewEvent) -> &'a ClaimedRow {
    rows.iter().find(|row| row.id == event.id).unwrap()
}

/// The rows behind it wait where no claim sees them; other keys of the lane go on.
pub async fn a_retrying_row_holds_back_its_key_and_nothing_else<F: Factory>(factory: &F) {
    let (first, second) = (event("a", 1), event("a", 2));
    publish(factory, &[first.clone(), second.clone(), event("A", 3), event("a ", 4)]).await;
    lease(factory, "r").await;
    let rows = claim(factory).await;
    let told = [settled(row(&rows, &first), retry(LONG)), settled(row(&rows, &second), Outcome::Waiting)];
    settle(factory, "r", &told).await;
    assert_eq!(factory.states().await, ["retrying", "waiting", "new", "new"]);
    // A key is its bytes: its case and the spaces at its end count.
    let others = ids_of(&[event("A", 3), event("a ", 4)]);
    let claimed = resume(factory).await;
    assert_eq!(ids(&claimed.rows), others);
    assert_eq!(claimed.blocked, [(row(&rows, &first).lane, ("orders".to_owned(), "a".to_owned()))]);
    assert_eq!(factory.states().await, ["retrying", "waiting", "new", "new"], "its head is still there");
    let elsewhere = NewEvent { stream: "others".into(), ..event("a", 5) };
    publish(factory, std::slice::from_ref(&elsewhere)).await;
    let rows = claim(factory).await;
    assert_eq!(ids(&rows), [&others[..], &[elsewhere.id]].concat(), "the stream counts as well");
    settle_all(factory, "r", &rows, Outcome::Published).await;
    assert_eq!(factory.states().await, ["retrying", "waiting", "published", "published", "published"]);
}

/// A head that is published lets go what waited, in the order in which it was written.
pub async fn what_waits_goes_in_order_once_the_head_is_gone<F: Factory>(factory: &F) {
    let events: Vec<NewEvent> = (0..4).map(|n| event("a", n)).collect();
    publish(factory, &events).await;
    lease(factory, "r").await;
    let rows = claim(factory).await;
    let mut told = vec![settled(&rows[0], retry(Duration::ZERO))];
    told.extend(rows[1..3].iter().map(|row| settled(row, Outcome::Waiting)));
    settle(factory, "r", &told).await;
    let due = claim(factory).await;
    assert_eq!(
        ids(&due),
        ids_of(&[events[0].clone(), events[3].clone()]),
        "the one that is tried again, and a new one"
    );
    assert!(due[0].again && due[0].attempts == 1 && due[0].id == events[0].id, "it comes first");
    let told = [settled(&due[0], Outcome::Published), settled(&due[1], Outcome::Waiting)];
    settle(factory, "r", &told).await;
    assert!(claim(factory).await.is_empty());
    let claimed = resume(factory).await;
    assert!(claimed.blocked.is_empty());
    assert_eq!(ids(&claimed.rows), ids_of(&events[1..]));
    assert!(claimed.rows.iter().all(|row| !row.again));
    assert_eq!(factory.states().await, ["published", "new", "new", "new"]);
}

/// Not before, and only for who asks for retries; parked rows never.
pub async fn a_row_is_tried_again_when_its_time_has_come<F: Factory>(factory: &F) {
    publish(factory, &[event("a", 1), event("b", 2), event("c", 3)]).await;
    lease(factory, "r").await;
    let rows = claim(factory).await;
    let [a, b, c] = [event("a", 1), event("b", 2), event("c", 3)].map(|event| row(&rows, &event).clone());
    settle(factory, "r", &[settled(&a, retry(Duration::ZERO))]).await;
    settle(factory, "r", &[settled(&b, retry(LONG))]).await;
    settle(factory, "r", &[settled(&c, parked())]).await;
    let due = claim(factory).await;
    assert_eq!(ids(&due), [a.id]);
    let not: Vec<Claim> =
        claims(factory, 0, false).into_iter().map(|claim| Claim { retries: false, ..claim }).collect();
    assert!(within(factory.store().claim(&not, ALL)).await.unwrap().rows.is_empty());
    let again = Outcome::Retry { attempts: 2, after: Duration::ZERO, error: "still not".into() };
    settle_all(factory, "r", &due, again).await;
    assert_eq!(claim(factory).await[0].attempts, 2);
    let mut blocked: Vec<String> =
        resume(factory).await.blocked.into_iter().map(|(_, (_, key))| key).collect();
    blocked.sort();
    assert_eq!(blocked, ["a", "b", "c"]);
}

/// Without a key there is no order.
pub async fn a_row_without_a_key_holds_back_nothing<F: Factory>(factory: &F) {
    let keyless = |n| NewEvent { key: None, ..event("", n) };
    let events: Vec<NewEvent> = (0..20).map(keyless).collect();
    publish(factory, &events).await;
    lease(factory, "r").await;
    let rows = claim(factory).await;
    let told: Vec<_> = rows.iter().take(10).map(|row| settled(row, parked())).collect();
    settle(factory, "r", &told).await;
    let claimed = resume(factory).await;
    assert!(claimed.blocked.is_empty(), "{:?}", claimed.blocked);
    assert_eq!(claimed.rows.len(), 10);
}

/// A late word about a row does not bring it back.
pub async fn what_is_settled_stays_settled<F: Factory>(factory: &F) {
    publish(factory, &[event("a", 1), event("b", 2)]).await;
    lease(factory, "r").await;
    let rows = claim(factory).await;
    let told = [settled(&rows[0], Outcome::Published), settled(&rows[1], parked())];
    settle(factory, "r", &told).await;
    let before = factory.states().await;
    for outcome in [Outcome::Waiting, retry(Duration::ZERO), Outcome::Published] {
        settle(factory, "r", &[settled(&rows[0], outcome)]).await;
    }
    settle(factory, "r", &[settled(&rows[1], Outcome::Waiting)]).await;
    settle(factory, "r", &[settled(&rows[1], Outcome::Published)]).await;
    assert_eq!(factory.states().await, before);
}

/// Nothing that is long has to fit into an index.
pub async fn a_long_key_is_held_back_as_any_other<F: Factory>(factory: &F) {
    let mut seed = 1_u64;
    let mut letter = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from_u32(0x4e00 + (seed >> 51) as u32).unwrap()
    };
    // Hardly to be compressed.
    let key: String = (0..1_024).map(|_| letter()).collect();
    publish(factory, &[event(&key, 1), event(&key, 2)]).await;
    lease(factory, "r").await;
    let rows = claim(factory).await;
    settle(factory, "r", &[settled(&rows[0], retry(LONG)), settled(&rows[1], Outcome::Waiting)]).await;
    let claimed = resume(factory).await;
    assert_eq!(claimed.blocked, [(rows[0].lane, ("orders".to_owned(), key))]);
    assert_eq!(factory.states().await, ["retrying", "waiting"]);
    settle(factory, "r", &[settled(&rows[0], Outcome::Published)]).await;
    assert_eq!(ids(&resume(factory).await.rows), [rows[1].id]);
}

/// However much of a key is let go: a claim takes a part of it, and has what other lanes ask for.
pub async fn much_that_is_let_go_holds_up_no_other_lane<F: Factory>(factory: &F) {
    let waiting = 30_000;
    factory.add_waiting("one", 1, waiting).await;
    lease(factory, "r").await;
    let one = ShelfFilter { key: Some("one0".into()), ..ShelfFilter::default() };
    assert_eq!(within(factory.shelf("shop").retry(&one)).await.unwrap(), 1);
    let head = claim(factory).await;
    settle_all(factory, "r", &head, Outcome::Published).await;
    let others: Vec<NewEvent> = (0..20).map(|n| event(&format!("other{n}"), n)).collect();
    publish(factory, &others).await;
    let claims: Vec<Claim> = claims(factory, 0, false)
        .into_iter()
        .map(|claim| Claim { resume: claim.lane == head[0].lane, ..claim })
        .collect();
    let (store, mut parts) = (factory.store(), 0);
    let claimed = loop {
        let claimed = within(store.claim(&claims, ALL)).await.unwrap();
        let ours = claimed.rows.iter().filter(|row| row.lane == head[0].lane).count();
        if claimed.resuming.is_empty() {
            assert!(ours >= waiting as usize);
            break claimed;
        }
        assert_eq!((ours, claimed.blocked.len()), (0, 0), "it is not known yet");
        assert!(!claimed.rows.is_empty(), "others wait");
        parts += 1;
    };
    assert!(parts >= 2 || factory.lanes() == 1, "in {parts} parts");
    assert_eq!(claimed.rows.len(), others.len() + waiting as usize);
}

/// However much waits, behind one key or behind many: only what is let go is read.
pub async fn what_waits_is_never_walked<F: Factory>(factory: &F) {
    let (waiting, keys) = (50_000, 1_000);
    factory.add_waiting("one", 1, waiting).await;
    factory.add_waiting("of many ", keys, waiting).await;
    lease(factory, "r").await;
    let before = factory.rows_read().await;
    let store = factory.store();
    let mut took = Duration::MAX;
    for _ in 0..5 {
        let begun = Instant::now();
        let claimed = within(store.claim(&claims(factory, 0, true), ALL)).await.unwrap();
        took = took.min(begun.elapsed());
        assert_eq!((claimed.rows.len(), claimed.blocked.len() as u64), (0, keys + 1));
    }
    println!("{waiting} wait behind one key, {waiting} behind {keys}: asked for them in {took:?}");
    assert!(took < Duration::from_secs(1), "{took:?}: something is walked");
    drop(store);
    let read = factory.rows_read().await - before;
    assert!(read < 15 * keys, "{read} rows were read to ask five times for {keys} keys");
    let shelf = factory.shelf("shop");
    for (key, behind) in [("of many 7", waiting / keys), ("one0", waiting)] {
        let one = ShelfFilter { key: Some(key.into()), ..ShelfFilter::default() };
        assert_eq!(within(shelf.list(&one)).await.unwrap()[0].waiting, behind, "{key}");
        assert_eq!(within(shelf.retry(&one)).await.unwrap(), 1);
        settle_all(factory, "r", &claim(factory).await, Outcome::Published).await;
        let begun = Instant::now();
        let first = ClaimLimit { rows: 1, ..ALL };
        // What waits is let go in parts.
        let store = factory.store();
        let mut claimed = store.claim(&claims(factory, 0, true), first).await.unwrap();
        while !claimed.resuming.is_empty() {
            claimed = store.claim(&claims(factory, 0, true), first).await.unwrap();
        }
        println!("{behind} were let go in {:?}", begun.elapsed());
        assert_eq!((claimed.rows.len(), claimed.rows[0].key.as_deref()), (1, Some(key)));
        let new = factory.states().await.into_iter().filter(|state| state == "new").count() as u64;
        assert_eq!(new, behind);
        if behind < waiting {
            settle_all(factory, "r", &claim(factory).await, Outcome::Published).await;
        }
    }
}
