//! The MariaDB starter does what it says.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use headwater_testkit::servers::{MySql, MySqlDatabase, Proxy};
use sqlx::{Connection as _, MySqlConnection, Row as _};

async fn count(database: &MySqlDatabase) -> i64 {
    let mut connection = database.connect().await.unwrap();
    sqlx::query("SELECT count(*) FROM t").fetch_one(&mut connection).await.unwrap().get(0)
}

#[tokio::test]
async fn data_and_port_survive_kill_and_stop() {
    let server = MySql::start().await.unwrap();
    let database = server.create_database().await.unwrap();
    database.execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)").await.unwrap();
    server.kill();
    assert!(database.connect().await.is_err());
    server.restart().await.unwrap();
    assert_eq!(count(&database).await, 1);
    server.stop().await.unwrap();
    server.restart().await.unwrap();
    assert_eq!(count(&database).await, 1);
    let proxy = Proxy::start(("127.0.0.1", server.port())).await.unwrap();
    let mut through = MySqlConnection::connect(&database.url_through(&proxy)).await.unwrap();
    through.ping().await.unwrap();
    proxy.cut();
    through.ping().await.unwrap_err();
}

#[tokio::test]
async fn nothing_is_left_after_drop() {
    let server = MySql::start().await.unwrap();
    let (dir, pid) = (server.dir().to_owned(), server.pid().unwrap());
    drop(server);
    assert!(!dir.exists());
    let runs =
        || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    let deadline = Instant::now() + Duration::from_secs(10);
    while runs() {
        assert!(Instant::now() < deadline, "server {pid} is still there");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_wrong_setting_is_told_with_the_log() {
    let error = MySql::settings().set("no-such-setting", "sideways").start().await.unwrap_err();
    assert!(error.to_string().contains("no-such-setting"), "{error}");
}
