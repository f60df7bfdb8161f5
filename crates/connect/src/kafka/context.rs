//! What librdkafka's own threads tell us.

use std::sync::{Arc, Mutex, PoisonError};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel as Level;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

/// Passes librdkafka's words on to tracing, and keeps why it last failed to connect: what it answers
/// to a question is only that it has no connection.
#[derive(Debug, Clone, Default)]
pub struct Listener(Arc<Mutex<Option<String>>>);

impl Listener {
    /// Why the last connection failed.
    pub fn failure(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Connections work again.
    pub fn forget(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl ClientContext for Listener {
    fn log(&self, level: Level, facility: &str, message: &str) {
        if facility == "FAIL" {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(message.to_owned());
        }
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // Whoever asked for the end of a partition is told by what it polls.
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::PartitionEOF) {
            return;
        }
        tracing::warn!(target: "librdkafka", %error, "{reason}");
    }
}

impl ConsumerContext for Listener {}

/// What librdkafka calls an error is one for a person only when Headwater says so too.
pub fn log(level: Level, facility: &str, message: &str) {
    match level {
        Level::Emerg | Level::Alert | Level::Critical | Level::Error | Level::Warning => {
            tracing::warn!(target: "librdkafka", "{facility}: {message}");
        }
        Level::Notice | Level::Info => tracing::info!(target: "librdkafka", "{facility}: {message}"),
        Level::Debug => tracing::debug!(target: "librdkafka", "{facility}: {message}"),
    }
}
