//! What a service does with an event.

use std::future::Future;

use headwater_runtime::consume::{Failure, Handle, Received};

/// What a handler returns. Any error may be passed on with `?`: the event is tried again after a while, and
/// parked with its key when that does not help. An event that cannot be read ([`Received::json`],
/// [`Received::body`]) is parked at once, as is one that fails with [`Failure::park`].
pub type Handled = Result<(), Failure>;

/// Handles one event within a transaction `T` of the service's database.
///
/// Every `async fn(&mut T, &Received) -> Handled` is a handler. One with a state of its own is a type:
///
/// ```
/// use headwater::{Handled, Handler, Received};
/// use sqlx::{Postgres, Transaction};
///
/// struct Audit {
///     service: String,
/// }
///
/// impl Handler<Transaction<'static, Postgres>> for Audit {
///     async fn handle(&self, tx: &mut Transaction<'static, Postgres>, event: &Received) -> Handled {
///         sqlx::query("INSERT INTO audit VALUES ($1, $2)")
///             .bind(&self.service)
///             .bind(event.record.event.id.to_string())
///             .execute(&mut **tx)
///             .await?;
///         Ok(())
///     }
/// }
/// ```
///
/// The transaction is the consumer's: a handler neither commits it nor rolls it back. It may run again for the
/// same event, so whatever it does outside the transaction (a call to another service) must bear repetition.
pub trait Handler<T>: Send + Sync + 'static {
    /// Makes the event's effect.
    fn handle(&self, transaction: &mut T, event: &Received) -> impl Future<Output = Handled> + Send;
}

/// An async function of a transaction and an event.
pub trait HandlerFn<'a, T: 'a>: Fn(&'a mut T, &'a Received) -> Self::Future {
    /// What it returns.
    type Future: Future<Output = Handled> + Send + 'a;
}

impl<'a, T, F, R> HandlerFn<'a, T> for F
where
    T: 'a,
    F: Fn(&'a mut T, &'a Received) -> R,
    R: Future<Output = Handled> + Send + 'a,
{
    type Future = R;
}

impl<T, F> Handler<T> for F
where
    T: Send + 'static,
    F: for<'a> HandlerFn<'a, T> + Send + Sync + 'static,
{
    async fn handle(&self, transaction: &mut T, event: &Received) -> Handled {
        call(self, transaction, event).await
    }
}

/// One lifetime for both arguments.
fn call<'a, T: 'a, F: HandlerFn<'a, T>>(
    function: &F,
    transaction: &'a mut T,
    event: &'a Received,
) -> F::Future {
    function(transaction, event)
}

/// Hands over one event after the other.
pub(crate) struct Each<H>(pub(crate) H);

impl<T, H> Handle<T> for Each<H>
where
    T: Send + 'static,
    H: Handler<T>,
{
    type Permit = ();

    async fn admit(&self) {}

    fn again(&self) -> Option<()> {
        Some(())
    }

    async fn handle(&self, transaction: &mut T, events: &[&Received]) -> Handled {
        for (place, event) in events.iter().enumerate() {
            self.0.handle(transaction, event).await.map_err(|failure| failure.at(place))?;
        }
        Ok(())
    }
}
