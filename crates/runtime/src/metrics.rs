//! The runtime's metrics, all called `headwater_*`, through the `metrics` crate.
//!
//! Counters and histograms are written where things happen; gauges are taken from a [`RuntimeStatus`]
//! whenever somebody asks, so that they always say what the status says.

use std::time::Duration;

use headwater_core::ports::{ShelfCount, ShelfState};
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use crate::status::{Phase, RuntimeStatus};

/// Says what every metric means.
pub fn describe() {
    describe_counter!("headwater_events_total", "events made durable, by source and stream");
    describe_counter!("headwater_bytes_total", Unit::Bytes, "bytes of events made durable, by source");
    describe_counter!("headwater_retries_total", "times that a source was opened again after a failure");
    describe_counter!("headwater_parked_total", "changes that were parked, also again after a failure");
    describe_counter!("headwater_handled_total", "events that a consumer handled, by consumer");
    describe_counter!("headwater_set_aside_total", "events that a consumer parked or that wait behind one");
    describe_counter!("headwater_consumer_retries_total", "events that a consumer is to try again");
    describe_counter!("headwater_push_requests_total", "requests of a push, by class of their end");
    describe_histogram!("headwater_push_seconds", Unit::Seconds, "how long requests of a push took");
    describe_histogram!("headwater_batch_events", "events of a batch");
    describe_histogram!("headwater_batch_bytes", Unit::Bytes, "bytes of a batch, as read and as written");
    describe_gauge!("headwater_source_up", "1 while the source is being read, 0 otherwise");
    describe_gauge!("headwater_lag_bytes", Unit::Bytes, "bytes of the source's log that are not confirmed");
    describe_gauge!("headwater_lag_seconds", Unit::Seconds, "age of the oldest change that is not durable");
    describe_gauge!("headwater_in_flight_bytes", Unit::Bytes, "bytes that were read and are not durable");
    describe_gauge!("headwater_parked", "changes that are parked now, by source");
    describe_gauge!("headwater_relay_lanes", "lanes of an outbox that this process works, by source");
    describe_gauge!("headwater_push_up", "0 while nothing but failures comes from its endpoint, otherwise 1");
    describe_gauge!("headwater_push_full", "1 while a push waits for room to set events aside, otherwise 0");
    describe_gauge!("headwater_set_aside", "what does not go of an outbox or a push, by its state");
    describe_gauge!("headwater_stream_stopped", "1 while the stream is stopped and its changes are held");
    describe_gauge!("headwater_memory_bytes", Unit::Bytes, "resident memory of the process");
}

/// Makes the counters of a source and its streams, at 0: one that is missing until the first retry or
/// parked change cannot be told from one that is not there.
pub(crate) fn begin<'a>(source: &str, streams: impl Iterator<Item = &'a str>) {
    for name in ["headwater_bytes_total", "headwater_retries_total"] {
        counter!(name, "source" => source.to_owned()).absolute(0);
    }
    for stream in streams {
        for name in ["headwater_events_total", "headwater_parked_total"] {
            counter!(name, "source" => source.to_owned(), "stream" => stream.to_owned()).absolute(0);
        }
    }
}

/// A consumer's transaction has committed.
pub(crate) fn consumed(consumer: &str, handled: usize, set_aside: usize) {
    counter!("headwater_handled_total", "consumer" => consumer.to_owned()).increment(handled as u64);
    counter!("headwater_set_aside_total", "consumer" => consumer.to_owned()).increment(set_aside as u64);
}

/// A consumer's event is to be tried again.
pub(crate) fn retried(consumer: &str) {
    counter!("headwater_consumer_retries_total", "consumer" => consumer.to_owned()).increment(1);
}

/// A push's request has ended: `2xx` to `5xx`, `timeout` or `connection`.
pub fn pushed(push: &str, class: &'static str, took: Duration) {
    counter!("headwater_push_requests_total", "push" => push.to_owned(), "class" => class).increment(1);
    histogram!("headwater_push_seconds", "push" => push.to_owned()).record(took.as_secs_f64());
}

/// Sets the gauges to what a status says.
pub fn set_gauges(status: &RuntimeStatus) {
    for source in &status.sources {
        let labels = [("source", source.name.clone())];
        gauge!("headwater_source_up", &labels).set(up(source.phase));
        gauge!("headwater_in_flight_bytes", &labels).set(source.in_flight_bytes as f64);
        // What is not known now must not look as it was.
        gauge!("headwater_parked", &labels).set(source.parked.map_or(f64::NAN, |parked| parked as f64));
        gauge!("headwater_lag_bytes", &labels).set(source.lag_bytes.map_or(f64::NAN, |lag| lag as f64));
        gauge!("headwater_lag_seconds", &labels).set(source.lag_seconds.unwrap_or(f64::NAN));
    }
    for relay in &status.relays {
        let labels = [("source", relay.name.clone())];
        gauge!("headwater_source_up", &labels).set(up(relay.phase));
        gauge!("headwater_relay_lanes", &labels).set(f64::from(relay.lanes));
        gauge!("headwater_lag_seconds", &labels).set(relay.lag_seconds.unwrap_or(f64::NAN));
        set_aside("outbox", &relay.name, relay.aside);
    }
    for push in &status.pushes {
        gauge!("headwater_push_up", "push" => push.name.clone()).set(up(push.phase));
        gauge!("headwater_push_full", "push" => push.name.clone()).set(f64::from(u8::from(push.full)));
        set_aside("push", &push.name, push.aside);
    }
    for stream in &status.streams {
        let stopped = f64::from(u8::from(stream.stopped.is_some()));
        gauge!("headwater_stream_stopped", "stream" => stream.name.clone()).set(stopped);
    }
    if let Some(memory) = status.memory_bytes {
        gauge!("headwater_memory_bytes").set(memory as f64);
    }
}

fn up(phase: Phase) -> f64 {
    f64::from(u8::from(matches!(phase, Phase::Snapshot | Phase::Streaming)))
}

fn set_aside(place: &'static str, owner: &str, count: Option<ShelfCount>) {
    let states = [
        (ShelfState::Parked, count.map(|count| count.parked)),
        (ShelfState::Retrying, count.map(|count| count.retrying)),
        (ShelfState::Waiting, count.map(|count| count.waiting)),
    ];
    for (state, count) in states {
        gauge!("headwater_set_aside", "in" => place, "of" => owner.to_owned(), "state" => state.word())
            .set(count.map_or(f64::NAN, |count| count as f64));
    }
}
