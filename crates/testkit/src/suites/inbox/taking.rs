//! Inbox rows, cursors, and how they go.

use std::time::Duration;

use headwater_core::ports::{Inbox, Settlement, Taken::*};

use super::Factory;
use super::tools::*;

/// Whatever else is new.
pub async fn an_event_is_taken_once<F: Factory>(factory: &F) {
    let (inbox, names) = (factory.inbox(), Names::new());
    let records = [1, 2, 3].map(|n| names.record(n, Some("a")));
    assert_eq!(take(&inbox, &names.consumer, &records[..2]).await, [New, New]);
    assert_eq!(take(&inbox, &names.consumer, &records).await, [Seen, Seen, New]);
    assert_eq!(take(&inbox, &names.consumer, &[]).await, []);
}

/// Neither is its effect there.
pub async fn what_is_rolled_back_was_never_taken<F: Factory>(factory: &F) {
    let (inbox, names) = (factory.inbox(), Names::new());
    let records = [names.record(1, Some("a"))];
    for committed in [false, true] {
        let begun = within(inbox.begin(&names.consumer, &arrivals(&records))).await;
        let (mut transaction, states) = begun.unwrap();
        assert_eq!(states, [New]);
        factory.effect(&mut transaction, &names.consumer).await;
        let settlement = Settlement::default();
        match committed {
            false => within(inbox.rollback(transaction)).await.unwrap(),
            true => within(inbox.commit(transaction, &names.consumer, &settlement)).await.unwrap(),
        }
        assert_eq!(factory.effects(&names.consumer).await, i64::from(committed));
    }
}

/// A handler that is cut off leaves nothing.
pub async fn a_dropped_transaction_is_rolled_back<F: Factory>(factory: &F) {
    let (inbox, names) = (factory.inbox(), Names::new());
    let records = [names.record(1, Some("a"))];
    let (mut transaction, _) = within(inbox.begin(&names.consumer, &arrivals(&records))).await.unwrap();
    factory.effect(&mut transaction, &names.consumer).await;
    drop(transaction);
    assert_eq!(take(&inbox, &names.consumer, &records).await, [New]);
    assert_eq!(factory.effects(&names.consumer).await, 0);
}

/// A handler neither commits nor rolls back. One that does is found out before its event counts as handled.
pub async fn what_a_handler_has_ended_does_not_commit<F: Factory>(factory: &F) {
    let (inbox, names) = (factory.inbox(), Names::new());
    let records = [names.record(1, Some("a"))];
    for sql in ["ROLLBACK", "ROLLBACK; BEGIN"] {
        let (mut transaction, _) = within(inbox.begin(&names.consumer, &arrivals(&records))).await.unwrap();
        factory.effect(&mut transaction, &names.consumer).await;
        factory.say(&mut transaction, sql).await;
        let ended = within(inbox.commit(transaction, &names.consumer, &marks(&names, 2))).await;
        let error = ended.expect_err("its effect is gone");
        assert!(!error.is_retryable() && error.to_string().contains("ended"), "{error}");
        assert_eq!(factory.effects(&names.consumer).await, 0);
        assert_eq!(states(&inbox, &names.consumer, &records).await, [New], "it is to be handled yet");
        let cursor = within(inbox.cursor(&names.consumer, &names.stream, 2)).await.unwrap();
        assert_eq!(cursor, None, "it stays in front of the event");
    }
}

/// Two members hold one partition for a moment: one of them handles an event.
pub async fn the_other_member_waits_and_then_knows<F: Factory>(factory: &F) {
    assert_eq!(after_another(factory, true).await, Seen);
}

/// If the first gives up, the other one handles it.
pub async fn when_one_rolls_back_the_other_takes<F: Factory>(factory: &F) {
    assert_eq!(after_another(factory, false).await, New);
}

async fn after_another<F: Factory>(factory: &F, commits: bool) -> headwater_core::ports::Taken {
    let (inbox, names) = (factory.inbox(), Names::new());
    let records = [names.record(1, Some("a"))];
    let (transaction, _) = within(inbox.begin(&names.consumer, &arrivals(&records))).await.unwrap();
    let (other, consumer, taken) = (inbox.clone(), names.consumer.clone(), arrivals(&records));
    let mut second = tokio::spawn(async move {
        let (transaction, states) = other.begin(&consumer, &taken).await.unwrap();
        other.rollback(transaction).await.unwrap();
        states[0]
    });
    let early = tokio::time::timeout(Duration::from_millis(50), &mut second).await;
    assert!(early.is_err(), "it must wait for the first");
    match commits {
        true => within(inbox.commit(transaction, &names.consumer, &Settlement::default())).await.unwrap(),
        false => within(inbox.rollback(transaction)).await.unwrap(),
    }
    within(second).await.unwrap()
}

/// One statement, however many.
pub async fn a_thousand_are_taken_at_once<F: Factory>(factory: &F) {
    let (inbox, names) = (factory.inbox(), Names::new());
    let records: Vec<_> = (0..1000).map(|n| names.record(n, Some("a"))).collect();
    assert_eq!(take(&inbox, &names.consumer, &records[500..]).await, [New; 500]);
    let states = take(&inbox, &names.consumer, &records).await;
    assert_eq!((&states[..500], &states[500..]), (&[New; 500][..], &[Seen; 500][..]));
}

/// Each takes everything.
pub async fn consumers_do_not_disturb_each_other<F: Factory>(factory: &F) {
    let (inbox, names, other) = (factory.inbox(), Names::new(), unique("consumer"));
    let records = [1, 2].map(|n| names.record(n, Some("a")));
    set_aside(&inbox, &names, &[(&records[0], true)]).await;
    assert_eq!(take(&inbox, &other, &records).await, [New, New]);
    assert_eq!(states(&inbox, &names.consumer, &records).await, [Seen, Blocked]);
    let (transaction, _) = within(inbox.begin(&names.consumer, &[])).await.unwrap();
    within(inbox.commit(transaction, &names.consumer, &marks(&names, 7))).await.unwrap();
    assert_eq!(within(inbox.cursor(&other, &names.stream, 2)).await.unwrap(), None);
}

/// Effect and progress are one (invariant 5).
pub async fn a_cursor_moves_with_the_effect_and_never_back<F: Factory>(factory: &F) {
    let (inbox, names) = (factory.inbox(), Names::new());
    let cursor = |partition| {
        let (inbox, names) = (inbox.clone(), &names);
        async move { within(inbox.cursor(&names.consumer, &names.stream, partition)).await.unwrap() }
    };
    assert_eq!(cursor(2).await, None);
    let (transaction, _) = within(inbox.begin(&names.consumer, &[])).await.unwrap();
    within(inbox.rollback(transaction)).await.unwrap();
    for (to, expected) in [(10, 10), (15, 15), (12, 15)] {
        let (mut transaction, _) = within(inbox.begin(&names.consumer, &[])).await.unwrap();
        factory.effect(&mut transaction, &names.consumer).await;
        within(inbox.commit(transaction, &names.consumer, &marks(&names, to))).await.unwrap();
        assert_eq!((cursor(2).await, cursor(1).await), (Some(expected), None));
    }
    assert_eq!(factory.effects(&names.consumer).await, 3);
}

/// By consumer and by age.
pub async fn old_rows_are_cleaned_and_no_others<F: Factory>(factory: &F) {
    let (inbox, names, other) = (factory.inbox(), Names::new(), unique("consumer"));
    let records: Vec<_> = (0..1500).map(|n| names.record(n, Some("a"))).collect();
    take(&inbox, &names.consumer, &records).await;
    take(&inbox, &other, &records[..1]).await;
    assert_eq!(within(inbox.clean(&names.consumer, Duration::from_secs(3600))).await.unwrap(), 0);
    let mut cleaned = Vec::new();
    while cleaned.last() != Some(&0) {
        cleaned.push(within(inbox.clean(&names.consumer, Duration::ZERO)).await.unwrap());
    }
    assert_eq!(cleaned.iter().sum::<u64>(), 1500);
    assert!(cleaned.len() > 2, "in small batches: {cleaned:?}");
    assert_eq!(states(&inbox, &names.consumer, &records[..1]).await, [New]);
    assert_eq!(states(&inbox, &other, &records[..1]).await, [Seen]);
}

/// A consumer that stands still for longer than rows are kept may read again what it has handled.
pub async fn what_was_handled_does_not_grow_old_while_nothing_is<F: Factory>(factory: &F) {
    let (inbox, names) = (factory.inbox(), Names::new());
    let records = [1, 2].map(|n| names.record(n, Some("a")));
    let week = Duration::from_secs(7 * 86_400);
    assert_eq!(within(inbox.clean(&names.consumer, week)).await.unwrap(), 0, "there is none");
    take(&inbox, &names.consumer, &records[..1]).await;
    factory.age(&names.consumer, 8).await;
    assert_eq!(within(inbox.clean(&names.consumer, week)).await.unwrap(), 0);
    assert_eq!(take(&inbox, &names.consumer, &records).await, [Seen, New]);
    assert_eq!(within(inbox.clean(&names.consumer, week)).await.unwrap(), 1);
    assert_eq!(states(&inbox, &names.consumer, &records).await, [New, Seen]);
}

/// A clock that was wrong for a moment is not the measure of what was handled when it was right.
pub async fn a_row_from_the_future_makes_no_other_old<F: Factory>(factory: &F) {
    let (inbox, names) = (factory.inbox(), Names::new());
    let records = [1, 2].map(|n| names.record(n, Some("a")));
    take(&inbox, &names.consumer, &records[..1]).await;
    factory.age(&names.consumer, -3650).await;
    take(&inbox, &names.consumer, &records[1..]).await;
    assert_eq!(within(inbox.clean(&names.consumer, Duration::from_secs(7 * 86_400))).await.unwrap(), 0);
    assert_eq!(states(&inbox, &names.consumer, &records).await, [Seen, Seen]);
}
