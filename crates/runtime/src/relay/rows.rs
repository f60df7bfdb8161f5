//! What becomes of the rows of a batch, in their order.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use headwater_core::ports::{BlockedKey, ClaimedRow, Outcome};
use headwater_core::{Batch, Change, EventId, Op, Origin, Position, Table, Transaction};

/// The first wait before a row is tried again; each further one doubles it.
const FIRST: Duration = Duration::from_secs(1);

/// Keys whose first row has yet to go.
pub type Blocked = HashSet<BlockedKey>;

/// Why a row cannot go now.
#[derive(Debug, Clone)]
pub struct Trouble {
    /// Why.
    pub reason: String,
    /// Whether it is the row's own fault: then it is parked some day. Otherwise it is tried for ever.
    pub own: bool,
}

/// How often rows are tried, and after which waits.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// How often before a row is parked.
    pub attempts: u32,
    /// The longest wait.
    pub longest: Duration,
}

/// What the rows are as changes, for the shaper: one each, in order.
pub fn batch(rows: &[ClaimedRow], table: &Arc<Table>, origin: &Arc<Origin>, epoch: u64) -> Batch {
    let change = |row: &ClaimedRow| {
        let transaction = Transaction {
            origin: Arc::clone(origin),
            id: row.sequence.to_string(),
            committed_at: row.created_at,
            log_position: row.sequence.to_string(),
        };
        Change {
            op: Op::Create,
            table: Arc::clone(table),
            before: None,
            after: Some(row.row.clone()),
            position: Position::of(epoch, [row.sequence.unsigned_abs()]),
            transaction: Arc::new(transaction),
        }
    };
    Batch { changes: rows.iter().map(change).collect(), checkpoint: None }
}

/// Goes through rows in order: what is on the bus already is published, what is blocked waits, what is in trouble is tried
/// again or parked, and blocks its key. `None` for what may go. Also returns the keys that are newly blocked.
pub fn outcomes(
    rows: &[ClaimedRow],
    troubles: &[Option<Trouble>],
    already: &HashSet<EventId>,
    blocked: &Blocked,
    patience: Patience,
) -> (Vec<Option<Outcome>>, Blocked) {
    let mut more = Blocked::new();
    let outcome = |(row, trouble): (&ClaimedRow, &Option<Trouble>)| {
        if already.contains(&row.id) {
            return Some(Outcome::Published);
        }
        let key = row.key.as_ref().map(|key| (row.stream.clone(), key.clone()));
        let waits = |key: &BlockedKey| more.contains(key) || !row.again && blocked.contains(key);
        if key.as_ref().is_some_and(waits) {
            return Some(Outcome::Waiting);
        }
        let outcome = failed(row, trouble.as_ref()?, patience);
        more.extend(key);
        Some(outcome)
    };
    let outcomes = rows.iter().zip(troubles).map(outcome).collect();
    (outcomes, more)
}

fn failed(row: &ClaimedRow, trouble: &Trouble, patience: Patience) -> Outcome {
    let (attempts, error) = (row.attempts.saturating_add(1), trouble.reason.clone());
    if trouble.own && attempts >= patience.attempts {
        return Outcome::Parked { attempts, error };
    }
    let after = FIRST.saturating_mul(1 << row.attempts.min(20)).min(patience.longest);
    Outcome::Retry { attempts, after, error }
}

#[cfg(test)]
mod tests {
    use headwater_core::RowBuilder;

    use super::*;

    const PATIENCE: Patience = Patience { attempts: 3, longest: Duration::from_secs(3) };

    fn row(sequence: i64, key: Option<&str>, attempts: u32) -> ClaimedRow {
        ClaimedRow {
            lane: 0,
            sequence,
            id: EventId::from_bytes([sequence as u8; 16]),
            attempts,
            again: attempts > 0,
            stream: "orders".into(),
            key: key.map(str::to_owned),
            created_at: 0,
            row: RowBuilder::default().build(),
        }
    }

    fn trouble(own: bool) -> Option<Trouble> {
        Some(Trouble { reason: "no".into(), own })
    }

    fn key(key: &str) -> BlockedKey {
        ("orders".into(), key.into())
    }

    #[test]
    fn a_row_in_trouble_holds_back_the_later_ones_of_its_key_and_nothing_else() {
        let rows = [row(1, Some("a"), 0), row(2, Some("a"), 0), row(3, Some("b"), 0), row(4, Some("a"), 0)];
        let troubles = [None, trouble(true), None, None];
        let (outcomes, more) = outcomes(&rows, &troubles, &HashSet::new(), &Blocked::new(), PATIENCE);
        let retry = Outcome::Retry { attempts: 1, after: FIRST, error: "no".into() };
        assert_eq!(outcomes, [None, Some(retry), None, Some(Outcome::Waiting)]);
        assert_eq!(more, Blocked::from([key("a")]));
    }

    #[test]
    fn only_the_first_of_a_blocked_key_is_tried_again() {
        let rows = [row(1, Some("a"), 2), row(2, Some("a"), 0)];
        let blocked = Blocked::from([key("a")]);
        let (well, more) = outcomes(&rows, &[None, None], &HashSet::new(), &blocked, PATIENCE);
        assert_eq!(well, [None, Some(Outcome::Waiting)]);
        assert!(more.is_empty());
        let (third, _) = outcomes(&rows, &[trouble(true), None], &HashSet::new(), &blocked, PATIENCE);
        let parked = Outcome::Parked { attempts: 3, error: "no".into() };
        assert_eq!(third, [Some(parked), Some(Outcome::Waiting)]);
        let (others, _) = outcomes(&rows, &[trouble(false), None], &HashSet::new(), &blocked, PATIENCE);
        let retry = Outcome::Retry { attempts: 3, after: PATIENCE.longest, error: "no".into() };
        assert_eq!(others[0], Some(retry), "what is not the row's fault is tried for ever");
    }

    #[test]
    fn what_is_on_the_bus_already_is_published_whatever_stands_in_the_way_now() {
        let rows = [row(1, Some("a"), 0), row(2, Some("a"), 0), row(3, Some("b"), 0), row(4, Some("b"), 0)];
        let already = HashSet::from([rows[0].id, rows[2].id]);
        let troubles = [trouble(false), None, None, None];
        let (outcomes, more) = outcomes(&rows, &troubles, &already, &Blocked::from([key("b")]), PATIENCE);
        assert_eq!(
            outcomes,
            [Some(Outcome::Published), None, Some(Outcome::Published), Some(Outcome::Waiting)]
        );
        assert!(more.is_empty());
    }

    #[test]
    fn without_a_key_nothing_waits() {
        let rows = [row(1, None, 0), row(2, None, 0)];
        let (outcomes, more) =
            outcomes(&rows, &[trouble(true), None], &HashSet::new(), &Blocked::new(), PATIENCE);
        assert!(matches!(outcomes[..], [Some(Outcome::Retry { .. }), None]));
        assert!(more.is_empty());
    }
}
