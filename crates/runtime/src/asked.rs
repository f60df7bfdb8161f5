//! Questions that cost their server something: asked once at a time, and not again within a moment.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use headwater_core::{Error, Kind, Result};
use tokio::time::Instant;

/// How long an answer is good.
const FRESH: Duration = Duration::from_secs(1);

/// How long whoever asks waits for it. The question goes on, and the next who asks waits for the same.
const PATIENCE: Duration = Duration::from_secs(2);

/// The answer to one question, or why there is none.
pub struct Asked<T>(Mutex<Option<Answer<T>>>);

struct Answer<T> {
    since: Instant,
    answer: Shared<BoxFuture<'static, Result<T, String>>>,
}

impl<T> Default for Asked<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: Clone + Send + Sync + 'static> Asked<T> {
    /// The answer: the one that is awaited already, one of just now, or what `question` says.
    pub async fn ask(&self, question: impl Future<Output = Result<T>> + Send + 'static) -> Result<T, String> {
        let answer = self.latest(question);
        tokio::time::timeout(PATIENCE, answer)
            .await
            .unwrap_or_else(|_| Err("it did not answer within two seconds".to_owned()))
    }

    fn latest(
        &self,
        question: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Shared<BoxFuture<'static, Result<T, String>>> {
        let mut latest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*latest
            && (known.answer.peek().is_none() || known.since.elapsed() < FRESH)
        {
            return known.answer.clone();
        }
        // On a task of its own: what a blocking thread does cannot be given up anyway.
        let asking = tokio::spawn(question);
        let ended = |error| Err(Error::new(Kind::Internal, "asking").because(error));
        let answer = async move { asking.await.unwrap_or_else(ended).map_err(|error| error.to_string()) };
        let answer = answer.boxed().shared();
        *latest = Some(Answer { since: Instant::now(), answer: answer.clone() });
        answer
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_question_is_asked_once_at_a_time_and_again_when_its_answer_is_old() {
        let (asked, times, go) = (Asked::default(), Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
        let question = || {
            let (times, go) = (Arc::clone(&times), Arc::clone(&go));
            async move {
                let time = times.fetch_add(1, Ordering::Relaxed) + 1;
                go.notified().await;
                Ok(time)
            }
        };
        let (first, second) = tokio::join!(asked.ask(question()), asked.ask(question()));
        assert!(first.is_err() && second.is_err(), "nobody waits for ever");
        assert!(asked.ask(question()).await.is_err());
        assert_eq!(times.load(Ordering::Relaxed), 1, "it is being asked still");
        go.notify_one();
        assert_eq!(asked.ask(question()).await, Ok(1));
        go.notify_one();
        assert_eq!(asked.ask(question()).await, Ok(2), "the first answer was old");
        assert_eq!(asked.ask(question()).await, Ok(2));
        tokio::time::advance(FRESH).await;
        go.notify_one();
        assert_eq!(asked.ask(question()).await, Ok(3));
    }
}
