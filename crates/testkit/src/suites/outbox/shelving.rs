//! What a person sees and does.

use headwater_core::ports::{ClaimedRow, NewEvent, Outcome, ShelfFilter, ShelfState};

use super::Factory;
use super::tools::*;

/// Two events of key `a`, the first parked, and two without a key, one of them parked. Returns the rows.
async fn set_up<F: Factory>(factory: &F) -> Vec<ClaimedRow> {
    let keyless = |n| NewEvent { key: None, ..event("", n) };
    publish(factory, &[event("a", 1), event("a", 2), keyless(3), keyless(4)]).await;
    lease(factory, "r").await;
    let mut rows = claim(factory).await;
    rows.sort_by_key(|row| row.sequence);
    let told = [
        settled(&rows[0], parked()),
        settled(&rows[1], Outcome::Waiting),
        settled(&rows[2], retry(LONG)),
        settled(&rows[3], Outcome::Published),
    ];
    settle(factory, "r", &told).await;
    rows
}

fn key(key: &'static str) -> ShelfFilter {
    ShelfFilter { key: Some(key.into()), ..ShelfFilter::default() }
}

/// A line for each key, and the events whole.
pub async fn the_outbox_shelf_lists_keys_and_shows_events<F: Factory>(factory: &F) {
    let rows = set_up(factory).await;
    let shelf = factory.shelf("shop");
    let lines = within(shelf.list(&ShelfFilter::default())).await.unwrap();
    let said: Vec<_> = lines.iter().map(|line| (line.id, line.state, line.attempts, line.waiting)).collect();
    assert_eq!(said, [(rows[0].id, ShelfState::Parked, 3, 1), (rows[2].id, ShelfState::Retrying, 1, 0)]);
    assert_eq!((&*lines[0].owner, &*lines[0].stream), ("shop", "orders"));
    assert_eq!((lines[0].key.as_deref(), lines[1].key.as_deref()), (Some(&b"a"[..]), None));
    assert!(lines[0].error.as_deref().is_some_and(|error| error.contains("stock")), "{:?}", lines[0].error);
    let shown = within(shelf.show(&ShelfFilter::default())).await.unwrap();
    let ids: Vec<_> = shown.iter().map(|event| event.record.event.id).collect();
    assert_eq!(ids, [rows[0].id, rows[1].id, rows[2].id]);
    assert_eq!((&*shown[0].record.event.kind, shown[1].state), ("Placed", ShelfState::Waiting));
    let payload: serde_json::Value =
        serde_json::from_slice(shown[1].record.event.payload.as_deref().unwrap()).unwrap();
    assert_eq!(payload, serde_json::json!({ "n": 2 }));
    let few = ShelfFilter { limit: 1, ..ShelfFilter::default() };
    assert_eq!(within(shelf.list(&few)).await.unwrap().len(), 1);
    assert_eq!(within(shelf.show(&key("a"))).await.unwrap().len(), 2);
    let others = [
        ShelfFilter { owner: Some("another".into()), ..ShelfFilter::default() },
        ShelfFilter { stream: Some("another".into()), ..ShelfFilter::default() },
        key("A"),
        key("a "),
    ];
    for other in others {
        assert!(within(shelf.list(&other)).await.unwrap().is_empty(), "{other:?}");
        assert!(within(shelf.show(&other)).await.unwrap().is_empty(), "{other:?}");
        assert_eq!(within(shelf.retry(&other)).await.unwrap(), 0, "{other:?}");
        assert_eq!(within((*shelf).drop(&other)).await.unwrap(), 0, "{other:?}");
    }
    assert_eq!(factory.states().await, ["parked", "waiting", "retrying", "published"]);
}

/// What waited behind it stays behind it.
pub async fn a_retry_by_hand_goes_first_and_begins_anew<F: Factory>(factory: &F) {
    let rows = set_up(factory).await;
    let shelf = factory.shelf("shop");
    let waiting = ShelfFilter { id: Some(rows[1].id), ..ShelfFilter::default() };
    assert_eq!(within(shelf.retry(&waiting)).await.unwrap(), 0, "only the first of a key is let go");
    assert_eq!(within(shelf.retry(&key("a"))).await.unwrap(), 1);
    let due = resume(factory).await;
    assert_eq!(ids(&due.rows), [rows[0].id]);
    assert_eq!((due.rows[0].again, due.rows[0].attempts), (true, 0), "a person's word begins anew");
    let one = ShelfFilter { id: Some(rows[2].id), ..ShelfFilter::default() };
    assert_eq!(within(shelf.retry(&one)).await.unwrap(), 1);
    assert_eq!(ids(&claim(factory).await), [rows[0].id, rows[2].id]);
    settle(factory, "r", &[settled(&due.rows[0], Outcome::Published)]).await;
    let due = resume(factory).await;
    assert_eq!(ids(&due.rows), [rows[1].id, rows[2].id]);
    assert!(due.blocked.is_empty());
}

/// It is gone for good, and no later one of its key overtakes the next.
pub async fn dropping_a_row_lets_the_next_of_its_key_go<F: Factory>(factory: &F) {
    let rows = set_up(factory).await;
    let shelf = factory.shelf("shop");
    let waiting = ShelfFilter { id: Some(rows[1].id), ..ShelfFilter::default() };
    assert_eq!(within((*shelf).drop(&waiting)).await.unwrap(), 0, "only the first of a key is dropped");
    publish(factory, &[event("a", 5)]).await;
    assert_eq!(within((*shelf).drop(&key("a"))).await.unwrap(), 1);
    assert_eq!(factory.states().await, ["dropped", "retrying", "retrying", "published", "new"]);
    let due = claim(factory).await;
    assert_eq!(ids(&due), ids_of(&[event("a", 2), event("a", 5)]));
    assert!(due.iter().any(|row| row.again && row.id == rows[1].id), "the next is the first of its key now");
    let one = ShelfFilter { id: Some(rows[2].id), ..ShelfFilter::default() };
    assert_eq!(within((*shelf).drop(&one)).await.unwrap(), 1, "one without a key");
    let lines = within(shelf.list(&ShelfFilter::default())).await.unwrap();
    assert_eq!((lines.len(), lines[0].id), (1, rows[1].id));
}

/// Whoever says no more than whose outbox it is means what waits for a person.
pub async fn what_is_tried_again_is_dropped_only_by_its_name<F: Factory>(factory: &F) {
    let rows = set_up(factory).await;
    let shelf = factory.shelf("shop");
    let all =
        ShelfFilter { owner: Some("shop".into()), stream: Some("orders".into()), ..ShelfFilter::default() };
    assert_eq!(within((*shelf).drop(&all)).await.unwrap(), 1);
    assert_eq!(factory.states().await, ["dropped", "retrying", "retrying", "published"]);
    assert_eq!(within((*shelf).drop(&all)).await.unwrap(), 0);
    let one = ShelfFilter { id: Some(rows[2].id), ..ShelfFilter::default() };
    assert_eq!(within((*shelf).drop(&one)).await.unwrap(), 1);
    assert_eq!(within((*shelf).drop(&key("a"))).await.unwrap(), 1);
    assert_eq!(factory.states().await, ["dropped", "dropped", "dropped", "published"]);
}
