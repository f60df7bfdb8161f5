//! From changes to events.

pub mod condition;
mod shaped;

pub use shaped::{EventOrigin, Shaped, Trouble};
