//! Writing events in a service's own transaction.

use std::collections::BTreeSet;

use async_trait::async_trait;
use headwater_core::ports::{NewEvent, OutboxWriter};
use headwater_core::{Error, Kind, Result};
use sqlx::{AssertSqlSafe, MySql, Transaction};

use super::{KEY, NAME, Names, SLOTS};
use crate::mysql::errors::failed;
use crate::mysql::sql::{LONGEST, list};
use crate::outbox;

/// The most rows of one statement. Few enough texts to stay prepared, and few enough parameters.
const ROWS: usize = 64;

/// Once a statement has so many bytes it takes no further row: the server has a limit.
const BYTES: usize = 1 << 20;

/// An outbox table of a MySQL or MariaDB database.
#[derive(Debug, Clone)]
pub struct MySqlOutbox {
    names: Names,
    slot: String,
    insert: String,
}

impl MySqlOutbox {
    /// The outbox that `headwater init` made under this name: `schema.name`, or a name in the database
    /// that the transaction's connection is in.
    pub fn new(table: &str) -> Self {
        let names = Names::new(table);
        Self {
            slot: names.slot(),
            insert: format!(
                "INSERT INTO {} (`id`, `stream`, `type`, `key`, `payload`, `headers`, `version`) VALUES ",
                names.outbox()
            ),
            names,
        }
    }

    /// Takes the locks of keys, in the order of their slots: publishers never wait for each other in a ring
    /// within this. The server draws the sequences afterwards.
    async fn lock(&self, transaction: &mut Transaction<'_, MySql>, events: &[NewEvent]) -> sqlx::Result<()> {
        let slots: BTreeSet<i64> = events.iter().filter_map(|event| event.key.as_deref()).map(slot).collect();
        let slots: Vec<i64> = slots.into_iter().collect();
        // The server looks a short list up one by one; to a long one it would lock all that it walks.
        for (places, slots) in slots.chunks(LONGEST).map(list) {
            let sql = format!(
                "SELECT `slot` FROM {} FORCE INDEX (PRIMARY) WHERE `slot` IN ({places}) ORDER BY `slot` FOR UPDATE",
                self.slot
            );
            let lock = slots.fold(sqlx::query(AssertSqlSafe(sql)), |lock, slot| lock.bind(slot));
            lock.fetch_all(&mut **transaction).await?;
        }
        Ok(())
    }

    async fn insert_rows(
        &self,
        transaction: &mut Transaction<'_, MySql>,
        events: &[NewEvent],
    ) -> sqlx::Result<()> {
        let row = "(?, ?, ?, ?, ?, ?, ?)";
        let sql = format!("{}{}", self.insert, vec![row; events.len()].join(", "));
        let mut insert = sqlx::query(AssertSqlSafe(sql)).persistent(matches!(events.len(), 1 | ROWS));
        for event in events {
            insert = insert
                .bind(event.id.to_string())
                .bind(&event.stream)
                .bind(&event.kind)
                .bind(event.key.as_deref())
                .bind(event.payload.as_deref())
                .bind(outbox::headers(event))
                .bind(i32::try_from(event.version).unwrap_or(i32::MAX));
        }
        insert.execute(&mut **transaction).await.map(drop)
    }
}

#[async_trait]
impl OutboxWriter for MySqlOutbox {
    type Transaction<'t> = Transaction<'t, MySql>;

    async fn insert(&self, transaction: &mut Self::Transaction<'_>, events: &[NewEvent]) -> Result<()> {
        events.iter().try_for_each(fits)?;
        let failed = |error| failed(error, "writing events to the outbox", &self.names.plain());
        self.lock(transaction, events).await.map_err(failed)?;
        let mut rest = events;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(portion(rest));
            self.insert_rows(transaction, now).await.map_err(failed)?;
            rest = later;
        }
        Ok(())
    }
}

/// The slot of a key's lock: `CRC32(key) & mask`, as the procedure has it.
fn slot(key: &str) -> i64 {
    let crc = key.bytes().fold(u32::MAX, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 },
        )
    });
    i64::from(!crc & (SLOTS - 1))
}

/// A server that is not strict would cut off what is too long.
fn fits(event: &NewEvent) -> Result<()> {
    let parts = [("stream", &*event.stream, NAME), ("type", &*event.kind, NAME)];
    let key = event.key.as_deref().map(|key| ("key", key, KEY));
    for (what, text, most) in parts.into_iter().chain(key) {
        let has = text.chars().count();
        if has > most {
            let what = format!("the {what} of event {} has {has} characters", event.id);
            return Err(Error::new(Kind::Refused, what).hint(format!("at most {most} fit")));
        }
    }
    Ok(())
}

/// How many of the events go into the next statement: at least one.
fn portion(events: &[NewEvent]) -> usize {
    let size = |event: &NewEvent| {
        let headers: usize = event.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        event.payload.as_ref().map_or(0, String::len) + headers + event.key.as_ref().map_or(0, String::len)
    };
    let mut bytes = 0;
    let fitting = events.iter().take(ROWS).take_while(|event| {
        let first = bytes == 0;
        bytes += size(event).max(1);
        first || bytes <= BYTES
    });
    fitting.count()
}

#[cfg(test)]
mod tests {
    use headwater_core::EventId;

    use super::*;

    fn event(payload: usize) -> NewEvent {
        NewEvent {
            id: EventId::from_bytes([7; 16]),
            stream: "s".into(),
            kind: "t".into(),
            key: None,
            payload: Some("x".repeat(payload)),
            headers: Vec::new(),
            version: 1,
        }
    }

    #[test]
    fn statements_are_bounded_in_rows_and_bytes() {
        assert_eq!(portion(&vec![event(10); 100]), ROWS);
        assert_eq!(portion(&[event(BYTES / 2), event(BYTES / 2), event(1)]), 2);
        assert_eq!(portion(&[event(2 * BYTES), event(0)]), 1);
        assert_eq!(portion(&[event(0)]), 1);
    }

    #[test]
    fn slots_are_those_of_the_procedure() {
        // SELECT CRC32('123456789') & 4095, CRC32('ü') & 4095, CRC32('')
        assert_eq!((slot("123456789"), slot("ü"), slot("")), (0xcbf4_3926 & 4095, 2517, 0));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        fits(&NewEvent { key: Some("ü".repeat(KEY)), ..event(1) }).unwrap();
        let error = fits(&NewEvent { key: Some("ü".repeat(KEY + 1)), ..event(1) }).unwrap_err();
        assert!(error.to_string().contains("1025 characters"), "{error}");
        fits(&NewEvent { stream: "s".repeat(NAME + 1), ..event(1) }).unwrap_err();
    }
}
