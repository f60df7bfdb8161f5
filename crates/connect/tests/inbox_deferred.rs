//! The inbox of pushes: its budget for what it sets aside, and what it does when its disk is full.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use headwater_connect::sqlite::inbox::{DeferredInbox, delivery};
use headwater_core::ports::{
    Arrival, Aside, Backlog, Fate, Inbox, Settlement, Shelf, ShelfFilter, Taken, Trouble,
};
use headwater_core::{Kind, Record};
use headwater_testkit::disk::SmallDisk;
use headwater_testkit::suites::inbox::tools::{Names, arrival, states};

const BUDGET: u64 = 1000;

fn aside(record: &Record, parked: bool) -> Settlement {
    let parked = parked.then(|| Trouble { attempts: 1, error: "no".into() });
    let aside = Aside { record: record.clone(), key: record.event.key.clone(), parked, again: None };
    Settlement { aside: vec![aside], ..Settlement::default() }
}

/// Sets one aside, as the first of its key or behind it.
async fn set_aside(inbox: &DeferredInbox, consumer: &str, record: &Record, first: bool) -> Result<(), Kind> {
    let begun = inbox.begin(consumer, &[arrival(record)]).await;
    let (transaction, taken) = begun.map_err(|error| error.kind())?;
    assert_eq!(taken, [if first { Taken::New } else { Taken::Blocked }]);
    inbox.commit(transaction, consumer, &aside(record, first)).await.map_err(|error| error.kind())
}

#[tokio::test]
async fn what_is_over_the_budget_is_refused_before_it_is_handled() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("push.db");
    let inbox = DeferredInbox::open(&file).await.unwrap().budget(BUDGET);
    let names = Names::new();
    let mut n = 0;
    let mut next = |key| {
        n += 1;
        names.record(n, Some(key))
    };
    set_aside(&inbox, &names.consumer, &next("bad"), true).await.unwrap();
    let mut set = 1;
    while set_aside(&inbox, &names.consumer, &next("bad"), false).await.is_ok() {
        set += 1;
        assert!(set < 10, "no budget");
    }
    assert!(set > 2, "{set}");
    // Neither behind it, nor as the first of another key; not with what could go in the same transaction.
    let (behind, other, fine) = (next("bad"), next("other"), next("fine"));
    let both = [arrival(&fine), arrival(&behind)];
    let refused = inbox.begin(&names.consumer, &both).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Full);
    assert!(refused.is_retryable() && refused.to_string().contains("max_set_aside"), "{refused}");
    assert_eq!(set_aside(&inbox, &names.consumer, &other, true).await, Err(Kind::Full));
    // What goes well goes on, and so does another push.
    let (transaction, taken) = inbox.begin(&names.consumer, &[arrival(&fine)]).await.unwrap();
    assert_eq!(taken, [Taken::New]);
    inbox.commit(transaction, &names.consumer, &Settlement::default()).await.unwrap();
    set_aside(&inbox, "another", &other, true).await.unwrap();
    // It is counted anew when the file is opened, and in other processes.
    drop(inbox);
    let inbox = DeferredInbox::open(&file).await.unwrap().budget(BUDGET);
    assert_eq!(set_aside(&inbox, &names.consumer, &other, true).await, Err(Kind::Full));
    // What is set aside can go whatever the budget is, and makes room.
    let of = ShelfFilter { owner: Some(names.consumer.clone()), ..ShelfFilter::default() };
    assert_eq!(inbox.clone().retry(&of).await.unwrap(), 1);
    let due = inbox.due(&names.consumer, 10).await.unwrap();
    let (transaction, held) = inbox.head(&names.consumer, &due[0]).await.unwrap().unwrap();
    let done = Settlement { held: vec![(held.sequence, Fate::Done)], ..Settlement::default() };
    inbox.commit(transaction, &names.consumer, &done).await.unwrap();
    set_aside(&inbox, &names.consumer, &behind, false).await.unwrap();
    assert_eq!(inbox.clone().count(&names.consumer).await.unwrap().waiting, set);
}

/// What became of an event is known as long as the event is, and no longer.
#[tokio::test]
async fn what_became_of_an_event_is_forgotten_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("push.db");
    let inbox = DeferredInbox::open(&file).await.unwrap();
    let names = Names::new();
    let (first, second) = (names.record(1, Some("a")), names.record(2, Some("a")));
    for (record, attempt) in [(&first, 3), (&second, 1)] {
        let arrival = Arrival { attempt, ..arrival(record) };
        let (transaction, _) = inbox.begin(&names.consumer, &[arrival]).await.unwrap();
        inbox.commit(transaction, &names.consumer, &Settlement::default()).await.unwrap();
    }
    let attempts = |record: &Record| {
        let found = delivery(&file, &names.consumer, record.event.id).unwrap();
        found.map(|found| (found.state, found.attempts))
    };
    let delivered = |attempts| Some(("delivered".to_owned(), attempts));
    inbox.clean(&names.consumer, Duration::from_hours(1)).await.unwrap();
    assert_eq!((attempts(&first), attempts(&second)), (delivered(3), delivered(1)));
    while inbox.clean(&names.consumer, Duration::ZERO).await.unwrap() > 0 {}
    assert_eq!(attempts(&first), None);
}

/// A request that is on its way is not called back, whatever becomes of its row.
#[tokio::test]
async fn an_event_that_is_dropped_on_its_way_still_holds_up_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("push.db");
    let inbox = DeferredInbox::open(&file).await.unwrap();
    let names = Names::new();
    let (held, next, other) =
        (names.record(1, Some("a")), names.record(2, Some("a")), names.record(3, Some("b")));
    set_aside(&inbox, &names.consumer, &held, true).await.unwrap();
    inbox.clone().retry(&ShelfFilter::default()).await.unwrap();
    let due = inbox.due(&names.consumer, 10).await.unwrap();
    let (going, head) = inbox.head(&names.consumer, &due[0]).await.unwrap().unwrap();
    let this = ShelfFilter { id: Some(held.event.id), ..ShelfFilter::default() };
    assert_eq!(Shelf::drop(&inbox, &this).await.unwrap(), 1);
    let records = [next, other];
    assert_eq!(states(&inbox, &names.consumer, &records).await, [Taken::Blocked, Taken::New]);
    let done = Settlement { held: vec![(head.sequence, Fate::Done)], ..Settlement::default() };
    inbox.commit(going, &names.consumer, &done).await.unwrap();
    assert_eq!(states(&inbox, &names.consumer, &records).await, [Taken::New, Taken::New]);
    let found = delivery(&file, &names.consumer, held.event.id).unwrap().unwrap();
    assert_eq!((found.state.as_str(), found.attempts), ("delivered", 1), "{found:?}");
}

/// Events are not to blame for a file that takes nothing, whatever SQLite says of it.
#[tokio::test]
async fn what_cannot_be_written_is_tried_again_and_blamed_on_no_event() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("push.db");
    let inbox = DeferredInbox::open(&file).await.unwrap();
    let names = Names::new();
    let record = names.record(1, Some("a"));
    let by_hand = rusqlite::Connection::open(&file).unwrap();
    let refuse =
        "CREATE TRIGGER refuse BEFORE INSERT ON headwater_inbox BEGIN SELECT RAISE(ABORT, 'not today'); END";
    by_hand.execute_batch(refuse).unwrap();
    let (transaction, _) = inbox.begin(&names.consumer, &[arrival(&record)]).await.unwrap();
    let refused = inbox.commit(transaction, &names.consumer, &Settlement::default()).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Busy, "{refused}");
    assert!(refused.to_string().contains("not today"), "{refused}");
    by_hand.execute_batch("DROP TRIGGER refuse").unwrap();
    let (transaction, taken) = inbox.begin(&names.consumer, &[arrival(&record)]).await.unwrap();
    assert_eq!(taken, [Taken::Seen], "it would be handled again");
    inbox.commit(transaction, &names.consumer, &Settlement::default()).await.unwrap();
    assert_eq!(states(&inbox, &names.consumer, &[record]).await, [Taken::Seen]);
}

/// The tries of an event are those to handle it, not those to write down what became of it.
#[tokio::test]
async fn tries_to_write_do_not_count_and_those_that_could_not_be_written_do() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("push.db");
    let inbox = DeferredInbox::open(&file).await.unwrap();
    let names = Names::new();
    let (arrived, aside) = (names.record(1, Some("a")), names.record(2, Some("b")));
    set_aside(&inbox, &names.consumer, &aside, true).await.unwrap();
    inbox.clone().retry(&ShelfFilter::default()).await.unwrap();
    let by_hand = rusqlite::Connection::open(&file).unwrap();
    let refuse = "CREATE TRIGGER takes_none BEFORE INSERT ON headwater_inbox BEGIN SELECT RAISE(ABORT, 'no'); END; \
         CREATE TRIGGER puts_off_none BEFORE UPDATE ON headwater_parked BEGIN SELECT RAISE(ABORT, 'no'); END";
    by_hand.execute_batch(refuse).unwrap();
    let take = async |attempt| {
        let arrival = Arrival { attempt, ..arrival(&arrived) };
        let (transaction, _) = inbox.begin(&names.consumer, &[arrival]).await.unwrap();
        inbox.commit(transaction, &names.consumer, &Settlement::default()).await
    };
    let due = inbox.due(&names.consumer, 10).await.unwrap();
    let (holding, held) = inbox.head(&names.consumer, &due[0]).await.unwrap().unwrap();
    let trouble = Trouble { attempts: held.attempts + 1, error: "not yet".into() };
    let fate = Fate::Retry(trouble, Duration::from_hours(1));
    let put_off = Settlement { held: vec![(held.sequence, fate)], ..Settlement::default() };
    assert!(inbox.commit(holding, &names.consumer, &put_off).await.is_err());
    assert!(take(2).await.is_err() && take(3).await.is_err());
    by_hand.execute_batch("DROP TRIGGER takes_none; DROP TRIGGER puts_off_none").unwrap();
    take(4).await.unwrap();
    let found = delivery(&file, &names.consumer, arrived.event.id).unwrap().unwrap();
    assert_eq!((found.state.as_str(), found.attempts), ("delivered", 2));
    let again = inbox.head(&names.consumer, &due[0]).await.unwrap();
    assert!(again.is_none(), "it would be tried again before its time");
    let listed = inbox.clone().list(&ShelfFilter::default()).await.unwrap();
    assert_eq!((listed[0].attempts, listed[0].error.as_deref()), (held.attempts + 1, Some("not yet")));
}

/// A file that an earlier version made has no table of what became of events: the others say what they know.
#[tokio::test]
async fn an_event_is_found_in_a_file_without_deliveries() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("push.db");
    let inbox = DeferredInbox::open(&file).await.unwrap();
    let names = Names::new();
    let (held, gone, never) =
        (names.record(1, Some("a")), names.record(2, Some("b")), names.record(3, Some("c")));
    set_aside(&inbox, &names.consumer, &held, true).await.unwrap();
    let (transaction, _) = inbox.begin(&names.consumer, &[arrival(&gone)]).await.unwrap();
    inbox.commit(transaction, &names.consumer, &Settlement::default()).await.unwrap();
    let by_hand = rusqlite::Connection::open(&file).unwrap();
    by_hand.execute_batch("DROP TRIGGER headwater_delivery_dropped; DROP TABLE headwater_delivery").unwrap();
    let state =
        |record: &Record| delivery(&file, &names.consumer, record.event.id).unwrap().map(|found| found.state);
    assert_eq!(state(&held).as_deref(), Some("parked"));
    assert_eq!(state(&gone).as_deref(), Some("delivered"));
    assert_eq!(state(&never), None);
}

#[tokio::test]
async fn a_damaged_file_is_named_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("push.db");
    std::fs::write(&file, "no database ".repeat(1000)).unwrap();
    let error = DeferredInbox::open(&file).await.unwrap_err();
    assert!(!error.is_retryable() && error.to_string().contains("push.db"), "{error}");
    assert!(error.hint_text().is_some_and(|hint| hint.contains("backup")), "{error}");
}

/// A request cannot be taken back: it is not made again because nobody could write down that it was made.
#[tokio::test]
async fn what_was_handled_is_not_handed_out_again_while_the_disk_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(dir.path(), 8) else { return };
    let file = dir.path().join("push.db");
    let inbox = DeferredInbox::open(&file).await.unwrap();
    let names = Names::new();
    let (arrived, aside, behind) =
        (names.record(1, Some("a")), names.record(2, Some("b")), names.record(3, Some("b")));
    set_aside(&inbox, &names.consumer, &aside, true).await.unwrap();
    set_aside(&inbox, &names.consumer, &behind, false).await.unwrap();
    inbox.clone().retry(&ShelfFilter::default()).await.unwrap();
    let due = inbox.due(&names.consumer, 10).await.unwrap();
    let (holding, held) = inbox.head(&names.consumer, &due[0]).await.unwrap().unwrap();
    let (taking, taken) = inbox.begin(&names.consumer, &[arrival(&arrived)]).await.unwrap();
    assert_eq!(taken, [Taken::New]);
    let filler = disk.fill();
    // Both are handled now, and neither can be written down; nor can the next try.
    let done = Settlement { held: vec![(held.sequence, Fate::Done)], ..Settlement::default() };
    let handled = Settlement::default();
    assert!(inbox.commit(holding, &names.consumer, &done).await.unwrap_err().is_retryable());
    assert!(inbox.commit(taking, &names.consumer, &handled).await.unwrap_err().is_retryable());
    let (taking, taken) = inbox.begin(&names.consumer, &[arrival(&arrived)]).await.unwrap();
    assert_eq!(taken, [Taken::Seen], "it would be handled again");
    assert!(inbox.commit(taking, &names.consumer, &handled).await.is_err());
    assert!(inbox.head(&names.consumer, &due[0]).await.is_err(), "it would be handled again");
    drop(filler);
    let (taking, taken) = inbox.begin(&names.consumer, &[arrival(&arrived)]).await.unwrap();
    assert_eq!(taken, [Taken::Seen]);
    inbox.commit(taking, &names.consumer, &handled).await.unwrap();
    let (_, next) = inbox.head(&names.consumer, &due[0]).await.unwrap().unwrap();
    assert_eq!(next.record.event.id, behind.event.id, "what waited behind it follows");
    // Now it is written down, for whoever opens the file next.
    drop(inbox);
    let inbox = DeferredInbox::open(&file).await.unwrap();
    assert_eq!(states(&inbox, &names.consumer, &[arrived, aside]).await, [Taken::Seen, Taken::Seen]);
    assert_eq!(inbox.clone().list(&ShelfFilter::default()).await.unwrap()[0].id, behind.event.id);
}
