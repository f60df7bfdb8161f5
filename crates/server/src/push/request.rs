//! One request: built from events, sent, and judged.

use std::error::Error as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use headwater_core::{Error, Event, Kind, Result};
use headwater_runtime::consume::{Failure, Received};
use headwater_runtime::metrics;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, RequestBuilder, Response};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::answer;
use super::config::{Body, Choices, PushConfig, read_method};
use super::sign::{Secret, signature};
use super::template::{Parsed, encode};

/// How much of an answer that is not 2xx is read.
const READ: usize = 2048;

/// How much of one that is 2xx is read, and for how long: nobody needs what it says.
const MOST: usize = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(1);

/// What makes requests of one push.
pub(super) struct Requests {
    push: String,
    client: Client,
    url: Choices,
    method: Choices,
    body: Body,
    batch: usize,
    bearer: Option<String>,
    basic: Option<(String, String)>,
    secrets: Vec<Secret>,
    /// How many requests may be on their way.
    room: Arc<Semaphore>,
    /// How many of them may be tries again, or of what was set aside: those of keys that hang must not keep the others
    /// from being made.
    again: Arc<Semaphore>,
}

/// A request may be on its way. (No semaphore is ever closed.)
pub(super) struct Permit {
    _of: Option<OwnedSemaphorePermit>,
}

impl Requests {
    pub(super) fn new(name: &str, config: &PushConfig) -> Result<Self> {
        let wrong = |error: String| Error::new(Kind::Config, format!("push.{name}: {error}"));
        Ok(Self {
            push: name.to_owned(),
            client: client(config)?,
            url: config.url.read().map_err(wrong)?,
            method: config.method.read().map_err(wrong)?,
            body: config.body,
            batch: config.batch.max(1),
            bearer: config.bearer.as_ref().map(|token| token.0.clone()),
            basic: config.basic.as_ref().map(|basic| (basic.user.clone(), basic.password.0.clone())),
            secrets: config.signing().map_err(wrong)?,
            room: Arc::new(Semaphore::new(config.concurrency.min(Semaphore::MAX_PERMITS))),
            again: Arc::new(Semaphore::new(config.again().min(Semaphore::MAX_PERMITS))),
        })
    }

    /// How many events a request may carry.
    pub(super) fn batch(&self) -> usize {
        self.batch
    }

    fn is_array(&self) -> bool {
        self.batch > 1
    }

    /// Waits until one more request may be on its way.
    pub(super) async fn admit(&self) -> Permit {
        Permit { _of: Arc::clone(&self.room).acquire_owned().await.ok() }
    }

    /// What a try again needs beside, if there is any now.
    pub(super) fn again(&self) -> Option<Permit> {
        let again = Arc::clone(&self.again).try_acquire_owned().ok()?;
        Some(Permit { _of: Some(again) })
    }

    /// Delivers events of one partition in one request, for which there is a permit.
    pub(super) async fn deliver(&self, events: &[&Received]) -> Result<(), Failure> {
        // Made when its turn has come: its signature says when it is sent.
        let request = self.request(events)?;
        let began = Instant::now();
        let sent = request.send().await;
        let (class, ended) = match sent {
            Ok(response) => (class(&response), judge(response).await),
            Err(error) if error.is_timeout() => ("timeout", Err(unsent(error))),
            Err(error) => ("connection", Err(unsent(error))),
        };
        metrics::pushed(&self.push, class, began.elapsed());
        ended
    }

    fn request(&self, events: &[&Received]) -> Result<RequestBuilder, Failure> {
        let Some(first) = events.first() else { return Err(Failure::park("there is nothing to deliver")) };
        let event = &first.record.event;
        let json = Parsed::of(event);
        let url = self.url.fill(event, &json).map_err(|error| Failure::park(format!("url: {error}")))?;
        let method =
            self.method.fill(event, &json).map_err(|error| Failure::park(format!("method: {error}")))?;
        let method = read_method(&method).map_err(|error| Failure::park(format!("method: {error}")))?;
        let body = if self.is_array() { self.bodies(events)? } else { self.one(event, &json) };
        let mut request = self.client.request(method, url);
        let id = if self.is_array() { of_all(events) } else { event.id.to_string() };
        if !self.is_array() {
            request = request.header("idempotency-key", &id);
            request = described(request, event);
        }
        request = request.header("headwater-stream", &*event.stream);
        request = self.signed(request, &id, &body);
        if let Some(token) = &self.bearer {
            request = request.bearer_auth(token);
        }
        if let Some((user, password)) = &self.basic {
            request = request.basic_auth(user, Some(password));
        }
        Ok(request.body(body))
    }

    fn signed(&self, request: RequestBuilder, id: &str, body: &[u8]) -> RequestBuilder {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let timestamp = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
        let request = request.header("webhook-id", id).header("webhook-timestamp", timestamp);
        if self.secrets.is_empty() {
            return request;
        }
        request.header("webhook-signature", signature(&self.secrets, id, timestamp, body))
    }

    fn one(&self, event: &Event, json: &Parsed<'_>) -> Vec<u8> {
        let whole = event.payload.as_deref().unwrap_or_default();
        match self.body {
            Body::Payload => json.inner().map_or(whole, |inner| inner.get().as_bytes()).to_vec(),
            Body::Event => whole.to_vec(),
        }
    }

    /// A JSON array of the events.
    fn bodies(&self, events: &[&Received]) -> Result<Vec<u8>, Failure> {
        let mut array = vec![b'['];
        for (at, received) in events.iter().enumerate() {
            let event = &received.record.event;
            let json = Parsed::of(event);
            if !json.is_json() && event.payload.is_some() {
                return Err(Failure::park("it is not JSON, and cannot be in an array"));
            }
            if at > 0 {
                array.push(b',');
            }
            let body = self.one(event, &json);
            array.extend_from_slice(if body.is_empty() { b"null" } else { &body });
        }
        array.push(b']');
        Ok(array)
    }
}

/// What of an event is not in its payload, in headers.
fn described(request: RequestBuilder, event: &Event) -> RequestBuilder {
    let escaped = |bytes: &[u8]| {
        let mut text = String::new();
        encode(bytes, &mut text);
        text
    };
    let request = request.header("headwater-type", escaped(event.kind.as_bytes()));
    match event.key.as_deref() {
        Some(key) => request.header("headwater-key", escaped(key)),
        None => request,
    }
}

/// The id of a request that carries several events: others are another message.
fn of_all(events: &[&Received]) -> String {
    let mut all = Sha256::new();
    for received in events {
        all.update(received.record.event.id.as_bytes());
    }
    format!("batch_{}", BASE64_URL_SAFE_NO_PAD.encode(all.finalize()))
}

fn class(response: &Response) -> &'static str {
    match response.status().as_u16() {
        200..300 => "2xx",
        300..400 => "3xx",
        400..500 => "4xx",
        _ => "5xx",
    }
}

async fn judge(mut response: Response) -> Result<(), Failure> {
    let (status, headers) = (response.status(), response.headers().clone());
    let said = if status.is_success() {
        // A connection whose answer was not read to its end cannot be used again.
        let _ = tokio::time::timeout(PATIENCE, read(&mut response, MOST)).await;
        Vec::new()
    } else {
        // What it says beside is read within the request's timeout, or not at all.
        read(&mut response, READ).await
    };
    answer::judge(status, &headers, &String::from_utf8_lossy(&said), SystemTime::now())
}

/// The beginning of an answer's body, as much of it as comes.
async fn read(response: &mut Response, most: usize) -> Vec<u8> {
    let mut body = Vec::new();
    while body.len() < most
        && let Ok(Some(chunk)) = response.chunk().await
    {
        body.extend_from_slice(&chunk);
    }
    body.truncate(most);
    body
}

/// No answer: the endpoint is not there, or too slow. A URL that cannot be asked at all is the event's fault.
fn unsent(error: reqwest::Error) -> Failure {
    // A URL may have secrets in it.
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    if error.is_builder() { Failure::park(text) } else { Failure::retry(text) }
}

/// Trusts the certificates of a file, of which there has to be one at least.
fn trust(file: &Path, roots: &mut rustls::RootCertStore) -> Result<()> {
    let wrong = |why: &str| {
        let doing = format!("reading the certificates in ca_file {}: {why}", file.display());
        Error::new(Kind::Config, doing)
            .hint("it has to hold certificates in PEM, as BEGIN CERTIFICATE ... END CERTIFICATE")
    };
    let certificates = CertificateDer::pem_file_iter(file).map_err(|error| wrong(&error.to_string()))?;
    let mut count = 0;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| wrong(&error.to_string()))?;
        roots.add(certificate).map_err(|error| wrong(&error.to_string()))?;
        count += 1;
    }
    if count == 0 { Err(wrong("there is none")) } else { Ok(()) }
}

/// Trusts the system's certificates, and those of `ca_file`.
pub(super) fn tls(config: &PushConfig) -> Result<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(file) = &config.ca_file {
        trust(file, &mut roots)?;
    }
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::new(Kind::Internal, "making the HTTP client: TLS").because(error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(tls)
}

fn client(config: &PushConfig) -> Result<Client> {
    let mut headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    for (name, value) in &config.headers {
        let name = HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(mut value)) = (name, HeaderValue::from_str(&value.0)) {
            value.set_sensitive(true);
            headers.insert(name, value);
        }
    }
    Client::builder()
        .use_preconfigured_tls(tls(config)?)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(config.timeout)
        .pool_idle_timeout(Duration::from_secs(30))
        .user_agent(concat!("headwater/", env!("CARGO_PKG_VERSION")))
        .default_headers(headers)
        .build()
        .map_err(|error| Error::new(Kind::Internal, "making the HTTP client").because(error))
}
