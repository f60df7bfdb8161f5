//! What the brokers' refusals say about topics.
//!
//! The limits of a topic may be unknown (whoever reads them needs the right to describe its settings)
//! or may have been lowered since. A record batch that is refused as too large says no more than
//! that: so the next line makes smaller batches, until a record that is refused stood alone in its
//! batch. That one, and any as large, is then rejected before it is produced.
//!
//! Whether a topic is compacted may be unknown for the same reason: a record without a key that is refused
//! as invalid says so.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rdkafka::Message;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::BorrowedMessage;

use super::record;

/// What was learned, by topic.
#[derive(Debug, Default)]
pub struct Learned(Mutex<HashMap<String, Limits>>);

#[derive(Debug, Default)]
struct Limits {
    /// The size of the smallest record that was refused.
    refused: Option<usize>,
    /// The most bytes of a record batch that is worth trying.
    batch: Option<u32>,
    /// Whether a record without a key was refused.
    keyed: bool,
}

/// Whether the brokers say that a record batch is too large.
fn too_large(error: &KafkaError) -> bool {
    matches!(error.rdkafka_error_code(), Some(Code::MessageSizeTooLarge | Code::MessageBatchTooLarge))
}

impl Learned {
    /// A record was not taken, by a producer whose record batches hold at most `batch` bytes: learns from
    /// that what there is to learn.
    pub fn undelivered(&self, error: &KafkaError, message: &BorrowedMessage<'_>, batch: u32) {
        if too_large(error) {
            self.refused(message.topic(), record::sent_size(message), batch);
        }
        if error.rdkafka_error_code() == Some(Code::InvalidRecord) && message.key().is_none() {
            self.refused_keyless(message.topic());
        }
    }

    /// A record of `size` bytes was refused as too large, by a producer whose record batches hold at
    /// most `batch` bytes unless it is a single one.
    pub fn refused(&self, topic: &str, size: usize, batch: u32) {
        let mut all = self.lock();
        let limits = all.entry(topic.to_owned()).or_default();
        if size > batch as usize || batch <= 1 {
            limits.refused = Some(limits.refused.map_or(size, |known| known.min(size)));
        } else {
            // Each record of the batch is reported: what is halved is what the producer had.
            limits.batch = Some(limits.batch.map_or(batch / 2, |known| known.min(batch / 2)));
        }
    }

    /// A record without a key was refused as invalid.
    pub fn refused_keyless(&self, topic: &str) {
        self.lock().entry(topic.to_owned()).or_default().keyed = true;
    }

    /// Whether records of a topic need a key, as far as is known.
    pub fn needs_key(&self, topic: &str) -> bool {
        self.lock().get(topic).is_some_and(|limits| limits.keyed)
    }

    /// The size from which on records of a topic are refused, as far as is known.
    pub fn limit(&self, topic: &str) -> Option<usize> {
        self.lock().get(topic)?.refused
    }

    /// The most bytes of a record batch that every topic may take.
    pub fn batch(&self) -> Option<u32> {
        self.lock().values().filter_map(|limits| limits.batch).min()
    }

    /// The topic's own limit is another one now.
    pub fn forget(&self, topic: &str) {
        self.lock().remove(topic);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Limits>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_shrink_until_a_refused_record_stood_alone() {
        let learned = Learned::default();
        let (mut batch, mut tries) = (1_000_000, 0);
        while learned.limit("t").is_none() {
            // Two records of one refused batch, until the large one stands alone.
            if batch > 5_300 {
                learned.refused("t", 300, batch);
            }
            learned.refused("t", 5_000, batch);
            batch = learned.batch().unwrap();
            tries += 1;
        }
        assert_eq!((learned.limit("t"), batch, tries), (Some(5_000), 3_906, 9));
        learned.refused("t", 4_000, batch);
        learned.refused("t", 6_000, batch);
        assert_eq!(learned.limit("t"), Some(4_000), "the smallest");
        learned.refused("t", 10, 1);
        assert_eq!(learned.limit("t"), Some(10), "no batch is smaller");
        assert_eq!(learned.limit("other"), None);
        learned.forget("t");
        assert_eq!((learned.limit("t"), learned.batch()), (None, None));
    }
}
