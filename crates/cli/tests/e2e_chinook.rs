//! A public sample database, from PostgreSQL to a consumer: every row of the snapshot and of every change
//! afterwards is compared with what the database says.

mod common;

use common::{Place, Tables, rows_of};
use headwater_testkit::data::chinook_postgres;
use headwater_testkit::servers::Postgres;

const TABLES: [&str; 11] = [
    "album",
    "artist",
    "customer",
    "employee",
    "genre",
    "invoice",
    "invoice_line",
    "media_type",
    "playlist",
    "playlist_track",
    "track",
];

/// Each is a transaction of its own.
const CHANGES: [&str; 11] = [
    "update track set unit_price = unit_price + 0.10, composer = null where track_id % 3 = 0",
    "delete from playlist_track where track_id % 7 = 0",
    "insert into artist (artist_id, name)
         select n, 'Künstler \"' || n || E'\"\\n\\\\' from generate_series(1001, 1400) n",
    "begin; update customer set company = 'never'; delete from invoice_line; rollback",
    "update customer set email = upper(email), company = '' where customer_id < 20",
    "begin; savepoint a; delete from playlist_track; delete from playlist; rollback to a;
         update playlist set name = 'renamed' where playlist_id = 2; commit",
    "update artist set artist_id = artist_id + 10000 where artist_id between 1001 and 1100",
    "delete from invoice_line where invoice_id in (1, 2, 3)",
    "delete from invoice where invoice_id in (1, 2, 3)",
    "truncate playlist_track",
    "insert into playlist_track (playlist_id, track_id) values (1, 1), (1, 2), (3, 4)",
];

#[tokio::test(flavor = "multi_thread")]
async fn every_row_arrives_as_the_database_says() {
    let server = Postgres::start().await.unwrap();
    let database = server.create_database().await.unwrap();
    database.execute(&chinook_postgres()).await.unwrap();
    let streams: String = TABLES.map(stream).concat();
    let tables = TABLES.map(|table| format!("\"public.{table}\"")).join(", ");
    let place = Place::new(&format!(
        "[source.chinook]\nkind = \"postgres\"\nurl = \"{}\"\ntables = [{tables}]\n{streams}",
        database.url()
    ));
    let headwater = place.run().await;
    let mut arrived = Tables::default();
    let mut events = place.read(&TABLES).await;
    compare(&database, &mut arrived, &mut *events, "the snapshot").await;
    for change in CHANGES {
        database.execute(change).await.unwrap();
    }
    compare(&database, &mut arrived, &mut *events, "the changes").await;
    assert!(headwater.stop(common::PATIENCE).await.unwrap().success());
}

fn stream(table: &str) -> String {
    format!("[stream.{table}]\nfrom = \"chinook.public.{table}\"\ncolumns = \"*\"\npartitions = 3\n")
}

/// Reads events until each table is what the database says it is.
async fn compare(
    database: &headwater_testkit::servers::Database,
    arrived: &mut Tables,
    events: &mut dyn headwater_core::ports::Subscription,
    what: &str,
) {
    for table in TABLES {
        let rows = rows_of(database, table).await;
        arrived.until(&format!("{what}: {table}"), events, |arrived| arrived.rows(table) == rows).await;
    }
}
