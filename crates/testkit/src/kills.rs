//! The soak: a load on PostgreSQL or SQLite, a consumer that checks every delivery, and things that go wrong.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use headwater_core::ports::{Delivery, Subscription};
use headwater_core::{Record, Result};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

use crate::binary::Headwater;
use crate::checker::{Checker, History, Seen, Step};
use crate::load::{self, Load};

/// How long anything may take to come back before the soak fails.
const PATIENCE: Duration = Duration::from_secs(90);

/// Once nothing is published any more, nothing comes for this long when all was read.
const QUIET: Duration = Duration::from_secs(1);

/// How often things go wrong: `HEADWATER_SOAK_TIMES`, 10 unless given.
pub fn times() -> usize {
    std::env::var("HEADWATER_SOAK_TIMES").ok().and_then(|times| times.parse().ok()).unwrap_or(10)
}

/// What a run is repeated by: `HEADWATER_SOAK_SEED`, drawn and printed unless given.
pub fn seed() -> u64 {
    let seed = std::env::var("HEADWATER_SOAK_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| rand::rng().random());
    eprintln!("HEADWATER_SOAK_SEED={seed}");
    seed
}

/// Opens a subscription to the streams, from their beginning and without a group.
pub type Subscribing = Box<dyn Fn() -> BoxFuture<'static, Result<Box<dyn Subscription>>> + Send + Sync>;

/// A soak that runs: `headwater` between a database under load and a checking consumer.
pub struct Soak {
    program: PathBuf,
    config: PathBuf,
    listen: String,
    database: String,
    headwater: Option<Headwater>,
    checker: Arc<Mutex<Checker>>,
    consumer: tokio::task::JoinHandle<()>,
    /// What was there before the load.
    found: History,
    load: Option<Load>,
    /// Chooses when things go wrong; repeatable by its seed.
    pub random: StdRng,
}

impl Soak {
    /// Starts `program run config` (which captures the load's tables of `database` into `accounts`,
    /// `ledgers` and `notes`, their format `headwater`, and serves HTTP on `listen`), the consumer, and the
    /// load; where rows are there already, once their snapshot has begun. `database` is reached directly,
    /// whatever goes wrong between it and Headwater.
    pub async fn start(
        program: &Path,
        config: &Path,
        listen: &str,
        database: &str,
        seed: u64,
        subscribe: Subscribing,
    ) -> Self {
        let found = load::history(database).await.expect("the load's tables are there");
        let mut headwater = run(program, config);
        if found.is_empty() {
            headwater.ready(listen, PATIENCE).await.expect("headwater starts");
        }
        let checker = Arc::new(Mutex::new(Checker::default()));
        let consumer = tokio::spawn(consume(subscribe, checker.clone()));
        let mut soak = Self {
            program: program.to_owned(),
            config: config.to_owned(),
            listen: listen.to_owned(),
            database: database.to_owned(),
            headwater: Some(headwater),
            checker,
            consumer,
            found,
            load: None,
            random: StdRng::seed_from_u64(seed),
        };
        if !soak.found.is_empty() {
            soak.until("the snapshot begins", |soak| soak.checker().reads() > 0).await;
        }
        soak.load = Some(Load::start(database, 4, seed));
        soak
    }

    /// Kills `headwater` with -9 and starts it again.
    pub async fn kill(&mut self) {
        if let Some(headwater) = self.headwater.take() {
            headwater.kill().await;
        }
        self.headwater = Some(run(&self.program, &self.config));
    }

    /// Lets the snapshot of the rows that were found go on to a random place in its first quarter.
    pub async fn read_on(&mut self) {
        let rows = self.random.random_range(0..self.found.len() / 4);
        self.until("rows are read", |soak| soak.checker().reads() >= rows).await;
    }

    /// Lets a random number of transactions commit; with `arrive`, events must arrive meanwhile.
    pub async fn go_on(&mut self, arrive: bool) {
        let transactions = self.random.random_range(20..200);
        let (committed, arrived) = (self.committed() + transactions, self.checker().distinct());
        self.until("the load goes on", |soak| soak.committed() >= committed).await;
        if arrive {
            self.until("events arrive", |soak| soak.checker().distinct() > arrived).await;
        }
    }

    /// Stops the load, waits until all that was committed has arrived, and compares.
    pub async fn finish(mut self) -> std::result::Result<String, String> {
        if let Some(load) = self.load.take() {
            load.stop().await;
        }
        let history = load::history(&self.database).await?;
        let total = history.values().map(Vec::len).sum::<usize>() - self.found.len();
        let deadline = Instant::now() + PATIENCE;
        while !self.checker().has_all(&history) && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let mut headwater = self.headwater.take().ok_or("headwater does not run")?;
        headwater.ready(&self.listen, PATIENCE).await?;
        let log = headwater.log_tail();
        headwater.stop(PATIENCE).await?;
        self.read_to_the_end().await;
        let (verdict, [arrived, repeated, reads]) = {
            let checker = self.checker();
            (checker.compare(&history), [checker.distinct(), checker.repeated(), checker.reads()])
        };
        verdict.map_err(|text| format!("{text}\nheadwater said:\n{log}"))?;
        if !self.found.is_empty() && reads <= self.found.len() {
            return Err("no kill cut off the snapshot: it needs more rows".to_owned());
        }
        self.consumer.abort();
        let found = self.found.len();
        Ok(format!(
            "{found} rows found, {reads} read; {total} changes committed, {arrived} arrived, {repeated} repeats, lost 0"
        ))
    }

    /// What arrives after the last change that was waited for counts too.
    async fn read_to_the_end(&self) {
        let mut before = None;
        loop {
            let seen = self.checker().seen();
            if before.replace(seen) == Some(seen) {
                return;
            }
            tokio::time::sleep(QUIET).await;
        }
    }

    fn committed(&self) -> u64 {
        self.load.as_ref().map_or(0, Load::committed)
    }

    fn checker(&self) -> MutexGuard<'_, Checker> {
        self.checker.lock().expect("the consumer did not panic")
    }

    async fn until(&mut self, what: &str, mut reached: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !reached(self) {
            let log = || self.headwater.as_ref().map(Headwater::log_tail).unwrap_or_default();
            assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}\n{}", log());
            assert!(!self.consumer.is_finished(), "the consumer ended");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn run(program: &Path, config: &Path) -> Headwater {
    let name = config.to_str().expect("a UTF-8 path");
    Headwater::start(program, &["run", name], &config.with_extension("log"))
}

/// Reads from the beginning; after an error, with a new subscription from the beginning: the checker
/// knows what it saw.
async fn consume(subscribe: Subscribing, checker: Arc<Mutex<Checker>>) {
    loop {
        if let Ok(mut subscription) = subscribe().await {
            while let Ok(delivery) = subscription.next().await {
                if let Delivery::Batch { records, .. } = delivery {
                    let mut checker = checker.lock().expect("not poisoned");
                    records.iter().for_each(|record| see(&mut checker, record));
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Shows the checker an event in the `headwater` format.
pub fn see(checker: &mut Checker, record: &Record) {
    let event = &record.event;
    let payload = event.payload.as_deref().expect("the headwater format has a payload");
    let said: Value = serde_json::from_slice(payload).expect("the payload is JSON");
    let id = event.id.to_string();
    assert_eq!(said["id"].as_str(), Some(id.as_str()), "one id, inside and outside");
    let partition = event.partition.expect("a delivered event has a partition");
    let seen = Seen { id: &id, stream: &event.stream, partition };
    let number = |value: &Value| value.as_i64().or_else(|| value.as_str()?.parse().ok());
    match said["op"].as_str() {
        Some("truncate") => checker.truncate(seen),
        Some(op) => {
            let key = number(&said["key"]["id"]).expect("the key is a number");
            checker.see(seen, key, Step { op: op.to_owned(), version: said["after"]["version"].as_i64() });
        }
        // Of an outbox.
        None => {
            let key = number(&said["key"]).expect("the key is a number");
            let version = said["payload"]["version"].as_i64();
            checker.see(seen, key, Step { op: "event".to_owned(), version });
        }
    }
}
