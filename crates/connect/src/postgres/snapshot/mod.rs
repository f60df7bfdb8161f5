//! Reading whole tables, in step with the stream.
//!
//! The protocol is the same for the first start, for a table that is added later, for a restart in the
//! middle, and for a snapshot that an operator asks for:
//!
//! 1. The publications hold the tables already, so every change from now on is in the stream.
//! 2. A replication slot is made and its snapshot exported. Its consistent point is a place in the log:
//!    what committed before it is in the snapshot, what commits at or after it is not. On the first start
//!    this is the slot that the source will follow; later it is a temporary one, whose connection is
//!    kept open until all is read.
//! 3. The stream goes on up to the consistent point, and is then held: the server waits for us, and goes
//!    on hearing that we live. While a temporary slot is being made (it waits for transactions that are
//!    running), nothing is handed out that committed after that began, as the point is not known yet.
//! 4. The tables are read, by several connections in that one snapshot, and handed out as reads at
//!    (consistent point, 0, n) with n rising: after everything that committed before, and before
//!    everything that commits later. No key ever moves backwards.
//! 5. Tables that were read whole are named in the checkpoint; the others are read again, under a new
//!    snapshot, when the source is opened the next time. Their changes in between are handed out as they
//!    are, and the later reads say how it all ended. A table that was rewritten between the making of the
//!    snapshot and the reading (an old snapshot may not see what a rewrite leaves) gets a new one at once.
//!
//! The outbox is read like every other table: rows that are in it at the consistent point were never
//! published. (One that is not emptied by its owners is published from its beginning; of one that Headwater made,
//! rows say themselves whether they were.) It is read in one piece, in the order in which its rows were written, as
//! far as they tell.

mod export;
mod plan;
mod queue;
mod rows;
mod taking;
pub mod wanted;
mod workers;

pub use export::{Exported, Upcoming};
pub use plan::{OutboxRows, Published, describe};
pub use taking::Settings;
