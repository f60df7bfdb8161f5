//! The `debezium` format from PostgreSQL through Kafka, as a consumer of Debezium's topics reads it: keys,
//! headers, payloads, and what follows what.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::time::Instant;

use common::{PATIENCE, Place};
use headwater_testkit::servers::{Database, Kafka, Postgres};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Headers;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use serde_json::{Value, json};
use sqlx::{Executor, Row};

/// Of each sort that Debezium encodes in its own way.
const TABLE: &str = "create table orders (id int primary key, status text, total numeric(10,2), paid boolean,
    placed timestamp, due timestamptz, day date, at time, photo bytea, extra jsonb)";

const ROW: &str = "insert into orders values (1, 'placed', 19.90, false, '2024-05-17 10:00:00.123456',
    '2024-05-17 12:00:00.5+02', '2024-05-17', '10:00:00.5', '\\x00ff10', '{\"a\": 1.10}')";

/// What Debezium's documentation makes of that row by default: decimals as the bytes of their unscaled value,
/// times as microseconds, days since 1970, bytes as base64, JSON as text.
fn row(id: i32, status: &str) -> Value {
    json!({
        "id": id, "status": status, "total": "B8Y=", "paid": false, "placed": 1_715_940_000_123_456_i64,
        "due": "2024-05-17T10:00:00.500000Z", "day": 19_860, "at": 36_000_500_000_i64, "photo": "AP8Q",
        "extra": "{\"a\": 1.10}"
    })
}

/// A row of which a delete tells the key alone.
fn key_of_row(id: i32) -> Value {
    let mut row = row(id, "");
    row.as_object_mut().unwrap().iter_mut().filter(|(name, _)| *name != "id").for_each(|(_, value)| {
        *value = Value::Null;
    });
    row
}

/// A record as it stands in its topic.
#[derive(Debug, PartialEq)]
struct Record {
    key: Option<String>,
    headers: Vec<(String, String)>,
    payload: Option<String>,
}

impl Record {
    fn payload(&self) -> Value {
        serde_json::from_str(self.payload.as_deref().unwrap()).unwrap()
    }
}

/// The first records of a topic's only partition, read by Kafka's own client.
fn records(kafka: &Kafka, topic: &str, count: usize) -> Vec<Record> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", kafka.brokers())
        .set("group.id", "consumer")
        .set("topic.metadata.refresh.interval.ms", "100")
        .create()
        .unwrap();
    let mut place = TopicPartitionList::new();
    place.add_partition_offset(topic, 0, Offset::Beginning).unwrap();
    consumer.assign(&place).unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut records = Vec::new();
    while records.len() < count {
        assert!(Instant::now() < deadline, "only {records:#?} in {topic}");
        let Some(Ok(message)) = consumer.poll(std::time::Duration::from_millis(100)) else { continue };
        let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
        records.push(Record {
            key: message.key().map(text),
            headers: headers.map(|header| (header.key.into(), text(header.value.unwrap()))).collect(),
            payload: message.payload().map(text),
        });
    }
    records
}

fn sections(database: &Database, kafka: &Kafka) -> String {
    format!(
        "[source.shop]\nkind = \"postgres\"\nurl = \"{}\"\ntables = [\"public.orders\"]\noutbox = \"public.outbox\"\n\
         slot = \"{}\"\n[bus]\nkind = \"kafka\"\nbrokers = [\"{}\"]\n\
         [stream.orders]\nfrom = \"shop.public.orders\"\ncolumns = \"*\"\npartitions = 1\nformat = \"debezium\"\n\
         [outbox]\nstream = \"{{aggregatetype}}_events\"\npartitions = 1\n\
         format = {{ kind = \"debezium\", table_fields_additional_placement = \"type:header:eventType\" }}\n",
        database.url(),
        database.name(),
        kafka.brokers()
    )
}

/// The headers of a record but for the three that every record of Headwater has.
fn own_headers(record: &Record) -> Vec<(&str, &str)> {
    let all = ["id", "type", "contract-version"];
    let own = record.headers.iter().filter(|(name, _)| !all.contains(&&**name));
    own.map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_what_debezium_documents() {
    let (server, kafka) = tokio::join!(Postgres::start(), Kafka::start());
    let (server, kafka) = (server.unwrap(), kafka.unwrap());
    let database = server.create_database().await.unwrap();
    database.execute(TABLE).await.unwrap();
    database.execute(ROW).await.unwrap();
    let place = Place::new(&sections(&database, &kafka).replace("outbox = \"public.outbox\"\n", ""));
    let running = place.run().await;
    // The snapshot's read is there before the first change.
    let first = records(&kafka, "orders", 1);
    database.execute("update orders set status = 'paid'").await.unwrap();
    database.execute("update orders set id = 2, status = 'moved'").await.unwrap();
    let mut connection = database.connect().await.unwrap();
    let xmin: String = connection.fetch_one("select xmin::text from orders").await.unwrap().get(0);
    database.execute("delete from orders").await.unwrap();
    let all = records(&kafka, "orders", 7);
    assert_eq!(all[0], first[0]);

    let keys: Vec<&str> = all.iter().map(|record| record.key.as_deref().unwrap()).collect();
    let (one, two) = (r#"{"id":1}"#, r#"{"id":2}"#);
    assert_eq!(keys, [one, one, one, one, two, two, two]);
    let headers: Vec<_> = all.iter().map(own_headers).collect();
    let (gone, came) = (vec![("__debezium.newkey", two)], vec![("__debezium.oldkey", one)]);
    assert_eq!(headers, [vec![], vec![], gone, vec![], came, vec![], vec![]]);
    let none = || (String::new(), Value::Null, Value::Null);
    let told = |record: &Record| match &record.payload {
        None => none(),
        Some(_) => {
            let payload = record.payload();
            let part = |name: &str| payload[name].clone();
            (part("op").as_str().unwrap().to_owned(), part("before"), part("after"))
        }
    };
    let op = |op: &str, before, after| (op.to_owned(), before, after);
    let expected = [
        op("r", Value::Null, row(1, "placed")),
        op("u", Value::Null, row(1, "paid")),
        op("d", key_of_row(1), Value::Null),
        none(),
        op("c", Value::Null, row(2, "moved")),
        op("d", key_of_row(2), Value::Null),
        none(),
    ];
    for (record, expected) in all.iter().zip(expected) {
        assert_eq!(told(record), expected);
    }
    has_debeziums_fields(&all[0], &database, "true", None);
    has_debeziums_fields(&all[4], &database, "false", Some(&xmin));
    assert!(running.stop(PATIENCE).await.unwrap().success());
}

/// Field for field, in Debezium's order, what stands around the rows.
fn has_debeziums_fields(record: &Record, database: &Database, snapshot: &str, transaction: Option<&str>) {
    let payload = record.payload();
    let source = &payload["source"];
    let text = record.payload.as_deref().unwrap();
    let in_order = |text: &str, names: &[&str]| {
        let places: Vec<usize> =
            names.iter().map(|name| text.find(&format!("\"{name}\":")).unwrap()).collect();
        assert!(places.is_sorted(), "{text}");
    };
    in_order(text, &["before", "after", "source", "transaction", "op"]);
    in_order(text.rsplit_once("\"op\":").unwrap().1, &["ts_ms", "ts_us", "ts_ns"]);
    let fields = [
        "version",
        "connector",
        "name",
        "ts_ms",
        "snapshot",
        "db",
        "sequence",
        "ts_us",
        "ts_ns",
        "schema",
        "table",
        "txId",
        "lsn",
        "xmin",
    ];
    in_order(text.rsplit_once("\"source\":").unwrap().1, &fields);
    assert_eq!((payload.as_object().unwrap().len(), source.as_object().unwrap().len()), (8, 14), "{text}");
    let known = json!({
        "version": env!("CARGO_PKG_VERSION"), "connector": "postgresql", "name": "shop", "snapshot": snapshot,
        "db": database.name(), "schema": "public", "table": "orders", "xmin": null,
        "txId": transaction.map(|id| id.parse::<u64>().unwrap())
    });
    for (name, value) in known.as_object().unwrap() {
        assert_eq!(source[name], *value, "{name}: {text}");
    }
    for times in [source, &payload] {
        let time = |name: &str| times[name].as_i64().unwrap();
        assert_eq!((time("ts_us") / 1000, time("ts_ns") / 1000), (time("ts_ms"), time("ts_us")), "{text}");
    }
    assert!(payload["ts_us"].as_i64() >= source["ts_us"].as_i64(), "captured after it was committed: {text}");
    let (sequence, lsn) = (source["sequence"].as_str().unwrap(), source["lsn"].as_u64().unwrap());
    let sequence: Vec<Option<String>> = serde_json::from_str(sequence).unwrap();
    assert_eq!((sequence.len(), sequence[1].as_deref()), (2, Some(&*lsn.to_string())), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn outbox_rows_are_what_its_event_router_makes_of_them() {
    let (server, kafka) = tokio::join!(Postgres::start(), Kafka::start());
    let (server, kafka) = (server.unwrap(), kafka.unwrap());
    let database = server.create_database().await.unwrap();
    let outbox = "create table outbox (id uuid primary key, aggregatetype text, aggregateid text, type text, payload jsonb);
                  create table orders (id int primary key)";
    database.execute(outbox).await.unwrap();
    let place = Place::new(&sections(&database, &kafka));
    let running = place.run().await;
    let (placed, gone) = ("4d47e190-0402-4048-bc2c-89dd54343cdc", "5d47e190-0402-4048-bc2c-89dd54343cdc");
    let rows = format!(
        "begin; insert into outbox values ('{placed}', 'order', '42', 'OrderPlaced', '{{\"id\": 42, \"total\": 19.90}}'),
             ('{gone}', 'order', '42', 'OrderGone', null); delete from outbox; commit"
    );
    database.execute(&rows).await.unwrap();
    let record = |id: &str, kind: &str, payload: Option<&str>| Record {
        key: Some("42".into()),
        headers: [("type", kind), ("id", id), ("eventType", kind), ("contract-version", "1")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        payload: payload.map(str::to_owned),
    };
    let expected = [
        record(placed, "OrderPlaced", Some(r#"{"id": 42, "total": 19.90}"#)),
        record(gone, "OrderGone", None),
    ];
    assert_eq!(records(&kafka, "order_events", 2), expected);
    assert!(running.stop(PATIENCE).await.unwrap().success());
}
