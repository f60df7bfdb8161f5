//! Where a server is and how to reach it: `mysql://` URLs.

use std::fmt;
use std::str::FromStr as _;

use headwater_core::{Error, Kind, Result, ResultExt as _};
use sqlx::mysql::MySqlConnectOptions;
use url::Url;

/// The parameters of a URL that mean something.
const KNOWN: [&str; 10] = [
    "sslmode",
    "ssl-mode",
    "sslca",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "socket",
    "statement-cache-capacity",
];

/// How to connect. Neither `Debug` nor `Display` shows the password.
#[derive(Clone)]
pub struct ConnectOptions {
    options: MySqlConnectOptions,
    database: String,
    shown: String,
}

impl ConnectOptions {
    /// Reads a URL: `mysql://user:password@host:3306/database?ssl-mode=...`, or `mariadb://...`. With
    /// `?socket=/path` it goes through a Unix socket. A password that is not given is taken from
    /// `MYSQL_PWD`.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |what: &str| Error::new(Kind::Config, format!("the MySQL URL {what}"));
        let expected = "write mysql://user@host:3306/database";
        let rest = text.strip_prefix("mysql://").or_else(|| text.strip_prefix("mariadb://"));
        let rest = rest.ok_or_else(|| wrong("does not begin with mysql:// or mariadb://").hint(expected))?;
        let url = Url::parse(&format!("mysql://{rest}"));
        let url = url.doing(Kind::Config, || "the MySQL URL is not one".into());
        let url = url.map_err(|error| error.hint(expected))?;
        for (name, _) in url.query_pairs() {
            if !KNOWN.contains(&&*name) {
                let hint = "known: ssl-mode, ssl-ca, ssl-cert, ssl-key, socket";
                return Err(wrong(&format!("has an unknown parameter \"{name}\"")).hint(hint));
            }
        }
        let mut options = MySqlConnectOptions::from_str(url.as_str())
            .doing(Kind::Config, || "the MySQL URL has a part that is not as it should be".into())
            .map_err(|error| {
                error.hint("ssl-mode is disabled, preferred, required, verify_ca or verify_identity")
            })?;
        let database = match options.get_database() {
            Some(database) => database.to_owned(),
            None => return Err(wrong("names no database").hint(expected)),
        };
        if url.username().is_empty() {
            return Err(wrong("names no user").hint(expected));
        }
        if let (None, Ok(password)) = (url.password(), std::env::var("MYSQL_PWD")) {
            options = options.password(&password);
        }
        let shown = match options.get_socket() {
            Some(socket) => format!("{}@{}/{database}", options.get_username(), socket.display()),
            None => {
                format!("{}@{}:{}/{database}", options.get_username(), options.get_host(), options.get_port())
            }
        };
        Ok(Self { options, database, shown })
    }

    /// The database.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The same, for sqlx.
    pub fn sqlx(&self) -> MySqlConnectOptions {
        self.options.clone()
    }
}

/// `user@host:port/database`.
impl fmt::Display for ConnectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnectOptions({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_all_of_a_url() {
        let options =
            ConnectOptions::parse("mysql://al%40ice:s%3Acret@db.example:3307/shop?ssl-mode=required")
                .unwrap();
        assert_eq!(
            (options.to_string().as_str(), options.database()),
            ("al@ice@db.example:3307/shop", "shop")
        );
        assert!(!format!("{options:?} {options}").contains("cret"));
        let socket = ConnectOptions::parse("mariadb://root@localhost/shop?socket=/run/m.sock").unwrap();
        assert_eq!(socket.to_string(), "root@/run/m.sock/shop");
    }

    #[test]
    fn wrong_urls_say_what_is_wrong_and_never_the_password() {
        for (url, part) in [
            ("postgres://u:cret@h/d", "mysql://"),
            ("mysql://u:cret@h:port/d", "is not one"),
            ("mysql://u:cret@h", "names no database"),
            ("mysql://h/d?password=cret", "unknown parameter \"password\""),
            ("mysql://u:cret@h/d?charset=latin1", "unknown parameter \"charset\""),
            ("mysql://h/d", "names no user"),
            ("mysql://u:cret@h/d?ssl-mode=maybe", "maybe"),
            ("mysql://u:cret%ff@h/d", "not as it should be"),
        ] {
            let error = ConnectOptions::parse(url).unwrap_err();
            assert_eq!(error.kind(), Kind::Config);
            let text = error.to_string();
            assert!(text.contains(part) && !text.contains("cret"), "{url}: {text}");
        }
    }
}
