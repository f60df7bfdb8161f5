//! Rows that cannot be published now, and what waits behind them.

use std::time::Duration;

use headwater_core::ports::{Claim, ClaimedRow, NewEvent, OutboxStore, Outcome};

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
