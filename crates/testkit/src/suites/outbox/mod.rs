//! What every [`OutboxWriter`], its [`OutboxStore`] and its [`Shelf`] must do.
//!
//! An adapter's test file implements [`Factory`] and calls `headwater_testkit::outbox_suite!(FACTORY)`, which
//! makes one `#[tokio::test]` of each function named there; FACTORY is an expression, evaluated in each
//! test, that may await.

mod claiming;
mod keeping;
mod leasing;
mod prototype;
mod removing;
mod shelving;
mod tools;
mod troubled;
mod writing;

use std::future::Future;

use headwater_core::ports::{LANES, Lane, NewEvent, OutboxStore, OutboxWriter, Shelf};

pub use claiming::*;
pub use keeping::*;
pub use leasing::*;
pub use prototype::*;
pub use removing::*;
pub use shelving::*;
pub use tools::Tx;
pub use troubled::*;
pub use writing::*;

/// An empty outbox, of one test alone, in a database with a table `effect (text)`.
pub trait Factory: Send + Sync {
    /// What services write with.
    type Writer: OutboxWriter;
    /// What relays have.
    type Store: OutboxStore + 'static;

    /// A writer.
    fn writer(&self) -> Self::Writer;

    /// A store with connections of its own.
    fn store(&self) -> Self::Store;

    /// The shelf of a source of this name.
    fn shelf(&self, owner: &str) -> Box<dyn Shelf>;

    /// How many lanes the outbox has.
    fn lanes(&self) -> Lane {
        LANES
    }

    /// Whether two transactions may write at once.
    fn concurrent(&self) -> bool {
        true
    }

    /// Begins a transaction of a service.
    fn begin(&self) -> impl Future<Output = Tx<Self>> + Send;

    /// Commits it.
    fn commit(&self, transaction: Tx<Self>) -> impl Future<Output = ()> + Send;

    /// Rolls it back.
    fn rollback(&self, transaction: Tx<Self>) -> impl Future<Output = ()> + Send;

    /// Writes an event by the documented INSERT: its stream, type, key and payload, and no lock.
    fn insert_plainly(&self, transaction: &mut Tx<Self>, event: &NewEvent)
    -> impl Future<Output = ()> + Send;

    /// How many rows of a key the transaction sees.
    fn seen(&self, transaction: &mut Tx<Self>, key: &str) -> impl Future<Output = i64> + Send;

    /// Writes a row into `effect`, as a service does.
    fn effect(&self, transaction: &mut Tx<Self>, text: &str) -> impl Future<Output = ()> + Send;

    /// How many rows of `effect` have this text and are committed.
    fn effects(&self, text: &str) -> impl Future<Output = i64> + Send;

    /// The states of all rows, in the order of their sequence.
    fn states(&self) -> impl Future<Output = Vec<String>> + Send;

    /// What a relay was given ends now, as does its membership: it was not heard of for its ttl.
    fn expire(&self, relay: &str) -> impl Future<Output = ()> + Send;

    /// Adds so many published rows, settled now, and lets the database look at what it holds.
    fn add_done(&self, many: u64) -> impl Future<Output = ()> + Send;

    /// Adds `keys` parked rows of the stream `orders`, of the keys `NAME0`, `NAME1` and so on, and so many that wait
    /// behind them in turn, and lets the database look at what it holds.
    fn add_waiting(&self, name: &str, keys: u64, many: u64) -> impl Future<Output = ()> + Send;

    /// How many rows of the outbox were read so far, in any way; every store is gone. A database that does
    /// not count shows by the plans of a store's statements that none walks the table, and answers 0.
    fn rows_read(&self) -> impl Future<Output = u64> + Send;
}

/// Makes a test of each function of the suite.
#[macro_export]
macro_rules! outbox_suite {
    ($factory:expr) => {
        $crate::outbox_suite!(@each $factory;
            // writing
            an_event_is_there_when_its_transaction_has_committed_and_not_before,
            a_row_is_claimed_as_it_was_written,
            within_a_key_the_sequence_follows_commits_with_16_writers,
            many_events_of_crossing_keys_do_not_deadlock,
            a_row_that_commits_late_is_claimed_before_later_rows_of_its_key,
            what_was_drawn_early_and_without_the_lock_is_not_lost,
            // claiming
            a_claim_ends_at_its_rows,
            a_claim_ends_at_its_bytes,
            a_claim_of_what_is_tried_again_ends_at_its_limit,
            what_is_known_hides_no_other_row,
            a_claim_takes_nothing_away,
            // troubled
            a_retrying_row_holds_back_its_key_and_nothing_else,
            what_waits_goes_in_order_once_the_head_is_gone,
            a_row_is_tried_again_when_its_time_has_come,
            a_row_without_a_key_holds_back_nothing,
            a_long_key_is_held_back_as_any_other,
            what_waits_is_never_walked,
            much_that_is_let_go_holds_up_no_other_lane,
            what_is_settled_stays_settled,
            // leasing
            lanes_are_shared_among_relays,
            a_look_takes_what_is_free_and_prolongs_nothing,
            a_zombie_settles_nothing,
            of_two_epochs_the_newer_counts,
            who_leaves_gives_all_back_at_once,
            who_is_leaving_keeps_what_it_does_not_give_back,
            who_is_late_has_its_lanes_under_a_new_epoch,
            an_epoch_rises_whenever_a_lane_passes_on,
            // keeping
            what_is_done_goes_after_its_retention_in_small_batches,
            no_statement_walks_what_is_done,
            // the shelf
            the_outbox_shelf_lists_keys_and_shows_events,
            a_retry_by_hand_goes_first_and_begins_anew,
            dropping_a_row_lets_the_next_of_its_key_go,
            what_is_tried_again_is_dropped_only_by_its_name,
            // what a prototype did not do
            two_relays_that_recover_at_once_never_share_a_lane,
            a_dead_relays_work_is_recovered_while_the_others_run,
            recovery_reads_what_is_left_and_not_the_table,
            an_event_is_part_of_the_business_transaction,
        );
    };
    (@each $factory:expr; $($test:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let factory = $factory;
                $crate::suites::outbox::$test(&factory).await;
            }
        )*
    };
}
