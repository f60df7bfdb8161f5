//! `headwater tail`: follow a stream from outside.

use headwater_cli::config::{self, BusConfig};
use headwater_connect::embedded::EmbeddedConfig;
use headwater_core::ports::{Cursor, Delivery, Start, Subscribe, Subscription};
use headwater_core::{Error, Kind, Micros, Record, Result};
use jiff::Timestamp;
use jiff::civil;
use jiff::tz::TimeZone;

use crate::args::TailArgs;
use crate::output::{self, event, human};
use crate::run::signals::Signals;
use crate::wiring;

/// Follows until Ctrl-C, `--limit`, or nobody reads stdout any more.
pub async fn tail(args: &TailArgs) -> Result<u8> {
    let start = start(&args.from, human::now())?;
    let (bus, data_dir) = match &args.data_dir {
        Some(data_dir) => (BusConfig::Embedded(EmbeddedConfig::default()), data_dir.clone()),
        None => {
            let config = config::load(&args.config)?;
            (config.bus, config.data_dir)
        }
    };
    let mut signals = Signals::listen()?;
    let work = follow(args, start, &bus, &data_dir);
    tokio::select! {
        done = work => done.map(|()| 0),
        () = signals.next() => Ok(0),
    }
}

async fn follow(args: &TailArgs, start: Start, bus: &BusConfig, data_dir: &std::path::Path) -> Result<()> {
    let bus = wiring::bus_reader(bus, data_dir).await?;
    let subscribe =
        Subscribe { streams: vec![args.stream.as_str().into()], group: args.group.clone(), start };
    let mut subscription = bus.subscribe(subscribe).await?;
    let mut shown = Shown { args, began: human::now(), left: args.limit.unwrap_or(u64::MAX) };
    while shown.left > 0 {
        let Delivery::Batch { stream, partition, epoch, records } = subscription.next().await? else {
            continue;
        };
        let mut offset = None;
        for record in &records {
            if shown.left == 0 {
                break;
            }
            shown.show(record)?;
            offset = Some(record.offset + 1);
        }
        if let Some(offset) = offset.filter(|_| args.group.is_some()) {
            remember(&mut *subscription, &Cursor { stream, partition, epoch, offset }).await?;
        }
    }
    Ok(())
}

/// A partition that went to another member of the group meanwhile is that one's to remember.
async fn remember(subscription: &mut dyn Subscription, cursor: &Cursor) -> Result<()> {
    match subscription.commit(cursor).await {
        Err(error) if error.kind() == Kind::Busy => Ok(()),
        outcome => outcome,
    }
}

struct Shown<'a> {
    args: &'a TailArgs,
    began: Micros,
    left: u64,
}

impl Shown<'_> {
    fn show(&mut self, record: &Record) -> Result<()> {
        let event = &record.event;
        let wanted = |key: &str| event.key.as_deref() == Some(key.as_bytes());
        if !self.args.key.as_deref().is_none_or(wanted) {
            return Ok(());
        }
        self.left -= 1;
        let now = human::now();
        // Of older events the time since their commit says nothing about Headwater.
        let latency = (event.time >= self.began).then_some(now - event.time);
        if self.args.json {
            return output::json(&event::EventJson::new(record, latency));
        }
        output::line(event::human_line(record, latency, now, false))
    }
}

/// Where to begin: `beginning`, `end`, an instant, or a span before now.
fn start(text: &str, now: Micros) -> Result<Start> {
    match text {
        "beginning" => return Ok(Start::Beginning),
        "end" => return Ok(Start::End),
        _ => {}
    }
    let span = text.strip_suffix("ago").map_or(text, str::trim_end);
    if let Ok(span) = humantime::parse_duration(span) {
        let span = Micros::try_from(span.as_micros()).unwrap_or(Micros::MAX);
        return Ok(Start::Time(now.saturating_sub(span)));
    }
    instant(text).map(Start::Time).ok_or_else(|| {
        Error::new(Kind::Config, format!("--from \"{text}\" is no place in a stream"))
            .hint("write beginning, end, a time as 2024-05-17T10:00:00Z, or a span as '10m ago'")
    })
}

/// An instant with an offset, or a date and time here.
fn instant(text: &str) -> Option<Micros> {
    if let Ok(instant) = text.parse::<Timestamp>() {
        return Some(instant.as_microsecond());
    }
    let local = text.parse::<civil::DateTime>().ok()?;
    local.to_zoned(TimeZone::system()).ok().map(|zoned| zoned.timestamp().as_microsecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_to_begin() {
        let now = 1_700_000_000_000_000;
        let read = |text| start(text, now).unwrap();
        assert_eq!(read("beginning"), Start::Beginning);
        assert_eq!(read("end"), Start::End);
        assert_eq!(read("10m ago"), Start::Time(now - 600_000_000));
        assert_eq!(read("1h30m"), Start::Time(now - 5_400_000_000));
        assert_eq!(read("2023-11-14T22:13:20Z"), Start::Time(now));
        assert_eq!(read("2023-11-14T23:13:20.5+01:00"), Start::Time(now + 500_000));
        assert!(matches!(read("2023-11-14"), Start::Time(_)));
        assert_eq!(start("yesterday", now).unwrap_err().kind(), Kind::Config);
    }
}
