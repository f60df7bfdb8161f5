//! The lease protocol of relays, checked in every interleaving of a small case: one lane, one key, two
//! relays that may stall or die at any moment.
//!
//! What the model says and where the code does it: a takeover raises the lease's epoch
//! (`OutboxStore::lease`), then opens the lane's writer, which fences its predecessors on the bus
//! (`Bus::writer`), and only then claims (`relay::driver`, the stage `Opening`); rows are published in
//! order (`relay::lane`) and settled in order under the epoch (`OutboxStore::settle`).

use stateright::{Checker, Model, Property};

/// Rows that a writer commits, one after the other, all of one key.
const ROWS: u8 = 3;
/// Takeovers that are looked at.
const EPOCHS: u8 = 3;
/// What the bus may hold: every row, and repeats.
const LOG: usize = 7;

/// Which of the protocol's rules hold: with one left out the model must find what goes wrong.
#[derive(Clone, Copy)]
struct Protocol {
    /// The bus refuses what comes from before a newer writer was opened.
    fences: bool,
    /// A takeover opens its writer before it claims.
    opens_first: bool,
    /// Settling is guarded by the epoch.
    guards: bool,
}

const WHOLE: Protocol = Protocol { fences: true, opens_first: true, guards: true };

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    /// Rows that are committed: 1 to this.
    committed: u8,
    /// Which of them are settled, by bit.
    settled: u8,
    /// Who holds the lane, and under which epoch.
    lease: (u8, u8),
    /// Whether somebody settled a row after another had taken the lane over.
    late: bool,
    /// The newest writer that was opened, by its epoch.
    fence: u8,
    /// What the bus holds, in order.
    log: Vec<u8>,
    relays: [Relay; 2],
}

/// What a relay has in its memory: a stalled one keeps it, and goes on with it whenever it wakes up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Relay {
    /// The epoch of its lease, as it remembers; 0 for none.
    epoch: u8,
    opened: bool,
    /// Claimed, to be published in order.
    queue: Vec<u8>,
    /// Published, to be settled in order.
    published: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Action {
    Commit,
    Take(usize),
    Open(usize),
    Claim(usize),
    Publish(usize),
    Settle(usize),
    Die(usize),
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            committed: 0,
            settled: 0,
            lease: (u8::MAX, 0),
            late: false,
            fence: 0,
            log: Vec::new(),
            relays: Default::default(),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.committed < ROWS {
            actions.push(Action::Commit);
        }
        for (at, relay) in state.relays.iter().enumerate() {
            // A lease may expire at any moment, also while its relay goes on.
            if usize::from(state.lease.0) != at && state.lease.1 < EPOCHS {
                actions.push(Action::Take(at));
            }
            if relay.epoch > 0 && !relay.opened {
                actions.push(Action::Open(at));
            }
            if relay.epoch > 0 && (relay.opened || !self.opens_first) && !claimable(state, relay).is_empty() {
                actions.push(Action::Claim(at));
            }
            if relay.opened && !relay.queue.is_empty() {
                actions.push(Action::Publish(at));
            }
            if !relay.published.is_empty() {
                actions.push(Action::Settle(at));
            }
            if relay.epoch > 0 {
                actions.push(Action::Die(at));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Commit => state.committed += 1,
            Action::Take(at) => {
                state.lease = (at as u8, state.lease.1 + 1);
                state.relays[at] = Relay { epoch: state.lease.1, ..Relay::default() };
            }
            Action::Open(at) => {
                let epoch = state.relays[at].epoch;
                // One that was opened since, by a later takeover, has fenced this one already.
                if self.fences && state.fence > epoch {
                    state.relays[at] = Relay::default();
                } else {
                    state.fence = state.fence.max(epoch);
                    state.relays[at].opened = true;
                }
            }
            Action::Claim(at) => {
                let rows = claimable(&state, &state.relays[at]);
                state.relays[at].queue.extend(rows);
            }
            Action::Publish(at) => {
                let relay = &mut state.relays[at];
                if self.fences && state.fence > relay.epoch {
                    *relay = Relay::default();
                } else {
                    let row = relay.queue.remove(0);
                    relay.published.push(row);
                    state.log.push(row);
                }
            }
            Action::Settle(at) => {
                let current = state.lease == (at as u8, state.relays[at].epoch);
                if self.guards && !current {
                    state.relays[at] = Relay::default();
                } else {
                    let row = state.relays[at].published.remove(0);
                    state.settled |= 1 << row;
                    state.late |= !current;
                }
            }
            Action::Die(at) => {
                // Its lease stays until somebody takes it over, itself under a new epoch.
                state.relays[at] = Relay::default();
                if usize::from(state.lease.0) == at {
                    state.lease.0 = u8::MAX;
                }
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("what is settled is on the bus", |_, state: &State| {
                (1..=ROWS).all(|row| state.settled & (1 << row) == 0 || state.log.contains(&row))
            }),
            Property::always("nobody settles after another took over", |_, state: &State| !state.late),
            Property::always("rows come in order, repeats too", |_, state: &State| in_order(&state.log)),
            Property::always("the newest row is the last in the end", |_, state: &State| {
                let all = (1..=ROWS).all(|row| state.settled & (1 << row) != 0);
                let quiet = state.relays.iter().all(|relay| relay.queue.is_empty());
                !(all && quiet) || state.log.last() == Some(&ROWS)
            }),
            Property::sometimes("everything is settled", |_, state: &State| {
                (1..=ROWS).all(|row| state.settled & (1 << row) != 0)
            }),
            Property::sometimes("a takeover repeats something", |_, state: &State| {
                state.log.windows(2).any(|pair| pair[1] <= pair[0])
            }),
        ]
    }

    fn within_boundary(&self, state: &State) -> bool {
        state.log.len() <= LOG
    }
}

/// Rows that a claim finds: committed, not settled, and not known to the relay.
fn claimable(state: &State, relay: &Relay) -> Vec<u8> {
    let known = |row: &u8| relay.queue.contains(row) || relay.published.contains(row);
    (1..=state.committed).filter(|row| state.settled & (1 << row) == 0 && !known(row)).collect()
}

/// First deliveries in order; what comes again jumps back and goes on from there step by step.
fn in_order(log: &[u8]) -> bool {
    let mut highest = 0;
    let mut before = 0;
    log.iter().all(|row| {
        let fits = *row <= before + 1 && *row <= highest + 1;
        highest = highest.max(*row);
        before = *row;
        fits
    })
}

fn check(protocol: Protocol) -> impl Checker<Protocol> {
    protocol.checker().threads(2).spawn_bfs().join()
}

#[test]
fn nothing_is_lost_overtaken_or_settled_by_a_relay_that_was_taken_over() {
    let checked = check(WHOLE);
    checked.assert_properties();
    assert!(checked.unique_state_count() > 1_000, "{} states", checked.unique_state_count());
}

#[test]
fn without_a_fence_on_the_bus_a_stalled_relay_overtakes_its_successor() {
    let checked = check(Protocol { fences: false, ..WHOLE });
    checked.assert_any_discovery("the newest row is the last in the end");
    checked.assert_any_discovery("rows come in order, repeats too");
}

#[test]
fn without_a_guard_a_stalled_relay_settles_for_its_successor() {
    check(Protocol { guards: false, ..WHOLE }).assert_any_discovery("nobody settles after another took over");
}

#[test]
fn claiming_before_the_fence_repeats_what_is_being_published_but_loses_nothing() {
    // A fence that comes after the claim still keeps order: what it costs is repeats.
    let checked = check(Protocol { opens_first: false, ..WHOLE });
    checked.assert_no_discovery("what is settled is on the bus");
}
