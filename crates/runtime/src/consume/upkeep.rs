//! Old inbox rows go.

use std::sync::Arc;
use std::time::Duration;

use headwater_core::ports::Inbox;

use super::Shared;

/// How often it is looked for inbox rows that are old.
const PAUSE: Duration = Duration::from_mins(1);

/// Cleans until it is over.
pub(super) async fn run<I: Inbox, H>(shared: Arc<Shared<I, H>>) {
    loop {
        let mut pause = PAUSE;
        match shared.inbox.clean(&shared.name, shared.settings.retention).await {
            Ok(0) => {}
            Ok(_) => pause = Duration::ZERO,
            Err(error) => tracing::warn!(consumer = %shared.name, %error, "old inbox rows stay for now"),
        }
        if !shared.wait(pause).await {
            return;
        }
    }
}
