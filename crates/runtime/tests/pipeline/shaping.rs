//! What changes become, seen from the bus.

use std::sync::Arc;

use headwater_core::{Change, Event, Identity, Op, Table};
use headwater_runtime::StreamConfig;

use crate::common::{World, all_orders, change, eventually, insert, orders, story, stream, table};

/// The events that these changes become.
async fn events(config: StreamConfig, changes: Vec<Change>) -> Vec<Event> {
    let world = World::new(1);
    let last = changes.last().unwrap().position;
    world.source.commit(changes);
    let running = world.run(config);
    eventually("all is confirmed", || world.source.confirmed().is_some_and(|at| at.position == last)).await;
    running.stop().await;
    assert_eq!(world.parked.all(), [], "nothing is parked");
    world.bus.events()
}

#[tokio::test(start_paused = true)]
async fn each_change_is_an_event_with_key_and_place() {
    let table = orders(Identity::Full);
    let changes = vec![
        change(1, Op::Read, &table, None, Some(&["1", "9", "open", "a"])),
        change(2, Op::Create, &table, None, Some(&["2", "9", "open", "b"])),
        change(3, Op::Update, &table, Some(&["2", "9", "open", "b"]), Some(&["2", "9", "paid", "b"])),
        change(4, Op::Delete, &table, Some(&["2", "9", "paid", "b"]), None),
    ];
    let events = events(all_orders(), changes).await;
    assert_eq!(story(&events), ["1 read", "2 create", "2 update", "2 delete"]);
    let partition = headwater_core::partition_of(b"2", 4);
    assert_eq!(events[1].partition, Some(partition), "by murmur2 of the key, as Java producers do");
    assert!(events[1..].iter().all(|event| event.partition == Some(partition)));
    assert_eq!(events[2].time, 1_700_000_000_000_003);
    let payload = String::from_utf8(events[2].payload.clone().unwrap().to_vec()).unwrap();
    assert!(payload.contains("paid") && payload.contains("open"), "{payload}");
}

#[tokio::test(start_paused = true)]
async fn only_the_contracts_columns_are_exposed_under_its_names() {
    let config =
        stream("from = 'shop.public.orders'\ncolumns = { number = 'id', status = 'state' }\npartitions = 4");
    let events = events(config, vec![insert(1, 5, "secret")]).await;
    let payload = String::from_utf8(events[0].payload.clone().unwrap().to_vec()).unwrap();
    assert!(payload.contains("status") && payload.contains("number"), "{payload}");
    assert!(!payload.contains("secret") && !payload.contains("note"), "{payload}");
}

#[tokio::test(start_paused = true)]
async fn an_update_that_changes_the_key_is_a_delete_and_a_create() {
    let table = orders(Identity::Key);
    let changes = vec![
        change(1, Op::Create, &table, None, Some(&["1", "9", "open", "a"])),
        change(2, Op::Update, &table, Some(&["1", "?", "?", "?"]), Some(&["2", "9", "open", "a"])),
        change(3, Op::Update, &table, Some(&["2", "?", "?", "?"]), Some(&["2", "9", "paid", "a"])),
    ];
    let config = stream("from = 'shop.orders'\ncolumns = '*'\npartitions = 4\ntombstones = true");
    let events = events(config, changes).await;
    assert_eq!(story(&events), ["1 create", "1 delete", "1 tombstone", "2 create", "2 update"]);
    let ids: std::collections::HashSet<_> = events.iter().map(|event| event.id).collect();
    assert_eq!(ids.len(), events.len(), "each has its own id");
}

#[tokio::test(start_paused = true)]
async fn an_update_that_changes_the_order_key_moves_between_partitions() {
    let table = orders(Identity::Full);
    let changes = vec![
        change(1, Op::Create, &table, None, Some(&["1", "8", "open", "a"])),
        change(2, Op::Update, &table, Some(&["1", "8", "open", "a"]), Some(&["1", "9", "open", "a"])),
    ];
    let config = stream("from = 'shop.orders'\ncolumns = '*'\npartitions = 64\norder_key = 'customer'");
    let events = events(config, changes).await;
    assert_eq!(story(&events), ["1 create", "1 delete", "1 create"]);
    let (old, new) = (headwater_core::partition_of(b"8", 64), headwater_core::partition_of(b"9", 64));
    assert_ne!(old, new);
    let partitions: Vec<_> = events.iter().map(|event| event.partition.unwrap()).collect();
    assert_eq!(partitions, [old, old, new]);
}

#[tokio::test(start_paused = true)]
async fn a_truncate_reaches_every_partition() {
    let table = orders(Identity::Key);
    let changes = vec![insert(1, 1, "a"), change(2, Op::Truncate, &table, None, None), insert(3, 1, "a")];
    let events = events(all_orders(), changes).await;
    let wanted = ["1 create", "- truncate", "- truncate", "- truncate", "- truncate", "1 create"];
    assert_eq!(story(&events), wanted);
    let partitions: Vec<_> = events[1..5].iter().map(|event| event.partition.unwrap()).collect();
    assert_eq!(partitions, [0, 1, 2, 3]);
    let ids: std::collections::HashSet<_> = events.iter().map(|event| event.id).collect();
    assert_eq!(ids.len(), events.len(), "each has its own id");
}

#[tokio::test(start_paused = true)]
async fn rows_enter_and_leave_a_condition() {
    let table = orders(Identity::Full);
    let (draft, open) = (["1", "9", "draft", "a"], ["1", "9", "open", "a"]);
    let changes = vec![
        change(1, Op::Create, &table, None, Some(&draft)),
        change(2, Op::Update, &table, Some(&draft), Some(&open)),
        change(3, Op::Update, &table, Some(&open), Some(&open)),
        change(4, Op::Update, &table, Some(&open), Some(&draft)),
        change(5, Op::Update, &table, Some(&draft), Some(&draft)),
        change(6, Op::Delete, &table, Some(&draft), None),
        change(7, Op::Read, &table, None, Some(&draft)),
    ];
    let config = stream("from = 'shop.orders'\ncolumns = '*'\nwhere = 'after.state != \"draft\"'");
    assert_eq!(story(&events(config, changes).await), ["1 create", "1 update", "1 delete"]);
}

#[tokio::test(start_paused = true)]
async fn every_event_says_under_which_contract_it_was_made() {
    let table = orders(Identity::Key);
    for format in ["headwater", "debezium"] {
        let changes = vec![
            change(1, Op::Create, &table, None, Some(&["1", "9", "open", "a"])),
            change(2, Op::Delete, &table, Some(&["1", "?", "?", "?"]), None),
            change(3, Op::Truncate, &table, None, None),
        ];
        let config = format!(
            "from = 'shop.orders'\ncolumns = '*'\nversion = 7\npartitions = 1\nformat = '{format}'\n\
             tombstones = true"
        );
        let events = events(stream(&config), changes).await;
        let kinds: Vec<_> = events.iter().map(|event| (&*event.kind, event.payload.is_some())).collect();
        assert_eq!(kinds, [("create", true), ("delete", true), ("delete", false), ("truncate", true)]);
        for event in &events {
            let header = event.headers.iter().find(|header| &*header.name == "contract-version");
            assert_eq!(header.unwrap().value.as_deref(), Some(&b"7"[..]), "{format} {}", event.kind);
        }
    }
}

/// What a snapshot reads of a table.
fn read(at: u64, table: &Arc<Table>, row: &[&str]) -> Change {
    let mut change = change(at, Op::Read, table, None, Some(row));
    let mut transaction = (*change.transaction).clone();
    (transaction.id, transaction.committed_at) = ("snapshot-1".into(), 1);
    change.transaction = transaction.into();
    change
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_read_again_has_the_same_ids() {
    let read = |at: u64, id: &str| read(at, &orders(Identity::Full), &[id, "9", "open", "a"]);
    let by_customer = stream("from = 'shop.orders'\ncolumns = '*'\nkey = 'customer'");
    for config in [all_orders(), by_customer] {
        let first = events(config.clone(), vec![read(1, "1"), read(2, "2")]).await;
        let again = events(config, vec![read(11, "2"), read(12, "1")]).await;
        assert_eq!((first[0].id, first[1].id), (again[1].id, again[0].id));
        assert_ne!(first[0].id, first[1].id, "two rows of one key of the stream");
    }
}

#[tokio::test(start_paused = true)]
async fn rows_that_are_the_same_have_ids_of_their_own() {
    let mut table = (*orders(Identity::Full)).clone();
    table.columns.iter_mut().for_each(|column| column.key = false);
    let (table, row) = (Arc::new(table), ["1", "9", "open", "a"]);
    let read = events(all_orders(), vec![read(1, &table, &row), read(2, &table, &row)]).await;
    assert_eq!(read[0].key, read[1].key);
    assert_ne!(read[0].id, read[1].id);
}

#[tokio::test(start_paused = true)]
async fn tables_that_feed_one_stream_keep_their_keys_apart_and_others_are_ignored() {
    let (orders, lines) = (orders(Identity::Key), table("lines", &["id", "order_id"], Identity::Key));
    let other = table("secrets", &["id", "x"], Identity::Key);
    let changes = vec![
        change(1, Op::Create, &orders, None, Some(&["1", "9", "open", "a"])),
        change(2, Op::Create, &lines, None, Some(&["1", "1"])),
        change(3, Op::Create, &other, None, Some(&["1", "1"])),
    ];
    let config = stream("from = ['shop.orders', 'shop.public.lines']\ncolumns = '*'");
    let events = events(config, changes).await;
    assert_eq!(events.len(), 2);
    assert_ne!(events[0].key, events[1].key);
}

#[tokio::test(start_paused = true)]
async fn a_table_without_a_key_is_keyed_by_the_whole_row_or_not_at_all() {
    let keyless = |identity| {
        let mut table = (*orders(identity)).clone();
        table.columns.iter_mut().for_each(|column| column.key = false);
        Arc::new(table)
    };
    let full = keyless(Identity::Full);
    let (old, new) = (["1", "9", "open", "a"], ["1", "9", "paid", "a"]);
    let changes = vec![
        change(1, Op::Create, &full, None, Some(&old)),
        change(2, Op::Update, &full, Some(&old), Some(&new)),
    ];
    let by_row = events(all_orders(), changes).await;
    let kinds: Vec<_> = by_row.iter().map(|event| &*event.kind).collect();
    assert_eq!(kinds, ["create", "delete", "create"]);
    assert!(by_row.iter().all(|event| event.key.is_some()));

    let nothing = keyless(Identity::Nothing);
    let inserts = events(all_orders(), vec![change(1, Op::Create, &nothing, None, Some(&old))]).await;
    assert_eq!((inserts[0].key.clone(), inserts[0].partition), (None, None));
}
