//! `headwater demo`: a complete shop on embedded SQLite in one process.
//!
//! The same code runs as with `headwater run`, from a config that stands in the demo's folder. What the
//! demo adds is around it: a shop that trades, and a consumer that prints and keeps count.

mod consumer;
mod place;
mod replica;
mod shop;

use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use headwater_cli::config::{self, Config, LogConfig, LogLevel};
use headwater_core::{Error, Kind, Result};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::args::DemoArgs;
use crate::output::{self, Colour, human, paint};
use crate::run::{Engine, logging, signals};
use consumer::Consumer;
use place::Place;
use shop::Shop;

/// How long nothing may arrive before what is missing counts as lost.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a pause in the events is taken for their end.
const PAUSE: Duration = Duration::from_millis(100);

/// Runs until Ctrl-C or `--events`; 1 when what arrived is not what the shop says.
pub async fn demo(args: &DemoArgs) -> Result<u8> {
    logging::init(&LogConfig { level: LogLevel::Warn, ..LogConfig::default() });
    let stop = signals::stop_on_signals()?;
    let dir = args.dir.clone();
    let (place, shop) = blocking("preparing the demo", move || Place::prepare(&dir)).await?;
    let config = config::load(&place.config)?;
    let engine = Engine::open(&config).await?;
    if !args.json {
        place.introduce(engine.address())?;
    }
    let mut consumer = consumer(&engine, &config, args.json).await?;
    let end = CancellationToken::new();
    let mut running = tokio::spawn(engine.run(end.clone()));
    let mut trade = trade(shop, args);
    tokio::select! {
        done = watch(&mut consumer, args.events) => done?,
        () = stop.cancelled() => {}
        ended = &mut running => return Err(stopped_by_itself("the demo's pipeline", ended)),
        ended = &mut trade.done => return Err(stopped_by_itself("the demo's shop", ended)),
    }
    trade.end().await?;
    let differences = settle(&mut consumer, &place).await?;
    end.cancel();
    running.await.map_err(|error| Error::new(Kind::Internal, "running the demo").because(error))??;
    let summary = Summary::new(&consumer, differences);
    summary.print(args.json)?;
    Ok(if summary.differences.is_empty() { 0 } else { 1 })
}

async fn blocking<T: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Error::new(Kind::Internal, doing).because(error))?
}

fn stopped_by_itself(what: &str, ended: std::result::Result<Result<()>, tokio::task::JoinError>) -> Error {
    match ended {
        Ok(Err(error)) => error,
        Ok(Ok(())) => Error::new(Kind::Internal, format!("{what} ended by itself")),
        Err(error) => Error::new(Kind::Internal, format!("running {what}")).because(error),
    }
}

async fn consumer(engine: &Engine, config: &Config, json: bool) -> Result<Consumer> {
    let bus = engine.bus();
    for (name, stream) in &config.streams {
        bus.ensure(&stream.spec(name)).await?;
    }
    let streams = config.streams.keys().map(|name| name.as_str().into()).collect();
    Consumer::open(&*bus, streams, json).await
}

/// Consumes until enough has arrived, or for ever.
async fn watch(consumer: &mut Consumer, events: Option<u64>) -> Result<()> {
    while events.is_none_or(|events| consumer.events < events) {
        consumer.next().await?;
    }
    Ok(())
}

/// A shop that trades on a thread of its own.
struct Trade {
    stop: mpsc::Sender<()>,
    done: tokio::task::JoinHandle<Result<()>>,
}

fn trade(mut shop: Shop, args: &DemoArgs) -> Trade {
    let (stop, stopped) = mpsc::channel();
    let (pace, quiet) = (Duration::from_secs_f64(1.0 / args.rate), args.json);
    let done = tokio::task::spawn_blocking(move || {
        let mut next = Instant::now();
        loop {
            if shop.trade()? && !quiet {
                let said = "              (an order was rolled back: nothing of it may arrive)";
                output::line(paint(said, Colour::Dim, output::coloured()))?;
            }
            // A pace that cannot be kept is not made up for.
            next = (next + pace).max(Instant::now());
            match stopped.recv_timeout(next - Instant::now()) {
                Err(RecvTimeoutError::Timeout) => {}
                _ => return Ok(()),
            }
        }
    });
    Trade { stop, done }
}

impl Trade {
    async fn end(self) -> Result<()> {
        drop(self.stop);
        self.done.await.map_err(|error| Error::new(Kind::Internal, "trading").because(error))?
    }
}

/// Takes in what is still on its way, until what arrived is what the shop says, or nothing comes any more.
async fn settle(consumer: &mut Consumer, place: &Place) -> Result<Vec<String>> {
    let mut last = Instant::now();
    loop {
        if let Ok(more) = tokio::time::timeout(PAUSE, consumer.next()).await {
            more?;
            last = Instant::now();
            continue;
        }
        let differences = tokio::task::block_in_place(|| consumer.replica.compare(&place.shop))?;
        if differences.is_empty() || last.elapsed() > PATIENCE {
            return Ok(differences);
        }
    }
}

/// What the demo says at its end.
#[derive(Serialize)]
struct Summary {
    events: u64,
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    rows: usize,
    lost: usize,
    differences: Vec<String>,
}

impl Summary {
    fn new(consumer: &Consumer, differences: Vec<String>) -> Self {
        let millis = |part| consumer.percentile(part).map(|micros| micros as f64 / 1e3);
        Self {
            events: consumer.events,
            p50_ms: millis(0.5),
            p99_ms: millis(0.99),
            rows: consumer.replica.len(),
            lost: differences.len(),
            differences,
        }
    }

    fn print(&self, json: bool) -> Result<()> {
        if json {
            return output::json(self);
        }
        let colour = output::coloured();
        let millis = |value: Option<f64>| value.map_or("-".to_owned(), |value| human::seconds(value / 1e3));
        output::line("")?;
        for difference in self.differences.iter().take(20) {
            output::line(paint(difference, Colour::Red, colour))?;
        }
        let (p50, p99) = (millis(self.p50_ms), millis(self.p99_ms));
        let lost = paint(
            &format!("lost {}", self.lost),
            if self.lost == 0 { Colour::Green } else { Colour::Red },
            colour,
        );
        let compared = human::plural(self.rows as u64, "row");
        output::line(format!(
            "{}, commit to consumer p50 {p50}, p99 {p99}, {lost} ({compared} compared with shop.db)",
            human::plural(self.events, "event")
        ))
    }
}
