//! The ports: small traits that adapters implement. Called once a batch, so `dyn` costs nothing.

mod bus;
mod outbox;
mod parked;
mod source;
mod subscription;

pub use bus::{
    Accepted, Bus, BusStatus, Durable, GroupStatus, Opened, Published, Rejection, StreamStatus, Writer,
};
pub use outbox::{
    BlockedKey, Claim, ClaimLimit, Claimed, ClaimedRow, LANES, Lane, Lease, LeaseAsk, NewEvent, OutboxStore,
    OutboxWriter, Outcome, Settled,
};
pub use parked::{HoldsBack, Parked, ParkedCount, ParkedStore, ParkedUsage};
pub use source::{Check, Connector, Finding, Severity, Source, SourceState, SourceStatus, TableProgress};
pub use subscription::{Cursor, Delivery, SeekTo, Start, Subscribe, Subscription};
