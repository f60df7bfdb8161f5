//! Taking an outbox away while services are at work.

use std::future::Future;
use std::time::Duration;

use headwater_core::Result;

use super::Factory;
use super::tools::event;

/// Longer than a removal waits for anybody.
const PATIENCE: Duration = Duration::from_secs(30);

/// Nobody is held up while it is counted: a refusal takes no lock.
pub async fn who_is_refused_takes_no_lock<F: Factory>(
    factory: &F,
    remove: impl Future<Output = Result<bool>>,
) {
    let mut published = factory.begin().await;
    factory.insert_plainly(&mut published, &event("k", 1)).await;
    factory.commit(published).await;
    let mut publishing = factory.begin().await;
    factory.insert_plainly(&mut publishing, &event("k", 2)).await;
    let refused = tokio::time::timeout(PATIENCE, remove).await.expect("it waits for nobody").unwrap_err();
    assert!(refused.to_string().contains("1 events"), "{refused}");
    factory.commit(publishing).await;
}

/// As a backup does: who reads the outbox in a long transaction is waited for, but for seconds only, as all who publish
/// wait.
pub async fn who_reads_for_long_is_not_waited_for<F: Factory>(
    factory: &F,
    remove: impl AsyncFn() -> Result<bool>,
) {
    let mut reading = factory.begin().await;
    factory.seen(&mut reading, "k").await;
    let refused = tokio::time::timeout(PATIENCE, remove()).await.expect("it gives up").unwrap_err();
    assert!(refused.hint_text().unwrap().contains("try again"), "{refused}");
    let mut publishing = factory.begin().await;
    factory.insert_plainly(&mut publishing, &event("k", 1)).await;
    factory.commit(publishing).await;
    factory.commit(reading).await;
    assert!(remove().await.unwrap());
}
