//! PostgreSQL's texts of values that hold others: arrays, composites, hstores.
//!
//! Readers hand out the parts of a text as slices of it, copying only what had escapes.

mod array;
mod composite;
mod hstore;

pub(super) use array::{ArrayReader, Token};
pub(super) use composite::CompositeReader;
pub(super) use hstore::HstoreReader;

use std::borrow::Cow;

/// Splits `text`, which begins after an opening quote, at the closing one; `\` takes the next byte as
/// it is, and so does a doubled quote where `doubled` says so. `None` when it never closes.
fn quoted(text: &[u8], doubled: bool) -> Option<(Cow<'_, [u8]>, &[u8])> {
    let mut copied: Option<Vec<u8>> = None;
    let mut rest = text;
    loop {
        let at = memchr::memchr2(b'"', b'\\', rest)?;
        let (run, after) = rest.split_at(at);
        let (found, after) = after.split_first()?;
        let closes = *found == b'"' && !(doubled && after.first() == Some(&b'"'));
        if closes {
            let value = match copied {
                None => Cow::Borrowed(run),
                Some(mut copied) => {
                    copied.extend_from_slice(run);
                    Cow::Owned(copied)
                }
            };
            return Some((value, after));
        }
        let (literal, after) = after.split_first()?;
        let copied = copied.get_or_insert_default();
        copied.extend_from_slice(run);
        copied.push(*literal);
        rest = after;
    }
}
