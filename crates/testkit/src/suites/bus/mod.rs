//! What every [`Bus`] must do.
//!
//! An adapter's test file implements [`Factory`] and calls `headwater_testkit::bus_suite!(FACTORY)`, which
//! makes one `#[tokio::test]` of each function named there; FACTORY is an expression, evaluated in each
//! test, that may await.

mod groups;
mod publishing;
mod reading;
pub mod tools;

use std::sync::Arc;

use async_trait::async_trait;
use headwater_core::ports::Bus;
use headwater_core::{Event, Position, Result};

pub use groups::*;
pub use publishing::*;
pub use reading::*;

/// Opens the bus under test. Every test uses stream, group and source names of its own, so factories
/// may share a server.
#[async_trait]
pub trait Factory: Send + Sync {
    /// Opens the bus for publishing and reading. Called again after the last one was dropped, it must
    /// find what that one held.
    async fn open(&self) -> Result<Arc<dyn Bus>>;

    /// Opens the bus a second time beside the first, as another process would, for reading.
    async fn open_reader(&self) -> Result<Arc<dyn Bus>>;

    /// What this kind of bus promises beyond the port.
    fn capabilities(&self) -> Capabilities;
}

/// What differs between kinds of bus.
#[derive(Debug, Clone, Copy)]
pub struct Capabilities {
    /// Events and their checkpoint become visible in one step.
    pub atomic_checkpoint: bool,
    /// Positions come back, and times to the microsecond; otherwise positions are zero, and times have
    /// whole milliseconds.
    pub exact_places: bool,
    /// Offsets have gaps, so that what is counted by them is at least what is there.
    pub gaps: bool,
    /// The largest payload to try, in bytes.
    pub max_payload: usize,
    /// A payload of this many bytes is rejected; `None` where the limit is too far to try.
    pub rejected_payload: Option<usize>,
}

impl Capabilities {
    /// An event as it comes back.
    fn carried(self, event: &Event) -> Event {
        if self.exact_places {
            return event.clone();
        }
        Event { time: event.time.div_euclid(1000) * 1000, position: Position::ZERO, ..event.clone() }
    }
}

/// Makes a test of each function of the suite.
#[macro_export]
macro_rules! bus_suite {
    ($factory:expr) => {
        $crate::bus_suite!(@each $factory;
            // publishing
            what_is_durable_is_there,
            order_holds_within_a_partition_and_across_batches,
            events_round_trip_exactly,
            events_without_a_partition_arrive,
            big_payloads_pass,
            many_batches_in_flight_keep_their_order,
            nobody_need_wait_for_durable,
            checkpoints_come_with_their_events,
            the_checkpoint_never_leads,
            an_empty_batch_moves_the_checkpoint,
            a_checkpoint_waits_for_what_is_on_its_way,
            an_earlier_writer_is_fenced,
            a_rejected_batch_leaves_nothing,
            ensuring_twice_is_one_stream,
            another_partition_count_is_a_contract_error,
            everything_survives_reopening,
            // reading
            starts_where_it_was_asked_to,
            seeks,
            seeking_drops_what_was_read_ahead,
            a_waiting_reader_gets_what_comes,
            a_reader_beside_the_publisher_follows,
            several_streams_in_one_subscription,
            cancelled_reads_lose_nothing,
            an_unknown_stream_is_an_error,
            status_says_what_there_is,
            // groups
            a_group_goes_on_from_its_cursor,
            groups_do_not_disturb_each_other,
            two_members_share,
            a_stale_epoch_cannot_commit,
            whoever_takes_over_goes_on_from_the_cursor,
            a_cursor_survives_reopening,
            a_group_at_the_end_misses_nothing_after_it,
        );
    };
    (@each $factory:expr; $($test:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let factory = $factory;
                $crate::suites::bus::$test(&factory).await;
            }
        )*
    };
}
