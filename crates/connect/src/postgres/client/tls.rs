//! TLS as PostgreSQL does it: asked for on the plain connection, then verified as `sslmode` says.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use headwater_core::{Error, Kind, Result, ResultExt};
use postgres_protocol::message::frontend;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::stream::Stream;
use crate::postgres::url::{ConnectOptions, SslMode};

/// Asks the server for TLS and makes the connection safe; `None` when the server has none to offer, or
/// under `prefer` none that we can agree on.
pub async fn negotiate(mut stream: TcpStream, options: &ConnectOptions) -> Result<Option<Stream>> {
    let doing = || format!("asking PostgreSQL at {options} for TLS");
    let mut request = bytes::BytesMut::new();
    frontend::ssl_request(&mut request);
    stream.write_all(&request).await.doing(Kind::Unavailable, doing)?;
    // One byte and no more: what follows it must come through TLS (CVE-2021-23222).
    match stream.read_u8().await.doing(Kind::Unavailable, doing)? {
        b'S' => {}
        b'N' => return Ok(None),
        // An error from before the server knows what we are: it could not start a process for us.
        b'E' => {
            return Err(Error::new(
                Kind::Unavailable,
                format!("{}: the server cannot take connections now", doing()),
            ));
        }
        other => return Err(Error::new(Kind::Decode, format!("{}: the answer was {other:#x}", doing()))),
    }
    let config = config(options)?;
    let name = ServerName::try_from(options.host.clone()).doing(Kind::Config, doing)?;
    match TlsConnector::from(Arc::new(config)).connect(name, stream).await {
        Ok(stream) => Ok(Some(Stream::Tls(Box::new(stream)))),
        Err(_) if options.ssl_mode == SslMode::Prefer => Ok(None),
        Err(error) => Err(failed(error, options)),
    }
}

fn failed(error: std::io::Error, options: &ConnectOptions) -> Error {
    let certificate = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let refused = matches!(certificate, Some(rustls::Error::InvalidCertificate(_)));
    let kind = if refused { Kind::Refused } else { Kind::Unavailable };
    let failed = Error::new(kind, format!("TLS with PostgreSQL at {options}")).because(error);
    if !refused {
        return failed;
    }
    failed.hint("give the authority's certificate as sslrootcert=FILE; verify-full also needs the host name that the certificate gives as its subjectAltName")
}

fn config(options: &ConnectOptions) -> Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .doing(Kind::Internal, || "choosing TLS versions".to_owned())?;
    // As libpq: `require` with a root certificate verifies as verify-ca does.
    let verified = match options.ssl_mode {
        SslMode::VerifyFull => Some(true),
        SslMode::VerifyCa => Some(false),
        SslMode::Require if options.ssl_root_cert.is_some() => Some(false),
        _ => None,
    };
    let given = match &options.ssl_root_cert {
        Some(path) if verified.is_some() => certificates(path)?,
        _ => Vec::new(),
    };
    let webpki = match verified {
        Some(_) => Some(webpki(options, &given, provider.clone())?),
        None => None,
    };
    let verifier = Verifier { webpki, given, name: verified == Some(true), provider };
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    let Some((certificate, key)) = &options.ssl_client else { return Ok(builder.with_no_client_auth()) };
    let chain = certificates(certificate)?;
    let unreadable = || format!("reading the client's key {}", key.display());
    let key = PrivateKeyDer::from_pem_file(key).doing(Kind::Config, unreadable)?;
    builder
        .with_client_auth_cert(chain, key)
        .doing(Kind::Config, || "the client's certificate and key".to_owned())
}

/// Trusts the authorities that were given, or the system's.
fn webpki(
    options: &ConnectOptions,
    given: &[CertificateDer<'static>],
    provider: Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>> {
    let mut roots = RootCertStore::empty();
    match &options.ssl_root_cert {
        Some(path) => {
            for certificate in given {
                let doing = || format!("a certificate in {}", path.display());
                roots.add(certificate.clone()).doing(Kind::Config, doing)?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().doing(Kind::Config, || {
        "no trusted certificate authority was found: give sslrootcert=FILE".to_owned()
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let doing = || format!("reading certificates from {}", path.display());
    let file = BufReader::new(File::open(path).doing(Kind::Config, doing)?);
    let certificates = CertificateDer::pem_reader_iter(file).collect::<std::result::Result<Vec<_>, _>>();
    let certificates = certificates.doing(Kind::Config, doing)?;
    if certificates.is_empty() {
        return Err(Error::new(Kind::Config, format!("{} holds no certificate in PEM", path.display())));
    }
    Ok(certificates)
}

/// Verifies the chain (where `webpki` is set) and the name (where `name` is); handshake signatures always.
#[derive(Debug)]
struct Verifier {
    webpki: Option<Arc<WebPkiServerVerifier>>,
    /// What `sslrootcert` holds.
    given: Vec<CertificateDer<'static>>,
    name: bool,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn verify_name(
        &self,
        certificate: &CertificateDer<'_>,
        name: &ServerName<'_>,
    ) -> Result<(), rustls::Error> {
        if self.name { verify_server_name(&ParsedCertificate::try_from(certificate)?, name) } else { Ok(()) }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(webpki) = &self.webpki else { return Ok(ServerCertVerified::assertion()) };
        match webpki.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.name => Ok(ServerCertVerified::assertion()),
            // A self-signed certificate that may sign others too, as openssl makes them: webpki takes it for
            // an authority and no server. Where it was given as trusted it is both, as to libpq. Its dates
            // are what webpki looks at first.
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(_)))
                if self.given.iter().any(|given| given == certificate) =>
            {
                self.verify_name(certificate, name).map(|()| ServerCertVerified::assertion())
            }
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
