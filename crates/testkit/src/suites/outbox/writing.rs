//! What services write, and when it can be seen.

use std::collections::BTreeMap;
use std::time::Duration;

use headwater_core::ports::{OutboxStore, OutboxWriter, Outcome};
use headwater_core::{EventId, Value};

use super::Factory;
use super::tools::*;

/// It is published when its transaction is, and never without.
pub async fn an_event_is_there_when_its_transaction_has_committed_and_not_before<F: Factory>(factory: &F) {
    let writer = factory.writer();
    let mut transaction = within(factory.begin()).await;
    within(writer.insert(&mut transaction, &[event("a", 1)])).await.unwrap();
    within(factory.rollback(transaction)).await;
    let mut transaction = within(factory.begin()).await;
    within(writer.insert(&mut transaction, &[])).await.unwrap();
    within(writer.insert(&mut transaction, &[event("a", 2)])).await.unwrap();
    within(writer.insert(&mut transaction, &[event("b", 3), event("a", 4)])).await.unwrap();
    assert!(claim(factory).await.is_empty());
    within(factory.commit(transaction)).await;
    assert_eq!(ids(&claim(factory).await), ids_of(&[event("a", 2), event("b", 3), event("a", 4)]));
}

/// Every column, whatever is in it.
pub async fn a_row_is_claimed_as_it_was_written<F: Factory>(factory: &F) {
    let mut strange = event("ä \"'\\ ", 1);
    strange.payload = Some("{\"text\": \"ö\\n\", \"price\": 1.50}".into());
    let mut empty = event("", 2);
    (empty.payload, empty.headers, empty.key) = (None, Vec::new(), None);
    publish(factory, std::slice::from_ref(&strange)).await;
    publish(factory, &[empty.clone(), event("c", 3)]).await;
    let claimed = resume(factory).await;
    let columns = claimed.table.unwrap().columns.iter().map(|column| column.name.clone()).collect::<Vec<_>>();
    let of = |id: EventId, column: &str| -> Option<String> {
        let row = claimed.rows.iter().find(|row| row.id == id).unwrap();
        let at = columns.iter().position(|name| name == column).unwrap();
        match row.row.value(at) {
            Value::Bytes(_, text) => Some(String::from_utf8(text.to_vec()).unwrap()),
            Value::Null => None,
            value => panic!("{column} is {value:?}"),
        }
    };
    for event in [&strange, &empty] {
        let row = claimed.rows.iter().find(|row| row.id == event.id).unwrap();
        assert_eq!((&row.stream, &row.key), (&event.stream, &event.key));
        assert_eq!((row.attempts, row.again), (0, false));
        assert!((row.created_at - now()).abs() < 3_600_000_000, "by the clock: {}", row.created_at);
        assert_eq!(of(event.id, "id"), Some(event.id.to_string()));
        assert_eq!(of(event.id, "type"), Some(event.kind.clone()));
        assert_eq!(of(event.id, "key"), event.key);
        assert_eq!(of(event.id, "version"), Some("2".into()));
    }
    let json =
        |text: Option<String>| text.map(|text| serde_json::from_str::<serde_json::Value>(&text).unwrap());
    assert_eq!(json(of(strange.id, "payload")), json(strange.payload.clone()));
    assert_eq!(json(of(strange.id, "headers")), Some(serde_json::json!({ "a": "1", "b \"": "2" })));
    assert_eq!((of(empty.id, "payload"), of(empty.id, "headers")), (None, None));
}

fn now() -> i64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_micros() as i64
}

/// What a writer sees of its key once it has written is all that has a lower sequence: nothing but the order in
/// which the key's transactions go makes that so.
pub async fn within_a_key_the_sequence_follows_commits_with_16_writers<F: Factory>(factory: &F) {
    let write = async |writer: u64| {
        let mut seen = Vec::new();
        for n in 0..20 {
            let key = format!("k{}", (writer + n) % 3);
            let event = event(&key, writer * 1000 + n);
            let mut transaction = within(factory.begin()).await;
            within(factory.writer().insert(&mut transaction, std::slice::from_ref(&event))).await.unwrap();
            seen.push((event.id, factory.seen(&mut transaction, &key).await));
            within(factory.commit(transaction)).await;
        }
        seen
    };
    let seen = futures::future::join_all((0..16).map(write)).await;
    let seen: BTreeMap<EventId, i64> = seen.into_iter().flatten().collect();
    let rows = claim(factory).await;
    assert_eq!(rows.len(), 320);
    let mut keys: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
    for row in &rows {
        keys.entry(row.key.as_deref().unwrap()).or_default().push(seen[&row.id]);
    }
    for (key, counts) in keys {
        let expected: Vec<i64> = (1..=counts.len() as i64).collect();
        assert_eq!(counts, expected, "{key}: each sees all that have a lower sequence, itself the last");
    }
}

/// Transactions that write events of the same keys in any order wait for each other, and all commit.
pub async fn many_events_of_crossing_keys_do_not_deadlock<F: Factory>(factory: &F) {
    let write = async |writer: u64| {
        for n in 0..10 {
            let mut keys: Vec<String> = (0..10).map(|key| format!("k{key}")).collect();
            keys.rotate_left((writer * 3 + n) as usize % 10);
            if writer % 2 == 1 {
                keys.reverse();
            }
            let event = |(at, key): (usize, &String)| event(key, writer * 1_000 + n * 10 + at as u64);
            publish(factory, &keys.iter().enumerate().map(event).collect::<Vec<_>>()).await;
        }
    };
    futures::future::join_all((0..8).map(write)).await;
    assert_eq!(claim(factory).await.len(), 800);
}

/// Its sequence is lower than one that was published already; it comes before what comes later of its key.
pub async fn a_row_that_commits_late_is_claimed_before_later_rows_of_its_key<F: Factory>(factory: &F) {
    if !factory.concurrent() {
        return;
    }
    let (store, writer) = (factory.store(), factory.writer());
    lease(factory, "r").await;
    let mut slow = within(factory.begin()).await;
    within(writer.insert(&mut slow, &[event("slow", 1)])).await.unwrap();
    let quick: Vec<_> = (0..50).map(|n| event(&format!("k{n}"), n)).collect();
    publish(factory, &quick).await;
    let claimed = within(store.claim(&claims(factory, 0, false), ALL)).await.unwrap();
    assert_eq!(ids(&claimed.rows), ids_of(&quick));
    settle_all(factory, "r", &claimed.rows, Outcome::Published).await;
    let above = horizon_while_open(&store, factory).await;
    within(factory.commit(slow)).await;
    publish(factory, &[event("slow", 2)]).await;
    let rows = within(store.claim(&claims(factory, above, false), ALL)).await.unwrap().rows;
    assert_eq!(ids(&rows), ids_of(&[event("slow", 1), event("slow", 2)]));
    assert!(rows[0].sequence < rows[1].sequence && rows[0].lane == rows[1].lane);
}

/// The highest place from which a relay may begin, as long as a transaction is open.
async fn horizon_while_open<F: Factory>(store: &F::Store, factory: &F) -> i64 {
    let mut highest = 0;
    let mut ticks = tokio::time::interval(Duration::from_millis(15));
    for _ in 0..8 {
        ticks.tick().await;
        let claimed = within(store.claim(&claims(factory, highest, false), ALL)).await.unwrap();
        highest = highest.max(claimed.horizon);
    }
    highest
}

/// Who inserts plainly gives up the order with others of the key, and nothing else.
pub async fn what_was_drawn_early_and_without_the_lock_is_not_lost<F: Factory>(factory: &F) {
    if !factory.concurrent() {
        return;
    }
    let store = factory.store();
    lease(factory, "r").await;
    let mut early = Vec::new();
    for n in 0..4 {
        let mut transaction = within(factory.begin()).await;
        within(factory.insert_plainly(&mut transaction, &event("k", n))).await;
        early.push(transaction);
    }
    let (mut published, mut above) = (0, 0);
    for (n, transaction) in early.into_iter().enumerate() {
        // Later rows of the key, by whom it may be.
        publish(factory, &[event("k", 100 + n as u64)]).await;
        let rows = within(store.claim(&claims(factory, above, false), ALL)).await.unwrap().rows;
        settle_all(factory, "r", &rows, Outcome::Published).await;
        published += rows.len();
        above = above.max(horizon_while_open(&store, factory).await);
        if n % 2 == 0 {
            within(factory.commit(transaction)).await;
        } else {
            within(factory.rollback(transaction)).await;
        }
    }
    let rows = within(store.claim(&claims(factory, above, false), ALL)).await.unwrap().rows;
    assert_eq!(published + rows.len(), 6);
}
