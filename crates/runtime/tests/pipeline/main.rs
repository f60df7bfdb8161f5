//! The runtime's own logic, on ports in memory: order, parking, holding, retry, stopping.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
mod config;
mod faults;
mod flow;
mod outbox;
mod parking;
mod release;
mod shaping;
