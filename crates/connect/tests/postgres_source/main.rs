//! The PostgreSQL source against real servers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod capture;
mod chinook;
mod crash;
mod identity;
mod large;
mod outbox;
mod owner;
mod place;
mod published;
mod renamed;
mod restart;
mod snapshot;
mod streaming;
mod types;

#[path = "../support/mod.rs"]
mod support;
