use async_trait::async_trait;
use headwater_core::Origin;
use headwater_core::ports::{Finding, LeaseAsk, OutboxStore};
use headwater_testkit::memory::MemoryBus;

use super::*;
use crate::config::Settings;
use crate::relay::RelaySettings;

/// A database that never answers: what is decided without it is looked at.
struct Silent;

#[async_trait]
impl OutboxStore for Silent {
    async fn lease(&self, _: &LeaseAsk) -> Result<Vec<Lease>> {
        std::future::pending().await
    }

    async fn claim(&self, _: &[Claim], _: ClaimLimit) -> Result<Claimed> {
        std::future::pending().await
    }

    async fn settle(&self, _: &str, _: &[Settled]) -> Result<Vec<Lane>> {
        std::future::pending().await
    }

    async fn check(&self) -> Result<Vec<Finding>> {
        std::future::pending().await
    }

    async fn wait(&self, at_most: Duration) {
        tokio::time::sleep(at_most).await;
    }

    async fn clean(&self, _: Duration) -> Result<u64> {
        std::future::pending().await
    }
}

fn driver() -> Driver {
    let origin = Origin {
        source: "shop".into(),
        connector: "postgres".into(),
        database: "shop".into(),
        system_id: String::new(),
    };
    Driver::new(RelayTask {
        name: "shop".into(),
        store: Arc::new(Silent),
        bus: Arc::new(MemoryBus::default()),
        routes: Arc::default(),
        specs: Vec::new(),
        origin: Arc::new(origin),
        relay: RelaySettings::default(),
        settings: Settings::default(),
        board: Arc::default(),
    })
}

/// Whether a lane that rests is begun, whose lease lasts for so long.
fn begins(wanted: bool, lasts: Duration) -> bool {
    let (mut driver, now) = (driver(), Instant::now());
    driver.reached(Ok(()));
    let lease = Lease { lane: 0, epoch: 1, wanted };
    driver.ours_until = now + lasts;
    driver.resting.insert(0, (lease, now, Backoff::new(CLEAN)));
    driver.start(now);
    driver.lanes.contains_key(&0)
}

#[tokio::test]
async fn a_lane_is_opened_while_it_is_ours_and_nobody_waits_for_it() {
    assert!(begins(false, CLEAN));
    assert!(!begins(true, CLEAN), "another relay waits for it");
    assert!(!begins(false, Duration::ZERO), "its lease is over");
}

#[tokio::test]
async fn a_lane_that_resumes_still_asks_at_once_again() {
    let mut driver = driver();
    let held = driver.start_lane(Lease { lane: 0, epoch: 1, wanted: false });
    driver.lanes.insert(0, Held { stage: Stage::Resuming, ..held });
    driver.claimed_at = driver.runs;
    let claims = [driver.lanes[&0].claim(true, true, 1).unwrap()];
    let found = driver.hand_out(&claims, Claimed { resuming: vec![0], horizon: 7, ..Claimed::default() });
    assert_eq!((found, driver.lanes[&0].stage), (Some(true), Stage::Resuming));
    let found = driver.hand_out(&claims, Claimed { horizon: 7, ..Claimed::default() });
    assert_eq!((found, driver.lanes[&0].stage), (None, Stage::Working));
}

#[tokio::test]
async fn who_cannot_publish_leaves_the_lanes_to_others() {
    let away = || Err(Error::new(Kind::Unavailable, "no broker"));
    let (mut driver, now) = (driver(), Instant::now());
    driver.start(now);
    assert!(driver.leasing.is_none() && driver.reaching.asking.is_some(), "the bus is asked first");
    driver.reached(away());
    driver.start(now);
    assert!(driver.leasing.is_none());
    driver.reached(Ok(()));
    driver.ours_until = now + CLEAN;
    driver.start(Instant::now());
    assert!(driver.leasing.is_some(), "it is there");
    for (lane, stage) in [(0, Stage::Working), (1, Stage::Opening)] {
        let held = driver.start_lane(Lease { lane, epoch: 1, wanted: false });
        driver.lanes.insert(lane, Held { stage, ..held });
    }
    driver.failed(0, Error::new(Kind::Unavailable, "no broker"));
    assert!(!driver.is_leaving(), "it is not known yet");
    driver.reached(away());
    assert_eq!((driver.is_leaving(), driver.to_release()), (true, vec![0]), "not what is being opened");
    driver.reached(Ok(()));
    assert_eq!((driver.is_leaving(), driver.to_release()), (false, vec![]));
}
