#![allow(clippy::unwrap_used, clippy::panic)]

use headwater_core::{CellKind, Row, Value};
use proptest::prelude::*;

use super::*;

/// An Insert message.
fn insert(relation: u32, values: &[Option<&str>]) -> Vec<u8> {
    let mut message = vec![b'I'];
    message.extend(relation.to_be_bytes());
    message.push(b'N');
    message.extend(tuple_bytes(values));
    message
}

fn tuple_bytes(values: &[Option<&str>]) -> Vec<u8> {
    let mut bytes = (values.len() as u16).to_be_bytes().to_vec();
    for value in values {
        match value {
            None => bytes.push(b'n'),
            Some("<unchanged>") => bytes.push(b'u'),
            Some(text) => {
                bytes.push(b't');
                bytes.extend((text.len() as u32).to_be_bytes());
                bytes.extend(text.as_bytes());
            }
        }
    }
    bytes
}

#[test]
fn values_are_places_in_the_message() {
    let message = insert(7, &[Some("1"), None, Some("<unchanged>"), Some("")]);
    let Message::Insert { relation: 7, new } = decode(&message, false).unwrap() else { panic!("an insert") };
    let row = Row::new(message.into(), new).unwrap();
    let values: Vec<_> = row.values().collect();
    let text = |text: &'static str| Value::Bytes(CellKind::Text, text.as_bytes());
    assert_eq!(values, [text("1"), Value::Null, Value::Unchanged, text("")]);
}

#[test]
fn a_streamed_change_names_its_subtransaction() {
    let plain = insert(7, &[Some("1")]);
    let streamed = [&plain[..1], &42_u32.to_be_bytes(), &plain[1..]].concat();
    assert_eq!(subtransaction(&streamed), Ok(Some(42)));
    assert!(matches!(decode(&streamed, true), Ok(Message::Insert { relation: 7, .. })));
    assert!(decode(&streamed, false).is_err());
}

#[test]
fn an_update_has_its_old_key_or_row() {
    for (tag, full) in [(b'K', false), (b'O', true)] {
        let mut message = vec![b'U', 0, 0, 0, 7, tag];
        message.extend(tuple_bytes(&[Some("1"), None]));
        message.push(b'N');
        message.extend(tuple_bytes(&[Some("2"), Some("x")]));
        let Message::Update { old: Some(old), new, .. } = decode(&message, false).unwrap() else {
            panic!("an update")
        };
        assert_eq!((matches!(old, Old::Full(_)), new.len()), (full, 2));
    }
}

#[test]
fn a_commit_in_pieces_and_an_abort() {
    let number = |n: u64| n.to_be_bytes();
    let commit = [&b"c"[..], &5_u32.to_be_bytes(), b"\0", &number(8), &number(9), &number(1)].concat();
    let expected = (5, 8, 9, PG_EPOCH + 1);
    match decode(&commit, false).unwrap() {
        Message::StreamCommit { xid, lsn, end_lsn, committed_at } => {
            assert_eq!((xid, lsn, end_lsn, committed_at), expected);
        }
        other => panic!("{other:?}"),
    }
    let abort = [&b"A"[..], &5_u32.to_be_bytes(), &6_u32.to_be_bytes()].concat();
    assert!(matches!(decode(&abort, true), Ok(Message::StreamAbort { xid: 5, subxid: 6 })));
}

#[test]
fn a_relation_has_its_columns() {
    let mut message = vec![b'R', 0, 0, 0, 9];
    message.extend(b"public\0t\0f\0\x02\x01id\0\0\0\0\x17\xff\xff\xff\xff\0a\0\0\0\0\x19\xff\xff\xff\xff");
    let Message::Relation(relation) = decode(&message, false).unwrap() else { panic!("a relation") };
    assert_eq!((relation.oid, relation.schema, relation.name), (9, "public", "t"));
    assert_eq!(relation.identity, ReplicaIdentity::Full);
    assert_eq!(relation.columns[0], RelationColumn { key: true, name: "id", type_oid: 23, modifier: -1 });
}

proptest! {
    /// Whatever comes, it is a message or an error; never a panic, never a huge allocation.
    #[test]
    fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200), streamed: bool) {
        let _ = decode(&bytes, streamed);
    }

    #[test]
    fn any_row_round_trips(values in proptest::collection::vec(proptest::option::of("[^<]*"), 0..20)) {
        let values: Vec<Option<&str>> = values.iter().map(Option::as_deref).collect();
        let message = insert(1, &values);
        let Ok(Message::Insert { new, .. }) = decode(&message, false) else { panic!("an insert") };
        let row = Row::new(message.into(), new).unwrap();
        for (value, expected) in row.values().zip(&values) {
            let expected = expected.map_or(Value::Null, |text| Value::Bytes(CellKind::Text, text.as_bytes()));
            prop_assert_eq!(value, expected);
        }
    }

    #[test]
    fn a_message_cut_short_is_refused(values in proptest::collection::vec(proptest::option::of("[^<]{0,9}"), 1..9), cut: prop::sample::Index) {
        let values: Vec<Option<&str>> = values.iter().map(Option::as_deref).collect();
        let message = insert(1, &values);
        prop_assert!(decode(&message[..cut.index(message.len())], false).is_err());
    }
}
