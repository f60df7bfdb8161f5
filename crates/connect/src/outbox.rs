//! What the outbox tables of all databases have in common: Headwater's own layout.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use headwater_core::ports::{LANES, Lane, NewEvent, Settled, Shelved, ShelvedEvent};
use headwater_core::{
    CellKind, Column, ColumnType, Error, Event, EventId, Identity, Kind, Micros, Position, Record, Result,
    Row, RowBuilder, Table,
};

use crate::sqlx_errors::shelf_state;

/// How an outbox is kept that is read from the log.
#[derive(Debug, Clone, Copy)]
pub struct Keep {
    /// How long its lanes stay with a process that is not heard of.
    pub lease: Duration,
    /// How long settled rows stay.
    pub retention: Duration,
}

impl Default for Keep {
    fn default() -> Self {
        Self { lease: Duration::from_secs(10), retention: Duration::from_hours(7 * 24) }
    }
}

/// The longest name of an outbox, in bytes. PostgreSQL cuts a name at 63 and MySQL refuses one above 64, and tables and
/// indexes that belong to it are called by its name and a word.
const LONGEST_NAME: usize = 48;

/// An error of kind `Config` where an outbox cannot have this name, before which its schema may stand.
pub(crate) fn check_name(table: &str) -> Result<()> {
    let name = table.split_once('.').map_or(table, |(_, name)| name);
    if name.len() <= LONGEST_NAME {
        return Ok(());
    }
    Err(Error::new(Kind::Config, format!("the name of the outbox {table} is too long")).hint(format!(
        "choose one of at most {LONGEST_NAME} bytes: what belongs to the outbox is called by it"
    )))
}

/// Why an outbox is not taken away: so many of its events are not published; `None`: some, that came while it was to go.
pub(crate) fn unpublished(outbox: &str, waiting: Option<u64>) -> Error {
    let what = match waiting {
        Some(waiting) => format!("{waiting} events of {outbox} are not published yet"),
        None => format!("events of {outbox} that were written just now are not published yet"),
    };
    Error::new(Kind::Refused, what).hint("let a relay publish them, or give --force to lose them")
}

/// Asks by the small indexes whether an outbox has anything that is not published.
pub(crate) fn any_left(outbox: &str) -> String {
    let of = |states: &str| format!("EXISTS (SELECT 1 FROM {outbox} WHERE state {states})");
    format!("SELECT {} OR {} OR {}", of("= 'new'"), of("= 'waiting'"), of("IN ('retrying', 'parked')"))
}

/// For so many seconds the removal of an outbox waits for those who hold its table: whoever publishes waits behind it.
pub(crate) const DROP_PATIENCE: u32 = 5;

/// Why an outbox is not taken away that somebody holds for longer.
pub(crate) fn held(outbox: &str, error: Error) -> Error {
    let what = format!("a transaction has held {outbox} for longer than {DROP_PATIENCE} seconds");
    Error::new(Kind::Busy, what)
        .because(error)
        .hint("nothing is changed: try again when long transactions are over, a backup's too")
}

/// What a claimed row says, in the order of the columns of [`table`]: bytes, as not every database sees to it that texts
/// are.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// The event's id, as text.
    pub id: &'a str,
    /// The stream.
    pub stream: &'a [u8],
    /// The type.
    pub kind: &'a [u8],
    /// The key.
    pub key: Option<&'a [u8]>,
    /// JSON.
    pub payload: Option<&'a [u8]>,
    /// A JSON object.
    pub headers: Option<&'a [u8]>,
    /// The version of the schema.
    pub version: i64,
    /// When it was written.
    pub created_at: Micros,
}

/// A row that is set aside, as its columns say it.
pub struct SetAside {
    pub sequence: i64,
    pub id: EventId,
    pub stream: String,
    pub kind: String,
    pub key: Option<String>,
    pub payload: Option<String>,
    /// The word for how it stands.
    pub state: String,
    pub attempts: u32,
    pub error: Option<String>,
    /// When it was written.
    pub since: Micros,
}

impl SetAside {
    /// The event, of the source `owner`.
    pub fn event(self, owner: &str) -> sqlx::Result<ShelvedEvent> {
        let event = Event {
            id: self.id,
            stream: self.stream.into(),
            partition: None,
            kind: self.kind.into(),
            key: self.key.clone().map(Into::into),
            payload: self.payload.map(Into::into),
            headers: Default::default(),
            time: self.since,
            position: Position::ZERO,
        };
        Ok(ShelvedEvent {
            owner: owner.to_owned(),
            key: self.key.map(Into::into),
            state: shelf_state(&self.state)?,
            attempts: self.attempts,
            error: self.error,
            since: self.since,
            record: Record { offset: self.sequence.unsigned_abs(), event },
        })
    }

    /// The line of the first row of its key, with so many behind it.
    pub fn line(self, owner: &str, behind: i64) -> sqlx::Result<Shelved> {
        Ok(Shelved {
            owner: owner.to_owned(),
            stream: self.stream.into(),
            key: self.key.map(Into::into),
            id: self.id,
            state: shelf_state(&self.state)?,
            attempts: self.attempts,
            error: self.error,
            since: self.since,
            waiting: behind.unsigned_abs(),
        })
    }
}

/// Under which epoch each lane is settled: what a relay had of an earlier one is another's.
pub fn epochs(settled: &[Settled]) -> BTreeMap<Lane, u64> {
    let mut epochs = BTreeMap::new();
    for one in settled {
        let epoch = epochs.entry(one.lane).or_default();
        *epoch = one.epoch.max(*epoch);
    }
    epochs
}

/// How many lanes a relay may hold now, given how many each live relay holds: no relay goes without while
/// another has more than its share, and nobody gives away more than is wanted.
pub fn share(relay: &str, held: &BTreeMap<String, u64>) -> u64 {
    share_of(LANES, relay, held)
}

/// The same, of so many lanes.
pub fn share_of(lanes: Lane, relay: &str, held: &BTreeMap<String, u64>) -> u64 {
    let lanes = u64::from(lanes);
    let relays = (held.len() as u64).max(1);
    let (least, most) = (lanes / relays, lanes.div_ceil(relays));
    let wanted: u64 = held.values().map(|held| least.saturating_sub(*held)).sum();
    let free = lanes.saturating_sub(held.values().sum());
    let mine = held.get(relay).copied().unwrap_or(0);
    if mine <= least {
        // What is free goes first to those who have less than the least.
        return if wanted > 0 { least } else { most };
    }
    let rich = held.iter().filter(|(_, held)| **held > least);
    let place = rich.map(|(name, _)| name.as_str()).position(|name| name == relay).unwrap_or(0) as u64;
    if mine <= most && place < wanted.saturating_sub(free) { least } else { most }
}

/// All places but these, as ranges that include both ends: what waits there waits behind nothing.
pub fn gaps(heads: &BTreeSet<i64>) -> Vec<(i64, i64)> {
    let mut gaps = Vec::with_capacity(heads.len() + 1);
    let mut from = Some(i64::MIN);
    for head in heads {
        gaps.extend(from.filter(|from| from < head).map(|from| (from, head - 1)));
        from = head.checked_add(1);
    }
    gaps.extend(from.map(|from| (from, i64::MAX)));
    gaps
}

/// The headers of an event as a JSON object, in their order; `None` where there are none.
pub fn headers(event: &NewEvent) -> Option<String> {
    let text = |text: &str| serde_json::Value::from(text).to_string();
    let member = |(name, value): &(String, String)| format!("{}:{}", text(name), text(value));
    let members: Vec<String> = event.headers.iter().map(member).collect();
    (!members.is_empty()).then(|| format!("{{{}}}", members.join(",")))
}

/// The columns of an outbox that events are made of.
pub fn table(schema: &str, name: &str) -> Arc<Table> {
    let column = |name: &str, ty| Column { name: name.to_owned(), ty, key: name == "id" };
    let columns = vec![
        column("id", ColumnType::Uuid),
        column("stream", ColumnType::Text),
        column("type", ColumnType::Text),
        column("key", ColumnType::Text),
        column("payload", ColumnType::Json),
        column("headers", ColumnType::Json),
        column("version", ColumnType::Int32),
        column("created_at", ColumnType::TimestampTz(None)),
    ];
    Arc::new(Table { schema: schema.to_owned(), name: name.to_owned(), columns, identity: Identity::Key })
}

impl Parts<'_> {
    /// The row of [`table`].
    pub fn row(&self) -> Row {
        let mut row = RowBuilder::with_capacity(8);
        let version = self.version.to_string();
        let created_at = instant(self.created_at);
        let texts = [
            Some(self.id.as_bytes()),
            Some(self.stream),
            Some(self.kind),
            self.key,
            self.payload,
            self.headers,
            Some(version.as_bytes()),
            created_at.as_deref().map(str::as_bytes),
        ];
        for text in texts {
            match text {
                Some(text) => row.push(CellKind::Text, text),
                None => row.push(CellKind::Null, b""),
            }
        }
        row.build()
    }
}

/// The canonical text of an instant; `None` where no calendar has it.
fn instant(micros: Micros) -> Option<String> {
    let time = jiff::Timestamp::from_microsecond(micros).ok()?;
    Some(time.strftime("%Y-%m-%d %H:%M:%S%.6f+00").to_string())
}

#[cfg(test)]
mod tests {
    use headwater_wire::format::{OutboxColumns, Payload};

    use super::*;

    /// Relays come one after the other, then go: each time all ask in turn until nothing moves.
    #[test]
    fn shares_are_fair_and_come_to_rest() {
        let mut held: BTreeMap<String, u64> = BTreeMap::new();
        let settle = |held: &mut BTreeMap<String, u64>| {
            for round in 0.. {
                let before = held.clone();
                for relay in before.keys() {
                    let free = u64::from(LANES) - held.values().sum::<u64>();
                    let (mine, share) = (held[relay], share(relay, held));
                    held.insert(relay.clone(), share.min(mine + free));
                }
                if *held == before {
                    break;
                }
                assert!(round < 20, "it does not come to rest: {held:?}");
            }
            let (least, most) = (held.values().min().unwrap(), held.values().max().unwrap());
            assert!(most - least <= 1, "{held:?}");
            assert_eq!(held.values().sum::<u64>(), u64::from(LANES), "{held:?}");
        };
        for n in 0..12 {
            held.insert(format!("relay-{n}"), 0);
            settle(&mut held);
        }
        for n in [3, 0, 11, 7, 5, 1, 2, 10] {
            held.remove(&format!("relay-{n}"));
            settle(&mut held);
        }
    }

    #[test]
    fn gaps_are_all_but_what_is_between_them() {
        let gaps = |heads: &[i64]| super::gaps(&heads.iter().copied().collect());
        assert_eq!(gaps(&[]), [(i64::MIN, i64::MAX)]);
        assert_eq!(gaps(&[7, -2, 8]), [(i64::MIN, -3), (-1, 6), (9, i64::MAX)]);
        assert_eq!(gaps(&[i64::MIN, i64::MAX]), [(i64::MIN + 1, i64::MAX - 1)]);
    }

    #[test]
    fn a_row_is_read_as_it_was_written() {
        let parts = Parts {
            id: "018f85d0-c334-7123-8567-89abcdef0123",
            stream: b"orders",
            kind: b"Placed",
            key: Some(b"42"),
            payload: Some(b"{\"a\": 1.50}"),
            headers: Some(b"{\"traceparent\":\"00-1\"}"),
            version: 2,
            created_at: 1_715_940_000_500_001,
        };
        let row = parts.row();
        let table = table("public", "outbox");
        let reader = OutboxColumns::default().reader(&table).unwrap();
        let read = reader.read(&row).unwrap();
        assert_eq!((&*read.id, &*read.aggregate_type, &*read.kind), (parts.id, "orders", "Placed"));
        assert_eq!((read.aggregate_id.as_deref(), read.version), (Some("42"), Some(2)));
        assert_eq!(read.payload, Some(Payload::Json("{\"a\": 1.50}".into())));
        assert_eq!(read.headers, [("traceparent".to_owned(), Some("00-1".to_owned()))]);
        assert_eq!(read.timestamp, Some(parts.created_at));
    }
}
