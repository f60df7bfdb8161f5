//! TLS with a real MariaDB or MySQL server: whom we trust.
#![allow(clippy::unwrap_used, clippy::panic)]

mod certificates;

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt as _;

use certificates::Certificates;
use headwater_connect::mysql::outbox::MySqlOutboxStore;
use headwater_connect::mysql::url::ConnectOptions;
use headwater_core::Result;
use headwater_core::ports::OutboxStore as _;
use headwater_testkit::servers::MySql;
use sqlx::{Connection as _, MySqlConnection, Row as _};

/// Whether the session is by TLS.
async fn by_tls(url: &str) -> sqlx::Result<bool> {
    let mut connection = MySqlConnection::connect_with(&ConnectOptions::parse(url).unwrap().sqlx()).await?;
    let row = sqlx::query("SHOW STATUS LIKE 'Ssl_cipher'").fetch_one(&mut connection).await?;
    Ok(!row.get::<String, _>(1).is_empty())
}

#[tokio::test]
async fn each_ssl_mode_trusts_whom_it_should() {
    let files = Certificates::new();
    files.own("ca", "authority", &[]).own("stranger", "authority", &[]);
    // For the address alone: `localhost` is another name.
    files.signed("server", "server", "IP:127.0.0.1", "ca");
    // The server runs as another user.
    set_permissions(files.path(""), Permissions::from_mode(0o755)).unwrap();
    set_permissions(files.path("server.key"), Permissions::from_mode(0o644)).unwrap();
    let settings = MySql::settings().set("ssl-cert", files.url("server.crt"));
    let server = settings.set("ssl-key", files.url("server.key")).start().await.unwrap();
    const UNTRUSTED: std::result::Result<bool, &str> = Err("invalid peer certificate");
    for (host, mode, root, expected) in [
        ("127.0.0.1", "disabled", "", Ok(false)),
        ("127.0.0.1", "preferred", "", Ok(true)),
        ("127.0.0.1", "required", "", Ok(true)),
        ("127.0.0.1", "verify_ca", "ca", Ok(true)),
        ("127.0.0.1", "verify_ca", "stranger", UNTRUSTED),
        ("127.0.0.1", "verify_identity", "ca", Ok(true)),
        ("127.0.0.1", "verify_identity", "stranger", UNTRUSTED),
        ("localhost", "verify_ca", "ca", Ok(true)),
        ("localhost", "verify_identity", "ca", Err("not valid for name")),
    ] {
        let mut url = format!("mysql://root@{host}:{}/mysql?ssl-mode={mode}", server.port());
        if !root.is_empty() {
            url += &format!("&ssl-ca={}", files.url(&format!("{root}.crt")));
        }
        match (by_tls(&url).await, expected) {
            (Ok(tls), Ok(expected)) => assert_eq!(tls, expected, "{url}"),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{url}: {error}"),
            (found, _) => panic!("{url} should give {expected:?}, gave {found:?}"),
        }
    }
    // As an operator sees it.
    let url = format!("mysql://root@127.0.0.1:{}/mysql?ssl-mode=verify_ca&ssl-ca=", server.port());
    let url = ConnectOptions::parse(&(url + &files.url("stranger.crt"))).unwrap();
    let checked: Result<_> = MySqlOutboxStore::new(&url, "outbox").check().await;
    let error = checked.unwrap_err();
    assert!(!error.is_retryable() && error.to_string().contains("invalid peer certificate"), "{error}");
}
