//! The pgoutput decoder: whatever a server sends is a message or an error, and every value lies within it.
#![no_main]

use bytes::Bytes;
use headwater_core::Row;
use headwater_wire::pgoutput::{Message, Old, Tuple, decode, subtransaction};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (bool, &[u8])| {
    let (streamed, bytes) = input;
    let _ = subtransaction(bytes);
    let Ok(message) = decode(bytes, streamed) else { return };
    let bytes = Bytes::copy_from_slice(bytes);
    match message {
        Message::Insert { new, .. } => read(&bytes, new),
        Message::Update { old, new, .. } => {
            old.into_iter().for_each(|old| read(&bytes, cells(old)));
            read(&bytes, new);
        }
        Message::Delete { old, .. } => read(&bytes, cells(old)),
        Message::Relation(relation) => assert!(relation.columns.len() <= bytes.len()),
        Message::Truncate { relations } => assert!(relations.len() <= bytes.len()),
        _ => {}
    }
});

fn cells(old: Old) -> Tuple {
    match old {
        Old::Key(cells) | Old::Full(cells) => cells,
    }
}

fn read(bytes: &Bytes, cells: Tuple) {
    let row = Row::new(bytes.clone(), cells).expect("every value lies within its message");
    assert!(row.values().count() <= bytes.len());
}
