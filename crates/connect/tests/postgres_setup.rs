//! Getting a PostgreSQL database ready: what is made, what is refused, and what the hints say.
#![allow(clippy::unwrap_used)]

mod support;

use headwater_connect::postgres::{Names, PostgresConfig, PostgresConnector};
use headwater_connect::settings::{Outbox, SnapshotMode};
use headwater_core::Kind;
use headwater_core::ports::{Connector, Severity};
use support::Place;

#[tokio::test]
async fn tables_without_identity_are_published_for_inserts_only() {
    let place = Place::new(
        "CREATE TABLE keyed (id int PRIMARY KEY); CREATE TABLE bare (a int); INSERT INTO bare VALUES (1)",
        &["public.*"],
    )
    .await;
    let ready = place.prepare(None).await.unwrap();
    let Names { publication, inserts, .. } = &place.names;
    assert_eq!(ready.publications, [publication.clone(), inserts.clone()]);
    assert_eq!(place.published().await, [format!("{publication} keyed"), format!("{inserts} bare")]);
    let whole: Vec<_> =
        ready.tables.iter().map(|table| (table.full_name(), table.inserts_only.is_none())).collect();
    assert_eq!(whole, [("public.bare".to_owned(), false), ("public.keyed".to_owned(), true)]);
    // What it is for: the owner's work goes on.
    place.database.execute("UPDATE bare SET a = 2; DELETE FROM bare").await.unwrap();
}

#[tokio::test]
async fn publishing_never_makes_the_owners_work_fail() {
    let zoo = "
        CREATE TABLE keyed (id int PRIMARY KEY, v int);
        CREATE TABLE bare (id int, v int);
        CREATE TABLE whole (id int, v int); ALTER TABLE whole REPLICA IDENTITY FULL;
        CREATE TABLE nothing (id int PRIMARY KEY, v int); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
        CREATE TABLE later (id int PRIMARY KEY DEFERRABLE, v int);
        CREATE TABLE indexed (id int NOT NULL UNIQUE, v int);
        ALTER TABLE indexed REPLICA IDENTITY USING INDEX indexed_id_key;
        CREATE TABLE unindexed (id int NOT NULL UNIQUE, v int);
        ALTER TABLE unindexed REPLICA IDENTITY USING INDEX unindexed_id_key;
        ALTER TABLE unindexed DROP CONSTRAINT unindexed_id_key;
        CREATE TABLE split (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
        CREATE TABLE split_1 PARTITION OF split FOR VALUES FROM (0) TO (10);
        CREATE TABLE split_bare (id int, v int) PARTITION BY RANGE (id);
        CREATE TABLE split_bare_1 PARTITION OF split_bare FOR VALUES FROM (0) TO (10);
        CREATE TABLE split_odd (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
        CREATE TABLE split_odd_1 PARTITION OF split_odd FOR VALUES FROM (0) TO (10);
        ALTER TABLE split_odd_1 REPLICA IDENTITY NOTHING;
        CREATE TABLE split_mixed (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
        CREATE TABLE split_mixed_1 PARTITION OF split_mixed FOR VALUES FROM (0) TO (10);
        ALTER TABLE split_mixed REPLICA IDENTITY FULL;
        CREATE TABLE parent (id int PRIMARY KEY, v int);
        CREATE TABLE child () INHERITS (parent);";
    let place = Place::new(zoo, &["public.*"]).await;
    let ready = place.prepare(None).await.unwrap();
    let whole =
        ready.tables.iter().filter(|table| table.inserts_only.is_none()).map(|table| table.name.as_str());
    assert_eq!(whole.collect::<Vec<_>>(), ["indexed", "keyed", "parent", "split", "whole"]);
    assert_eq!(ready.tables.len(), 13, "partitions are not tables of their own: {:#?}", ready.tables);
    // A partition that comes later.
    place
        .database
        .execute("CREATE TABLE split_2 PARTITION OF split FOR VALUES FROM (10) TO (20)")
        .await
        .unwrap();
    for table in &ready.tables {
        let name = table.sql_name();
        let work = format!(
            "INSERT INTO {name} VALUES (1, 1); UPDATE {name} SET v = 2; DELETE FROM {name}; TRUNCATE {name}"
        );
        place.database.execute(&work).await.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    place.database.execute("INSERT INTO split VALUES (11, 1); UPDATE split SET v = 2").await.unwrap();
    // The zoo bites: had they been published whole, the owner could not have worked.
    for table in
        ready.tables.iter().filter(|table| table.inserts_only.is_some() && table.name != "split_mixed")
    {
        let name = table.sql_name();
        let bite = format!(
            "CREATE PUBLICATION bite FOR TABLE {name}; INSERT INTO {name} VALUES (1, 1); UPDATE {name} SET v = 3"
        );
        assert!(place.database.execute(&bite).await.is_err(), "{name} could have been published whole");
        place.database.execute("DROP PUBLICATION IF EXISTS bite").await.unwrap();
    }
}

#[tokio::test]
async fn the_outbox_is_published_for_inserts_only() {
    let tables = "CREATE TABLE orders (id int PRIMARY KEY); CREATE TABLE outbox (id uuid PRIMARY KEY)";
    let mut place = Place::new(tables, &["public.*"]).await;
    place.config.outbox = Some(Outbox::new("outbox"));
    let Names { publication, inserts, .. } = place.names.clone();
    let ready = place.prepare(None).await.unwrap();
    assert_eq!(place.published().await, [format!("{publication} orders"), format!("{inserts} outbox")]);
    let flags: Vec<_> =
        ready.tables.iter().map(|table| (table.name.as_str(), table.outbox, table.changes)).collect();
    assert_eq!(flags, [("orders", false, true), ("outbox", true, false)]);
    // By its own name it is captured as well.
    place.config.tables = vec!["public.outbox".into()];
    let ready = place.prepare(None).await.unwrap();
    assert_eq!(place.published().await, [format!("{publication} outbox")]);
    assert!(ready.tables[0].outbox && ready.tables[0].changes);
}

#[tokio::test]
async fn publications_follow_the_config_and_the_tables() {
    let tables = "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int); CREATE TABLE \"C d\" (id int PRIMARY KEY)";
    let mut place = Place::new(tables, &["public.a", "public.b"]).await;
    let Names { publication, inserts, .. } = place.names.clone();
    place.prepare(None).await.unwrap();
    place.config.tables = vec!["b".into(), "public.C d".into()];
    place.database.execute("ALTER TABLE b ADD PRIMARY KEY (id)").await.unwrap();
    place.prepare(None).await.unwrap();
    assert_eq!(place.published().await, [format!("{publication} C d"), format!("{publication} b")]);
    place.database.execute("ALTER TABLE b REPLICA IDENTITY NOTHING").await.unwrap();
    place
        .database
        .execute(&format!("ALTER PUBLICATION {publication} SET (publish = 'insert')"))
        .await
        .unwrap();
    place.prepare(None).await.unwrap();
    assert_eq!(place.published().await, [format!("{publication} C d"), format!("{inserts} b")]);
    let options = "SELECT pubname || ' ' || pubupdate || ' ' || pubviaroot FROM pg_publication ORDER BY 1";
    assert_eq!(
        place.query(options).await,
        [format!("{publication} true true"), format!("{inserts} false true")]
    );
    let stamps = "SELECT string_agg(xmin::text, ' ') FROM pg_publication";
    let before = place.query(stamps).await;
    place.prepare(None).await.unwrap();
    assert_eq!(place.query(stamps).await, before, "nothing to change, nothing changed");
}

#[tokio::test]
async fn what_we_may_not_do_is_in_the_hint_as_sql_that_works() {
    let mut place =
        Place::new("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int)", &["a", "b"]).await;
    place.config.snapshot = SnapshotMode::Never;
    let place = place.user(true).await;
    let error = place.error().await;
    assert_eq!(error.kind(), Kind::Refused, "{error}");
    let (lead, sql) = error.hint_text().unwrap().split_once('\n').unwrap();
    assert!(lead.contains("as an owner of the tables"), "{lead}");
    place.database.execute(sql).await.unwrap();
    let ready = place.prepare(None).await.unwrap();
    assert_eq!(ready.publications, [place.names.publication.clone(), place.names.inserts.clone()]);
    // The owner's publication no longer fits: again the SQL is in the hint.
    place.database.execute("ALTER TABLE b ADD PRIMARY KEY (id)").await.unwrap();
    let error = place.error().await;
    let (_, sql) = error.hint_text().unwrap().split_once('\n').unwrap();
    assert!(sql.contains("ADD TABLE ONLY \"public\".\"b\""), "{sql}");
    place.database.execute(sql).await.unwrap();
    place.prepare(None).await.unwrap();
}

/// As a standby does, and a server that somebody has set to read only.
#[tokio::test]
async fn what_a_server_that_takes_no_changes_lacks_is_in_the_hint_too() {
    let place = Place::new("CREATE TABLE a (id int PRIMARY KEY)", &["a"]).await;
    let read_only =
        format!("ALTER DATABASE \"{}\" SET default_transaction_read_only = on", place.database.name());
    place.database.execute(&read_only).await.unwrap();
    let error = place.error().await;
    assert_eq!(error.kind(), Kind::Refused, "{error}");
    let (lead, sql) = error.hint_text().unwrap().split_once('\n').unwrap();
    assert_eq!(lead, "run on the primary:");
    let writable = read_only.replace("= on", "= off");
    place
        .database
        .execute(&format!("SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE; COMMIT; {writable}; {sql}"))
        .await
        .unwrap();
    place.prepare(None).await.unwrap();
}

#[tokio::test]
async fn somebody_elses_publication_is_never_altered() {
    let mut place =
        Place::new("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)", &["a", "b"])
            .await;
    place.config.publication = Some("theirs".into());
    place.names = place.config.names(place.database.name()).unwrap();
    place.database.execute("CREATE PUBLICATION theirs FOR TABLE a").await.unwrap();
    let error = place.error().await;
    assert!(error.to_string().contains("does not publish public.b"), "{error}");
    assert_eq!(place.published().await, ["theirs a"]);
    let hint = error.hint_text().unwrap();
    let sql = hint.split_once("owner: ").unwrap().1.split_once(';').unwrap().0;
    place.database.execute(sql).await.unwrap();
    let ready = place.prepare(None).await.unwrap();
    assert_eq!(ready.publications, ["theirs"]);
    assert_eq!(place.published().await, ["theirs a", "theirs b"]);
    place
        .database
        .execute("DROP PUBLICATION theirs; CREATE PUBLICATION theirs FOR ALL TABLES")
        .await
        .unwrap();
    place.prepare(None).await.unwrap();
    place.database.execute("ALTER PUBLICATION theirs SET (publish = 'delete')").await.unwrap();
    assert!(place.error().await.to_string().contains("does not publish inserts"));
    // Missing, it is made, and then it is ours.
    place.database.execute("DROP PUBLICATION theirs").await.unwrap();
    place.prepare(None).await.unwrap();
    place.config.tables = vec!["a".into()];
    place.prepare(None).await.unwrap();
    assert_eq!(place.published().await, ["theirs a"]);
}

/// The warnings of `headwater check`, in lines.
async fn warnings(place: &Place) -> Vec<(String, String)> {
    let data = tempfile::tempdir().unwrap();
    let name = place.database.name();
    let connector = PostgresConnector::new(name, place.config.clone(), data.path()).unwrap();
    let findings = connector.check().await.unwrap().findings.into_iter();
    let warnings = findings.filter(|finding| finding.severity == Severity::Warning);
    warnings.map(|finding| (finding.message, finding.hint.unwrap())).collect()
}

#[tokio::test]
async fn what_somebody_elses_publication_leaves_out_is_told_with_the_sql_that_mends_it() {
    let sql = "CREATE TABLE a (id int PRIMARY KEY, v text, w text); CREATE TABLE b (id int PRIMARY KEY, v text); \
               CREATE TABLE o (id uuid PRIMARY KEY)";
    let mut place = Place::new(sql, &["a", "b"]).await;
    if place.version().await < 15 {
        return; // which publishes whole tables only
    }
    place.config.publication = Some("theirs".into());
    place.names = place.config.names(place.database.name()).unwrap();
    let create = "CREATE PUBLICATION theirs FOR TABLE a (id, v) WHERE (id > 1), b WHERE (id > 2), o \
                  WITH (publish = 'insert, truncate')";
    place.database.execute(create).await.unwrap();
    let told = warnings(&place).await;
    let messages: Vec<&str> = told.iter().map(|(message, _)| message.as_str()).collect();
    let expected = [
        "publication \"theirs\" does not publish updates and deletes: they are not captured",
        "publication \"theirs\" publishes only some rows and columns of public.a: the others are not captured",
        "publication \"theirs\" publishes only some rows of public.b: the others are not captured",
    ];
    assert_eq!(messages, expected);
    // It is theirs, so it is used as it is, until they run what the hints say.
    place.prepare(None).await.unwrap();
    for (_, hint) in &told {
        place.database.execute(hint.split_once("owner: ").unwrap().1).await.unwrap();
    }
    assert_eq!(warnings(&place).await, []);
    // Of an outbox nothing but inserts is of interest.
    place.database.execute("ALTER PUBLICATION theirs SET (publish = 'insert')").await.unwrap();
    place.config.tables = Vec::new();
    place.config.outbox = Some(Outbox::new("o"));
    assert_eq!(warnings(&place).await, []);
}

#[tokio::test]
async fn a_publication_of_ours_that_somebody_narrowed_is_made_whole() {
    let place = Place::new("CREATE TABLE a (id int PRIMARY KEY, v text)", &["a"]).await;
    if place.version().await < 15 {
        return; // which publishes whole tables only
    }
    place.prepare(None).await.unwrap();
    let name = &place.names.publication;
    place
        .database
        .execute(&format!("ALTER PUBLICATION {name} SET TABLE a (id) WHERE (id > 1)"))
        .await
        .unwrap();
    place.prepare(None).await.unwrap();
    let narrow = "SELECT (rowfilter IS NULL AND attnames = '{id,v}')::text FROM pg_publication_tables";
    assert_eq!(place.query(narrow).await, ["true"]);
}

#[tokio::test]
async fn partitions_are_published_through_their_table() {
    let sql = "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id); \
               CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); CREATE PUBLICATION theirs FOR TABLE p";
    let mut place = Place::new(sql, &["p"]).await;
    place.config.publication = Some("theirs".into());
    place.names = place.config.names(place.database.name()).unwrap();
    let error = place.error().await;
    assert!(error.to_string().contains("publishes partitions"), "{error}");
    place.config.publication = None;
    place.names = place.config.names(place.database.name()).unwrap();
    assert!(place.prepare(None).await.unwrap().tables[0].partitioned);
    assert!(place.published().await.contains(&format!("{} p", place.names.publication)));
}

#[tokio::test]
async fn tables_that_cannot_be_captured_are_told_all_at_once() {
    let sql = "CREATE TABLE orders (id int PRIMARY KEY); CREATE VIEW seen AS SELECT 1 AS a; \
               CREATE UNLOGGED TABLE fast (id int PRIMARY KEY); CREATE FOREIGN DATA WRAPPER w; \
               CREATE SERVER s FOREIGN DATA WRAPPER w; CREATE FOREIGN TABLE far (a int) SERVER s";
    let names = ["public.order", "seen", "fast", "far", "nowhere.*", "pg_catalog.pg_class", "zzz"];
    let place = Place::new(sql, &names).await;
    let error = place.error().await;
    assert_eq!(error.kind(), Kind::Refused);
    let text = error.to_string();
    for part in [
        "7 tables cannot be captured",
        "table public.order does not exist\n  hint: did you mean public.orders?",
        "public.seen is a view",
        "public.fast is unlogged",
        "ALTER TABLE \"public\".\"fast\" SET LOGGED;",
        "public.far is a foreign table",
        "schema nowhere has no tables",
        "pg_catalog.pg_class belongs to PostgreSQL itself",
        "table public.zzz does not exist\n  hint: create it",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    // A wildcard takes what can be captured.
    let place = Place { config: PostgresConfig { tables: vec!["public.*".into()], ..place.config }, ..place };
    assert_eq!(place.prepare(None).await.unwrap().tables.len(), 1);
}

#[tokio::test]
async fn a_snapshot_needs_to_see_every_row() {
    let sql = "CREATE TABLE a (id int PRIMARY KEY); CREATE PUBLICATION theirs FOR ALL TABLES";
    let mut place = Place::new(sql, &["a"]).await.user(true).await;
    place.config.publication = Some("theirs".into());
    place.names = place.config.names(place.database.name()).unwrap();
    let error = place.error().await;
    assert!(error.to_string().contains("public.a cannot be read by user"), "{error}");
    let grants = error.hint_text().unwrap().split_once("owner: ").unwrap().1.split_once("; or").unwrap().0;
    place.database.execute(grants).await.unwrap();
    place.prepare(None).await.unwrap();
    place.database.execute("ALTER TABLE a ENABLE ROW LEVEL SECURITY").await.unwrap();
    let error = place.error().await;
    assert!(error.to_string().contains("row level security"), "{error}");
    place.config.snapshot = SnapshotMode::Never;
    place.prepare(None).await.unwrap();
}

#[tokio::test]
async fn a_snapshot_needs_to_see_every_row_of_the_outbox_too() {
    let sql = "CREATE TABLE o (id uuid PRIMARY KEY); CREATE PUBLICATION theirs FOR ALL TABLES";
    let mut place = Place::new(sql, &[]).await.user(true).await;
    place.config.outbox = Some(Outbox::new("o"));
    place.config.publication = Some("theirs".into());
    place.names = place.config.names(place.database.name()).unwrap();
    let error = place.error().await;
    assert!(error.to_string().contains("public.o cannot be read by user"), "{error}");
    place.config.snapshot = SnapshotMode::Never;
    place.prepare(None).await.unwrap();
}
