//! Tables that get another name, and names that get another table, while they are captured.

use headwater_core::Kind;
use headwater_core::ports::Connector;

use crate::capture::Capture;
use crate::support::Place;

const TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE SCHEMA attic";

#[tokio::test]
async fn a_renamed_table_goes_on_under_its_name_until_the_config_is_mended_and_nothing_is_lost() {
    let mut place = Place::new(TABLES, &["t"]).await;
    let mut capture = place.capture().await;
    capture.until(|state| state.snapshots.contains_key("public.t")).await;
    place
        .each("INSERT INTO t VALUES (1, 'a'); ALTER TABLE t RENAME TO u; INSERT INTO u VALUES (2, 'b')")
        .await;
    place.each("ALTER TABLE u SET SCHEMA attic; UPDATE attic.u SET v = 'c' WHERE id = 1").await;
    assert_eq!(capture.take(3).await, ["create t (1, a)", "create t (2, b)", "update t (1, c)"]);
    capture.source = None;
    place.wait_for("the slot to be free", async |place| !place.is_active().await).await;
    place.each("DELETE FROM attic.u WHERE id = 1").await;
    let error = capture.open().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Refused);
    assert!(error.to_string().contains("table public.t is called attic.u now"), "{error}");
    assert!(error.hint_text().unwrap().contains("write \"attic.u\" in `tables`"), "{error}");
    let findings = capture.connector.check().await.unwrap().findings;
    assert!(
        findings.iter().any(|finding| finding.message.contains("public.t does not exist")),
        "{findings:?}"
    );
    place.config.tables = vec!["attic.u".to_owned()];
    capture.reopen_as(&place).await.unwrap();
    assert_eq!(capture.take(2).await, ["delete u (1, absent)", "read u (2, b)"]);
    place.each("INSERT INTO attic.u VALUES (3, 'd')").await;
    assert_eq!(capture.take(1).await, ["create u (3, d)"]);
}

#[tokio::test]
async fn what_the_log_says_under_an_earlier_name_is_of_the_table_as_it_is_called_now() {
    let mut place = Place::new(TABLES, &["t"]).await;
    let mut capture = place.capture().await;
    capture.until(|state| state.snapshots.contains_key("public.t")).await;
    capture.source = None;
    place.wait_for("the slot to be free", async |place| !place.is_active().await).await;
    place.each("INSERT INTO t VALUES (1, 'a'); DELETE FROM t; ALTER TABLE t RENAME TO u").await;
    place.config.tables = vec!["u".to_owned()];
    capture.reopen_as(&place).await.unwrap();
    assert_eq!(capture.take(2).await, ["create u (1, a)", "delete u (1, absent)"]);
}

/// Gives the name of `t` to the table `next`, which is noticed, and opens the source again.
async fn next_takes_the_name(place: &Place, capture: &mut Capture) {
    // What comes again after the next opening would come under the name that its table has then.
    let end = place.end().await;
    capture.until(|state| state.confirmed >= end).await;
    place
        .each("ALTER TABLE t RENAME TO t_old; ALTER TABLE next RENAME TO t; INSERT INTO t VALUES (6, 'f')")
        .await;
    let error = capture.failure().await;
    assert!(error.is_retryable(), "{error}");
    assert!(error.to_string().contains("public.t is another table"), "{error}");
    capture.open().await.unwrap();
}

#[tokio::test]
async fn a_new_table_under_the_name_is_noticed_also_when_nobody_publishes_it() {
    let mut place = Place::new(TABLES, &["t"]).await;
    place.config.heartbeat = Some(std::time::Duration::from_secs(1));
    let mut capture = place.capture().await;
    place.each("INSERT INTO t VALUES (1, 'a'); CREATE TABLE next (id int PRIMARY KEY, v text)").await;
    assert_eq!(capture.take(1).await, ["create t (1, a)"]);
    next_takes_the_name(&place, &mut capture).await;
    assert_eq!(capture.take(1).await, ["read t (6, f)"]);
}

#[tokio::test]
async fn a_new_table_under_the_name_is_not_mixed_in_but_read_when_the_source_opens_again() {
    let sql = format!("{TABLES}; CREATE PUBLICATION every FOR ALL TABLES");
    let mut place = Place::new(&sql, &["t"]).await;
    place.config.publication = Some("every".to_owned());
    let mut capture = place.capture().await;
    place
        .each(
            "INSERT INTO t VALUES (1, 'a'); CREATE TABLE next (id int PRIMARY KEY, v text);
             INSERT INTO next VALUES (5, 'e')",
        )
        .await;
    assert_eq!(capture.take(1).await, ["create t (1, a)"]);
    next_takes_the_name(&place, &mut capture).await;
    let changes = capture.take(3).await;
    assert_eq!(changes, ["create t (6, f)", "read t (5, e)", "read t (6, f)"]);
    place.each("INSERT INTO t_old VALUES (2, 'old'); INSERT INTO t VALUES (7, 'g')").await;
    assert_eq!(capture.take(1).await, ["create t (7, g)"]);
}
