//! Going on after a restart.

use headwater_core::Change;

use super::tools::{Reading, describe, with_tables};
use super::{Database, Factory, Session};

async fn fill(session: &mut dyn Session, ids: std::ops::Range<u64>) {
    for id in ids {
        session.execute(&format!("insert into item values ({id}, 'a', 1)")).await;
    }
}

async fn open(database: &dyn Database, from: Option<&headwater_core::Checkpoint>) -> Reading {
    let connector = database.connector(&["item", "marker"], false).await;
    Reading::open(&connector, from).await
}

fn identity(change: &Change) -> (String, String, String, i64) {
    let transaction = &change.transaction;
    (describe(change), change.position.to_string(), transaction.id.clone(), transaction.committed_at)
}

/// The same rows at the same positions, however the first reading was cut into batches: positions and
/// times are what events' ids are made of (invariant 3).
pub async fn what_is_not_confirmed_comes_again_the_same(factory: &dyn Factory) {
    let database = factory.database().await;
    let mut session = with_tables(&*database, true).await;
    let mut first = open(&*database, None).await;
    session.execute("insert into marker values (0)").await;
    first.until(0).await;
    first.confirm().await;
    fill(&mut *session, 0..20).await;
    session.execute("begin; update item set size = 2; delete from item where id < 5; commit").await;
    session.execute("insert into marker values (1)").await;
    let begin = first.checkpoint.clone();
    let mut checkpoints = Vec::new();
    while first.changes.len() < 45 {
        first.next(1).await;
        checkpoints.push((first.changes.len(), first.checkpoint.clone()));
    }
    first.until(1).await;
    let all: Vec<_> = first.changes.iter().map(identity).collect();
    assert_eq!(all.len(), 45);
    drop(first);
    let mut again = open(&*database, begin.as_ref()).await;
    again.until(1).await;
    assert_eq!(again.changes.iter().map(identity).collect::<Vec<_>>(), all);
    drop(again);
    for (read, checkpoint) in checkpoints.into_iter().step_by(9) {
        let Some(checkpoint) = checkpoint else { continue };
        let mut again = open(&*database, Some(&checkpoint)).await;
        again.until(1).await;
        let rest: Vec<_> = again.changes.iter().map(identity).collect();
        // What the runtime does: it drops what is at or below the checkpoint.
        assert!(rest.len() + read >= all.len(), "changes after {read} are missing");
        let rest = &rest[rest.len() + read - all.len()..];
        assert_eq!(rest, &all[read..]);
        let dropped = again.changes.len() - rest.len();
        assert!(again.changes[..dropped].iter().all(|change| change.position <= checkpoint.position));
    }
}

/// Confirmed at every turn: each change comes exactly once.
pub async fn what_is_confirmed_does_not_come_again(factory: &dyn Factory) {
    let database = factory.database().await;
    let mut session = with_tables(&*database, false).await;
    let mut checkpoint = None;
    let mut came = Vec::new();
    for turn in 0..4 {
        let mut reading = open(&*database, checkpoint.as_ref()).await;
        fill(&mut *session, turn * 10..turn * 10 + 10).await;
        session.execute(&format!("insert into marker values ({turn})")).await;
        reading.until(turn).await;
        reading.confirm().await;
        checkpoint = reading.checkpoint.clone();
        came.extend(reading.described());
    }
    let expected: Vec<String> = (0..40).map(|id| format!("create item {id}|a|1")).collect();
    assert_eq!(came, expected);
}

/// What is written while nobody reads is read afterwards.
pub async fn nothing_is_lost_while_closed(factory: &dyn Factory) {
    let database = factory.database().await;
    let mut session = with_tables(&*database, false).await;
    let mut reading = open(&*database, None).await;
    session.execute("insert into marker values (1)").await;
    reading.until(1).await;
    reading.confirm().await;
    let checkpoint = reading.checkpoint.clone();
    drop(reading);
    fill(&mut *session, 0..50).await;
    session.execute("insert into marker values (2)").await;
    let mut reading = open(&*database, checkpoint.as_ref()).await;
    reading.until(2).await;
    assert_eq!(reading.changes.len(), 50);
}

/// The process died between storing a checkpoint and telling the source.
pub async fn a_checkpoint_without_confirmation_is_enough(factory: &dyn Factory) {
    let database = factory.database().await;
    let mut session = with_tables(&*database, false).await;
    let mut reading = open(&*database, None).await;
    fill(&mut *session, 0..10).await;
    session.execute("insert into marker values (1)").await;
    reading.until(1).await;
    let checkpoint = reading.checkpoint.clone();
    drop(reading);
    fill(&mut *session, 10..20).await;
    session.execute("insert into marker values (2)").await;
    let mut reading = open(&*database, checkpoint.as_ref()).await;
    reading.until(2).await;
    let expected: Vec<String> = (10..20).map(|id| format!("create item {id}|a|1")).collect();
    let new = reading.new_changes(checkpoint.as_ref());
    assert_eq!(new.iter().map(describe).collect::<Vec<_>>(), expected);
}
