//! How much is read at once.

use std::time::Duration;

use headwater_core::ports::{Claim, ClaimLimit, NewEvent, OutboxStore, Outcome};

use super::Factory;
use super::tools::*;

/// A limit for each lane, and word of the lanes that have more.
pub async fn a_claim_ends_at_its_rows<F: Factory>(factory: &F) {
    let events: Vec<NewEvent> = (0..10).map(|n| event("k", n)).collect();
    publish(factory, &events).await;
    let store = factory.store();
    let few = ClaimLimit { rows: 4, ..ALL };
    let mut above = 0;
    for expected in [&events[..4], &events[4..8], &events[8..]] {
        let claimed = within(store.claim(&claims(factory, above, false), few)).await.unwrap();
        assert_eq!(ids(&claimed.rows), ids_of(expected));
        assert_eq!(claimed.more.contains(&claimed.rows[0].lane), expected.len() == 4);
        above = claimed.rows.last().unwrap().sequence;
    }
    let claimed = within(store.claim(&claims(factory, above, false), few)).await.unwrap();
    assert!(claimed.rows.is_empty() && claimed.more.is_empty() && claimed.table.is_none());
}

/// What is read stays small however large the rows are (invariant 7).
pub async fn a_claim_ends_at_its_bytes<F: Factory>(factory: &F) {
    let large = |n: u64| NewEvent { payload: Some(format!("\"{}\"", "x".repeat(10_000))), ..event("k", n) };
    let events: Vec<NewEvent> = (0..20).map(large).collect();
    publish(factory, &events).await;
    let store = factory.store();
    let limit = ClaimLimit { rows: 1_000, bytes: 50_000 };
    // Time and again: what was not read must not be in the way of the next.
    for _ in 0..10 {
        let claimed = within(store.claim(&claims(factory, 0, false), limit)).await.unwrap();
        let got = claimed.rows.len();
        assert!((4..=6).contains(&got), "{got}");
        assert_eq!(ids(&claimed.rows), ids_of(&events[..got]));
        assert!(claimed.more.contains(&claimed.rows[0].lane));
    }
    let one = ClaimLimit { bytes: 1, ..limit };
    let claimed = within(store.claim(&claims(factory, 0, false), one)).await.unwrap();
    assert_eq!(claimed.rows.len(), 1, "one is always read, or nothing would ever go");
    let all = within(store.claim(&claims(factory, 0, false), ALL)).await.unwrap();
    assert_eq!((all.rows.len(), all.more.len()), (20, 0));
}

/// It is said as well where what is tried again is more than the limit: whoever believes that it has seen all that waits
/// forgets what is on the bus already.
pub async fn a_claim_of_what_is_tried_again_ends_at_its_limit<F: Factory>(factory: &F) {
    let events: Vec<NewEvent> = (0..10).map(|n| event("k", n)).collect();
    publish(factory, &events).await;
    lease(factory, "r").await;
    let rows = claim(factory).await;
    settle_all(factory, "r", &rows, retry(Duration::ZERO)).await;
    let store = factory.store();
    let bytes = rows.iter().take(4).map(|row| row.row.size()).sum();
    for limit in [ClaimLimit { rows: 4, ..ALL }, ClaimLimit { bytes, ..ALL }] {
        let claimed = within(store.claim(&claims(factory, 0, false), limit)).await.unwrap();
        assert_eq!(claimed.rows.iter().filter(|row| row.again).count(), 4, "{limit:?}");
        assert!(claimed.more.contains(&rows[0].lane), "{limit:?}");
    }
    let all = within(store.claim(&claims(factory, 0, false), ALL)).await.unwrap();
    assert_eq!((all.rows.len(), all.more.len()), (10, 0));
}

/// What is on its way is not read again, takes no room, and hides no other row of its lane.
pub async fn what_is_known_hides_no_other_row<F: Factory>(factory: &F) {
    let events: Vec<NewEvent> = (0..10).map(|n| event("k", n)).collect();
    publish(factory, &events).await;
    let rows = claim(factory).await;
    let known: Vec<i64> = [0, 1, 2, 4, 5].map(|at: usize| rows[at].sequence).into();
    let left = [3, 6, 7, 8, 9].map(|at: usize| events[at].clone());
    let knowing = |above: i64| -> Vec<Claim> {
        let knows = |claim| Claim { known: known.clone(), ..claim };
        claims(factory, above, false).into_iter().map(knows).collect()
    };
    let store = factory.store();
    let few = ClaimLimit { rows: 3, ..ALL };
    let claimed = within(store.claim(&knowing(0), few)).await.unwrap();
    assert_eq!(ids(&claimed.rows), ids_of(&left[..3]));
    assert!(claimed.more.contains(&rows[0].lane), "it ends at its limit");
    let above = claimed.rows[2].sequence;
    let claimed = within(store.claim(&knowing(above), few)).await.unwrap();
    assert_eq!((ids(&claimed.rows), claimed.more.len()), (ids_of(&left[3..]), 0));
    let all = within(store.claim(&knowing(0), ALL)).await.unwrap();
    assert_eq!((ids(&all.rows), all.more.len()), (ids_of(&left), 0));
}

/// What is claimed twice is the relay's to know; what is settled is claimed no more.
pub async fn a_claim_takes_nothing_away<F: Factory>(factory: &F) {
    let events: Vec<NewEvent> = (0..30).map(|n| event(&format!("k{n}"), n)).collect();
    publish(factory, &events).await;
    lease(factory, "r").await;
    let rows = claim(factory).await;
    assert_eq!(ids(&rows), ids_of(&events));
    assert_eq!(ids(&claim(factory).await), ids_of(&events));
    settle_all(factory, "r", &rows, Outcome::Published).await;
    assert!(claim(factory).await.is_empty());
    assert_eq!(factory.states().await, ["published"; 30]);
}
