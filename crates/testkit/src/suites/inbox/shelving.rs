//! What a person sees and does.

use bytes::Bytes;
use headwater_core::ports::{Backlog, Shelf, ShelfFilter, ShelfState, Taken::*};

use super::Factory;
use super::tools::*;

fn of(names: &Names) -> ShelfFilter {
    ShelfFilter { owner: Some(names.consumer.clone()), ..ShelfFilter::default() }
}

/// A line for each key, and all of each event.
pub async fn the_shelf_lists_keys_and_shows_events<F: Factory>(factory: &F) {
    let (inbox, names) = (factory.inbox(), Names::new());
    let records = [
        names.record(1, Some("a")),
        names.record(2, Some("a")),
        names.record(3, None),
        names.record(4, None),
        names.record(5, Some("a")),
    ];
    let events = [
        (&records[0], true),
        (&records[1], false),
        (&records[2], true),
        (&records[3], true),
        (&records[4], false),
    ];
    set_aside(&inbox, &names, &events).await;
    let lines = within(inbox.list(&of(&names))).await.unwrap();
    let said: Vec<_> =
        lines.iter().map(|line| (line.key.as_deref(), line.id, line.waiting, line.attempts)).collect();
    let id = |at: usize| records[at].event.id;
    assert_eq!(said, [(Some(&b"a"[..]), id(0), 2, 3), (None, id(2), 0, 3), (None, id(3), 0, 3)]);
    assert_eq!((lines[0].owner.as_str(), &lines[0].stream), (names.consumer.as_str(), &names.stream));
    assert_eq!((lines[0].state, lines[0].error.as_deref()), (ShelfState::Parked, Some("no stock")));
    assert!(lines[0].since > 1_700_000_000_000_000, "{lines:?}");
    let shown = within(inbox.show(&of(&names))).await.unwrap();
    assert_eq!(shown.iter().map(|event| event.record.clone()).collect::<Vec<_>>(), records);
    assert_eq!((shown[1].state, shown[1].error.as_deref()), (ShelfState::Waiting, None));
    let few = ShelfFilter { limit: 2, ..of(&names) };
    assert_eq!(within(inbox.list(&few)).await.unwrap().len(), 2);
    assert_eq!(within(inbox.show(&few)).await.unwrap().len(), 2);
    let key = ShelfFilter { key: Some(Bytes::from_static(b"a")), ..of(&names) };
    assert_eq!(within(inbox.show(&key)).await.unwrap().len(), 3);
    let nothing = ShelfFilter { stream: Some("other".into()), ..of(&names) };
    assert_eq!(within(inbox.list(&nothing)).await.unwrap(), []);
}

/// Only the key that was meant.
pub async fn only_what_fits_is_let_go<F: Factory>(factory: &F) {
    let (inbox, names) = (factory.inbox(), Names::new());
    let records = [names.record(1, Some("a")), names.record(2, Some("b")), names.record(3, Some("b"))];
    set_aside(&inbox, &names, &[(&records[0], true), (&records[1], true), (&records[2], false)]).await;
    let waiting = ShelfFilter { id: Some(records[2].event.id), ..of(&names) };
    assert_eq!(within(inbox.retry(&waiting)).await.unwrap(), 0, "only the first of a key is let go");
    let key = ShelfFilter { key: Some(Bytes::from_static(b"b")), ..of(&names) };
    assert_eq!(within(inbox.retry(&key)).await.unwrap(), 1);
    assert_eq!(key_of(&within(inbox.due(&names.consumer, 10)).await.unwrap()), [Some("b")]);
    let states: Vec<_> =
        within(inbox.list(&of(&names))).await.unwrap().iter().map(|line| line.state).collect();
    assert_eq!(states, [ShelfState::Parked, ShelfState::Retrying]);
}

/// What was dropped is not handled again when it is delivered again.
pub async fn dropping_the_first_lets_the_next_go<F: Factory>(factory: &F) {
    let (inbox, names) = (factory.inbox(), Names::new());
    let records = [names.record(1, Some("a")), names.record(2, Some("a")), names.record(3, Some("b"))];
    set_aside(&inbox, &names, &[(&records[0], true), (&records[1], false), (&records[2], true)]).await;
    let key = ShelfFilter { key: Some(Bytes::from_static(b"a")), ..of(&names) };
    assert_eq!(within(inbox.drop(&key)).await.unwrap(), 1);
    let due = within(inbox.due(&names.consumer, 10)).await.unwrap();
    assert_eq!(key_of(&due), [Some("a")]);
    let (_, held) = within(inbox.head(&names.consumer, &due[0])).await.unwrap().unwrap();
    assert_eq!(held.record, records[1]);
    assert_eq!(within(inbox.drop(&of(&names))).await.unwrap(), 1, "what may go is not dropped");
    assert_eq!(within(inbox.list(&of(&names))).await.unwrap().len(), 1);
    assert_eq!(states(&inbox, &names.consumer, &records).await, [Seen, Seen, Seen]);
}

/// Whoever says no more than whose it is means what waits for a person.
pub async fn what_is_tried_again_is_dropped_only_by_its_name<F: Factory>(factory: &F) {
    let (inbox, names) = (factory.inbox(), Names::new());
    let records = [names.record(1, Some("a")), names.record(2, Some("b")), names.record(3, None)];
    let events = [(&records[0], true), (&records[1], true), (&records[2], true)];
    set_aside(&inbox, &names, &events).await;
    let key = |key: &'static str| ShelfFilter { key: Some(Bytes::from_static(key.as_bytes())), ..of(&names) };
    let id = ShelfFilter { id: Some(records[2].event.id), ..of(&names) };
    assert_eq!(within(inbox.retry(&key("b"))).await.unwrap(), 1);
    assert_eq!(within(inbox.retry(&id)).await.unwrap(), 1);
    let all = ShelfFilter { stream: Some(names.stream.to_string()), ..of(&names) };
    assert_eq!(within(inbox.drop(&all)).await.unwrap(), 1);
    let left: Vec<_> = within(inbox.list(&of(&names))).await.unwrap().iter().map(|line| line.state).collect();
    assert_eq!(left, [ShelfState::Retrying; 2]);
    assert_eq!(within(inbox.drop(&key("b"))).await.unwrap(), 1);
    assert_eq!(within(inbox.drop(&id)).await.unwrap(), 1);
    assert_eq!(within(inbox.list(&of(&names))).await.unwrap(), []);
}
