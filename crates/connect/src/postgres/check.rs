//! `headwater check`: what the server is missing, what is odd about it, and how to mend it. Changes nothing.

use headwater_core::Error;
use headwater_core::ports::Finding;

use super::config::{Names, PostgresConfig};
use super::setup::connect;

/// All that can be said of the source; the first thing that makes the rest unknowable ends it.
pub(super) async fn check(_names: &Names, config: &PostgresConfig) -> Vec<Finding> {
    match connect(&config.url).await {
        Ok(_) => Vec::new(),
        Err(error) => vec![finding(&error)],
    }
}

fn finding(error: &Error) -> Finding {
    let hint = error.hint_text().unwrap_or_default();
    let text = error.to_string();
    let message = text.strip_suffix(&format!("\n  hint: {hint}")).unwrap_or(&text);
    Finding::error(message, hint)
}
