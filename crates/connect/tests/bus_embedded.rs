//! The embedded bus does what every bus must.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use headwater_connect::embedded::{EmbeddedBus, EmbeddedConfig};
use headwater_core::Result;
use headwater_core::ports::{Bus, Start};
use headwater_testkit::suites::bus::{Capabilities, Factory, tools};

struct InDirectory {
    dir: tempfile::TempDir,
}

impl InDirectory {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn config() -> EmbeddedConfig {
        EmbeddedConfig { lease: Duration::from_secs(2), ..EmbeddedConfig::default() }
    }
}

#[async_trait]
impl Factory for InDirectory {
    async fn open(&self) -> Result<Arc<dyn Bus>> {
        Ok(Arc::new(EmbeddedBus::open(self.dir.path(), Self::config()).await?))
    }

    async fn open_reader(&self) -> Result<Arc<dyn Bus>> {
        Ok(Arc::new(EmbeddedBus::open_reader(self.dir.path(), Self::config()).await?))
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            atomic_checkpoint: true,
            exact_places: true,
            gaps: false,
            max_payload: 40 << 20,
            rejected_payload: None,
        }
    }
}

headwater_testkit::bus_suite!(InDirectory::new());

/// Without being woken it would look once a second.
#[tokio::test]
async fn a_commit_wakes_the_reader_at_once() {
    let factory = InDirectory::new();
    let bus = factory.open().await.unwrap();
    let stream = tools::stream(&bus, 1).await;
    let mut reader = tools::Reader::open(&bus, &stream, None, Start::Beginning).await;
    let rounds = async {
        for n in 0..30 {
            tools::publish(&bus, tools::events(&stream, 0, n..n + 1), None).await;
            reader.take(1).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), rounds).await.unwrap();
}
