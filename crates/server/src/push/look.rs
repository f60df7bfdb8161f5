//! Whether an endpoint is there: nothing is sent to it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use headwater_core::ports::Finding;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::Url;

use super::PushConfig;
use super::request::tls;

/// How long an endpoint may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is asked for: a host, a port, and whether by TLS.
type Place = (String, u16, bool);

/// Connects to each host of a push, with TLS where that is meant. An endpoint that is away is waited for, so that is a
/// warning.
pub async fn look(config: &PushConfig) -> Vec<Finding> {
    let tls = match tls(config) {
        Ok(tls) => Arc::new(tls),
        Err(error) => {
            return vec![Finding::error(error.to_string(), "mend the file, or leave out `ca_file`")];
        }
    };
    let looks = places(config).into_iter().map(async |(host, port, secure)| {
        let tls = secure.then(|| Arc::clone(&tls));
        let reached = tokio::time::timeout(PATIENCE, reach(&host, port, tls)).await;
        match reached.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}"))) {
            Ok(()) => Finding::ok(format!("{host}:{port} answers")),
            Err(why) => Finding::warning(
                format!("{host}:{port} cannot be reached: {why}"),
                "until it can, events wait in the stream; a certificate of your own authority goes into `ca_file`",
            ),
        }
    });
    futures::future::join_all(looks).await
}

fn places(config: &PushConfig) -> BTreeSet<Place> {
    let urls = config.url.read().map(|url| url.examples()).unwrap_or_default();
    let place = |url: &String| {
        let url = Url::parse(url).ok()?;
        Some((url.host_str()?.to_owned(), url.port_or_known_default()?, url.scheme() == "https"))
    };
    urls.iter().filter_map(place).collect()
}

async fn reach(host: &str, port: u16, tls: Option<Arc<ClientConfig>>) -> Result<(), String> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((bare, port)).await.map_err(|error| error.to_string())?;
    let Some(tls) = tls else { return Ok(()) };
    let name = ServerName::try_from(bare.to_owned()).map_err(|error| error.to_string())?;
    let shaken = TlsConnector::from(tls).connect(name, stream).await;
    shaken.map(drop).map_err(|error| error.to_string())
}
