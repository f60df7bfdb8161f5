//! What the pipeline of `headwater run` has set aside in its data_dir.

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use headwater_cli::config::Config;
use headwater_core::ports::{
    HoldsBack, Parked, ParkedStore, ParkedUsage, Shelf, ShelfFilter, ShelfState, Shelved, ShelvedEvent,
};
use headwater_core::{Error, Event, Kind, Record, Result};
use serde_json::json;

use crate::run::DataDir;
use crate::status::http;
use crate::wiring;

/// How much is read of one line at a time.
const READ: usize = 4 << 20;

/// The parked store of one data_dir.
pub struct Pipeline {
    store: Arc<dyn ParkedStore>,
    /// The process that runs on it, if one does.
    running: Option<String>,
    http: Option<SocketAddr>,
}

impl Pipeline {
    pub async fn open(config: &Config) -> Result<Self> {
        let running = DataDir::owner(&config.data_dir);
        Ok(Self { store: wiring::parked(config).await?, running, http: config.http })
    }

    /// The lines that fit, each with the first of it.
    async fn lines(&self, filter: &ShelfFilter) -> Result<Vec<(ParkedUsage, Parked)>> {
        let mut lines = Vec::new();
        for usage in self.store.usage().await? {
            let key = matches!(&usage.holds, HoldsBack::Key(key) if Some(key) == filter.key.as_ref());
            let fits = filter.owner.as_ref().is_none_or(|owner| **owner == *usage.source)
                && filter.stream.as_ref().is_none_or(|stream| **stream == *usage.stream)
                && (filter.key.is_none() || key);
            if !fits {
                continue;
            }
            let first = self.store.list(&usage.source, &usage.stream, &usage.holds, 1).await?;
            let first = first.into_iter().next().filter(|first| filter.id.is_none_or(|id| id == first.id));
            lines.extend(first.map(|first| (usage, first)));
            if filter.limit > 0 && lines.len() >= filter.limit {
                break;
            }
        }
        Ok(lines)
    }
}

#[async_trait]
impl Shelf for Pipeline {
    async fn list(&self, filter: &ShelfFilter) -> Result<Vec<Shelved>> {
        let lines = self.lines(filter).await?;
        Ok(lines.into_iter().map(|(usage, first)| shelved(usage, first)).collect())
    }

    async fn show(&self, filter: &ShelfFilter) -> Result<Vec<ShelvedEvent>> {
        let mut events = Vec::new();
        for (usage, _) in self.lines(filter).await? {
            let parked = self.store.list(&usage.source, &usage.stream, &usage.holds, READ).await?;
            let states = std::iter::once(ShelfState::Parked).chain(std::iter::repeat(ShelfState::Waiting));
            events.extend(parked.into_iter().zip(states).map(|(parked, state)| event(parked, state)));
        }
        if filter.limit > 0 {
            events.truncate(filter.limit);
        }
        Ok(events)
    }

    async fn retry(&self, filter: &ShelfFilter) -> Result<u64> {
        let lines = self.lines(filter).await?;
        if lines.is_empty() {
            return Ok(0);
        }
        let address = match (&self.running, self.http) {
            (Some(_), Some(address)) => address,
            (Some(_), None) => {
                return Err(Error::new(
                    Kind::Config,
                    "[http] listen is \"off\", so the running process cannot be asked",
                )
                .hint("restart it: all that is parked is tried again then"));
            }
            (None, _) => {
                return Err(Error::new(Kind::Unavailable, "headwater does not run on this data_dir")
                    .hint("all that is parked in it is tried again when `headwater run` starts"));
            }
        };
        let mut released = 0;
        for (usage, _) in lines {
            let (holds, key) = match &usage.holds {
                HoldsBack::Stream => ("stream", None),
                HoldsBack::Key(key) => ("key", Some(&**key)),
                HoldsBack::Nothing => ("nothing", None),
            };
            let body = json!({ "stream": usage.stream, "holds": holds, "key": key });
            let answer: serde_json::Value =
                serde_json::from_slice(&http::post(address, "/parked/retry", &body.to_string()).await?)
                    .map_err(|error| Error::new(Kind::Decode, "reading the answer").because(error))?;
            if let Some(error) = answer["error"].as_str() {
                return Err(Error::new(Kind::Refused, error.to_owned()));
            }
            released += answer["released"].as_u64().unwrap_or(0);
        }
        Ok(released)
    }

    async fn drop(&self, filter: &ShelfFilter) -> Result<u64> {
        let lines = self.lines(filter).await?;
        if let (Some(process), false) = (&self.running, lines.is_empty()) {
            let doing = format!("{process} runs on this data_dir, and knows what it has parked");
            return Err(Error::new(Kind::Busy, doing).hint("stop it first; nothing is lost meanwhile"));
        }
        let mut dropped = 0;
        for (usage, first) in lines {
            self.store.remove(&usage.source, &usage.stream, &[first.id]).await?;
            dropped += 1;
        }
        Ok(dropped)
    }
}

fn key(holds: &HoldsBack) -> Option<bytes::Bytes> {
    match holds {
        HoldsBack::Key(key) => Some(key.clone()),
        HoldsBack::Stream | HoldsBack::Nothing => None,
    }
}

fn reason(holds: &HoldsBack, reason: &str) -> String {
    match holds {
        HoldsBack::Stream => format!("the whole stream waits: {reason}"),
        HoldsBack::Key(_) | HoldsBack::Nothing => reason.to_owned(),
    }
}

fn shelved(usage: ParkedUsage, first: Parked) -> Shelved {
    Shelved {
        owner: usage.source.to_string(),
        key: key(&usage.holds),
        id: first.id,
        state: ShelfState::Parked,
        attempts: 1,
        error: Some(reason(&usage.holds, &usage.reason)),
        since: first.parked_at,
        waiting: usage.count.saturating_sub(1),
        stream: usage.stream,
    }
}

fn event(parked: Parked, state: ShelfState) -> ShelvedEvent {
    let key = key(&parked.holds);
    let event = Event {
        id: parked.id,
        stream: Arc::clone(&parked.stream),
        partition: None,
        kind: "change".into(),
        key: key.clone(),
        payload: headwater_runtime::describe_parked(&parked).map(Into::into),
        headers: Default::default(),
        time: parked.parked_at,
        position: parked.position,
    };
    ShelvedEvent {
        owner: parked.source.to_string(),
        key,
        state,
        attempts: u32::from(state == ShelfState::Parked),
        error: Some(reason(&parked.holds, &parked.reason)),
        since: parked.parked_at,
        record: Record { offset: 0, event },
    }
}
