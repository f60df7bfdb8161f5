//! `[push.NAME]`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use headwater_core::ports::Start;
use headwater_core::{Error, Event, Kind, Result};
use headwater_runtime::config::parse_bytes;
use reqwest::Method;
use reqwest::header::{AUTHORIZATION, HeaderName, HeaderValue};
use serde::{Deserialize, Deserializer};

use super::sign::Secret;
use super::template::{Parsed, Template};

/// The headers that a request has of itself: what a config said of them would not be sent, or break the request.
const OWN: &[&str] = &[
    "connection",
    "content-length",
    "headwater-key",
    "headwater-stream",
    "headwater-type",
    "idempotency-key",
    "transfer-encoding",
    "webhook-id",
    "webhook-signature",
    "webhook-timestamp",
];

/// `[push.NAME]`: where events go, and how.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PushConfig {
    /// What is delivered.
    pub streams: Vec<String>,
    /// Where to: a template, or one for each type or op.
    pub url: Choice,
    /// How: likewise.
    #[serde(default = "post")]
    pub method: Choice,
    /// What of the event is the body.
    #[serde(default)]
    pub body: Body,
    /// How many events a request may carry, as a JSON array; with 1, an event is the body itself.
    #[serde(default = "one")]
    pub batch: usize,
    /// How many requests are on their way at once.
    #[serde(default = "eight")]
    pub concurrency: usize,
    /// How long a request may take.
    #[serde(default = "ten_seconds", deserialize_with = "duration")]
    pub timeout: Duration,
    /// How often an event is tried before its key is parked; for ever, if not given.
    pub attempts: Option<u32>,
    /// The longest wait between two tries.
    #[serde(default = "half_a_minute", deserialize_with = "duration")]
    pub retry_max: Duration,
    /// How long delivered events are remembered, to be recognised when they come again.
    #[serde(default = "a_week", deserialize_with = "duration")]
    pub retention: Duration,
    /// How many bytes of events may be set aside, parked or to be tried again, with what waits behind them.
    #[serde(default = "a_quarter_gib", deserialize_with = "size")]
    pub max_set_aside: u64,
    /// Headers of every request; their values may be secrets.
    #[serde(default)]
    pub headers: BTreeMap<String, Hidden>,
    /// `Authorization: Bearer`.
    pub bearer: Option<Hidden>,
    /// `Authorization: Basic`.
    pub basic: Option<Basic>,
    /// Certificates in PEM that are trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Secrets of the Standard Webhooks scheme.
    #[serde(default)]
    pub signing_secrets: Vec<Hidden>,
    /// Where a new push begins.
    #[serde(default)]
    pub start: From,
}

fn post() -> Choice {
    Choice::Text("POST".to_owned())
}
fn one() -> usize {
    1
}
fn eight() -> usize {
    8
}
fn ten_seconds() -> Duration {
    Duration::from_secs(10)
}
fn half_a_minute() -> Duration {
    Duration::from_secs(30)
}
fn a_week() -> Duration {
    Duration::from_hours(7 * 24)
}

fn a_quarter_gib() -> u64 {
    256 << 20
}

fn size<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a number of bytes, or text as 10GiB")]
    enum NumberOrText {
        Number(u64),
        Text(String),
    }
    let wrong = || serde::de::Error::custom("expected a size: write 10GiB, 500MB or a number of bytes");
    match NumberOrText::deserialize(from)? {
        NumberOrText::Number(number) => Ok(number),
        NumberOrText::Text(text) => parse_bytes(&text).ok_or_else(wrong),
    }
}

fn duration<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    humantime::parse_duration(&text).map_err(|error| {
        serde::de::Error::custom(format!("expected a time such as \"10s\" or \"5m\": {error}"))
    })
}

/// One text for all events, or one for each type or op.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Choice {
    /// For all.
    Text(String),
    /// By type, or else by op; `"*"` for all others.
    Table(BTreeMap<String, String>),
}

/// What of an event is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Body {
    /// The event as it is in the stream.
    #[default]
    Event,
    /// What an outbox row said, or the row after the change.
    Payload,
}

/// Where a new push begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum From {
    /// With the first event that the stream still has.
    #[default]
    Beginning,
    /// With what comes from now on.
    End,
}

impl std::convert::From<From> for Start {
    fn from(from: From) -> Self {
        match from {
            From::Beginning => Self::Beginning,
            From::End => Self::End,
        }
    }
}

/// Text that is not printed.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct Hidden(pub String);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A user and a password.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Basic {
    /// The user.
    pub user: String,
    /// The password.
    pub password: Hidden,
}

/// A choice whose templates were read.
#[derive(Debug, Clone)]
pub(super) enum Choices {
    All(Template),
    By(BTreeMap<String, Template>),
}

impl Choice {
    pub(super) fn read(&self) -> std::result::Result<Choices, String> {
        Ok(match self {
            Self::Text(text) => Choices::All(Template::try_from(text.clone())?),
            Self::Table(table) => {
                let read =
                    table.iter().map(|(name, text)| Ok((name.clone(), Template::try_from(text.clone())?)));
                Choices::By(read.collect::<std::result::Result<_, String>>()?)
            }
        })
    }
}

impl Choices {
    fn all(&self) -> Vec<&Template> {
        match self {
            Self::All(template) => vec![template],
            Self::By(table) => table.values().collect(),
        }
    }

    /// What each may look like.
    pub(super) fn examples(&self) -> Vec<String> {
        self.all().into_iter().map(Template::example).collect()
    }

    /// The text for an event.
    pub(super) fn fill(&self, event: &Event, json: &Parsed<'_>) -> std::result::Result<String, String> {
        let template = match self {
            Self::All(template) => Some(template),
            Self::By(table) => {
                let names = [&*event.kind, json.op(event), "*"];
                names.into_iter().find_map(|name| table.get(name))
            }
        };
        let none = || format!("there is no entry for type {} nor op {}", event.kind, json.op(event));
        template.ok_or_else(none)?.fill(event, json)
    }
}

impl PushConfig {
    /// What makes no sense in it, with the key that it is about.
    pub fn check(&self) -> std::result::Result<(), (&'static str, String)> {
        nothing(self.streams.is_empty(), "streams", "names no stream")?;
        nothing(self.batch == 0, "batch", "expected a whole number from 1")?;
        nothing(self.concurrency == 0, "concurrency", "expected a whole number from 1")?;
        nothing(self.attempts == Some(0), "attempts", "expected a whole number from 1")?;
        nothing(self.max_set_aside == 0, "max_set_aside", "expected a size above 0")?;
        nothing(self.timeout.is_zero(), "timeout", "has to be longer than nothing")?;
        nothing(self.retry_max.is_zero(), "retry_max", "has to be longer than nothing")?;
        self.check_request()?;
        self.check_headers()?;
        self.signing().map_err(|error| ("signing_secrets", error))?;
        Ok(())
    }

    /// Where a request goes, and how.
    fn check_request(&self) -> std::result::Result<(), (&'static str, String)> {
        let url = self.url.read().map_err(|error| ("url", error))?;
        let method = self.method.read().map_err(|error| ("method", error))?;
        for template in url.all() {
            check_url(&template.example()).map_err(|error| ("url", error))?;
            nothing(
                !template.has_fixed_host(),
                "url",
                "what an event says may only stand in the path, behind the host",
            )?;
        }
        for template in method.all().into_iter().filter(|template| template.is_of_stream()) {
            read_method(&template.example()).map_err(|error| ("method", error))?;
        }
        if self.batch > 1 {
            let fixed = matches!(&url, Choices::All(url) if url.is_of_stream());
            nothing(!fixed, "url", "with batch, events share a request: only {stream} may stand in the url")?;
            let post = self.method == post();
            nothing(!post, "method", "with batch it is POST")?;
            let payload = self.body == Body::Payload;
            nothing(
                payload,
                "body",
                "with batch it is \"event\", which has the id of each: payloads alone have none",
            )?;
        }
        Ok(())
    }

    /// What stands in headers. What HTTP does not allow would keep every event from being sent.
    fn check_headers(&self) -> std::result::Result<(), (&'static str, String)> {
        nothing(self.bearer.is_some() && self.basic.is_some(), "basic", "there is a bearer token too")?;
        if let Some(Hidden(token)) = &self.bearer {
            let fine = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
            nothing(
                !fine,
                "bearer",
                "is empty, or has a space, a line end or another character that no token has",
            )?;
        }
        if let Some(Basic { user, .. }) = &self.basic {
            nothing(
                user.contains(':'),
                "basic",
                "a user cannot have a colon: the password begins behind it",
            )?;
        }
        let authorized = self.bearer.is_some() || self.basic.is_some();
        for (name, value) in &self.headers {
            let fine =
                HeaderName::from_bytes(name.as_bytes()).is_ok() && HeaderValue::from_str(&value.0).is_ok();
            nothing(
                !fine,
                "headers",
                &format!("the name or the value of \"{name}\" is none that HTTP allows"),
            )?;
            let name = name.to_ascii_lowercase();
            let own = OWN.contains(&&*name) || name == AUTHORIZATION.as_str() && authorized;
            nothing(own, "headers", &format!("\"{name}\" is set by Headwater itself: leave it out"))?;
        }
        Ok(())
    }

    /// How many requests may be tries again, or of what was set aside.
    pub(super) fn again(&self) -> usize {
        (self.concurrency / 2).max(1)
    }

    /// How many of these may be of what was set aside: it leaves room for the others where there is any.
    pub(super) fn aside(&self) -> usize {
        (self.again() / 2).max(1)
    }

    pub(super) fn signing(&self) -> std::result::Result<Vec<Secret>, String> {
        self.signing_secrets.iter().map(|secret| Secret::parse(&secret.0)).collect()
    }

    pub(super) fn checked(&self, name: &str) -> Result<()> {
        let wrong = |(key, text)| Error::new(Kind::Config, format!("push.{name}.{key}: {text}"));
        self.check().map_err(wrong)
    }
}

/// An error about a key, where something is wrong.
fn nothing(wrong: bool, key: &'static str, text: &str) -> std::result::Result<(), (&'static str, String)> {
    if wrong { Err((key, text.to_owned())) } else { Ok(()) }
}

/// The methods that servers know are upper case, and one that is not is another method. CONNECT asks for a tunnel.
pub(super) fn read_method(text: &str) -> std::result::Result<Method, String> {
    let fine = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-');
    let method = Method::from_bytes(text.as_bytes()).ok().filter(|method| fine && *method != Method::CONNECT);
    method.ok_or_else(|| format!("\"{text}\" is no method: write POST, PUT, PATCH or DELETE, in upper case"))
}

fn check_url(text: &str) -> std::result::Result<(), String> {
    let url = url::Url::parse(text).map_err(|error| format!("is no URL: {error}"))?;
    match url.scheme() {
        "http" | "https" if url.has_host() => Ok(()),
        _ => Err("has to begin with http:// or https://".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_secret_is_not_printed() {
        let text = "streams = ['s']\nurl = 'http://h/'\nbearer = 'hush1'\nheaders = { X-Api-Key = 'hush2' }\n\
                    basic = { user = 'u', password = 'hush3' }\nsigning_secrets = ['hush4']";
        let config: PushConfig = toml::from_str(text).unwrap();
        let printed = format!("{config:?}");
        assert!(printed.contains("X-Api-Key") && !printed.contains("hush"), "{printed}");
    }

    /// Each of these would have every event parked, or sent in a way that nobody meant.
    #[test]
    fn what_would_spoil_every_request_is_refused() {
        let check = |text: &str| {
            let url = if text.contains("url = ") { "" } else { "url = 'http://h/'\n" };
            toml::from_str::<PushConfig>(&format!("streams = ['s']\n{url}{text}")).unwrap().check()
        };
        for (text, key, said) in [
            ("bearer = ''", "bearer", "is empty"),
            ("bearer = \"hush\\n\"", "bearer", "a line end"),
            ("basic = { user = 'a:b', password = 'hush' }", "basic", "colon"),
            ("method = 'post'", "method", "upper case"),
            ("method = { create = 'POST', '*' = '' }", "method", "upper case"),
            ("method = 'CONNECT'", "method", "no method"),
            ("headers = { Content-Length = '1' }", "headers", "content-length"),
            ("headers = { Webhook-Id = '1' }", "headers", "webhook-id"),
            ("headers = { Authorization = 'hush' }\nbearer = 'x'", "headers", "authorization"),
            ("headers = { 'a b' = 'hush' }", "headers", "\"a b\""),
            ("headers = { a = \"hush\\n\" }", "headers", "\"a\""),
            ("retry_max = '0s'", "retry_max", "longer than nothing"),
            ("url = 'http:///{key}/x'", "url", "behind the host"),
        ] {
            let (at, message) = check(text).unwrap_err();
            assert!(
                at == key && message.contains(said) && !message.contains("hush"),
                "{text}: {at}: {message}"
            );
        }
        for fine in [
            "headers = { Authorization = 'x', Content-Type = 'application/cloudevents+json' }",
            "bearer = 'x'\nmethod = { a = 'PUT', '*' = '{type}' }",
            "method = 'M-SEARCH'",
        ] {
            assert_eq!(check(fine), Ok(()), "{fine}");
        }
    }
}
