//! The Kafka bus does what every bus must, on a real Apache Kafka.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod faults;
mod limits;
mod rights;
mod tools;
mod transactional;

use std::sync::Arc;

use async_trait::async_trait;
use headwater_connect::kafka::{KafkaBus, KafkaConfig};
use headwater_core::Result;
use headwater_core::ports::Bus;
use headwater_testkit::servers::Kafka;
use headwater_testkit::suites::bus::{Capabilities, Factory};

struct OnKafka {
    config: KafkaConfig,
}

impl OnKafka {
    async fn new() -> Self {
        let kafka = Kafka::shared().await.unwrap();
        Self { config: KafkaConfig::new([kafka.brokers()]) }
    }

    async fn transactional() -> Self {
        Self { config: transactional::config(&Kafka::shared().await.unwrap().brokers()) }
    }
}

#[async_trait]
impl Factory for OnKafka {
    async fn open(&self) -> Result<Arc<dyn Bus>> {
        Ok(Arc::new(KafkaBus::open(self.config.clone()).await?))
    }

    async fn open_reader(&self) -> Result<Arc<dyn Bus>> {
        self.open().await
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            atomic_checkpoint: self.config.transactions,
            exact_places: false,
            gaps: self.config.transactions,
            // The limit of a topic by default is 1 MiB.
            max_payload: 1_000_000,
            rejected_payload: Some(1_100_000),
        }
    }
}

headwater_testkit::bus_suite!(OnKafka::new().await);
