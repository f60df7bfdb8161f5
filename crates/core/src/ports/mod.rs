//! The ports: small traits that adapters implement. Called once a batch, so `dyn` costs nothing.

mod bus;
mod inbox;
mod outbox;
mod parked;
mod shelf;
mod source;
mod subscription;

pub use bus::{
    Accepted, Bus, BusStatus, Durable, GroupStatus, Opened, Published, Rejection, StreamStatus, Writer,
};
pub use inbox::{Arrival, Aside, Backlog, Due, Fate, Held, Inbox, Mark, Settlement, Taken, Trouble};
pub use outbox::{
    BlockedKey, Claim, ClaimLimit, Claimed, ClaimedRow, LANES, Lane, Lease, LeaseAsk, NewEvent, OutboxStore,
    OutboxWriter, Outcome, Settled,
};
pub use parked::{HoldsBack, Parked, ParkedCount, ParkedStore, ParkedUsage};
pub use shelf::{Shelf, ShelfCount, ShelfFilter, ShelfState, Shelved, ShelvedEvent};
pub use source::{Check, Connector, Finding, Severity, Source, SourceState, SourceStatus, TableProgress};
pub use subscription::{Cursor, Delivery, SeekTo, Start, Subscribe, Subscription};
