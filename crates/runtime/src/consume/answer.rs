//! An inbox whose database has to answer in time.

use std::future::Future;
use std::time::Duration;

use headwater_core::ports::{Arrival, Backlog, Due, Held, Inbox, Settlement, Taken};
use headwater_core::{Error, Kind, Result};

/// How much longer than a handler the database may take for an answer. Longer than it takes to give up a statement.
const PATIENCE: Duration = Duration::from_secs(15);

/// Where handlers are bounded, so is the wait for the database, which may be gone without a word: what it does not
/// answer counts as an outage. Whether it has done what it was asked for shows when the events are taken again.
#[derive(Debug)]
pub(super) struct Answering<I> {
    inbox: I,
    bound: Option<Duration>,
}

impl<I: Inbox> Answering<I> {
    pub(super) fn new(inbox: I, handler: Option<Duration>) -> Self {
        let inbox = match handler {
            Some(handler) => inbox.bounded(handler),
            None => inbox,
        };
        Self { inbox, bound: handler.map(|handler| handler.saturating_add(PATIENCE)) }
    }

    async fn answer<T>(&self, asked: impl Future<Output = Result<T>> + Send) -> Result<T> {
        let Some(bound) = self.bound else { return asked.await };
        tokio::time::timeout(bound, asked).await.unwrap_or_else(|_| {
            let doing = format!("the inbox's database has not answered for {bound:?}");
            Err(Error::new(Kind::Unavailable, doing))
        })
    }
}

impl<I: Inbox> Inbox for Answering<I> {
    type Transaction = I::Transaction;

    async fn cursor(&self, consumer: &str, stream: &str, partition: u32) -> Result<Option<u64>> {
        self.answer(self.inbox.cursor(consumer, stream, partition)).await
    }

    async fn begin(&self, consumer: &str, arrivals: &[Arrival]) -> Result<(I::Transaction, Vec<Taken>)> {
        self.answer(self.inbox.begin(consumer, arrivals)).await
    }

    async fn commit(
        &self,
        transaction: I::Transaction,
        consumer: &str,
        settlement: &Settlement,
    ) -> Result<()> {
        self.answer(self.inbox.commit(transaction, consumer, settlement)).await
    }

    async fn rollback(&self, transaction: I::Transaction) -> Result<()> {
        self.answer(self.inbox.rollback(transaction)).await
    }

    async fn clean(&self, consumer: &str, retention: Duration) -> Result<u64> {
        self.answer(self.inbox.clean(consumer, retention)).await
    }
}

impl<I: Backlog> Backlog for Answering<I> {
    async fn due(&self, consumer: &str, limit: usize) -> Result<Vec<Due>> {
        self.answer(self.inbox.due(consumer, limit)).await
    }

    async fn head(&self, consumer: &str, due: &Due) -> Result<Option<(I::Transaction, Held)>> {
        self.answer(self.inbox.head(consumer, due)).await
    }
}
