//! TLS with a real server: who is let in, and whom we trust.
#![allow(clippy::unwrap_used, clippy::panic)]

mod certificates;

use std::path::Path;

use certificates::{Certificates, openssl};
use headwater_connect::postgres::client::{Connection, Mode};
use headwater_connect::postgres::url::ConnectOptions;
use headwater_core::{Kind, Result};
use headwater_testkit::servers::{Postgres, PostgresSettings};

/// Settings of a server that has this certificate.
fn server(files: &Certificates, name: &str, hba: &str) -> PostgresSettings {
    let read = |end: &str| std::fs::read(files.path(&format!("{name}.{end}"))).unwrap();
    let settings = Postgres::settings().set("ssl", "on").hba(hba);
    settings.file("server.crt", read("crt")).file("server.key", read("key"))
}

/// Connects and asks whether the connection is by TLS.
async fn by_tls(url: &str) -> Result<bool> {
    let mut connection = Connection::connect(&ConnectOptions::parse(url)?, Mode::Sql).await?;
    let rows = connection.query("SELECT ssl::text FROM pg_stat_ssl WHERE pid = pg_backend_pid()").await?;
    Ok(rows[0].get(0) == Some("true"))
}

/// Holds what connecting gives against what it should: whether by TLS, or a part of the error.
async fn expect(url: &str, expected: std::result::Result<bool, &str>) {
    match (by_tls(url).await, expected) {
        (Ok(tls), Ok(expected)) => assert_eq!(tls, expected, "{url}"),
        (Err(error), Err(part)) => {
            let text = error.to_string();
            assert!(error.kind() == Kind::Refused && text.contains(part), "{url}: {text}");
        }
        (found, _) => panic!("{url} should give {expected:?}, gave {found:?}"),
    }
}

const UNTRUSTED: std::result::Result<bool, &str> = Err("invalid peer certificate");
const OTHER_NAME: std::result::Result<bool, &str> = Err("not valid for name");

#[tokio::test]
async fn each_sslmode_trusts_whom_it_should() {
    let files = Certificates::new();
    files.own("ca", "authority", &[]).own("stranger", "authority", &[]);
    // For the address alone: `localhost` is another name.
    files.signed("server", "server", "IP:127.0.0.1", "ca");
    let server = server(&files, "server", "host all all samehost trust").start().await.unwrap();
    for (host, query, root, expected) in [
        ("127.0.0.1", "disable", "", Ok(false)),
        ("127.0.0.1", "allow", "", Ok(false)),
        ("127.0.0.1", "prefer", "", Ok(true)),
        ("127.0.0.1", "require", "", Ok(true)),
        ("127.0.0.1", "require", "ca", Ok(true)),
        ("127.0.0.1", "require", "stranger", UNTRUSTED),
        ("127.0.0.1", "verify-ca", "ca", Ok(true)),
        ("127.0.0.1", "verify-ca", "stranger", UNTRUSTED),
        ("127.0.0.1", "verify-ca", "", UNTRUSTED),
        ("127.0.0.1", "verify-full", "ca", Ok(true)),
        ("127.0.0.1", "verify-full", "stranger", UNTRUSTED),
        ("127.0.0.1", "verify-full", "", UNTRUSTED),
        ("localhost", "require", "ca", Ok(true)),
        ("localhost", "verify-ca", "ca", Ok(true)),
        ("localhost", "verify-full", "ca", OTHER_NAME),
    ] {
        let mut url = format!("postgres://postgres@{host}:{}/postgres?sslmode={query}", server.port());
        if !root.is_empty() {
            url += &format!("&sslrootcert={}", files.url(&format!("{root}.crt")));
        }
        expect(&url, expected).await;
    }
}

#[tokio::test]
async fn a_self_signed_certificate_is_trusted_as_itself() {
    let files = Certificates::new();
    let names = ["-addext", "subjectAltName=IP:127.0.0.1"];
    files.own("server", "server", &names).own("twin", "server", &names);
    let server = server(&files, "server", "host all all samehost trust").start().await.unwrap();
    let url = |host: &str, mode: &str, root: &str| {
        let root = files.url(root);
        format!("postgres://postgres@{host}:{}/postgres?sslmode={mode}&sslrootcert={root}", server.port())
    };
    for mode in ["require", "verify-ca", "verify-full"] {
        expect(&url("127.0.0.1", mode, "server.crt"), Ok(true)).await;
        // Of the same name, by another key.
        expect(&url("127.0.0.1", mode, "twin.crt"), UNTRUSTED).await;
    }
    expect(&url("localhost", "verify-ca", "server.crt"), Ok(true)).await;
    expect(&url("localhost", "verify-full", "server.crt"), OTHER_NAME).await;
    // Trusted, but too old.
    let request = ["req", "-new", "-key", &files.url("server.key"), "-subj", "/CN=server"];
    let authority = ["-addext", "basicConstraints=CA:TRUE", "-out", &files.url("old.csr")];
    openssl(&[&request[..], &names, &authority].concat());
    let (key, old) = (files.url("server.key"), files.url("old.crt"));
    let sign = ["x509", "-req", "-in", &files.url("old.csr"), "-signkey", &key, "-days", "-1"];
    openssl(&[&sign[..], &["-copy_extensions", "copyall", "-out", &old]].concat());
    std::fs::copy(&old, server.dir().join("data/server.crt")).unwrap();
    server.restart().await.unwrap();
    expect(&url("127.0.0.1", "verify-full", "old.crt"), Err("xpired")).await;
}

const RULES: &str = "
    hostssl all protected samehost trust
    hostnossl all plain samehost trust
    hostssl all scram samehost scram-sha-256
    hostssl all certified samehost cert";

#[tokio::test]
async fn users_come_in_by_the_way_that_the_server_wants() {
    let files = Certificates::new();
    files.own("ca", "authority", &[]).own("stranger", "authority", &[]);
    files.signed("server", "server", "IP:127.0.0.1", "ca");
    files.signed("client", "certified", "DNS:client", "ca").signed("other", "other", "DNS:client", "ca");
    files.signed("forged", "certified", "DNS:client", "stranger");
    let settings = server(&files, "server", RULES).set("ssl_ca_file", "root.crt");
    let server = settings.file("root.crt", read(&files.path("ca.crt"))).start().await.unwrap();
    let roles = "CREATE ROLE protected LOGIN; CREATE ROLE plain LOGIN; CREATE ROLE certified LOGIN;
        CREATE ROLE scram LOGIN PASSWORD 's3cret'";
    server.database("postgres").execute(roles).await.unwrap();
    let certificate = |name: &str| {
        format!(
            "require&sslcert={}&sslkey={}",
            files.url(&format!("{name}.crt")),
            files.url(&format!("{name}.key"))
        )
    };
    let verified = format!("verify-full&sslrootcert={}", files.url("ca.crt"));
    for (user, query, expected) in [
        ("protected", "disable", Err("28000")),
        ("protected", "allow", Ok(true)),
        ("protected", "prefer", Ok(true)),
        ("plain", "allow", Ok(false)),
        ("plain", "prefer", Ok(false)),
        ("plain", "require", Err("28000")),
        ("scram:s3cret", "require", Ok(true)),
        ("scram:s3cret", &verified, Ok(true)),
        ("scram:wrong", "require", Err("28P01")),
        ("certified", &certificate("client"), Ok(true)),
        ("certified", "require", Err("28000")),
        ("certified", &certificate("other"), Err("28000")),
    ] {
        let url = format!("postgres://{user}@127.0.0.1:{}/postgres?sslmode={query}", server.port());
        expect(&url, expected).await;
    }
    let forged = format!(
        "postgres://certified@127.0.0.1:{}/postgres?sslmode={}",
        server.port(),
        certificate("forged")
    );
    assert!(by_tls(&forged).await.is_err());
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

#[tokio::test]
async fn without_a_common_version_of_tls_only_prefer_goes_on() {
    let files = Certificates::new();
    files.own("server", "server", &[]);
    let settings = server(&files, "server", "host all all samehost trust");
    let old = settings.set("ssl_min_protocol_version", "TLSv1").set("ssl_max_protocol_version", "TLSv1.1");
    let server = old.start().await.unwrap();
    let url = |mode: &str| format!("postgres://postgres@127.0.0.1:{}/postgres?sslmode={mode}", server.port());
    assert!(!by_tls(&url("prefer")).await.unwrap());
    assert!(by_tls(&url("require")).await.is_err());
}

#[tokio::test]
async fn an_address_of_ip_6_is_a_host() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        eprintln!("not tested: this machine has no IPv6");
        return;
    }
    let files = Certificates::new();
    files.own("server", "server", &["-addext", "subjectAltName=IP:::1"]);
    let settings = server(&files, "server", "host all all ::1/128 trust");
    let server = settings.set("listen_addresses", "::1").start().await.unwrap();
    let root = files.url("server.crt");
    let url = format!(
        "postgres://postgres@[::1]:{}/postgres?sslmode=verify-full&sslrootcert={root}",
        server.port()
    );
    expect(&url, Ok(true)).await;
}
