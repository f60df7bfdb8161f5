//! This machine's clock.

use std::time::{SystemTime, UNIX_EPOCH};

use headwater_core::Micros;

/// Microseconds since 1970.
pub fn now() -> Micros {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
