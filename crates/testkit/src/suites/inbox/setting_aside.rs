//! What is set aside, and how it goes on.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use headwater_core::ports::{
    Aside, Backlog, Due, Fate, Inbox, Settlement, ShelfFilter, ShelfState, Taken::*, Trouble,
};
use headwater_core::{Header, Record};

use super::Factory;
use super::tools::*;

/// Its key of its stream.
pub async fn a_parked_event_blocks_its_key_and_nothing_else<F: Factory>(factory: &F) {
    let (inbox, names, elsewhere) = (factory.inbox(), Names::new(), Names::new());
    let first = names.record(1, Some("a"));
    set_aside(&inbox, &names, &[(&first, true)]).await;
    let later =
        [first, names.record(2, Some("a")), names.record(3, Some("b")), elsewhere.record(4, Some("a"))];
    assert_eq!(states(&inbox, &names.consumer, &later).await, [Seen, Blocked, New, New]);
    set_aside(&inbox, &names, &[(&later[1], false)]).await;
    assert_eq!(states(&inbox, &names.consumer, &later).await, [Seen, Seen, New, New]);
}

/// Without a key there is no order.
pub async fn an_event_without_a_key_blocks_nothing<F: Factory>(factory: &F) {
    let (inbox, names) = (factory.inbox(), Names::new());
    let records = [1, 2, 3].map(|n| names.record(n, None));
    set_aside(&inbox, &names, &[(&records[0], true), (&records[1], true)]).await;
    assert_eq!(states(&inbox, &names.consumer, &records).await, [Seen, Seen, New]);
    let filter = ShelfFilter { owner: Some(names.consumer.clone()), ..ShelfFilter::default() };
    let filter = ShelfFilter { id: Some(records[1].event.id), ..filter };
    assert_eq!(within(headwater_core::ports::Shelf::retry(&inbox, &filter)).await.unwrap(), 1);
    let due = within(inbox.due(&names.consumer, 10)).await.unwrap();
    assert_eq!(key_of(&due), [None]);
    let (transaction, held) = within(inbox.head(&names.consumer, &due[0])).await.unwrap().unwrap();
    assert_eq!(held.record, records[1]);
    let settlement = Settlement { held: vec![(held.sequence, Fate::Done)], ..Settlement::default() };
    within(inbox.commit(transaction, &names.consumer, &settlement)).await.unwrap();
    assert!(within(inbox.head(&names.consumer, &due[0])).await.unwrap().is_none());
}

/// A member that waited for another's transaction must know what that one has parked.
pub async fn who_waited_for_a_parking_sees_it<F: Factory>(factory: &F) {
    let (inbox, names) = (factory.inbox(), Names::new());
    let records = [1, 2].map(|n| names.record(n, Some("a")));
    let (transaction, _) = within(inbox.begin(&names.consumer, &arrivals(&records[..1]))).await.unwrap();
    let (other, consumer, taken) = (inbox.clone(), names.consumer.clone(), arrivals(&records));
    let mut second = tokio::spawn(async move {
        let (transaction, states) = other.begin(&consumer, &taken).await.unwrap();
        other.rollback(transaction).await.unwrap();
        states
    });
    let early = tokio::time::timeout(Duration::from_millis(50), &mut second).await;
    assert!(early.is_err(), "it must wait for the first");
    let settlement = Settlement { aside: vec![aside(&records[0], true)], ..Settlement::default() };
    within(inbox.commit(transaction, &names.consumer, &settlement)).await.unwrap();
    assert_eq!(within(second).await.unwrap(), [Seen, Blocked]);
}

/// Bytes, headers, times and places.
pub async fn what_is_set_aside_comes_back_as_it_was<F: Factory>(factory: &F) {
    let (inbox, names) = (factory.inbox(), Names::new());
    let mut strange = names.record(u64::from(u32::MAX) + 5, Some("a"));
    strange.event.key = Some(Bytes::from_static(b"\x00\xff"));
    strange.event.payload = None;
    strange.event.kind = "".into();
    strange.event.time = 1_700_000_000_123_457;
    let header = |name: &str, value: Option<&'static [u8]>| Header {
        name: name.into(),
        value: value.map(Bytes::from_static),
    };
    strange.event.headers =
        [header("ä\"", Some("é\n\0".as_bytes())), header("b", Some(b"\xff")), header("c", None)]
            .into_iter()
            .collect();
    let mut empty = names.record(2, Some(""));
    empty.event.payload = Some(Bytes::new());
    empty.event.headers.clear();
    for record in [&strange, &empty] {
        // Its order key is another than its own.
        let key = Some(Bytes::from(format!("order-{}", record.offset)));
        let aside = Aside { record: record.clone(), key: key.clone(), parked: None, again: None };
        let (transaction, _) = within(inbox.begin(&names.consumer, &[arrival(record)])).await.unwrap();
        let settlement = Settlement { aside: vec![aside], ..Settlement::default() };
        within(inbox.commit(transaction, &names.consumer, &settlement)).await.unwrap();
        let due = Due { stream: Arc::clone(&names.stream), key, sequence: 0 };
        let (transaction, held) = within(inbox.head(&names.consumer, &due)).await.unwrap().unwrap();
        assert_eq!(held.record, *record);
        within(inbox.rollback(transaction)).await.unwrap();
    }
}

/// No index is too narrow for it.
pub async fn a_key_of_any_length_is_set_aside<F: Factory>(factory: &F) {
    let (inbox, names) = (factory.inbox(), Names::new());
    // Longer than a page, and nothing that can be made shorter.
    let long: String = (0..20_000).map(|_| char::from(rand::random_range(b'0'..=b'z'))).collect();
    let other = format!("{long}!");
    let keys = [&long, &long, &long, &other];
    let records: Vec<_> = (1..).zip(keys).map(|(n, key)| names.record(n, Some(key))).collect();
    set_aside(&inbox, &names, &[(&records[0], true), (&records[1], false)]).await;
    assert_eq!(states(&inbox, &names.consumer, &records[2..]).await, [Blocked, New]);
    let filter = ShelfFilter { key: Some(Bytes::from(long.clone())), ..ShelfFilter::default() };
    assert_eq!(within(headwater_core::ports::Shelf::retry(&inbox, &filter)).await.unwrap(), 1);
    let due = within(inbox.due(&names.consumer, 10)).await.unwrap();
    assert_eq!(key_of(&due), [Some(long.as_str())]);
    go(factory, &names, &due[0], &records[0]).await;
    go(factory, &names, &due[0], &records[1]).await;
    assert_eq!(states(&inbox, &names.consumer, &records[2..]).await, [New, New]);
}

/// Handles the first of a key, which must be this one.
async fn go<F: Factory>(factory: &F, names: &Names, due: &Due, expected: &Record) {
    let inbox = factory.inbox();
    let (mut transaction, held) = within(inbox.head(&names.consumer, due)).await.unwrap().unwrap();
    assert_eq!(held.record, *expected);
    factory.effect(&mut transaction, &names.consumer).await;
    let settlement = Settlement { held: vec![(held.sequence, Fate::Done)], ..Settlement::default() };
    within(inbox.commit(transaction, &names.consumer, &settlement)).await.unwrap();
}

/// What waited goes before anything newer of its key.
pub async fn a_backlog_goes_in_order_once_it_is_let_go<F: Factory>(factory: &F) {
    let (inbox, names) = (factory.inbox(), Names::new());
    let records: Vec<_> = (1..=4).map(|n| names.record(n, Some("a"))).collect();
    set_aside(&inbox, &names, &[(&records[0], true), (&records[1], false)]).await;
    assert_eq!(within(inbox.due(&names.consumer, 10)).await.unwrap(), []);
    let filter = ShelfFilter { owner: Some(names.consumer.clone()), ..ShelfFilter::default() };
    assert_eq!(within(headwater_core::ports::Shelf::retry(&inbox, &filter)).await.unwrap(), 1);
    let due = within(inbox.due(&names.consumer, 10)).await.unwrap();
    assert_eq!(key_of(&due), [Some("a")]);
    go(factory, &names, &due[0], &records[0]).await;
    assert_eq!(states(&inbox, &names.consumer, &records[2..]).await, [Blocked, Blocked], "2 has yet to go");
    set_aside(&inbox, &names, &[(&records[2], false)]).await;
    go(factory, &names, &due[0], &records[1]).await;
    go(factory, &names, &due[0], &records[2]).await;
    assert!(within(inbox.head(&names.consumer, &due[0])).await.unwrap().is_none());
    assert_eq!(states(&inbox, &names.consumer, &records).await, [Seen, Seen, Seen, New]);
    assert_eq!(factory.effects(&names.consumer).await, 3);
}

/// Its first went while it was being written: it must not wait for ever.
pub async fn what_waits_behind_nothing_is_due<F: Factory>(factory: &F) {
    let (inbox, names) = (factory.inbox(), Names::new());
    let records = [names.record(1, Some("a")), names.record(2, Some("b")), names.record(3, Some("c"))];
    set_aside(&inbox, &names, &[(&records[0], false), (&records[1], true), (&records[2], false)]).await;
    let mut due = within(inbox.due(&names.consumer, 10)).await.unwrap();
    due.sort_by_key(|due| due.sequence);
    assert_eq!(key_of(&due), [Some("a"), Some("c")]);
    assert_eq!(within(inbox.due(&names.consumer, 1)).await.unwrap().len(), 1);
    go(factory, &names, &due[0], &records[0]).await;
}

/// Its trouble is the event's own, and nobody has to let it go.
pub async fn what_is_to_be_tried_again_is_due_by_itself<F: Factory>(factory: &F) {
    let (inbox, names) = (factory.inbox(), Names::new());
    let records = [1, 2, 3].map(|n| names.record(n, Some(if n == 3 { "b" } else { "a" })));
    let waits = [Some(Duration::ZERO), None, Some(Duration::from_secs(3600))];
    for (record, again) in records.iter().zip(waits) {
        let aside = Aside { again, ..aside(record, again.is_some()) };
        let (transaction, _) = within(inbox.begin(&names.consumer, &[arrival(record)])).await.unwrap();
        let settlement = Settlement { aside: vec![aside], ..Settlement::default() };
        within(inbox.commit(transaction, &names.consumer, &settlement)).await.unwrap();
    }
    let filter = ShelfFilter { owner: Some(names.consumer.clone()), ..ShelfFilter::default() };
    let listed = within(headwater_core::ports::Shelf::list(&inbox, &filter)).await.unwrap();
    assert!(listed.iter().all(|line| line.state == ShelfState::Retrying), "{listed:?}");
    assert_eq!(states(&inbox, &names.consumer, &[names.record(4, Some("b"))]).await, [Blocked]);
    let due = within(inbox.due(&names.consumer, 10)).await.unwrap();
    assert_eq!(key_of(&due), [Some("a")], "b's time has not come");
    let (transaction, held) = within(inbox.head(&names.consumer, &due[0])).await.unwrap().unwrap();
    assert_eq!(held.attempts, 3, "what was tried before counts");
    within(inbox.rollback(transaction)).await.unwrap();
    go(factory, &names, &due[0], &records[0]).await;
    go(factory, &names, &due[0], &records[1]).await;
}

/// Keys that fail again and again are not in the way of those behind them.
pub async fn what_waited_longest_is_due_first<F: Factory>(factory: &F) {
    let (inbox, names) = (factory.inbox(), Names::new());
    for (n, key) in ["b", "a", "c"].into_iter().enumerate() {
        let record = names.record(n as u64, Some(key));
        let aside = Aside { again: Some(Duration::ZERO), ..aside(&record, true) };
        let (transaction, _) = within(inbox.begin(&names.consumer, &[arrival(&record)])).await.unwrap();
        let settlement = Settlement { aside: vec![aside], ..Settlement::default() };
        within(inbox.commit(transaction, &names.consumer, &settlement)).await.unwrap();
    }
    let mut keys = Vec::new();
    for _ in 0..6 {
        let due = within(inbox.due(&names.consumer, 1)).await.unwrap();
        keys.extend(key_of(&due).into_iter().flatten().map(str::to_owned));
        let (transaction, held) = within(inbox.head(&names.consumer, &due[0])).await.unwrap().unwrap();
        let fate =
            Fate::Retry(Trouble { attempts: held.attempts + 1, error: "again".into() }, Duration::ZERO);
        let settlement = Settlement { held: vec![(held.sequence, fate)], ..Settlement::default() };
        within(inbox.commit(transaction, &names.consumer, &settlement)).await.unwrap();
    }
    assert_eq!(keys, ["b", "a", "c", "b", "a", "c"]);
}

/// Attempts are remembered.
pub async fn a_retry_waits_and_a_parked_one_stays<F: Factory>(factory: &F) {
    let (inbox, names) = (factory.inbox(), Names::new());
    let record = names.record(1, Some("a"));
    set_aside(&inbox, &names, &[(&record, false)]).await;
    let due = within(inbox.due(&names.consumer, 10)).await.unwrap();
    let trouble = |attempts| Trouble { attempts, error: format!("failed {attempts} times") };
    let fates = [
        (Fate::Retry(trouble(1), Duration::ZERO), 1),
        (Fate::Retry(trouble(2), Duration::ZERO), 1),
        (Fate::Retry(trouble(3), Duration::from_secs(3600)), 0),
    ];
    for (attempts, (fate, then)) in fates.into_iter().enumerate() {
        let (transaction, held) = within(inbox.head(&names.consumer, &due[0])).await.unwrap().unwrap();
        assert_eq!(held.attempts, attempts as u32);
        let settlement = Settlement { held: vec![(held.sequence, fate)], ..Settlement::default() };
        within(inbox.commit(transaction, &names.consumer, &settlement)).await.unwrap();
        assert_eq!(within(inbox.due(&names.consumer, 10)).await.unwrap().len(), then);
    }
    assert!(within(inbox.head(&names.consumer, &due[0])).await.unwrap().is_none());
    let filter = ShelfFilter { owner: Some(names.consumer.clone()), ..ShelfFilter::default() };
    assert_eq!(within(headwater_core::ports::Shelf::retry(&inbox, &filter)).await.unwrap(), 1);
    let (transaction, held) = within(inbox.head(&names.consumer, &due[0])).await.unwrap().unwrap();
    assert_eq!(held.attempts, 0, "a person's word begins anew");
    let settlement =
        Settlement { held: vec![(held.sequence, Fate::Parked(trouble(1)))], ..Settlement::default() };
    within(inbox.commit(transaction, &names.consumer, &settlement)).await.unwrap();
    assert_eq!(within(inbox.due(&names.consumer, 10)).await.unwrap(), []);
    let events = within(headwater_core::ports::Shelf::show(&inbox, &filter)).await.unwrap();
    assert_eq!((events[0].attempts, events[0].error.as_deref()), (1, Some("failed 1 times")));
}

/// A head is nobody's between a try that failed and what is written down of it.
pub async fn what_was_said_of_a_head_meanwhile_stays<F: Factory>(factory: &F) {
    let (inbox, names) = (factory.inbox(), Names::new());
    set_aside(&inbox, &names, &[(&names.record(1, Some("a")), false)]).await;
    let due = within(inbox.due(&names.consumer, 10)).await.unwrap();
    let (transaction, held) = within(inbox.head(&names.consumer, &due[0])).await.unwrap().unwrap();
    within(inbox.rollback(transaction)).await.unwrap();
    let say = async |fate: Fate| {
        let (transaction, _) = within(inbox.begin(&names.consumer, &[])).await.unwrap();
        let settlement = Settlement { held: vec![(held.sequence, fate)], ..Settlement::default() };
        within(inbox.commit(transaction, &names.consumer, &settlement)).await.unwrap();
    };
    let filter = ShelfFilter { owner: Some(names.consumer.clone()), ..ShelfFilter::default() };
    let stands = async || {
        let listed = within(headwater_core::ports::Shelf::list(&inbox, &filter)).await.unwrap();
        (listed[0].state, listed[0].attempts)
    };
    let trouble = |attempts| Trouble { attempts, error: "no".into() };
    say(Fate::Retry(trouble(1), Duration::ZERO)).await;
    // Two have tried it for the second time, and a person lets it go before a third says so.
    say(Fate::Parked(trouble(2))).await;
    say(Fate::Retry(trouble(2), Duration::ZERO)).await;
    assert_eq!(stands().await, (ShelfState::Parked, 2));
    assert_eq!(within(headwater_core::ports::Shelf::retry(&inbox, &filter)).await.unwrap(), 1);
    say(Fate::Parked(trouble(2))).await;
    assert_eq!(stands().await, (ShelfState::Retrying, 0));
}

/// Two members let go the same key.
pub async fn a_head_is_held_by_one<F: Factory>(factory: &F) {
    let (inbox, names) = (factory.inbox(), Names::new());
    let records = [1, 2].map(|n| names.record(n, Some("a")));
    set_aside(&inbox, &names, &[(&records[0], false), (&records[1], false)]).await;
    let due = within(inbox.due(&names.consumer, 10)).await.unwrap();
    let (transaction, held) = within(inbox.head(&names.consumer, &due[0])).await.unwrap().unwrap();
    let (other, consumer, same) = (inbox.clone(), names.consumer.clone(), due[0].clone());
    let second = tokio::spawn(async move {
        let head = other.head(&consumer, &same).await.unwrap();
        head.map(|(_, held)| held.record.offset)
    });
    let settlement = Settlement { held: vec![(held.sequence, Fate::Done)], ..Settlement::default() };
    if factory.concurrent() {
        assert_eq!(within(second).await.unwrap(), None, "another holds it");
        within(inbox.commit(transaction, &names.consumer, &settlement)).await.unwrap();
    } else {
        within(inbox.commit(transaction, &names.consumer, &settlement)).await.unwrap();
        assert_eq!(within(second).await.unwrap(), Some(2), "the first is done");
    }
}
