//! Following changes.

use std::time::Duration;

use headwater_core::Op;
use headwater_core::ports::SourceState;

use super::tools::{BUDGET, PATIENCE, Reading, with_tables};
use super::{Factory, Session};

/// Opens a source that streams: what was written before it is behind it.
macro_rules! streaming {
    ($factory:expr, $database:ident, $session:ident, $reading:ident, full: $full:expr) => {
        let $database = $factory.database().await;
        let mut $session = with_tables(&*$database, $full).await;
        let connector = $database.connector(&["item", "marker"], false).await;
        let mut $reading = Reading::open(&connector, None).await;
    };
}

async fn mark(session: &mut dyn Session, marker: u64) {
    session.execute(&format!("insert into marker values ({marker})")).await;
}

/// Autocommitted statements and whole transactions, one after the other.
pub async fn changes_come_in_commit_order(factory: &dyn Factory) {
    streaming!(factory, database, session, reading, full: true);
    session.execute("insert into item values (1, 'a', 1)").await;
    session
        .execute("begin; update item set size = 2 where id = 1; insert into item values (2, null, 3); commit")
        .await;
    session.execute("delete from item where id = 1").await;
    session
        .execute("begin; insert into item values (1, 'b', 4); delete from item where id = 2; commit")
        .await;
    mark(&mut *session, 1).await;
    reading.until(1).await;
    let expected = [
        "create item 1|a|1",
        "update item 1|a|1 -> 1|a|2",
        "create item 2|NULL|3",
        "delete item 1|a|2",
        "create item 1|b|4",
        "delete item 2|NULL|3",
    ];
    assert_eq!(reading.described(), expected);
}

/// A transaction that began first and commits last comes last (invariant 4).
pub async fn commit_order_counts_not_the_order_of_beginning(factory: &dyn Factory) {
    if !factory.capabilities().concurrent_writers {
        return;
    }
    streaming!(factory, database, early, reading, full: false);
    let mut late = database.session().await;
    early.execute("begin; insert into item values (1, 'began first', 1)").await;
    late.execute("insert into item values (2, 'committed first', 1)").await;
    mark(&mut *late, 1).await;
    reading.until(1).await;
    early.execute("commit").await;
    mark(&mut *late, 2).await;
    reading.until(2).await;
    assert_eq!(reading.described(), ["create item 2|committed first|1", "create item 1|began first|1"]);
}

/// Source, connector, system, time and transaction.
pub async fn changes_say_where_they_come_from(factory: &dyn Factory) {
    streaming!(factory, database, session, reading, full: false);
    session
        .execute("begin; insert into item values (1, 'a', 1); insert into item values (2, 'b', 1); commit")
        .await;
    session.execute("insert into item values (3, 'c', 1)").await;
    mark(&mut *session, 1).await;
    reading.until(1).await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    let transactions: Vec<_> = reading.changes.iter().map(|change| change.transaction.clone()).collect();
    assert_eq!(transactions.len(), 3);
    for transaction in &transactions {
        assert_eq!(transaction.origin.source, "test");
        assert!(!transaction.origin.connector.is_empty() && !transaction.origin.system_id.is_empty());
        assert!(!transaction.id.is_empty() && !transaction.log_position.is_empty());
        let age = now.as_micros() as i64 - transaction.committed_at;
        assert!((-1_000_000..600_000_000).contains(&age), "committed {age} microseconds ago");
    }
    assert!(transactions.windows(2).all(|pair| pair[0].committed_at <= pair[1].committed_at));
    if factory.capabilities().tells_transactions {
        assert_eq!(transactions[0].id, transactions[1].id);
    }
    assert_ne!(transactions[1].id, transactions[2].id);
}

/// Neither of a transaction, nor of a savepoint.
pub async fn rollbacks_never_appear(factory: &dyn Factory) {
    streaming!(factory, database, session, reading, full: false);
    session.execute("begin; insert into item values (1, 'no', 1); rollback").await;
    session
        .execute(
            "begin; insert into item values (2, 'yes', 1); savepoint s; insert into item values (3, 'no', 1);
             rollback to s; insert into item values (4, 'yes', 1); commit",
        )
        .await;
    mark(&mut *session, 1).await;
    reading.until(1).await;
    assert_eq!(reading.described(), ["create item 2|yes|1", "create item 4|yes|1"]);
}

/// A table that is not named stays unread.
pub async fn only_captured_tables_are_read(factory: &dyn Factory) {
    let database = factory.database().await;
    let mut session = with_tables(&*database, false).await;
    session.execute("create table private (id integer primary key)").await;
    let connector = database.connector(&["item", "marker"], false).await;
    let mut reading = Reading::open(&connector, None).await;
    session
        .execute("begin; insert into private values (1); insert into item values (1, 'a', 1); commit")
        .await;
    session.execute("insert into private values (2)").await;
    mark(&mut *session, 1).await;
    reading.until(1).await;
    assert_eq!(reading.described(), ["create item 1|a|1"]);
}

/// The old key is in the row before, whatever the identity.
pub async fn a_changed_key_is_told_with_the_old_one(factory: &dyn Factory) {
    streaming!(factory, database, session, reading, full: false);
    session.execute("insert into item values (1, 'a', 1)").await;
    session.execute("update item set id = 11 where id = 1").await;
    mark(&mut *session, 1).await;
    reading.until(1).await;
    let change = &reading.changes[1];
    assert_eq!(change.op, Op::Update);
    let text = reading.described().remove(1);
    assert!(text.starts_with("update item 1|") && text.ends_with(" -> 11|a|1"), "{text}");
    let keys: Vec<usize> = change.table.key_columns().collect();
    assert_eq!(keys, [0]);
}

/// Its key at least; all of it where the table is set to that.
pub async fn the_row_before_is_told(factory: &dyn Factory) {
    streaming!(factory, database, session, reading, full: false);
    session.execute("insert into item values (1, 'a', 1); delete from item where id = 1").await;
    if let Some(sql) = database.full_identity("item") {
        session.execute(&sql).await;
    }
    session.execute("insert into item values (2, 'b', 1); update item set size = 2; delete from item").await;
    mark(&mut *session, 1).await;
    reading.until(1).await;
    let described = reading.described();
    assert!(described[1].starts_with("delete item 1|"), "{}", described[1]);
    assert_eq!(described[2..], ["create item 2|b|1", "update item 2|b|1 -> 2|b|2", "delete item 2|b|2"]);
}

/// A source that has nothing waits, and a commit wakes it.
pub async fn a_wait_ends_with_a_commit(factory: &dyn Factory) {
    streaming!(factory, database, session, reading, full: false);
    mark(&mut *session, 1).await;
    reading.until(1).await;
    while reading.next_within(Duration::from_millis(300), BUDGET).await {
        assert_eq!(reading.described(), [""; 0], "nothing was written");
    }
    let (_, came) =
        tokio::join!(session.execute("insert into item values (1, 'a', 1)"), reading.next(BUDGET));
    // A moved checkpoint may come before it.
    if came == 0 {
        reading.next(BUDGET).await;
    }
    assert_eq!(reading.described(), ["create item 1|a|1"]);
}

/// `next` is cancel-safe.
pub async fn dropped_waits_lose_nothing(factory: &dyn Factory) {
    streaming!(factory, database, session, reading, full: false);
    let writer = tokio::spawn(async move {
        for id in 0..300 {
            session.execute(&format!("insert into item values ({id}, 'a', 1)")).await;
        }
        session
    });
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut dropped = 0;
    while reading.changes.len() < 300 {
        assert!(tokio::time::Instant::now() < deadline, "only {} came", reading.changes.len());
        // From dropped before it is polled a second time, to dropped while it waits.
        let wait = Duration::from_micros(u64::from(dropped % 40) * 20);
        dropped += u32::from(!reading.next_within(wait, 200).await);
    }
    writer.await.expect("the writer writes");
    let ids: Vec<String> = (0..300).map(|id| format!("create item {id}|a|1")).collect();
    assert_eq!(reading.described(), ids);
    // How many depends on how fast the server is; that there are some is what makes this a test.
    assert!(dropped > 0, "no wait was dropped");
}

/// What is larger than the budget comes in pieces (invariant 7); [`Reading`] checks each one's size.
pub async fn a_large_transaction_fits_the_budget(factory: &dyn Factory) {
    streaming!(factory, database, session, reading, full: false);
    let text = "x".repeat(1000);
    session
        .execute(&format!(
            "with recursive n (i) as (select 1 union all select i + 1 from n where i < 20000)
             insert into item select i, '{text}', 1 from n"
        ))
        .await;
    mark(&mut *session, 1).await;
    reading.until(1).await;
    assert_eq!(reading.changes.len(), 20_000);
    let ids = reading.described();
    assert!(ids.iter().zip(1..).all(|(text, id)| text.starts_with(&format!("create item {id}|x"))));
}

/// Closed, then streaming, with a place once something is confirmed.
pub async fn status_says_what_it_does(factory: &dyn Factory) {
    let database = factory.database().await;
    let mut session = with_tables(&*database, false).await;
    let connector = database.connector(&["item", "marker"], false).await;
    assert_eq!(connector.status().state, SourceState::Closed);
    let mut reading = Reading::open(&connector, None).await;
    mark(&mut *session, 1).await;
    reading.until(1).await;
    assert_eq!(connector.status().state, SourceState::Streaming);
    assert!(connector.status().snapshot.is_empty());
    reading.confirm().await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while connector.status().position.is_none() {
        assert!(tokio::time::Instant::now() < deadline, "no place after a confirmation");
        reading.next_within(Duration::from_millis(10), BUDGET).await;
    }
    drop(reading);
    while connector.status().state != SourceState::Closed {
        assert!(tokio::time::Instant::now() < deadline, "not closed after it was dropped");
        tokio::task::yield_now().await;
    }
}
