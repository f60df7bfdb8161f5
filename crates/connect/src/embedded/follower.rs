//! The thread behind a subscription: it reads, keeps the lease, and hands out what was asked for.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use headwater_core::ports::{Cursor, Delivery, SeekTo, Start, Subscribe};
use headwater_core::{Error, Kind, Result};
use tokio::sync::{mpsc as tokio_mpsc, oneshot};

use super::catalog::Catalog;
use super::config::EmbeddedConfig;
use super::groups::{Change, Member, Seat};
use super::segment::StreamRow;
use super::wake::Waker;
use crate::store::{micros, now};

/// What the subscription asks of the thread.
pub(super) enum Command {
    /// Something was committed.
    Wake,
    /// One more delivery is wanted.
    Credit,
    Commit {
        cursor: Cursor,
        reply: oneshot::Sender<Result<()>>,
    },
    /// Replies with the partition's epoch and the number of seeks in it: batches sent before carry less.
    Seek {
        stream: Arc<str>,
        partition: u32,
        to: SeekTo,
        reply: oneshot::Sender<Result<(u64, u64)>>,
    },
    Stop,
}

/// A delivery, and how many seeks its partition had seen.
pub(super) struct Item {
    pub(super) delivery: Delivery,
    pub(super) seeks: u64,
}

/// How long another process waits before it looks for new events a first time.
const FIRST_POLL: Duration = Duration::from_millis(1);
/// How often at most a member looks whether others came or went.
const STIR: Duration = Duration::from_millis(200);
/// How often files are looked at when nothing calls.
const IDLE: Duration = Duration::from_secs(1);

/// The state of the thread.
pub(super) struct Follower {
    config: EmbeddedConfig,
    catalog: Catalog,
    streams: Vec<StreamRow>,
    member: Option<Member>,
    held: Vec<Held>,
    /// Which of `held` is read next.
    turn: usize,
    /// What was gained and lost, not yet handed out.
    notices: VecDeque<Delivery>,
    /// How many deliveries are wanted.
    credit: usize,
    /// Whether there may be more than the catalog has seen.
    stale: bool,
    waker: Option<Arc<Waker>>,
    poll: Duration,
    last_beat: Instant,
    next_stir: Instant,
    items: tokio_mpsc::UnboundedSender<Result<Item>>,
}

struct Held {
    seat: Seat,
    number: u32,
    epoch: u64,
    offset: u64,
    seeks: u64,
}

impl Follower {
    /// Looks at the streams and joins the group. Without a `waker` it polls.
    pub(super) fn open(
        dir: &Path,
        config: EmbeddedConfig,
        subscribe: &Subscribe,
        waker: Option<Arc<Waker>>,
        items: tokio_mpsc::UnboundedSender<Result<Item>>,
    ) -> Result<Self> {
        let mut catalog = Catalog::open(dir)?;
        let known = catalog.streams()?;
        let find = |name: &Arc<str>| {
            let found = known.iter().find(|stream| stream.name == *name).cloned();
            found.ok_or_else(|| unknown_stream(name, &known))
        };
        let streams: Vec<StreamRow> = subscribe.streams.iter().map(find).collect::<Result<_>>()?;
        let mut start = |seat: Seat| start(&mut catalog, &streams, seat, subscribe.start);
        let (mut member, mut first) = (None, Vec::new());
        if let Some(group) = &subscribe.group {
            let names = streams.iter().map(|stream| (Arc::clone(&stream.name), stream.partitions));
            member = Some(Member::join(dir, group, micros(config.lease), names.collect(), start)?);
        } else {
            for (index, stream) in streams.iter().enumerate() {
                for partition in 0..stream.partitions {
                    let seat = (index, partition);
                    first.push(Change::Gained { seat, epoch: 0, offset: start(seat)? });
                }
            }
        }
        let now = Instant::now();
        let mut follower = Self {
            poll: FIRST_POLL,
            last_beat: now,
            next_stir: now,
            held: Vec::new(),
            turn: 0,
            notices: VecDeque::new(),
            credit: 0,
            stale: true,
            config,
            catalog,
            streams,
            member,
            waker,
            items,
        };
        follower.take(first);
        follower.beat()?;
        Ok(follower)
    }

    /// Works until the subscription is dropped.
    pub(super) fn run(mut self, commands: &Receiver<Command>) {
        loop {
            self.keep_lease();
            if self.deliver().is_err() {
                break;
            }
            let mut next = match commands.recv_timeout(self.patience()) {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => {
                    self.stale = true;
                    self.poll = (self.poll * 2).min(self.config.poll_interval);
                    None
                }
                Err(RecvTimeoutError::Disconnected) => break,
            };
            while let Some(command) = next {
                if matches!(command, Command::Stop) {
                    return self.leave();
                }
                self.handle(command);
                next = commands.try_recv().ok();
            }
        }
        self.leave();
    }

    fn leave(&mut self) {
        if let Some(Err(error)) = self.member.as_mut().map(Member::leave) {
            tracing::warn!(%error, "a group member's partitions stay held until its lease ends");
        }
    }

    /// How long to wait for a command.
    fn patience(&self) -> Duration {
        let idle = if self.member.is_some() { STIR.min(self.config.lease / 10) } else { IDLE };
        if self.waker.is_some() || self.credit == 0 { idle } else { self.poll.min(idle) }
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Wake => self.stale = true,
            Command::Credit => self.credit += 1,
            // A caller that went away does not need the answer.
            Command::Commit { cursor, reply } => {
                let done = self.member.as_ref().map_or(Ok(()), |member| member.commit(&cursor));
                let _ = reply.send(done);
            }
            Command::Seek { stream, partition, to, reply } => {
                let _ = reply.send(self.seek(&stream, partition, to));
            }
            Command::Stop => {}
        }
    }

    /// Hands out as much as is wanted; an error when nobody listens any more.
    fn deliver(&mut self) -> Result<(), mpsc::RecvError> {
        while self.credit > 0 {
            let item = match self.notices.pop_front() {
                Some(delivery) => Ok(Some(Item { delivery, seeks: 0 })),
                None => self.read(),
            };
            let Some(item) = item.transpose() else { return Ok(()) };
            self.credit -= 1;
            self.poll = FIRST_POLL;
            self.items.send(item).map_err(|_| mpsc::RecvError)?;
        }
        Ok(())
    }

    /// The next batch of any partition, in turn; `None` when all has been read.
    fn read(&mut self) -> Result<Option<Item>> {
        loop {
            if let Some(item) = self.read_known()? {
                return Ok(Some(item));
            }
            if !std::mem::take(&mut self.stale) {
                return Ok(None);
            }
            if let Some(waker) = &self.waker {
                waker.heard();
            }
            self.catalog.refresh().inspect_err(|_| self.stale = true)?;
        }
    }

    fn read_known(&mut self) -> Result<Option<Item>> {
        for _ in 0..self.held.len() {
            self.turn = (self.turn + 1) % self.held.len();
            let Some(held) = self.held.get_mut(self.turn) else { continue };
            let Some(stream) = self.streams.get(held.seat.0) else { continue };
            if self.catalog.end(held.number) <= held.offset {
                continue;
            }
            let (records, next) = self.catalog.read(stream, held.number, held.offset)?;
            held.offset = next;
            if records.is_empty() {
                continue;
            }
            let (stream, partition) = (Arc::clone(&stream.name), held.seat.1);
            let delivery = Delivery::Batch { stream, partition, epoch: held.epoch, records };
            return Ok(Some(Item { delivery, seeks: held.seeks }));
        }
        Ok(None)
    }

    fn seek(&mut self, name: &str, partition: u32, to: SeekTo) -> Result<(u64, u64)> {
        self.catalog.refresh()?;
        let stream = self.streams.iter().position(|stream| &*stream.name == name);
        let held = self.held.iter_mut().find(|held| Some(held.seat) == stream.map(|at| (at, partition)));
        let held = held.ok_or_else(|| {
            Error::new(Kind::Busy, format!("partition {partition} of \"{name}\" is not assigned here"))
        })?;
        held.offset = match to {
            SeekTo::Beginning => self.catalog.beginning(held.number)?,
            SeekTo::End => self.catalog.end(held.number),
            SeekTo::Offset(offset) => offset,
            SeekTo::Time(time) => self.catalog.at_time(held.number, time)?,
        };
        held.seeks += 1;
        Ok((held.epoch, held.seeks))
    }

    /// Beats when it is time, or when others came or went.
    fn keep_lease(&mut self) {
        let Some(member) = &mut self.member else { return };
        if Instant::now() < self.next_stir {
            return;
        }
        self.next_stir = Instant::now() + STIR.min(self.config.lease / 10);
        let due = self.last_beat.elapsed() >= self.config.lease / 3;
        if !due && !member.is_stirred().unwrap_or(true) {
            return;
        }
        let Err(error) = self.beat() else { return };
        tracing::warn!(%error, "a heartbeat of a group failed");
        if self.last_beat.elapsed() > self.config.lease {
            let lost = self.member.as_mut().map(Member::forget).unwrap_or_default();
            self.take(lost);
        }
    }

    fn beat(&mut self) -> Result<()> {
        let Some(member) = &mut self.member else { return Ok(()) };
        let changes = member.beat(now())?;
        self.last_beat = Instant::now();
        self.take(changes);
        Ok(())
    }

    /// Begins with what was gained and ends with what was lost.
    fn take(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Gained { seat, epoch, offset } => {
                    let Some(stream) = self.streams.get(seat.0) else { continue };
                    let number = stream.base + seat.1;
                    self.held.push(Held { seat, number, epoch, offset, seeks: 0 });
                    let (stream, partition) = (Arc::clone(&stream.name), seat.1);
                    self.notices.push_back(Delivery::Assigned(Cursor { stream, partition, epoch, offset }));
                }
                Change::Lost { seat, epoch } => {
                    let Some(stream) = self.streams.get(seat.0) else { continue };
                    self.held.retain(|held| held.seat != seat);
                    let (stream, partition) = (Arc::clone(&stream.name), seat.1);
                    self.notices.push_back(Delivery::Revoked { stream, partition, epoch });
                }
            }
        }
    }
}

fn start(catalog: &mut Catalog, streams: &[StreamRow], seat: Seat, start: Start) -> Result<u64> {
    let Some(stream) = streams.get(seat.0) else { return Ok(0) };
    let number = stream.base + seat.1;
    match start {
        Start::Beginning => catalog.beginning(number),
        Start::End => Ok(catalog.end(number)),
        Start::Time(time) => catalog.at_time(number, time),
    }
}

fn unknown_stream(name: &str, known: &[StreamRow]) -> Error {
    let names: Vec<&str> = known.iter().map(|stream| &*stream.name).collect();
    let hint = match names.as_slice() {
        [] => "the bus has no streams yet: `headwater run` makes those of its config".to_owned(),
        names => format!("the bus has: {}", names.join(", ")),
    };
    Error::new(Kind::Config, format!("there is no stream \"{name}\"")).hint(hint)
}
