//! Old inbox rows go.

use std::sync::Arc;
use std::time::Duration;

use headwater_core::ports::Inbox;

use super::Shared;

/// How often it is looked for inbox rows that are old.
const PAUSE: Duration = Duration::from_mins(1);

/// The longest that rows are kept: every database knows the time that was so long ago.
const LONGEST: Duration = Duration::from_hours(1_000 * 366 * 24);

/// Cleans until it is over. Not at once: what a consumer that stood still for long has left above its cursor is read
/// first.
pub(super) async fn run<I: Inbox, H>(shared: Arc<Shared<I, H>>) {
    let retention = shared.settings.retention.min(LONGEST);
    let mut pause = PAUSE;
    while shared.wait(pause).await {
        pause = PAUSE;
        match shared.inbox.clean(&shared.name, retention).await {
            Ok(0) => {}
            Ok(_) => pause = Duration::ZERO,
            Err(error) => tracing::warn!(consumer = %shared.name, %error, "old inbox rows stay for now"),
        }
    }
}
