//! Conformance suites: what every adapter of a port must do, written once.

pub mod bus;
pub mod inbox;
pub mod outbox;
pub mod source;
