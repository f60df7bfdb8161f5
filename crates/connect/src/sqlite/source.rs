//! The async side of an open source.

use std::sync::mpsc::{Sender, channel};

use async_trait::async_trait;
use headwater_core::ports::{Durable, Source};
use headwater_core::{Batch, Checkpoint, Error, Kind, Result};
use tokio::sync::oneshot;

use super::capture::{Capture, Setup};
use super::state::State;
use super::worker::{self, Command};

/// An open source: its thread, and what was asked of it.
pub struct SqliteSource {
    commands: Sender<Command>,
    /// The answer to a `next` that was asked for. It outlives the future that waited for it.
    asked: Option<oneshot::Receiver<Result<Batch>>>,
}

impl SqliteSource {
    /// Opens on a thread of its own: SQLite blocks.
    pub async fn open(setup: Setup, from: Option<Checkpoint>) -> Result<Self> {
        let (commands, received) = channel();
        let (opened, answer) = oneshot::channel();
        let body = move || match Capture::open(setup, from.as_ref()) {
            Ok(capture) => {
                let _ = opened.send(Ok(()));
                worker::run(capture, &received);
            }
            Err(error) => {
                let _ = opened.send(Err(error));
            }
        };
        let thread = std::thread::Builder::new().name("headwater-sqlite".into()).spawn(body);
        thread.map_err(|error| Error::new(Kind::Unavailable, "starting a thread").because(error))?;
        answer.await.map_err(|_| ended())??;
        Ok(Self { commands, asked: None })
    }
}

fn ended() -> Error {
    Error::new(Kind::Internal, "the thread of the SQLite source ended unexpectedly")
}

#[async_trait]
impl Source for SqliteSource {
    async fn next(&mut self, budget: usize) -> Result<Batch> {
        if self.asked.is_none() {
            let (reply, answer) = oneshot::channel();
            self.commands.send(Command::Next(budget, reply)).map_err(|_| ended())?;
            self.asked = Some(answer);
        }
        let Some(answer) = &mut self.asked else { return Err(ended()) };
        let result = answer.await;
        self.asked = None;
        result.map_err(|_| ended())?
    }

    async fn confirm(&mut self, checkpoint: &Checkpoint, _proof: Durable) -> Result<()> {
        let state = State::of(checkpoint)?;
        let command = Command::Confirm(Box::new((checkpoint.clone(), state)));
        self.commands.send(command).map_err(|_| ended())
    }
}
