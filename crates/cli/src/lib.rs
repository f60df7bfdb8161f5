//! The config of the `headwater` binary, as a library so that tests and the fuzzer reach it.

pub mod config;
