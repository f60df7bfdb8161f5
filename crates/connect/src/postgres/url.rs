//! Where a server is and how to reach it: `postgres://` URLs, with the meanings that libpq gives them.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use headwater_core::{Error, Kind, Result, ResultExt};
use url::Url;

/// How a connection is protected; the words and meanings of libpq's `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    /// Never TLS.
    Disable,
    /// Without TLS unless the server insists.
    Allow,
    /// TLS where the server offers it; its certificate is not checked.
    Prefer,
    /// TLS or nothing; the certificate is checked only when `sslrootcert` is given.
    Require,
    /// TLS with a certificate that a trusted authority signed.
    VerifyCa,
    /// The same, and for this host name.
    VerifyFull,
}

/// How to connect. Neither `Debug` nor `Display` shows the password.
#[derive(Clone)]
pub struct ConnectOptions {
    /// A host name or address, or a directory with a Unix socket when it begins with `/`.
    pub host: String,
    /// The port; part of the Unix socket's name too.
    pub port: u16,
    /// Who connects.
    pub user: String,
    /// The password, where one is needed.
    pub password: Option<String>,
    /// The database.
    pub database: String,
    /// How the connection is protected.
    pub ssl_mode: SslMode,
    /// Certificates of trusted authorities, in PEM; the system's when `None`.
    pub ssl_root_cert: Option<PathBuf>,
    /// The client's certificate and key, in PEM.
    pub ssl_client: Option<(PathBuf, PathBuf)>,
    /// What `pg_stat_activity` shows.
    pub application_name: String,
    /// How long connecting may take; [`Duration::MAX`] is without limit.
    pub connect_timeout: Duration,
}

impl ConnectOptions {
    /// Reads a URL: `postgres://user:password@host:port/database?sslmode=...`. The host may be a
    /// directory: percent-encoded, or as `?host=/var/run/postgresql`. A password that is not given is
    /// taken from `PGPASSWORD`.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong =
            || "the PostgreSQL URL is not one (expected postgres://user@host:5432/database)".to_owned();
        let url = Url::parse(text).doing(Kind::Config, wrong)?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(Error::new(Kind::Config, wrong()));
        }
        let host = url.host_str().unwrap_or_default();
        // The brackets belong to the URL, not to the address.
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let mut options = Self {
            host: decoded(host)?,
            port: url.port().unwrap_or(5432),
            user: decoded(url.username())?,
            password: url.password().map(decoded).transpose()?.or_else(|| std::env::var("PGPASSWORD").ok()),
            database: decoded(url.path().trim_start_matches('/'))?,
            ssl_mode: SslMode::Prefer,
            ssl_root_cert: None,
            ssl_client: None,
            application_name: "headwater".to_owned(),
            connect_timeout: Duration::from_secs(10),
        };
        let (mut certificate, mut key) = (None, None);
        let (mut mode, mut system) = (None, false);
        for (name, value) in url.query_pairs() {
            match &*name {
                "sslmode" => mode = Some(ssl_mode(&value)?),
                "sslcert" => certificate = Some(PathBuf::from(&*value)),
                "sslkey" => key = Some(PathBuf::from(&*value)),
                "sslrootcert" => {
                    system = value == "system";
                    options.ssl_root_cert = (!system).then(|| PathBuf::from(&*value));
                }
                _ => options.set(&name, &value)?,
            }
        }
        options.ssl_mode = match (mode, system) {
            // As libpq: anybody can get a certificate from some authority that the system trusts.
            (None | Some(SslMode::VerifyFull), true) => SslMode::VerifyFull,
            (Some(_), true) => {
                return Err(Error::new(
                    Kind::Config,
                    "sslrootcert=system does not go with an sslmode weaker than verify-full",
                )
                .hint("leave sslmode out or use sslmode=verify-full, or name a file with the authority's certificate as sslrootcert"));
            }
            (mode, false) => mode.unwrap_or(SslMode::Prefer),
        };
        options.ssl_client = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => {
                return Err(Error::new(Kind::Config, "sslcert and sslkey go together: give both or neither"));
            }
        };
        options.complete()
    }

    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        match name {
            "host" => value.clone_into(&mut self.host),
            "port" => {
                self.port = value.parse().doing(Kind::Config, || format!("port={value} is not a port"))?
            }
            "user" => value.clone_into(&mut self.user),
            "password" => self.password = Some(value.to_owned()),
            "dbname" => value.clone_into(&mut self.database),
            "application_name" => value.clone_into(&mut self.application_name),
            "connect_timeout" => {
                let seconds = value
                    .parse()
                    .doing(Kind::Config, || format!("connect_timeout={value} is not seconds"))?;
                self.connect_timeout =
                    if seconds == 0 { Duration::MAX } else { Duration::from_secs(seconds) };
            }
            _ => {
                return Err(Error::new(Kind::Config, format!("the PostgreSQL URL has an unknown parameter \"{name}\""))
                    .hint("known: host, port, user, password, dbname, sslmode, sslrootcert, sslcert, sslkey, application_name, connect_timeout"));
            }
        }
        Ok(())
    }

    fn complete(mut self) -> Result<Self> {
        if self.user.is_empty() {
            self.user = std::env::var("PGUSER").or_else(|_| std::env::var("USER")).unwrap_or_default();
        }
        if self.user.is_empty() {
            return Err(Error::new(Kind::Config, "the PostgreSQL URL names no user")
                .hint("write postgres://USER@host/database"));
        }
        if self.host.is_empty() {
            "localhost".clone_into(&mut self.host);
        }
        if self.database.is_empty() {
            self.user.clone_into(&mut self.database);
        }
        Ok(self)
    }

    /// Whether it goes through a Unix socket.
    pub fn is_unix(&self) -> bool {
        self.host.starts_with('/')
    }
}

/// `user@host:port/database`.
impl fmt::Display for ConnectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { user, host, port, database, .. } = self;
        if host.contains(':') && !self.is_unix() {
            return write!(f, "{user}@[{host}]:{port}/{database}");
        }
        write!(f, "{user}@{host}:{port}/{database}")
    }
}

impl fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnectOptions({self}, {:?})", self.ssl_mode)
    }
}

fn ssl_mode(value: &str) -> Result<SslMode> {
    Ok(match value {
        "disable" => SslMode::Disable,
        "allow" => SslMode::Allow,
        "prefer" => SslMode::Prefer,
        "require" => SslMode::Require,
        "verify-ca" => SslMode::VerifyCa,
        "verify-full" => SslMode::VerifyFull,
        _ => {
            return Err(Error::new(Kind::Config, format!("sslmode={value} is unknown"))
                .hint("use disable, allow, prefer, require, verify-ca or verify-full"));
        }
    })
}

/// Percent-decoding, for the parts of a URL that are not in its query.
fn decoded(text: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let (Some(high), Some(low)) = (digit(), digit()) else {
            return Err(Error::new(
                Kind::Config,
                "the PostgreSQL URL has a % that is not followed by two hex digits",
            )
            .hint("write a % that means itself as %25"));
        };
        bytes.push((high << 4 | low) as u8);
    }
    String::from_utf8(bytes).doing(Kind::Config, || "the PostgreSQL URL is not UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_all_of_a_url() {
        let options = ConnectOptions::parse(
            "postgres://al%40ice:s%3Acret@db.example:6432/shop?sslmode=verify-full&application_name=x&connect_timeout=3",
        )
        .unwrap();
        assert_eq!(options.to_string(), "al@ice@db.example:6432/shop");
        assert_eq!(options.password.as_deref(), Some("s:cret"));
        assert_eq!(options.ssl_mode, SslMode::VerifyFull);
        assert_eq!(options.connect_timeout, Duration::from_secs(3));
        assert!(!format!("{options:?} {options}").contains("cret"));
    }

    #[test]
    fn a_unix_socket_is_a_directory() {
        for url in ["postgres:///shop?host=/run/pg&user=u", "postgres://u@%2Frun%2Fpg/shop"] {
            let options = ConnectOptions::parse(url).unwrap();
            assert!(options.is_unix(), "{url}");
            assert_eq!(options.to_string(), "u@/run/pg:5432/shop");
        }
    }

    #[test]
    fn an_address_of_ip_6_stands_in_brackets() {
        let options = ConnectOptions::parse("postgres://u@[::1]:6432/shop").unwrap();
        assert_eq!((options.host.as_str(), options.to_string().as_str()), ("::1", "u@[::1]:6432/shop"));
    }

    #[test]
    fn a_timeout_of_zero_is_none() {
        let options = ConnectOptions::parse("postgres://u@h/d?connect_timeout=0").unwrap();
        assert_eq!(options.connect_timeout, Duration::MAX);
    }

    #[test]
    fn the_systems_authorities_are_trusted_for_the_host_they_name_only() {
        let mode = |query: &str| {
            ConnectOptions::parse(&format!("postgres://u@h/d?{query}")).map(|options| options.ssl_mode)
        };
        for query in ["sslrootcert=system", "sslrootcert=system&sslmode=verify-full"] {
            assert_eq!(mode(query).unwrap(), SslMode::VerifyFull, "{query}");
        }
        for weak in ["disable", "allow", "prefer", "require", "verify-ca"] {
            let error = mode(&format!("sslmode={weak}&sslrootcert=system")).unwrap_err();
            assert!(error.kind() == Kind::Config && error.to_string().contains("weaker"), "{error}");
        }
        assert_eq!(mode("sslrootcert=/ca.crt").unwrap(), SslMode::Prefer);
    }

    #[test]
    fn wrong_urls_say_what_is_wrong() {
        for (url, part) in [
            ("mysql://x", "postgres://user@host"),
            ("postgres://u@h/d?sslmode=maybe", "sslmode=maybe"),
            ("postgres://u@h/d?ssl=on", "unknown parameter \"ssl\""),
            ("postgres://u@h/d?sslcert=/c", "go together"),
            ("postgres://u@h/d?port=x", "port=x"),
            ("postgres://u:p%@h/d", "two hex digits"),
            ("postgres://u:p%4@h/d", "two hex digits"),
            ("postgres://u:p%4x@h/d", "two hex digits"),
            ("postgres://u@h/d%", "two hex digits"),
        ] {
            let error = ConnectOptions::parse(url).unwrap_err();
            assert_eq!(error.kind(), Kind::Config);
            assert!(error.to_string().contains(part), "{url}: {error}");
        }
    }
}
