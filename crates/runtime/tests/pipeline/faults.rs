//! Whatever fails whenever: nothing is lost, keys keep their order, ids are stable, and nothing is
//! confirmed early.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use headwater_core::ports::HoldsBack;
use headwater_core::{Change, Event, EventId, Identity, Op};
use proptest::prelude::*;

use crate::common::{World, all_orders, change, eventually, insert, orders, stream};

/// What becomes of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    /// It arrives.
    Good,
    /// The bus rejects its event.
    Large,
    /// It cannot be shaped: its key is held back, or its stream.
    Bad,
}

/// What a run of the property is drawn from.
#[derive(Debug, Clone)]
struct Case {
    seed: u64,
    /// The key of each change, and what it is like.
    changes: Vec<(u64, Sort)>,
    /// How many changes are committed before each crash.
    crashes: Vec<usize>,
    probability: f64,
}

fn cases() -> impl Strategy<Value = Case> {
    let sort = prop_oneof![30 => Just(Sort::Good), 1 => Just(Sort::Large), 1 => Just(Sort::Bad)];
    let change = (0..6_u64, sort);
    let crashes = proptest::collection::vec(1..60_usize, 0..4);
    (any::<u64>(), proptest::collection::vec(change, 1..150), crashes, 0.0..0.2)
        .prop_map(|(seed, changes, crashes, probability)| Case { seed, changes, crashes, probability })
}

const LARGE: usize = 2000;

fn made(case: &Case) -> Vec<Change> {
    let change = |(at, (key, sort)): (usize, &(u64, Sort))| match sort {
        Sort::Good => insert(at as u64 + 1, *key, "a"),
        Sort::Large => insert(at as u64 + 1, *key, &"x".repeat(LARGE)),
        Sort::Bad => {
            let row = [&*key.to_string(), "1", "!", "a"];
            change(at as u64 + 1, Op::Create, &orders(Identity::Key), None, Some(&row))
        }
    };
    case.changes.iter().enumerate().map(change).collect()
}

async fn run(case: &Case) {
    let world = World::new(case.seed);
    world.bus.reject_larger_than(Some(LARGE));
    let (bus, store) = (Arc::clone(&world.bus), Arc::clone(&world.parked));
    world.source.on_confirm(move |checkpoint| {
        let stored = bus.stored("shop").expect("confirmed, but nothing is stored");
        assert!(checkpoint.position <= stored.position, "confirmed before the checkpoint was durable");
        let kept = bus.events().iter().map(place).collect::<HashSet<_>>().len() + store.all().len();
        assert!(kept as u64 >= checkpoint.position.numbers()[0], "confirmed before all was durable");
    });
    let mut changes = made(case).into_iter();
    for crash in &case.crashes {
        world.faults.at_random(case.seed, case.probability);
        world.bus.hold();
        world.source.commit(changes.by_ref().take(*crash));
        let running = world.run(all_orders());
        for _ in 0..crash % 7 {
            tokio::time::sleep(std::time::Duration::from_millis((crash * 3 % 40) as u64)).await;
            world.bus.flush(crash % 3 + 1);
        }
        running.kill().await;
        world.bus.crash();
    }
    world.faults.stop();
    world.bus.let_go();
    world.source.commit(changes);
    let running = world.run(all_orders());
    let last = case.changes.len() as u64;
    let done = || world.source.confirmed().is_some_and(|at| at.position.numbers()[0] == last);
    eventually("all is confirmed", done).await;
    check(case, &world.bus.events(), &world);

    // Then the bus takes large ones and the contract leaves out what is bad, and what was parked goes on.
    running.stop().await;
    world.bus.reject_larger_than(None);
    let running = world.run(stream("from = 'shop.orders'\ncolumns = ['id', 'note']\npartitions = 4"));
    eventually("nothing is parked", || world.parked.all().is_empty()).await;
    running.stop().await;
    let events = world.bus.events();
    in_order(&events);
    let arrived: HashSet<u64> = events.iter().map(place).collect();
    assert_eq!(arrived.len() as u64, last, "nothing is lost");
}

fn place(event: &Event) -> u64 {
    event.position.numbers()[0]
}

/// Every change is on the bus or parked; a key's are parked from its first on that cannot go, in order.
fn check(case: &Case, events: &[Event], world: &World) {
    in_order(events);
    let arrived: HashSet<u64> = events.iter().map(place).collect();
    let parked = world.parked.all();
    for key in 0..6_u64 {
        let ours = case.changes.iter().enumerate().filter(|(_, (of, _))| *of == key);
        let mut blocked = false;
        let mut expected = 0;
        for (at, (_, sort)) in ours {
            blocked |= *sort != Sort::Good;
            let at = at as u64 + 1;
            assert_eq!(arrived.contains(&at), !blocked, "change {at} of key {key}");
            expected += usize::from(blocked);
        }
        let name = key.to_string();
        let waiting = parked.iter().filter(|one| one.holds == HoldsBack::Key(name.clone().into()));
        assert_eq!(waiting.count(), expected, "parked of key {key}");
    }
}

/// Of each key a place is followed by the next one or, repeated, by an earlier one; and one place has
/// one id, each time.
fn in_order(events: &[Event]) {
    let mut ids: HashMap<u64, EventId> = HashMap::new();
    let mut seen: HashMap<&[u8], Vec<u64>> = HashMap::new();
    for event in events {
        let id = *ids.entry(place(event)).or_insert(event.id);
        assert_eq!(id, event.id, "the id of a redelivered event");
        seen.entry(event.key.as_deref().unwrap()).or_default().push(place(event));
    }
    for (key, places) in seen {
        let mut all = places.clone();
        all.sort_unstable();
        all.dedup();
        let rank = |place: &u64| all.binary_search(place).unwrap();
        let ranks: Vec<usize> = places.iter().map(rank).collect();
        assert_eq!(ranks.first(), Some(&0), "key {key:?} begins with its first change: {places:?}");
        for pair in ranks.windows(2) {
            assert!(pair[1] <= pair[0] + 1, "key {key:?} skipped a change: {places:?}");
        }
    }
}

/// The same with a contract that some changes break: from the first of them on all is held, over every
/// crash, and goes on in order once the contract fits and the bus takes large ones.
async fn run_held(case: &Case) {
    let world = World::new(case.seed);
    let made = case.changes.iter().enumerate().map(|(at, (key, sort))| {
        let (at, key) = (at as u64 + 1, *key);
        if *sort == Sort::Large {
            insert(at, key, &"x".repeat(LARGE))
        } else if *sort == Sort::Bad {
            crate::parking::without_note(at, &key.to_string())
        } else {
            insert(at, key, "a")
        }
    });
    let mut changes = made.collect::<Vec<_>>().into_iter();
    world.bus.reject_larger_than(Some(LARGE));
    let config =
        |columns: &str| stream(&format!("from = 'shop.orders'\ncolumns = {columns}\npartitions = 4"));
    for (number, crash) in case.crashes.iter().enumerate() {
        world.faults.at_random(case.seed, case.probability);
        world.bus.hold();
        world.source.commit(changes.by_ref().take(*crash));
        // Now and then somebody mends the contract and breaks it again.
        let columns = if number % 2 == 0 { "['id', 'note']" } else { "['id', 'state']" };
        let running = world.run(config(columns));
        for _ in 0..crash % 9 {
            tokio::time::sleep(std::time::Duration::from_millis((crash * 3 % 40) as u64)).await;
            world.bus.flush(crash % 3 + 1);
        }
        running.kill().await;
        world.bus.crash();
    }
    world.bus.reject_larger_than(None);
    world.faults.stop();
    world.bus.let_go();
    world.source.commit(changes);
    let running = world.run(config("['id', 'state']"));
    let last = case.changes.len() as u64;
    let done = || world.source.confirmed().is_some_and(|at| at.position.numbers()[0] == last);
    eventually("all is confirmed and nothing held", || done() && world.parked.all().is_empty()).await;
    running.stop().await;
    let events = world.bus.events();
    first_and_last_in_order(&events);
    let arrived: HashSet<u64> = events.iter().map(place).collect();
    assert_eq!(arrived.len() as u64, last, "nothing is lost");
}

/// What is held is published before what is redelivered, which may end before it: then a repeat is not
/// contiguous. Whoever takes each event the first time, or lets the last one win, sees commit order.
fn first_and_last_in_order(events: &[Event]) {
    let mut keys: HashMap<&[u8], Vec<u64>> = HashMap::new();
    for event in events {
        keys.entry(event.key.as_deref().unwrap()).or_default().push(place(event));
    }
    for (key, places) in keys {
        let once = |places: &mut dyn Iterator<Item = u64>| {
            let mut seen = HashSet::new();
            places.filter(|place| seen.insert(*place)).collect::<Vec<_>>()
        };
        let mut last = once(&mut places.iter().rev().copied());
        last.reverse();
        for order in [once(&mut places.iter().copied()), last] {
            assert!(order.is_sorted(), "key {key:?} is out of order: {places:?}");
        }
    }
}

fn paused() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_overtaken_or_confirmed_early(case in cases()) {
        paused().block_on(run(&case));
    }

    #[test]
    fn what_is_held_goes_on_in_order(case in cases()) {
        paused().block_on(run_held(&case));
    }
}
