//! Where a partition ends, for who reads only what is committed.
//!
//! Behind the first record of a transaction that is still open nothing can be read, whoever committed it; and a
//! commit is told to whoever published a moment before its mark has reached every partition.

use std::time::{Duration, Instant};

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaResult;

use super::KafkaConfig;
use super::context::Listener;

/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(10);

/// Waits until all that is in a partition now can be read or never will be, and returns where that ends;
/// `None` when a transaction still stands open after `patience`. `stable` says how far can be read. Blocks.
pub fn end(
    config: &KafkaConfig,
    topic: &str,
    partition: i32,
    patience: Duration,
    stable: impl Fn() -> KafkaResult<(i64, i64)>,
) -> KafkaResult<Option<i64>> {
    let mut settings = config.consumer("headwater-ends");
    settings.set("isolation.level", "read_uncommitted");
    let all: BaseConsumer<Listener> = BaseConsumer::from_config_and_context(&settings, Listener::default())?;
    let (_, end) = all.fetch_watermarks(topic, partition, config.timeout)?;
    let deadline = Instant::now() + patience;
    loop {
        let (_, stable) = stable()?;
        if stable >= end {
            return Ok(Some(end));
        }
        if Instant::now() > deadline {
            return Ok(None);
        }
        std::thread::sleep(PAUSE);
    }
}
