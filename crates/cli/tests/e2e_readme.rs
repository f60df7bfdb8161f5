//! README's config for one's own PostgreSQL and Kafka, and the four commands that stand below it.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use headwater_testkit::binary::Headwater;
use headwater_testkit::servers::{Database, Kafka, Postgres};
use serde_json::{Value, json};
use support::{Ended, PATIENCE, PROGRAM, free_address, headwater, until};

/// A folder with README's headwater.toml in it, which names these servers.
struct Place {
    dir: tempfile::TempDir,
    listen: String,
}

impl Place {
    fn new(database: &Database, kafka: &Kafka) -> Self {
        let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md"));
        let readme = readme.unwrap();
        let config = readme.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
        let of_ours = |text: &str, theirs: &str, ours: &str| {
            assert!(text.contains(theirs), "README's config has no {theirs}");
            text.replace(theirs, ours)
        };
        let config = of_ours(config, "${SHOP_URL}", database.url());
        let config = of_ours(&config, "localhost:9092", &kafka.brokers());
        let (dir, listen) = (tempfile::tempdir().unwrap(), free_address());
        let config = format!("{config}\n[http]\nlisten = \"{listen}\"\n");
        std::fs::write(dir.path().join("headwater.toml"), config).unwrap();
        Self { dir, listen }
    }

    fn headwater(&self, arguments: &[&str]) -> Ended {
        headwater(self.dir.path(), arguments)
    }

    async fn run(&self) -> Headwater {
        let config = self.dir.path().join("headwater.toml");
        let arguments = ["run", config.to_str().unwrap()];
        let mut headwater =
            Headwater::start(Path::new(PROGRAM), &arguments, &self.dir.path().join("run.log"));
        headwater.ready(&self.listen, PATIENCE).await.unwrap();
        headwater
    }

    /// What `headwater status --json` says.
    fn status(&self) -> Value {
        let ended = self.headwater(&["status", "--json"]);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        support::json(&ended.out)
    }
}

/// The state and total of events, and what they say happened.
fn told(lines: &str) -> Vec<(String, Value)> {
    let event = |line| {
        let event = support::json(line);
        (event["type"].as_str().unwrap().to_owned(), event["payload"]["after"].clone())
    };
    lines.lines().map(event).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn its_four_commands_work_with_kafka() {
    let (server, kafka) = tokio::join!(Postgres::start(), Kafka::start());
    let (server, kafka) = (server.unwrap(), kafka.unwrap());
    let database = server.create_database().await.unwrap();
    let orders = "create table orders (id int primary key, state text, total_cents int, secret text);
                  insert into orders values (1, 'placed', 1990, 'x')";
    database.execute(orders).await.unwrap();
    let place = Place::new(&database, &kafka);

    let check = place.headwater(&["check", "headwater.toml"]);
    assert_eq!(check.code, Some(0), "{check:?}");
    assert!(check.out.contains("the kafka bus answers, it holds 0 streams"), "{}", check.out);
    let status = place.status();
    assert_eq!((&status["running"], &status["stored"]["streams"]), (&json!(false), &json!([])), "{status}");

    let running = place.run().await;
    let all = ["tail", "orders", "--from", "beginning", "--json", "--limit", "2"];
    database.execute("update orders set state = 'paid'").await.unwrap();
    let tail = place.headwater(&all);
    assert_eq!(tail.code, Some(0), "{tail:?}");
    let row = |state: &str| json!({ "id": 1, "status": state, "total": 1990 });
    assert_eq!(told(&tail.out), [("read".into(), row("placed")), ("update".into(), row("paid"))]);
    arrive_as_they_happen(&place, &database).await;
    shows_where_all_stands(&place);

    assert!(running.stop(PATIENCE).await.unwrap().success());
    let status = place.status();
    assert_eq!(status["running"], false);
    let stored = &status["stored"];
    assert_eq!((&stored["kind"], &stored["streams"][0]["stream"]), (&json!("kafka"), &json!("orders")));
    assert!(stored["streams"][0]["events"].as_u64() >= Some(3), "{status}");
    assert_eq!(stored["checkpoints"][0]["source"], "shop", "{status}");
    let text = place.headwater(&["status"]).out;
    assert!(text.starts_with("Not running. This is what the bus holds:\n"), "{text}");

    kafka.kill();
    says_that_the_broker_is_away(&place, &kafka.brokers());
}

/// `headwater tail orders` begins at the end, so that what it missed while it started comes again.
async fn arrive_as_they_happen(place: &Place, database: &Database) {
    let mut tail = Command::new(PROGRAM);
    let tail = tail.args(["tail", "orders", "--limit", "1"]).current_dir(place.dir.path());
    let mut tail = tail.stdout(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while tail.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "nothing arrives");
        database.execute("insert into orders select max(id) + 1, 'new', 5 from orders").await.unwrap();
    }
    let line = String::from_utf8(tail.wait_with_output().unwrap().stdout).unwrap();
    assert!(line.contains("create") && line.contains("status=new total=5"), "{line}");
}

/// `headwater status`, for people and for programs, while it runs.
fn shows_where_all_stands(place: &Place) {
    until("the status counts what is there", || {
        let status = place.status();
        let (counted, held) = (&status["streams"][0]["events"], &status["bus"]["streams"][0]["events"]);
        counted.as_u64() >= Some(3) && counted == held
    });
    let status = place.status();
    assert_eq!((&status["running"], &status["bus"]["kind"]), (&json!(true), &json!("kafka")));
    let text = place.headwater(&["status"]).out;
    let row =
        |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{text}"));
    assert!(row("headwater ").ends_with("bus kafka"), "{text}");
    assert!(row("shop ").contains("streaming"), "{text}");
    let held = status["streams"][0]["events"].to_string();
    assert!(row("orders ").split_whitespace().any(|cell| cell == held), "{text}");
}

/// What needs the broker says that it does not answer, and what to look at.
fn says_that_the_broker_is_away(place: &Place, brokers: &str) {
    let path = place.dir.path().join("headwater.toml");
    let config = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, config.replace("[bus]", "[bus]\ntimeout = \"1s\"")).unwrap();
    let check = place.headwater(&["check"]);
    assert_eq!(check.code, Some(3), "{check:?}");
    let lines: Vec<&str> = check.out.lines().filter(|line| line.starts_with("error")).collect();
    assert_eq!(lines.len(), 1, "PostgreSQL is there: {}", check.out);
    assert!(lines[0].starts_with("error  bus"), "{}", check.out);
    assert!(check.out.contains(brokers) && check.out.ends_with("\nnot ready: 1 error\n"), "{}", check.out);
    let status = place.headwater(&["status"]);
    assert_eq!(status.code, Some(3), "{status:?}");
    assert!(status.err.contains(brokers) && status.err.contains("hint: "), "{}", status.err);
}
