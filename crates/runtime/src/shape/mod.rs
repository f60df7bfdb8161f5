//! From changes to events.

pub mod condition;
