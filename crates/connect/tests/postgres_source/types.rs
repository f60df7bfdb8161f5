//! Every type, exactly: the text that cells have, in the stream and in the snapshot.

use headwater_connect::requests::{Requests, SnapshotRequest};
use headwater_core::ports::Connector;
use headwater_core::{CellKind, ColumnType, Kind, Value};

use crate::capture::say;
use crate::support::Place;

/// Type, literal, and the canonical text that the cell has.
const VALUES: &[(&str, &str, &str)] = &[
    ("boolean", "true", "t"),
    ("smallint", "-32768", "-32768"),
    ("integer", "2147483647", "2147483647"),
    ("bigint", "-9223372036854775808", "-9223372036854775808"),
    ("oid", "4294967295", "4294967295"),
    ("real", "1.1", "1.1"),
    ("real", "'-Infinity'", "-Infinity"),
    ("real", "1e-45", "1e-45"),
    ("double precision", "0.1::float8 + 0.2", "0.30000000000000004"),
    ("double precision", "'NaN'", "NaN"),
    ("double precision", "-0.0::float8", "-0"),
    ("double precision", "1.7976931348623157e308", "1.7976931348623157e+308"),
    (
        "numeric",
        "123456789012345678901234567890.123456789012345678901234567890",
        "123456789012345678901234567890.123456789012345678901234567890",
    ),
    ("numeric", "'NaN'", "NaN"),
    ("numeric", "'-infinity'", "-Infinity"),
    ("numeric(10,2)", "1.5", "1.50"),
    ("money", "1234.5", "$1,234.50"),
    (
        "text",
        "E'tab\\t newline\\n return\\r back\\\\slash \\b\\f\\x0b \\\\N ünïcödé \u{1F980}'",
        "tab\t newline\n return\r back\\slash \u{8}\u{c}\u{b} \\N ünïcödé \u{1F980}",
    ),
    ("text", "''", ""),
    ("varchar(5)", "'ab'", "ab"),
    ("char(4)", "'ab'", "ab  "),
    ("name", "'a_name'", "a_name"),
    ("bytea", "'\\x00ff5c09'", "\\x00ff5c09"),
    ("bytea", "''", "\\x"),
    ("uuid", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    ("date", "'2024-05-17'", "2024-05-17"),
    ("date", "'0044-03-15 BC'", "0044-03-15 BC"),
    ("date", "'infinity'", "infinity"),
    ("date", "'12345-01-01'", "12345-01-01"),
    ("time", "'10:00:00.5'", "10:00:00.5"),
    ("time", "'24:00:00'", "24:00:00"),
    ("time(2)", "'10:00:00.129'", "10:00:00.13"),
    ("timetz", "'10:00:00.5+02:30'", "10:00:00.5+02:30"),
    ("timestamp", "'2024-05-17 10:00:00.123456'", "2024-05-17 10:00:00.123456"),
    ("timestamp", "'0044-03-15 10:00:00 BC'", "0044-03-15 10:00:00 BC"),
    ("timestamp(3)", "'2024-05-17 10:00:00.1239'", "2024-05-17 10:00:00.124"),
    ("timestamptz", "'2024-05-17 10:00:00+02'", "2024-05-17 08:00:00+00"),
    ("timestamptz", "'-infinity'", "-infinity"),
    ("interval", "'1 year 2 mons 3 days 04:05:06.789'", "P1Y2M3DT4H5M6.789S"),
    ("interval", "'-1 mons +2 days -00:00:01'", "P-1M2DT-1S"),
    ("interval", "'0'", "PT0S"),
    ("json", "'{\"b\" : 1,  \"a\": [1.50, \"\\u00e9\"]}'", "{\"b\" : 1,  \"a\": [1.50, \"\\u00e9\"]}"),
    ("jsonb", "'{\"b\": 1, \"a\": [1.50]}'", "{\"a\": [1.50], \"b\": 1}"),
    ("bit(3)", "B'101'", "101"),
    ("varbit", "B'10101'", "10101"),
    ("int[]", "'{1,NULL,3}'", "{1,NULL,3}"),
    ("int[]", "'[0:1][2:3]={{1,2},{3,4}}'", "[0:1][2:3]={{1,2},{3,4}}"),
    (
        "text[]",
        "ARRAY['a', 'b,\"c\"', 'NULL', NULL, '', E'\\\\']",
        "{a,\"b,\\\"c\\\"\",\"NULL\",NULL,\"\",\"\\\\\"}",
    ),
    ("numeric(10,2)[]", "'{1.2}'", "{1.20}"),
    ("timestamptz(3)[]", "'{2024-05-17 10:00:00.1239+02}'", "{\"2024-05-17 08:00:00.124+00\"}"),
    ("mood", "'so so'", "so so"),
    ("mood[]", "'{sad,\"so so\"}'", "{sad,\"so so\"}"),
    ("euros", "1.5", "1.50"),
    ("cents", "1", "1.00"),
    ("euros[]", "'{1.5,2}'", "{1.50,2.00}"),
    ("pair", "ROW(1, 'say \"hi\"', 2.5)", "(1,\"say \"\"hi\"\"\",2.50)"),
    ("pair[]", "ARRAY[ROW(1, NULL, NULL)::pair]", "{\"(1,,)\"}"),
    ("int4range", "'(0,10)'", "[1,10)"),
    ("tstzrange", "'[2024-05-17 10:00+02,)'", "[\"2024-05-17 08:00:00+00\",)"),
    ("int4multirange", "'{[1,3), [7,9)}'", "{[1,3),[7,9)}"),
    ("spread", "'[1.5,2.5]'", "[1.5,2.5]"),
    ("hstore", "'a=>1, b=>NULL'", "\"a\"=>\"1\", \"b\"=>NULL"),
    ("hstore[]", "ARRAY['a=>1'::hstore]", "{\"\\\"a\\\"=>\\\"1\\\"\"}"),
    ("citext", "'MiXed'", "MiXed"),
    ("citext[]", "'{A,b}'", "{A,b}"),
    ("inet", "'192.168.0.1/24'", "192.168.0.1/24"),
    ("macaddr", "'08:00:2b:01:02:03'", "08:00:2b:01:02:03"),
    ("point", "'(1.5,-2)'", "(1.5,-2)"),
    ("box[]", "'{(2,2),(1,1);(4,4),(3,3)}'", "{(2,2),(1,1);(4,4),(3,3)}"),
    ("xml", "'<a>1</a>'", "<a>1</a>"),
    ("tsvector", "'a b'", "'a' 'b'"),
    ("pg_lsn", "'16/B374D848'", "16/B374D848"),
    ("int2vector", "'1 2 3'", "1 2 3"),
    ("text", "NULL", "NULL"),
    ("mood", "NULL", "NULL"),
];

const TYPES: &str = "
    CREATE EXTENSION hstore; CREATE EXTENSION citext;
    CREATE TYPE mood AS ENUM ('sad', 'so so', 'happy');
    CREATE DOMAIN euros AS numeric(10,2) CHECK (VALUE >= 0); CREATE DOMAIN cents AS euros;
    CREATE TYPE pair AS (n int, t text, p euros);
    CREATE TYPE spread AS RANGE (subtype = float8);";

fn tables() -> String {
    let columns: Vec<String> =
        VALUES.iter().enumerate().map(|(at, (ty, ..))| format!("c{at} {ty}")).collect();
    format!("{TYPES} CREATE TABLE zoo (id int PRIMARY KEY, {})", columns.join(", "))
}

fn insert(id: u32) -> String {
    let literals: Vec<&str> = VALUES.iter().map(|(_, literal, _)| *literal).collect();
    format!("INSERT INTO zoo VALUES ({id}, {})", literals.join(", "))
}

#[tokio::test]
async fn cells_have_the_canonical_text() {
    let place = Place::new(&tables(), &["zoo"]).await;
    // Nothing that the database or user is set to may show.
    let name = place.database.name();
    for setting in [
        "DateStyle = 'SQL, DMY'",
        "TimeZone = 'Asia/Tokyo'",
        "IntervalStyle = 'postgres'",
        "bytea_output = 'escape'",
        "extra_float_digits = '-3'",
    ] {
        place.each(&format!("ALTER DATABASE {name} SET {setting}")).await;
    }
    place.session().await.query(&insert(1)).await.unwrap();
    let mut capture = place.capture().await;
    place.session().await.query(&insert(2)).await.unwrap();
    while capture.changes.len() < 2 {
        capture.batch().await.unwrap();
    }
    for change in &capture.changes {
        let row = change.after.as_ref().unwrap();
        for (at, (ty, literal, text)) in VALUES.iter().enumerate() {
            let value = match row.value(at + 1) {
                Value::Bytes(CellKind::Text, bytes) => std::str::from_utf8(bytes).unwrap(),
                Value::Null => "NULL",
                other => panic!("{other:?}"),
            };
            assert_eq!(value, *text, "{:?} of {literal} as {ty}", change.op);
        }
    }
    assert_eq!(capture.changes[0].table, capture.changes[1].table);
}

/// From version 15 on.
#[tokio::test]
async fn a_scale_may_be_outside_of_the_precision() {
    let place = Place::new("", &["t"]).await;
    if place.version().await < 15 {
        return;
    }
    place.each("CREATE TABLE t (a numeric(5,-2) PRIMARY KEY, b numeric(3,5))").await;
    let mut capture = place.capture().await;
    place.each("INSERT INTO t VALUES (12345, 0.00123)").await;
    while capture.changes.is_empty() {
        capture.batch().await.unwrap();
    }
    let change = &capture.changes[0];
    assert_eq!(say(change), "create t (12300, 0.00123)");
    let types: Vec<_> = change.table.columns.iter().map(|column| column.ty.clone()).collect();
    let numeric = |scale| ColumnType::Numeric { precision_scale: Some(scale) };
    assert_eq!(types, [numeric((5, -2)), numeric((3, 5))]);
}

#[tokio::test]
async fn columns_have_their_types() {
    let place = Place::new(&tables(), &["zoo"]).await;
    let mut capture = place.capture().await;
    place.session().await.query(&insert(1)).await.unwrap();
    capture.batch().await.unwrap();
    while capture.changes.is_empty() {
        capture.batch().await.unwrap();
    }
    let table = &capture.changes[0].table;
    let of = |name: &str| {
        let at = VALUES.iter().position(|(ty, ..)| *ty == name).unwrap();
        table.columns[at + 1].ty.clone()
    };
    let numeric = |precision_scale| ColumnType::Numeric { precision_scale };
    let array = |ty| ColumnType::Array(Box::new(ty));
    let ColumnType::Composite(fields) = of("pair") else { panic!("{:?}", of("pair")) };
    assert_eq!(fields.iter().map(|field| field.name.as_str()).collect::<Vec<_>>(), ["n", "t", "p"]);
    assert_eq!(fields[2].ty, numeric(Some((10, 2))));
    for (name, ty) in [
        ("numeric", numeric(None)),
        ("time(2)", ColumnType::Time(Some(2))),
        ("timestamp", ColumnType::Timestamp(None)),
        ("timestamp(3)", ColumnType::Timestamp(Some(3))),
        ("timestamptz(3)[]", array(ColumnType::TimestampTz(Some(3)))),
        ("numeric(10,2)[]", array(numeric(Some((10, 2))))),
        ("bit(3)", ColumnType::Bits(Some(3))),
        ("varbit", ColumnType::Bits(None)),
        ("mood", ColumnType::Enum),
        ("mood[]", array(ColumnType::Enum)),
        ("euros", numeric(Some((10, 2)))),
        ("cents", numeric(Some((10, 2)))),
        ("euros[]", array(numeric(Some((10, 2))))),
        ("pair[]", array(of("pair"))),
        ("spread", ColumnType::Range),
        ("int4multirange", ColumnType::Range),
        ("hstore", ColumnType::Hstore),
        ("hstore[]", array(ColumnType::Hstore)),
        ("citext", ColumnType::Text),
        ("citext[]", array(ColumnType::Text)),
        ("inet", ColumnType::Other("inet".into())),
        ("box[]", ColumnType::Other("box[]".into())),
        ("int2vector", ColumnType::Other("int2vector".into())),
        ("xml", ColumnType::Other("xml".into())),
    ] {
        assert_eq!(of(name), ty, "{name}");
    }
}

#[tokio::test]
async fn bytes_of_a_database_without_an_encoding_come_as_they_are() {
    let server =
        headwater_testkit::servers::Postgres::settings().initdb("--encoding=SQL_ASCII").initdb("--locale=C");
    let server = server.start().await.unwrap();
    let place = Place::on(&server, "CREATE TABLE t (id int PRIMARY KEY, v text)", &["t"]).await;
    let bytes = |id: u32| {
        format!(
            "SET client_encoding = 'SQL_ASCII'; INSERT INTO t VALUES ({id}, convert_from('\\xff41', 'SQL_ASCII'))"
        )
    };
    place.session().await.query(&bytes(1)).await.unwrap();
    let mut capture = place.capture().await;
    place.session().await.query(&bytes(2)).await.unwrap();
    while capture.changes.len() < 2 {
        capture.batch().await.unwrap();
    }
    for change in &capture.changes {
        assert_eq!(change.after.as_ref().unwrap().value(1), Value::Bytes(CellKind::Text, b"\xff\x41"));
    }
}

#[tokio::test]
async fn bytes_that_are_no_character_of_the_encoding_stop_the_source_until_they_are_mended() {
    let settings =
        headwater_testkit::servers::Postgres::settings().initdb("--encoding=WIN1252").initdb("--locale=C");
    let server = settings.start().await.unwrap();
    let place = Place::on(&server, "CREATE TABLE t (id int PRIMARY KEY, v text)", &["t"]).await;
    let mut capture = place.capture().await;
    place.each("INSERT INTO t VALUES (1, 'a' || chr(128))").await;
    assert_eq!(capture.take(1).await, ["create t (1, a\u{20ac})"]);
    place.each("INSERT INTO t VALUES (2, 'b' || chr(129))").await;
    let error = capture.failure().await;
    assert_eq!(error.kind(), Kind::Refused, "{error}");
    let hint = error.hint_text().unwrap();
    assert!(hint.contains("mend its rows") && hint.contains("drop the slot"), "{error}");
    let findings = capture.connector.check().await.unwrap().findings;
    assert!(
        findings.iter().any(|finding| finding.message.contains("has the encoding WIN1252")),
        "{findings:?}"
    );
    // As docs/operations.md has it.
    let find = "CREATE FUNCTION pg_temp.is_no_text(t text) RETURNS boolean LANGUAGE plpgsql AS $$
        BEGIN PERFORM convert_to(t, 'UTF8'); RETURN false;
        EXCEPTION WHEN untranslatable_character THEN RETURN true; END $$;
        SELECT id FROM t WHERE pg_temp.is_no_text(t::text)";
    assert_eq!(place.query(find).await, ["2"]);
    place.each("UPDATE t SET v = 'b' WHERE id = 2").await;
    capture.source = None;
    place.wait_for("the slot to be free", async |place| !place.is_active().await).await;
    place.query(&format!("SELECT pg_drop_replication_slot('{}')::text", place.names.slot)).await;
    let requests = Requests::new(capture.data.path(), &place.names.source);
    requests.write(&SnapshotRequest::new(Vec::new())).unwrap();
    capture.open().await.unwrap();
    assert_eq!(capture.take(2).await, ["read t (1, a\u{20ac})", "read t (2, b)"]);
}
