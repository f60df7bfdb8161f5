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

    async fn wait(&self, at_most: Duration) -> bool {
        tokio::time::sleep(at_most).await;
        false
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
    for (lane, stage) in [(0, Stage::Working), (1, Stage::Opening), (2, Stage::Working)] {
        let held = driver.start_lane(Lease { lane, epoch: 1, wanted: false });
        driver.lanes.insert(lane, Held { stage, ..held });
    }
    driver.failed(0, Error::new(Kind::Unavailable, "no broker"));
    driver.reaching.asking = None;
    assert!(driver.reaching.is_due() && !driver.is_leaving(), "whatever other lanes do, it is asked");
    driver.reached(away());
    let idle = vec![(2, 1), (0, 1)];
    assert_eq!((driver.is_leaving(), driver.to_release()), (true, idle), "not what is being opened");
    driver.reached(Ok(()));
    assert_eq!((driver.is_leaving(), driver.to_release()), (false, vec![]));
}

/// One that works as its own.
fn at_work() -> (Driver, Lease) {
    let (mut driver, lease) = (driver(), Lease { lane: 0, epoch: 1, wanted: false });
    driver.reached(Ok(()));
    driver.ours_until = Instant::now() + CLEAN;
    let held = driver.start_lane(lease);
    driver.lanes.insert(0, Held { stage: Stage::Working, ..held });
    (driver, lease)
}

/// Whoever leaves is told that others want all of it.
#[tokio::test]
async fn what_was_said_to_one_that_left_says_nothing_once_it_stays() {
    let (mut driver, lease) = at_work();
    let away = || Err(Error::new(Kind::Unavailable, "no broker"));
    let wanted = || Ok(vec![Lease { wanted: true, ..lease }]);
    driver.lanes.get_mut(&0).unwrap().stage = Stage::Opening;
    driver.reached(away());
    driver.start_leasing(Instant::now());
    driver.reached(Ok(()));
    driver.leasing = None;
    driver.leased(wanted()).unwrap();
    driver.lanes.get_mut(&0).unwrap().stage = Stage::Working;
    assert_eq!(driver.to_release(), []);
    driver.start_leasing(Instant::now());
    driver.leased(wanted()).unwrap();
    assert_eq!(driver.to_release(), [(0, 1)], "another waits for it");
}

/// Whatever came while the outbox was read is looked for soon.
#[tokio::test]
async fn rows_that_come_while_others_are_looked_for_are_looked_for_soon() {
    let (mut driver, _) = at_work();
    (0..20).for_each(|_| driver.pace.found_nothing());
    let longest = driver.pace.pause();
    for news in [false, true] {
        (driver.look_at, driver.claiming) = (Instant::now(), None);
        driver.start_claiming(Instant::now());
        assert!(driver.claiming.is_some());
        driver.told(news);
        driver.claimed(&[], Ok(Claimed::default())).unwrap();
        assert_eq!(driver.pace.pause() < longest, news);
    }
}

/// Under steady commits there are always news.
#[tokio::test]
async fn news_leave_a_look_that_took_long_the_pause_behind_it() {
    let (mut driver, _) = at_work();
    let took = Duration::from_millis(30);
    let more = Claimed { resuming: vec![0], ..Claimed::default() };
    for (claimed, pause) in [(Claimed::default(), took), (more, Duration::ZERO)] {
        let (began, claims) = (Instant::now(), [driver.lanes[&0].claim(true, true, 1).unwrap()]);
        (driver.looked, driver.claimed_at) = (began.checked_sub(took).unwrap(), driver.runs);
        driver.news = true;
        driver.claimed(&claims, Ok(claimed)).unwrap();
        driver.told(true);
        assert!(driver.look_at >= began + pause, "{pause:?}");
        assert!(pause > Duration::ZERO || driver.look_at <= Instant::now(), "there is more");
    }
    driver.claimed(&[], Err(Error::new(Kind::Unavailable, "no answer"))).unwrap();
    let refused = driver.look_at;
    driver.told(true);
    assert_eq!(driver.look_at, refused, "what is refused is asked again at its own distances");
}

#[tokio::test]
async fn what_was_given_back_and_not_answered_is_not_begun_under_its_epoch() {
    let (mut driver, lease) = at_work();
    driver.lanes.get_mut(&0).unwrap().lease.wanted = true;
    driver.start_leasing(Instant::now());
    assert_eq!((driver.lanes.len(), &driver.releasing[..]), (0, &[(0, 1)][..]));
    driver.leasing = None;
    driver.leased(Err(Error::new(Kind::Unavailable, "no answer"))).unwrap();
    driver.leased(Ok(vec![lease])).unwrap();
    assert_eq!(driver.to_release(), [(0, 1)], "again, until it is");
    driver.leased(Ok(vec![Lease { epoch: 2, ..lease }])).unwrap();
    assert_eq!((driver.to_release(), driver.resting.len()), (vec![], 1));
}

#[tokio::test]
async fn what_is_given_to_who_stops_is_given_back() {
    let mut driver = driver();
    driver.reached(Ok(()));
    (driver.ours_until, driver.stopping) = (Instant::now() + CLEAN, Some(Instant::now()));
    driver.leased(Ok(vec![Lease { lane: 3, epoch: 7, wanted: true }])).unwrap();
    assert_eq!(driver.to_release(), [(3, 7)]);
}

#[tokio::test]
async fn a_lane_that_rests_and_is_lost_is_not_begun_again() {
    let (mut driver, lease) = at_work();
    driver.failed(0, Error::new(Kind::Unavailable, "no broker"));
    let id = headwater_core::EventId::derive(1, &[b"id"]);
    let outcome = headwater_core::ports::Outcome::Published;
    let told = Settled { lane: 0, epoch: lease.epoch, sequence: 1, id, outcome };
    driver.settled(vec![told], Ok(vec![0])).unwrap();
    assert!(driver.resting.is_empty());
}

#[tokio::test]
async fn what_is_refused_is_asked_at_growing_distances_though_other_answers_come() {
    let mut driver = driver();
    driver.backoff(Asked::Rows).next();
    driver.look_at = Instant::now() + CLEAN;
    driver.answer(Asked::Leases, Ok(())).unwrap();
    assert_eq!(driver.backoff(Asked::Rows).attempts(), 1);
    assert!(driver.look_at > Instant::now());
    driver.backoff(Asked::Leases).next();
    driver.answer(Asked::Leases, Ok(())).unwrap();
    assert!(driver.look_at <= Instant::now(), "the database is back");
}
