//! The client that asks questions and makes topics; it publishes and reads nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use headwater_core::{Error, Kind, Result};
use rdkafka::admin::AdminClient;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::BaseConsumer;

use super::context::Listener;
use super::{KafkaConfig, errors};

/// What asks; its questions block.
pub type Asker = Arc<BaseConsumer<Listener>>;

/// A connection to the cluster beside those that publish and read.
pub struct Client {
    /// Makes and describes topics.
    pub admin: Arc<AdminClient<Listener>>,
    /// Asks about topics, offsets and groups.
    pub asker: Asker,
    stop: Arc<AtomicBool>,
}

impl Client {
    /// Makes threads: not for async code.
    pub fn start(config: &KafkaConfig) -> Result<Self> {
        let doing = |error| errors::error(error, "making a Kafka client");
        let settings = config.client();
        let asker = BaseConsumer::from_config_and_context(&settings, Listener::default()).map_err(doing)?;
        // Nobody takes the words of this one from its queue: it says none. The other says the same.
        let mut silent = settings;
        silent.set_log_level(RDKafkaLogLevel::Emerg);
        // Its questions go to the controller, which in KRaft is whichever broker the cluster named last.
        // That one may be gone: so it asks often who it is.
        silent.set("topic.metadata.refresh.interval.ms", "10000");
        let admin = AdminClient::from_config_and_context(&silent, Listener::default()).map_err(doing)?;
        let (admin, asker, stop) = (Arc::new(admin), Arc::new(asker), Arc::new(AtomicBool::new(false)));
        let held = (Arc::clone(&admin), Arc::clone(&asker), Arc::clone(&stop));
        let listen = move || {
            let (admin, asker, stop) = held;
            while !stop.load(Ordering::Acquire) {
                // It has no messages; polling passes on what librdkafka says.
                drop(asker.poll(Duration::from_millis(200)));
            }
            // The last handles close connections, which takes a moment: here, where nobody waits.
            while Arc::strong_count(&asker) > 1 || Arc::strong_count(&admin) > 1 {
                drop(asker.poll(Duration::from_millis(10)));
            }
        };
        let thread = std::thread::Builder::new().name("kafka-client".into()).spawn(listen);
        thread.map_err(|error| Error::new(Kind::Internal, "starting a Kafka client").because(error))?;
        Ok(Self { admin, asker, stop })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}
