//! Which writer of a source is the newest of this process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use headwater_core::{Error, Kind, Result};

/// How many writers of each source were opened.
#[derive(Debug, Default)]
pub struct Writers(Mutex<HashMap<String, u64>>);

/// One writer's place among those of its source.
pub struct Place {
    source: Arc<str>,
    number: u64,
}

impl Writers {
    /// A new writer of a source: earlier ones publish no more.
    pub fn open(&self, source: &str) -> Place {
        let mut writers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = writers.entry(source.to_owned()).or_default();
        *number += 1;
        Place { source: source.into(), number: *number }
    }

    /// An error of kind `Busy` when another writer of the source was opened.
    pub fn check(&self, place: &Place) -> Result<()> {
        let writers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if writers.get(&*place.source) == Some(&place.number) {
            return Ok(());
        }
        Err(Error::new(Kind::Busy, format!("another writer of {} was opened", place.source)))
    }
}
