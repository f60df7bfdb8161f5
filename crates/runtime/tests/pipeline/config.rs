//! What a config may say, and how it is told when it is wrong.

use std::sync::Arc;
use std::time::Duration;

use headwater_core::{Identity, Kind};
use headwater_runtime::config::{Columns, Settings};
use headwater_runtime::{Runtime, StreamConfig};
use headwater_testkit::memory::{MemoryBus, MemoryParkedStore, MemorySource};

use crate::common::stream;

#[test]
fn a_stream_with_everything() {
    let config = stream(
        r#"
        from = ["shop.public.orders", "shop.lines"]
        columns = { id = "id", status = "state" }
        version = 3
        where = 'after.state != "draft"'
        key = "id"
        order_key = ["customer", "id"]
        partitions = 12
        format = { kind = "debezium", decimal_handling_mode = "string" }
        retention = { time = "7d", bytes = "10GiB", compact = true }
        tombstones = false
        "#,
    );
    let tables: Vec<String> = config.from.iter().map(ToString::to_string).collect();
    assert_eq!(tables, ["shop.public.orders", "shop.lines"]);
    assert_eq!(config.key, Some(vec!["id".to_owned()]));
    let spec = config.spec("orders");
    assert_eq!((spec.partitions, spec.retention.compact), (12, true));
    assert_eq!(spec.retention.max_age, Some(Duration::from_secs(7 * 86_400)));
    assert_eq!(spec.retention.max_bytes, Some(10 << 30));
    assert_eq!(stream("columns = ['a']").columns, Some(Columns::Named(vec![("a".into(), "a".into())])));
    assert_eq!(stream("columns = '*'").columns, Some(Columns::All));
    assert_eq!(stream("").partitions, 8);
}

#[test]
fn settings_take_sizes_and_durations() {
    let settings: Settings = toml::from_str("in_flight_bytes = '64MiB'\nretry_max = '5s'").unwrap();
    assert_eq!((settings.in_flight_bytes, settings.retry_max), (64 << 20, Duration::from_secs(5)));
}

#[test]
fn what_cannot_be_read_says_why() {
    let cases = [
        ("from = 'orders'", "expected SOURCE.schema.table"),
        ("from = 'a..b'", "empty part"),
        ("columns = 'id'", "\"*\", a list of columns"),
        ("retention = { time = '7' }", "is no duration"),
        ("retention = { bytes = '7 apples' }", "is no size"),
        ("colums = '*'", "unknown field `colums`"),
        ("format = 'avro'", "unknown variant `avro`"),
    ];
    for (toml, says) in cases {
        let error = toml::from_str::<StreamConfig>(toml).unwrap_err().to_string();
        assert!(error.contains(says), "{toml}: {error}");
    }
}

#[test]
fn what_makes_no_sense_together_is_refused() {
    let cases = [
        ("orders", "from = 'shp.orders'\ncolumns = '*'", "did you mean \"shop\"?"),
        ("orders", "from = 'shop.ordrs'\ncolumns = '*'", "did you mean \"shop.orders\"?"),
        ("orders", "from = 'shop.orders'", "columns = \"*\""),
        ("orders", "partitions = 3", "is fed by nothing"),
        ("or ders", "from = 'shop.orders'\ncolumns = '*'", "cannot be the name"),
        ("orders", "from = 'shop.orders'\ncolumns = '*'\npartitions = 0", "0 partitions"),
        ("orders", "from = 'shop.orders'\ncolumns = '*'\nkey = []", "empty key"),
        ("orders", "from = 'shop.orders'\ncolumns = '*'\nwhere = 'after.'", "cannot be understood"),
        ("orders", "from = 'shop.orders'\ncolumns = '*'\nwhere = 'row.id == 1'", "\"row\""),
        ("orders", "from = 'shop.orders'\ncolumns = ['a', 'a']", "two columns as a"),
    ];
    for (name, toml, says) in cases {
        let built = Runtime::builder()
            .source("shop", Arc::new(MemorySource::new("shop", 1, 1)), None)
            .tables(vec!["public.orders".into(), "public.customers".into()])
            .stream(name, stream(toml))
            .bus(Arc::new(MemoryBus::default()))
            .parked(Arc::new(MemoryParkedStore::default()))
            .build();
        let error = built.err().unwrap_or_else(|| panic!("{toml} was taken"));
        assert_eq!(error.kind(), Kind::Config, "{error}");
        assert!(error.to_string().contains(says), "{toml}: {error}");
    }
}

/// What cannot be fed by a table as it is now is said before its first change.
#[test]
fn streams_are_checked_against_tables() {
    use crate::common::{orders, table};
    let tables = [orders(Identity::Key), table("lines", &["id", "order_id", "price"], Identity::Key)];
    let misfits = |config: &str| -> Vec<String> {
        let builder = Runtime::builder()
            .source("shop", Arc::new(MemorySource::new("shop", 1, 10)), None)
            .source("other", Arc::new(MemorySource::new("other", 1, 10)), None)
            .stream("s", stream(config));
        assert!(builder.verify_tables("other", &[]).unwrap().is_empty(), "feeds nothing");
        let errors = builder.verify_tables("shop", &tables).unwrap();
        assert!(errors.iter().all(|error| error.kind() == Kind::Contract));
        errors.iter().map(ToString::to_string).collect()
    };
    let fits = "from = ['shop.orders', 'shop.public.lines']\ncolumns = ['id']";
    assert_eq!(misfits(fits), [""; 0]);
    for (config, says) in [
        ("columns = ['id', 'stat']", ["no column \"stat\"", "did you mean \"state\"?"]),
        ("columns = { n = 'nothing_like_it' }", ["no column \"nothing_like_it\"", "raise its version"]),
        ("columns = ['id']\nkey = 'ids'", ["no column \"ids\"", "did you mean \"id\"?"]),
        ("columns = ['id']\norder_key = 'custmer'", ["no column \"custmer\"", "did you mean \"customer\"?"]),
        ("columns = ['id']\norder_key = 'customer'", ["which customer the row had", "REPLICA IDENTITY FULL"]),
        ("columns = ['id']\nwhere = 'after.stte == \"x\"'", ["needs column stte", "did you mean state?"]),
    ] {
        let errors = misfits(&format!("from = 'shop.orders'\n{config}"));
        assert_eq!(errors.len(), 1, "{config}: {errors:?}");
        assert!(says.iter().all(|says| errors[0].contains(says)), "{config}: {errors:?}");
    }
    for (from, hint) in [
        ("shop.order", "did you mean \"shop.public.orders\"?"),
        ("shop.crm.people", "known: shop.public.orders, shop.public.lines"),
    ] {
        let errors = misfits(&format!("from = '{from}'\ncolumns = '*'"));
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].contains("does not capture") && errors[0].contains(hint), "{errors:?}");
    }
}
