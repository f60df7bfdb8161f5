//! For tests only: real servers, started and broken; conformance suites for the ports; checkers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test's tool: a panic is its report

pub mod binary;
pub mod checker;
pub mod data;
pub mod disk;
pub mod faults;
pub mod kills;
pub mod load;
pub mod memory;
pub mod null_bus;
pub mod servers;
pub mod suites;
