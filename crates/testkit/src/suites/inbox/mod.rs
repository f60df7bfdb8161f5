//! What every [`Inbox`], its [`Backlog`] and its [`Shelf`] must do.
//!
//! An adapter's test file implements [`Factory`] and calls `headwater_testkit::inbox_suite!(FACTORY)`, which
//! makes one `#[tokio::test]` of each function named there; FACTORY is an expression, evaluated in each
//! test, that may await.

mod setting_aside;
mod shelving;
mod taking;
pub mod tools;

use std::future::Future;

use headwater_core::ports::{Backlog, Inbox, Shelf};

pub use setting_aside::*;
pub use shelving::*;
pub use taking::*;

/// Opens the inbox under test, in a database with a table `effect (text)`. Every test uses names of its own,
/// so factories may share a database.
pub trait Factory: Send + Sync {
    /// The inbox.
    type Inbox: Backlog + Shelf + Clone;

    /// Opens it.
    fn inbox(&self) -> Self::Inbox;

    /// Writes a row into `effect`, as a handler does.
    fn effect(
        &self,
        transaction: &mut <Self::Inbox as Inbox>::Transaction,
        text: &str,
    ) -> impl Future<Output = ()> + Send;

    /// Says a statement in the transaction, as a handler may.
    fn say(
        &self,
        transaction: &mut <Self::Inbox as Inbox>::Transaction,
        sql: &'static str,
    ) -> impl Future<Output = ()> + Send;

    /// Makes what a consumer has handled so many days older.
    fn age(&self, consumer: &str, days: i64) -> impl Future<Output = ()> + Send;

    /// How many rows of `effect` have this text and are committed.
    fn effects(&self, text: &str) -> impl Future<Output = i64> + Send;

    /// Whether two transactions may be open at once.
    fn concurrent(&self) -> bool;
}

/// Makes a test of each function of the suite; of one that is `deferred`, whose transactions hold nothing until they
/// commit, of each that does not need it.
#[macro_export]
macro_rules! inbox_suite {
    ($factory:expr) => {
        $crate::inbox_suite!(deferred $factory);
        $crate::inbox_suite!(@each $factory;
            what_is_rolled_back_was_never_taken,
            a_dropped_transaction_is_rolled_back,
            what_a_handler_has_ended_does_not_commit,
            the_other_member_waits_and_then_knows,
            when_one_rolls_back_the_other_takes,
            who_waited_for_a_parking_sees_it,
            a_head_is_held_by_one,
        );
    };
    (deferred $factory:expr) => {
        $crate::inbox_suite!(@each $factory;
            // taking
            an_event_is_taken_once,
            a_thousand_are_taken_at_once,
            consumers_do_not_disturb_each_other,
            a_cursor_moves_with_the_effect_and_never_back,
            old_rows_are_cleaned_and_no_others,
            what_was_handled_does_not_grow_old_while_nothing_is,
            a_row_from_the_future_makes_no_other_old,
            // setting aside
            a_parked_event_blocks_its_key_and_nothing_else,
            an_event_without_a_key_blocks_nothing,
            what_is_set_aside_comes_back_as_it_was,
            a_key_of_any_length_is_set_aside,
            a_backlog_goes_in_order_once_it_is_let_go,
            what_waits_behind_nothing_is_due,
            what_is_to_be_tried_again_is_due_by_itself,
            what_waited_longest_is_due_first,
            a_retry_waits_and_a_parked_one_stays,
            what_was_said_of_a_head_meanwhile_stays,
            // the shelf
            the_shelf_lists_keys_and_shows_events,
            only_what_fits_is_let_go,
            dropping_the_first_lets_the_next_go,
            what_is_tried_again_is_dropped_only_by_its_name,
        );
    };
    (@each $factory:expr; $($test:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let factory = $factory;
                $crate::suites::inbox::$test(&factory).await;
            }
        )*
    };
}
