//! A consumer makes each event's effect once and in order, whatever fails (invariants 2, 5, 6).

#![allow(clippy::unwrap_used, missing_docs)]

mod broken;
mod common;
mod crowd;
mod flow;
mod kills;
mod mysql;
mod parking;
mod pooler;
mod trouble;
