//! An inbox whose transactions hold no lock while an event is handled.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use headwater_core::ports::{
    Arrival, Backlog, Due, Fate, Held, Inbox, Settlement, Shelf, ShelfCount, ShelfFilter, Shelved,
    ShelvedEvent, Taken,
};
use headwater_core::{Error, EventId, Kind, Result};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use super::SqliteInbox;
use super::budget::{self, Budget};
use super::delivery;
use super::going::{AllGoing, Going};
use super::unwritten::Unwritten;
use crate::inbox::CLEANED;
use crate::sqlx_errors::SqlxExt;
use crate::store::{micros, now};

/// A SQLite inbox for handlers that have no effect in its database and may take long, as HTTP requests do. SQLite
/// has one writer, so a transaction only remembers what is taken; [`Inbox::commit`] writes everything at once.
///
/// What it sets aside has a budget for each consumer. When that is used up, what would have to be set aside is
/// refused with an error of kind `Full` until there is room: before it is handled, if it is to be handled at all.
///
/// What is handled is not undone when it cannot be written down (a full disk, a file that another program has locked):
/// it is not handed out again then, and is written down when its time comes. So is a try of what was set aside that failed.
///
/// Nothing keeps another process from taking the same events meanwhile: one process at a time may have the file.
#[derive(Debug, Clone)]
pub struct DeferredInbox {
    inner: SqliteInbox,
    budget: Budget,
    unwritten: Arc<Unwritten>,
    going: Arc<AllGoing>,
}

/// What is taken and not yet written.
#[derive(Debug)]
pub struct Deferred {
    arrivals: Vec<Arrival>,
    going: Option<Arc<Going>>,
}

impl DeferredInbox {
    /// Opens the file and makes its tables where they are missing.
    pub async fn open(path: &Path) -> Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(30));
        let pool = SqlitePoolOptions::new().max_connections(8).connect_with(options).await;
        let doing = format!("opening {}", path.display());
        let pool = pool.sqlx(&doing)?;
        sqlx::raw_sql(super::SCRIPT).execute(&pool).await.sqlx(&doing)?;
        budget::install(&pool).await?;
        delivery::install(&pool).await?;
        Ok(Self {
            inner: SqliteInbox::new(pool),
            budget: Budget(u64::MAX),
            unwritten: Arc::default(),
            going: Arc::default(),
        })
    }

    /// How many bytes may be set aside of each consumer; without bound, if it is not said.
    #[must_use]
    pub fn budget(self, bytes: u64) -> Self {
        Self { budget: Budget(bytes), ..self }
    }
}

impl DeferredInbox {
    /// Writes down what became of events.
    async fn write(&self, deferred: &Deferred, consumer: &str, settlement: &Settlement) -> Result<()> {
        let (mut transaction, taken) = self.inner.begin(consumer, &deferred.arrivals).await?;
        let mut settlement = settlement.clone();
        // After an error a commit may have happened: what is set aside then is not set aside twice.
        let seen = deferred.arrivals.iter().zip(&taken).filter(|(_, taken)| **taken == Taken::Seen);
        for (arrival, _) in seen {
            settlement.aside.retain(|aside| aside.record.event.id != arrival.id);
        }
        // What waits behind another was asked about before; what shares its transaction has been handled by now.
        if settlement.aside.iter().any(|aside| aside.parked.is_some())
            && let Err(full) = self.budget.check(&mut transaction, consumer).await
        {
            self.inner.rollback(transaction).await?;
            return Err(full);
        }
        let aside: HashSet<EventId> = settlement.aside.iter().map(|aside| aside.record.event.id).collect();
        let handled = deferred.arrivals.iter().zip(&taken).filter(|(arrival, taken)| {
            **taken == Taken::New && arrival.attempt > 1 && !aside.contains(&arrival.id)
        });
        for (arrival, _) in handled {
            delivery::arrived(&mut transaction, consumer, arrival.id, arrival.attempt).await?;
        }
        for (sequence, _) in settlement.held.iter().filter(|(_, fate)| matches!(fate, Fate::Done)) {
            let known = delivery::held(&mut transaction, consumer, *sequence).await?;
            // It was dropped when it was on its way already.
            if let Some(going) = deferred.going.as_ref().filter(|going| !known && going.sequence == *sequence)
            {
                delivery::arrived(&mut transaction, consumer, going.id, going.attempts).await?;
            }
        }
        self.inner.commit(transaction, consumer, &settlement).await
    }
}

impl Inbox for DeferredInbox {
    type Transaction = Deferred;

    async fn cursor(&self, consumer: &str, stream: &str, partition: u32) -> Result<Option<u64>> {
        self.inner.cursor(consumer, stream, partition).await
    }

    async fn begin(&self, consumer: &str, arrivals: &[Arrival]) -> Result<(Deferred, Vec<Taken>)> {
        let mut taken = self.inner.look(consumer, arrivals).await?;
        self.going.block(consumer, arrivals, &mut taken);
        if taken.contains(&Taken::Blocked) {
            let mut connection = self.inner.pool.acquire().await.sqlx("opening an inbox")?;
            self.budget.check(&mut connection, consumer).await?;
        }
        let (mut arrivals, written) = (arrivals.to_vec(), taken.clone());
        self.unwritten.look(consumer, &mut arrivals, &mut taken);
        let new = arrivals.into_iter().zip(written).filter(|(_, written)| *written != Taken::Seen);
        Ok((Deferred { arrivals: new.map(|(arrival, _)| arrival).collect(), going: None }, taken))
    }

    async fn commit(&self, deferred: Deferred, consumer: &str, settlement: &Settlement) -> Result<()> {
        let written = self.write(&deferred, consumer, settlement).await;
        self.unwritten.ended(consumer, &deferred.arrivals, settlement, written.is_ok());
        written.map_err(blameless)
    }

    async fn rollback(&self, _: Deferred) -> Result<()> {
        Ok(())
    }

    async fn clean(&self, consumer: &str, retention: Duration) -> Result<u64> {
        let cleaned = self.inner.clean(consumer, retention).await?;
        let before = now().saturating_sub(micros(retention));
        Ok(cleaned + delivery::clean(&self.inner.pool, consumer, before, CLEANED).await?)
    }
}

/// No handler has written into the file, so that no event is to blame for what cannot be written, however SQLite puts it:
/// it is tried again until it can be.
fn blameless(error: Error) -> Error {
    match error.kind() {
        Kind::Full | Kind::Busy => error,
        _ => Error::new(Kind::Busy, "writing down what became of events").because(error),
    }
}

impl Backlog for DeferredInbox {
    async fn due(&self, consumer: &str, limit: usize) -> Result<Vec<Due>> {
        self.inner.due(consumer, limit).await
    }

    async fn head(&self, consumer: &str, due: &Due) -> Result<Option<(Deferred, Held)>> {
        while let Some((mut transaction, held)) = self.inner.head(consumer, due).await? {
            let Some(fate) = self.unwritten.fate(held.sequence) else {
                // Before it can be dropped.
                let going = Some(self.going.begin(consumer, due, &held));
                self.inner.rollback(transaction).await?;
                return Ok(Some((Deferred { arrivals: Vec::new(), going }, held)));
            };
            if matches!(fate, Fate::Done) {
                delivery::held(&mut transaction, consumer, held.sequence).await?;
            }
            let settlement = Settlement { held: vec![(held.sequence, fate)], ..Settlement::default() };
            self.inner.commit(transaction, consumer, &settlement).await?;
            self.unwritten.ended(consumer, &[], &settlement, true);
        }
        Ok(None)
    }
}

#[async_trait]
impl Shelf for DeferredInbox {
    async fn list(&self, filter: &ShelfFilter) -> Result<Vec<Shelved>> {
        self.inner.list(filter).await
    }

    async fn count(&self, owner: &str) -> Result<ShelfCount> {
        self.inner.count(owner).await
    }

    async fn show(&self, filter: &ShelfFilter) -> Result<Vec<ShelvedEvent>> {
        self.inner.show(filter).await
    }

    async fn retry(&self, filter: &ShelfFilter) -> Result<u64> {
        self.inner.retry(filter).await
    }

    async fn drop(&self, filter: &ShelfFilter) -> Result<u64> {
        Shelf::drop(&self.inner, filter).await
    }
}
