//! Streams of a push that come later than it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use headwater_core::ports::{Bus, BusStatus, Cursor, Delivery, Opened, SeekTo, Subscribe, Subscription};
use headwater_core::{Error, Kind, Result, StreamSpec};
use headwater_runtime::Phase;

use crate::common::PATIENCE;
use crate::world::{Asked, World};

/// A bus whose brokers go away now and then, as the embedded one never does.
struct Blips {
    bus: Arc<dyn Bus>,
    /// The streams of each subscription.
    asked: Mutex<Vec<Vec<Arc<str>>>>,
    /// How often it was asked whether they are there: the first time they are not.
    reached: AtomicUsize,
    /// What happens at the nth subscription, before the bus itself is asked.
    blip: Box<dyn Fn(usize) -> Blip + Send + Sync>,
}

enum Blip {
    None,
    Away,
    Hangs,
    /// There is no partition left for who asks.
    Silent,
}

#[async_trait]
impl Bus for Blips {
    async fn ensure(&self, spec: &StreamSpec) -> Result<u32> {
        self.bus.ensure(spec).await
    }

    async fn writer(&self, source: &str) -> Result<Opened> {
        self.bus.writer(source).await
    }

    async fn reach(&self) -> Result<()> {
        match self.reached.fetch_add(1, Ordering::SeqCst) {
            0 => Err(Error::new(Kind::Unavailable, "the brokers are away")),
            _ => Ok(()),
        }
    }

    async fn subscribe(&self, subscribe: Subscribe) -> Result<Box<dyn Subscription>> {
        let asked = {
            let mut asked = self.asked.lock().unwrap();
            asked.push(subscribe.streams.clone());
            asked.len()
        };
        match (self.blip)(asked) {
            Blip::None => self.bus.subscribe(subscribe).await,
            Blip::Away => Err(Error::new(Kind::Unavailable, "the brokers are away")),
            Blip::Hangs => std::future::pending().await,
            Blip::Silent => Ok(Box::new(Refusing(tokio::time::Instant::now() + PATIENCE * 2))),
        }
    }

    async fn status(&self) -> Result<BusStatus> {
        self.bus.status().await
    }
}

async fn behind_blips(blip: impl Fn(usize) -> Blip + Send + Sync + 'static) -> (World, Arc<Blips>) {
    let mut world = World::new(|_, _| StatusCode::NO_CONTENT.into_response()).await;
    let blips = Arc::new(Blips {
        bus: Arc::clone(&world.bus),
        asked: Mutex::default(),
        reached: AtomicUsize::new(0),
        blip: Box::new(blip),
    });
    world.bus = Arc::clone(&blips) as Arc<dyn Bus>;
    (world, blips)
}

/// While a stream is not there, it alone is asked for; that it could not be asked for says nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_not_there_has_nothing_begin_anew() {
    // It is asked for first, then the other is, which begins.
    let (world, blips) = behind_blips(|nth| if nth == 4 { Blip::Away } else { Blip::None }).await;
    world.publish(&[("a", "")]).await;
    let running = world.run_with(&["later", "orders"], "").await;
    world.until("what is there has come", |asked| asked.len() == 1).await;
    let of = |name: &str| {
        let asked = blips.asked.lock().unwrap();
        asked.iter().filter(|streams| streams.iter().any(|stream| &**stream == name)).count()
    };
    world.until("it was asked for again, after the blip", |_| of("later") >= 3).await;
    running.stop().await;
    assert_eq!(of("orders"), 2, "{:?}", blips.asked.lock().unwrap());
}

/// Status says that the brokers are away, and no longer when they are there again, whatever comes then.
#[tokio::test(flavor = "multi_thread")]
async fn status_says_that_the_brokers_are_away() {
    let away = Arc::new(AtomicBool::new(true));
    let is_away = Arc::clone(&away);
    let blip = move |_| if is_away.load(Ordering::SeqCst) { Blip::Away } else { Blip::None };
    let (world, _) = behind_blips(blip).await;
    let running = world.run("").await;
    running.says(Phase::Retrying, Some("the brokers are away")).await;
    away.store(false, Ordering::SeqCst);
    running.says(Phase::Streaming, None).await;
    running.stop().await;
}

/// The same of a member of the group that is given no partition.
#[tokio::test(flavor = "multi_thread")]
async fn status_says_no_longer_that_the_brokers_were_away_where_others_have_every_partition() {
    // It is asked for first.
    let blip = |nth| match nth {
        1 => Blip::None,
        2 => Blip::Away,
        _ => Blip::Silent,
    };
    let (world, blips) = behind_blips(blip).await;
    let running = world.run("").await;
    running.says(Phase::Retrying, Some("the brokers are away")).await;
    running.says(Phase::Streaming, None).await;
    assert!(blips.reached.load(Ordering::SeqCst) >= 2, "whether they are there is asked until they are");
    running.stop().await;
}

/// A stream that may be read at last is no trouble any more, though nothing comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_may_be_read_at_last_is_no_trouble_any_more() {
    let mut world = World::new(|_, _| StatusCode::NO_CONTENT.into_response()).await;
    let closed = Closed::before(&mut world, MOMENT).await;
    let running = world.run_with(&[CLOSED], "").await;
    running.says(Phase::Retrying, Some("reading is not allowed")).await;
    closed.closed.store(false, Ordering::SeqCst);
    running.says(Phase::Streaming, None).await;
    running.stop().await;
}

/// A bus that says nothing holds up no stop.
#[tokio::test(flavor = "multi_thread")]
async fn a_bus_that_says_nothing_does_not_hold_up_a_stop() {
    let (world, blips) = behind_blips(|_| Blip::Hangs).await;
    let running = world.run("").await;
    world.until("it is asked", |_| blips.asked.lock().unwrap().len() == 1).await;
    running.stop().await;
}

/// A bus that knows a stream, and says only to who reads it that it may not be read.
struct Closed {
    bus: Arc<dyn Bus>,
    closed: AtomicBool,
    /// How long it takes to say so.
    takes: Duration,
    /// The streams that a group was to read.
    begun: Mutex<Vec<Vec<Arc<str>>>>,
    /// How often it was asked for it alone.
    looks: AtomicUsize,
}

impl Closed {
    /// In front of a world's bus, and its stream is there.
    async fn before(world: &mut World, takes: Duration) -> Arc<Self> {
        world.stream(CLOSED).await;
        let (bus, closed) = (Arc::clone(&world.bus), AtomicBool::new(true));
        let closed = Self { bus, closed, takes, begun: Mutex::default(), looks: AtomicUsize::default() };
        let closed = Arc::new(closed);
        world.bus = Arc::clone(&closed) as Arc<dyn Bus>;
        closed
    }

    fn begun(&self) -> Vec<Vec<Arc<str>>> {
        self.begun.lock().unwrap().clone()
    }
}

/// Says so at this time.
struct Refusing(tokio::time::Instant);

/// Brokers take a moment.
const MOMENT: Duration = Duration::from_millis(50);

const CLOSED: &str = "closed";

#[async_trait]
impl Bus for Closed {
    async fn ensure(&self, spec: &StreamSpec) -> Result<u32> {
        self.bus.ensure(spec).await
    }

    async fn writer(&self, source: &str) -> Result<Opened> {
        self.bus.writer(source).await
    }

    async fn subscribe(&self, subscribe: Subscribe) -> Result<Box<dyn Subscription>> {
        if subscribe.group.is_some() {
            self.begun.lock().unwrap().push(subscribe.streams.clone());
        }
        let closed = subscribe.streams.iter().any(|stream| &**stream == CLOSED);
        if closed && self.closed.load(Ordering::SeqCst) {
            self.looks.fetch_add(usize::from(subscribe.group.is_none()), Ordering::SeqCst);
            return Ok(Box::new(Refusing(tokio::time::Instant::now() + self.takes)));
        }
        self.bus.subscribe(subscribe).await
    }

    async fn status(&self) -> Result<BusStatus> {
        self.bus.status().await
    }
}

#[async_trait]
impl Subscription for Refusing {
    async fn next(&mut self) -> Result<Delivery> {
        tokio::time::sleep_until(self.0).await;
        Err(Error::new(Kind::Refused, "reading is not allowed"))
    }

    async fn commit(&mut self, _: &Cursor) -> Result<()> {
        Ok(())
    }

    async fn seek(&mut self, _: &str, _: u32, _: SeekTo) -> Result<()> {
        Ok(())
    }
}

/// A stream that may be described and not read is waited for like one that is not there.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_may_be_known_and_not_read_holds_up_no_other() {
    let mut world = World::new(|_, _| StatusCode::NO_CONTENT.into_response()).await;
    let closed = Closed::before(&mut world, MOMENT).await;
    let running = world.run_with(&[CLOSED, "orders"], "").await;
    for round in 1..=50 {
        world.publish(&[("a", "")]).await;
        world.until("what can be read has come", |asked| asked.len() >= round).await;
    }
    assert_eq!(closed.begun(), [vec![CLOSED.into(), "orders".into()], vec!["orders".into()]]);
    closed.closed.store(false, Ordering::SeqCst);
    world.publish_to(CLOSED, &[("b", "")]).await;
    let of =
        |asked: &[Asked]| asked.iter().filter(|asked| asked.headers["headwater-stream"] == CLOSED).count();
    world.until("it can be read", |asked| of(asked) == 1).await;
    running.stop().await;
}

/// What made a stream is delivered also where the push begins with what comes from now on.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_events_of_a_stream_that_comes_later_are_delivered() {
    let world = World::new(|_, _| StatusCode::NO_CONTENT.into_response()).await;
    world.publish(&[("before", "")]).await;
    let running = world.run_with(&["later", "orders"], "start = \"end\"").await;
    let deadline = Instant::now() + PATIENCE;
    while world.came() == 0 {
        assert!(Instant::now() < deadline, "it does not begin");
        world.publish(&[("now", "")]).await;
    }
    world.stream("later").await;
    world.publish_to("later", &[("b", ""), ("b", "")]).await;
    let of = |asked: &[Asked], name: &str| {
        asked.iter().filter(|asked| asked.headers["headwater-stream"] == name).count()
    };
    let asked = world.until("its events have come", |asked| of(asked, "later") == 2).await;
    running.stop().await;
    assert!(asked.iter().flat_map(Asked::events).all(|(key, _)| key != "before"));
}

/// The same of a bus that takes long to say so: it is given more time, and then what can be read goes on undisturbed.
#[tokio::test(flavor = "multi_thread")]
async fn a_bus_that_says_late_that_a_stream_may_not_be_read_is_given_time() {
    let mut world = World::new(|_, _| StatusCode::NO_CONTENT.into_response()).await;
    let closed = Closed::before(&mut world, Duration::from_millis(1_500)).await;
    let running = world.run_with(&[CLOSED, "orders"], "").await;
    let alone = |begun: &[Vec<Arc<str>>]| begun.last().is_some_and(|streams| **streams == ["orders".into()]);
    world.until("it is left out", |_| alone(&closed.begun())).await;
    let (begun, looks) = (closed.begun().len(), closed.looks.load(Ordering::SeqCst));
    let more = || closed.looks.load(Ordering::SeqCst) >= looks + 3;
    world.until("it was looked at again", |_| more()).await;
    assert_eq!(closed.begun().len(), begun);
    running.stop().await;
}

/// An outbox's stream is there when its first row is; what the others have is not kept back until then.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_not_there_yet_holds_up_no_other() {
    let world = World::new(|_, _| StatusCode::NO_CONTENT.into_response()).await;
    world.publish(&[("a", ""), ("a", "")]).await;
    let running = world.run_with(&["later", "orders"], "").await;
    let of = |asked: &[Asked], name: &str| {
        asked.iter().filter(|asked| asked.headers["headwater-stream"] == name).count()
    };
    world.until("what is there has come", |asked| of(asked, "orders") == 2).await;
    world.stream("later").await;
    world.publish_to("later", &[("b", "")]).await;
    world.publish(&[("a", "")]).await;
    let asked =
        world.until("both have come", |asked| of(asked, "orders") == 3 && of(asked, "later") == 1).await;
    running.stop().await;
    let numbers: Vec<i64> =
        asked.iter().flat_map(Asked::events).map(|(_, n)| n).filter(|n| *n != 2).collect();
    assert_eq!(numbers, [0, 1, 3], "each once and in order");
}
