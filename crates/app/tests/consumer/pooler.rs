//! Behind a pooler of connections.

use std::time::Duration;

use headwater::connect::postgres::inbox::PostgresInbox;
use headwater::connect::postgres::outbox::{PostgresOutbox, install};
use headwater::connect::postgres::url::ConnectOptions;
use headwater::{Event, Outbox};
use headwater_testkit::servers::{PgBouncer, Postgres};

use super::common::{Record, Service, builder, pool};

#[tokio::test(flavor = "multi_thread")]
async fn a_service_publishes_and_consumes_behind_a_pooler() {
    let mut service = Service::new().await;
    // An old one knows nothing of what sqlx prepares.
    let mode = if PgBouncer::knows_prepared_statements().unwrap() { "transaction" } else { "session" };
    let pooler =
        PgBouncer::start(Postgres::shared().await.unwrap(), mode, "extra_float_digits").await.unwrap();
    let pool = pool(&pooler.url(&service.database), 20).await;
    install(&ConnectOptions::parse(service.database.url()).unwrap(), "public.outbox").await.unwrap();
    let outbox = Outbox::new(PostgresOutbox::new("public.outbox"));
    let publishing = (0..20).map(|task| {
        let (pool, outbox) = (pool.clone(), outbox.clone());
        tokio::spawn(async move {
            for n in 0..20 {
                let mut tx = pool.begin().await.unwrap();
                let event = |key: i64| Event::new("orders", "Placed").key(key).payload(&n);
                outbox.publish(&mut tx, event(task)).await.unwrap();
                outbox.publish_all(&mut tx, [event(100), event(task)]).await.unwrap();
                tx.commit().await.unwrap();
            }
        })
    });
    for task in publishing.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert_eq!(service.count("SELECT count(*) FROM outbox").await, 1200);
    let unordered = "SELECT count(*) FROM (SELECT (payload::text)::int < lag((payload::text)::int) OVER \
         (PARTITION BY key ORDER BY seq) AS back FROM outbox WHERE key <> '100') AS rows WHERE back";
    assert_eq!(service.count(unordered).await, 0);

    let keys: Vec<String> = (0..50).map(|key| format!("key-{key}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    service.publish(&keys, 20).await;
    let consumer = builder(service.bus.clone(), &service.stream, PostgresInbox::new(pool));
    let running = service.run(consumer.handler_timeout(Duration::from_secs(30)), Record::default());
    service.publish(&keys, 20).await;
    service.check().await;
    running.stop().await.unwrap();
}
