//! The PostgreSQL starter does what it says.
#![allow(clippy::unwrap_used)]

use headwater_testkit::servers::{Database, Postgres};
use sqlx::Row;
use std::io::BufRead;
use std::time::{Duration, Instant};

/// A zombie that nobody reaps is not alive.
fn is_alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

async fn count(database: &Database) -> i64 {
    let mut connection = database.connect().await.unwrap();
    sqlx::query("SELECT count(*) FROM t").fetch_one(&mut connection).await.unwrap().get(0)
}

#[tokio::test]
async fn data_and_port_survive_kill_and_stop() {
    let server = Postgres::start().await.unwrap();
    let database = server.create_database().await.unwrap();
    database.execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)").await.unwrap();
    server.kill();
    assert!(database.connect().await.is_err());
    server.restart().await.unwrap();
    assert_eq!(count(&database).await, 1);
    server.stop().await.unwrap();
    server.restart().await.unwrap();
    assert_eq!(count(&database).await, 1);
}

#[tokio::test]
async fn nothing_is_left_after_drop() {
    let server = Postgres::start().await.unwrap();
    let database = server.create_database().await.unwrap();
    // A backend that is busy at the time.
    let mut connection = database.connect().await.unwrap();
    let pid: i32 = sqlx::query("SELECT pg_backend_pid()").fetch_one(&mut connection).await.unwrap().get(0);
    let dir = server.dir().to_owned();
    drop(server);
    assert!(!dir.exists());
    let deadline = Instant::now() + Duration::from_secs(10);
    while is_alive(pid) {
        assert!(Instant::now() < deadline, "backend {pid} is still there");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_wrong_setting_is_told_with_the_log() {
    let error = Postgres::settings().set("wal_level", "sideways").start().await.unwrap_err();
    assert!(error.to_string().contains("sideways"), "{error}");
}

/// Not a test: what the next one starts and kills.
#[tokio::test]
#[ignore = "waits for ever"]
async fn starts_and_waits() {
    let server = Postgres::start().await.unwrap();
    println!("server {} {}", server.pid().unwrap(), server.dir().display());
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn nothing_is_left_after_kill_9_of_the_starter() {
    let mut starter = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "starts_and_waits", "--ignored", "--nocapture"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let said = std::io::BufReader::new(starter.stdout.take().unwrap()).lines();
    let line = said.map_while(Result::ok).find(|line| line.contains("server ")).unwrap();
    let mut words = line.split_whitespace().rev();
    let (dir, pid) = (words.next().unwrap(), words.next().unwrap().parse().unwrap());
    assert!(is_alive(pid));
    starter.kill().unwrap();
    starter.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while is_alive(pid) || std::path::Path::new(dir).exists() {
        assert!(Instant::now() < deadline, "{line} is still there");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
