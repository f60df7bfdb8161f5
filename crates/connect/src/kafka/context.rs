//! What librdkafka's own threads tell us.

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel as Level;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;

/// Passes librdkafka's words on to tracing.
#[derive(Debug, Clone, Copy)]
pub struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, level: Level, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(target: "librdkafka", %error, "{reason}");
    }
}

impl ConsumerContext for Quiet {}

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
