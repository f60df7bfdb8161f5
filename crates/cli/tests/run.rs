//! `headwater run` and what looks at it from outside: tail, status, snapshot, parked.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use headwater_testkit::binary::Headwater;
use rustix::process::{Pid, Signal, kill_process};
use support::{PATIENCE, PROGRAM, Shop, json, until};

#[tokio::test(flavor = "multi_thread")]
async fn with_json_each_line_of_the_log_is_an_object() {
    let shop = Shop::new();
    let log = shop.path().join("headwater.log");
    let arguments = ["run", &shop.config_text(), "--json"];
    let mut headwater = Headwater::start(std::path::Path::new(PROGRAM), &arguments, &log);
    headwater.ready(&shop.listen, PATIENCE).await.unwrap();
    headwater.stop(PATIENCE).await.unwrap();
    let log = std::fs::read_to_string(log).unwrap();
    let messages: Vec<String> = log.lines().map(|line| json(line)["message"].to_string()).collect();
    assert!(messages.iter().any(|message| message == "\"stopped\""), "{messages:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_committed_is_tailed_while_it_runs() {
    let shop = Shop::new();
    shop.sql("INSERT INTO orders VALUES (1, 'old')");
    let headwater = shop.run().await;
    let mut tail = Command::new(PROGRAM)
        .args(["tail", "orders", "--from", "beginning", "--json", "--config", &shop.config_text()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    let mut next = || json(&lines.next().unwrap().unwrap());
    let read = next();
    assert_eq!(
        (&read["type"], &read["key"], &read["stream"]),
        (&"read".into(), &"1".into(), &"orders".into())
    );
    assert_eq!(read["payload"]["after"], serde_json::json!({ "id": 1, "state": "old" }));
    shop.sql("BEGIN; INSERT INTO orders VALUES (2, 'never'); ROLLBACK; UPDATE orders SET status = 'paid' WHERE id = 1");
    let update = next();
    assert_eq!((&update["type"], &update["key"]), (&"update".into(), &"1".into()));
    assert_eq!(update["payload"]["before"]["state"], "old");
    assert_eq!(update["payload"]["after"]["state"], "paid");
    assert!(update["latency_ms"].is_f64(), "{update}");
    assert_eq!(update["id"], update["payload"]["id"]);
    tail.kill().unwrap();
    tail.wait().unwrap();
    let status = headwater.stop(PATIENCE).await.unwrap();
    assert_eq!(status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_on_where_it_was() {
    let shop = Shop::new();
    let headwater = shop.run().await;
    shop.sql("INSERT INTO orders VALUES (1, 'a')");
    headwater.kill().await;
    shop.sql("INSERT INTO orders VALUES (2, 'b'); DELETE FROM orders WHERE id = 1");
    let headwater = shop.run().await;
    let all = ["tail", "orders", "--from", "beginning", "--json", "--limit", "3", "-c", "CONFIG"];
    let ended = shop.headwater(&all);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let mut seen: Vec<(String, String)> = ended
        .out
        .lines()
        .map(json)
        .map(|event| {
            let text = |key: &str| event[key].as_str().unwrap().to_owned();
            (text("key"), text("type"))
        })
        .collect();
    seen.sort_by(|a, b| a.0.cmp(&b.0));
    let expected = [("1", "create"), ("1", "delete"), ("2", "create")];
    assert_eq!(seen, expected.map(|(key, kind)| (key.to_owned(), kind.to_owned())));
    headwater.stop(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_run_on_the_data_dir_is_refused() {
    let shop = Shop::new();
    let headwater = shop.run().await;
    let ended = shop.headwater(&["run", "CONFIG"]);
    assert_eq!(ended.code, Some(3), "{ended:?}");
    let expected = format!("is in use: process {} runs on it", headwater.pid().unwrap());
    assert!(ended.err.contains(&expected), "{}", ended.err);
    assert!(
        ended.err.contains("hint: stop that one first, or give this one a data_dir of its own"),
        "{}",
        ended.err
    );
    headwater.stop(PATIENCE).await.unwrap();
}

/// Sends a signal, once a change is on its way that cannot arrive.
fn signal_while_in_flight(shop: &Shop, headwater: &Headwater, signal: Signal) {
    until("the change is on its way", || {
        let status = json(&shop.headwater(&["status", "CONFIG", "--json"]).out);
        status["sources"][0]["in_flight_bytes"].as_u64() > Some(0)
    });
    kill_process(Pid::from_raw(headwater.pid().unwrap() as i32).unwrap(), signal).unwrap();
    until("it drains", || headwater.log_tail().contains("a second signal stops at once"));
}

fn ended(headwater: &mut Headwater) -> Option<i32> {
    let mut ended = None;
    until("it ends", || {
        ended = headwater.ended();
        ended.is_some()
    });
    ended.unwrap().code()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_lets_what_is_in_flight_arrive_and_be_confirmed() {
    let shop = Shop::new();
    let mut headwater = shop.run().await;
    let locks = shop.lock_bus();
    shop.sql("INSERT INTO orders VALUES (1, 'a'), (2, 'b')");
    signal_while_in_flight(&shop, &headwater, Signal::TERM);
    assert!(headwater.ended().is_none(), "it waits for what is in flight");
    drop(locks);
    assert_eq!(ended(&mut headwater), Some(0), "{}", headwater.log_tail());
    assert!(headwater.log_tail().contains("everything that was read is published and confirmed"));
    let all = |limit: &str| {
        let tail = ["tail", "orders", "--from", "beginning", "--json", "--limit", limit, "-c", "CONFIG"];
        let out = shop.headwater(&tail).out;
        let mut keys: Vec<String> = out.lines().map(|line| json(line)["key"].to_string()).collect();
        keys.sort();
        keys
    };
    assert_eq!(all("2"), ["\"1\"", "\"2\""], "they are on the bus");
    let headwater = shop.run().await;
    shop.sql("INSERT INTO orders VALUES (3, 'c')");
    assert_eq!(all("3"), ["\"1\"", "\"2\"", "\"3\""], "and do not come again");
    headwater.stop(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_it_at_once() {
    let shop = Shop::new();
    shop.write_config("[runtime]\ndrain_timeout = \"1h\"\n");
    let mut headwater = shop.run().await;
    let locks = shop.lock_bus();
    shop.sql("INSERT INTO orders VALUES (1, 'a')");
    signal_while_in_flight(&shop, &headwater, Signal::TERM);
    kill_process(Pid::from_raw(headwater.pid().unwrap() as i32).unwrap(), Signal::INT).unwrap();
    assert_eq!(ended(&mut headwater), Some(130), "{}", headwater.log_tail());
    drop(locks);
    // Nothing is lost by it.
    let headwater = shop.run().await;
    let tail = ["tail", "orders", "--from", "beginning", "--json", "--limit", "1", "-c", "CONFIG"];
    assert_eq!(json(&shop.headwater(&tail).out)["key"], "1");
    headwater.stop(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn status_with_and_without_a_run() {
    let shop = Shop::new();
    let ended = shop.headwater(&["status", "CONFIG"]);
    assert_eq!(
        (ended.code, ended.out.as_str()),
        (Some(0), "Not running; it never ran: there is no bus in data_dir yet\n")
    );
    let headwater = shop.run().await;
    shop.sql("INSERT INTO orders VALUES (1, 'a'), (2, 'b')");
    let ask = || json(&shop.headwater(&["status", "CONFIG", "--json"]).out);
    until("two events are counted", || {
        let status = ask();
        status["streams"][0]["events"] == 2 && status["bus"]["streams"][0]["events"] == 2
    });
    let status = ask();
    assert_eq!((&status["running"], &status["sources"][0]["phase"]), (&true.into(), &"streaming".into()));
    assert_eq!(status["bus"]["kind"], "embedded");
    let text = shop.headwater(&["status", "CONFIG"]).out;
    let row = text.lines().find(|line| line.starts_with("shop ")).unwrap();
    assert!(row.contains("streaming"), "{text}");
    assert!(!text.contains('\x1b'), "no colour in a pipe: {text}");
    headwater.stop(PATIENCE).await.unwrap();
    let status = ask();
    assert_eq!(status["running"], false);
    assert_eq!(status["stored"]["streams"][0]["events"], 2, "{status}");
    assert_eq!(status["stored"]["checkpoints"][0]["source"], "shop");
    let text = shop.headwater(&["status", "CONFIG"]).out;
    assert!(text.starts_with("Not running. This is what the bus holds:\n"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_asked_for_arrives() {
    let shop = Shop::new();
    shop.sql("INSERT INTO orders VALUES (7, 'a')");
    let headwater = shop.run().await;
    let ended = shop.headwater(&["snapshot", "CONFIG", "--source", "shop", "--table", "orders"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(
        ended.out.contains(&format!("process {} begins with it", headwater.pid().unwrap())),
        "{}",
        ended.out
    );
    let tail = ["tail", "orders", "--from", "beginning", "--json", "--limit", "2", "-c", "CONFIG"];
    let ended = shop.headwater(&tail);
    assert!(
        ended.out.lines().map(json).all(|event| event["type"] == "read" && event["key"] == "7"),
        "{}",
        ended.out
    );
    let ended = shop.headwater(&["snapshot", "CONFIG", "--source", "shp"]);
    assert_eq!(
        (ended.code, ended.err.as_str()),
        (Some(2), "error: there is no source \"shp\"\n  hint: there are: shop\n")
    );
    let ended = shop.headwater(&["snapshot", "CONFIG", "--source", "shop", "--table", "other.orders"]);
    assert_eq!(ended.code, Some(2), "another schema's table of that name");
    let ended = shop.headwater(&["snapshot", "CONFIG", "--source", "shop", "--table", "main.order"]);
    assert_eq!(ended.code, Some(2));
    headwater.stop(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_remembers_and_a_key_is_found() {
    let shop = Shop::new();
    shop.sql("INSERT INTO orders VALUES (1, 'a'), (2, 'b'), (3, 'c')");
    let headwater = shop.run().await;
    let tail = |more: &[&str]| {
        let all = [&["tail", "orders", "--from", "beginning", "--json", "-c", "CONFIG"], more].concat();
        let keys = shop.headwater(&all).out;
        let mut keys: Vec<String> =
            keys.lines().map(|line| json(line)["key"].as_str().unwrap().to_owned()).collect();
        keys.sort();
        keys
    };
    assert_eq!(tail(&["--key", "2", "--limit", "1"]), ["2"]);
    let mut seen = tail(&["--group", "g", "--limit", "1"]);
    seen.extend(tail(&["--group", "g", "--limit", "2"]));
    seen.sort();
    assert_eq!(seen, ["1", "2", "3"], "the second began where the first ended");
    headwater.stop(PATIENCE).await.unwrap();
}

/// A `headwater tail` of a group, and what it has shown: partition and id.
struct Member {
    tail: Child,
    seen: Arc<Mutex<Vec<(u64, u32)>>>,
}

impl Member {
    fn join(shop: &Shop) -> Self {
        let mut tail = Command::new(PROGRAM)
            .args(["tail", "orders", "--group", "g", "--from", "beginning", "--json", "--config"])
            .arg(shop.config())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (out, shown) = (BufReader::new(tail.stdout.take().unwrap()), Arc::clone(&seen));
        std::thread::spawn(move || {
            for event in out.lines().map(|line| json(&line.unwrap())) {
                let id = event["key"].as_str().unwrap().parse().unwrap();
                shown.lock().unwrap().push((event["partition"].as_u64().unwrap(), id));
            }
        });
        Self { tail, seen }
    }

    /// What it has shown of these ids, and from which partitions.
    fn seen(&self, ids: &Range<u32>) -> (BTreeSet<u32>, BTreeSet<u64>) {
        self.seen.lock().unwrap().iter().filter(|(_, id)| ids.contains(id)).map(|(at, id)| (id, at)).unzip()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.tail.kill().and_then(|()| self.tail.wait());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_a_group_share_its_partitions_and_the_one_that_stays_takes_over() {
    let shop = Shop::new();
    shop.write_config("[bus]\nkind = \"embedded\"\nlease = \"2s\"\n");
    let headwater = shop.run().await;
    let (first, second) = (Member::join(&shop), Member::join(&shop));
    // Twenty rows at a time: some in each of the two partitions.
    let mut next = 0;
    let mut insert = || {
        let ids = next..next + 20;
        next = ids.end;
        let rows: Vec<String> = ids.clone().map(|id| format!("({id}, 'new')")).collect();
        shop.sql(&format!("INSERT INTO orders VALUES {}", rows.join(", ")));
        ids
    };
    let all = |ids: &Range<u32>| ids.clone().collect::<BTreeSet<u32>>();
    until("each reads a partition of its own", || {
        let ids = insert();
        until("all are read by one or the other", || &first.seen(&ids).0 | &second.seen(&ids).0 == all(&ids));
        let (of_first, of_second) = (first.seen(&ids).1, second.seen(&ids).1);
        of_first.len() == 1 && of_second.len() == 1 && of_first != of_second
    });
    let seen = Arc::clone(&first.seen);
    drop(first); // with SIGKILL: it gives nothing back
    let ids = insert();
    until("the other reads both", || second.seen(&ids).0 == all(&ids));
    until("none was missed", || {
        let seen: BTreeSet<u32> = seen.lock().unwrap().iter().map(|(_, id)| *id).collect();
        &seen | &second.seen(&(0..ids.end)).0 == all(&(0..ids.end))
    });
    headwater.stop(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_goes_away_is_no_error() {
    let shop = Shop::new();
    shop.sql("INSERT INTO orders VALUES (1, 'a'), (2, 'b')");
    let headwater = shop.run().await;
    let mut tail = Command::new(PROGRAM)
        .args(["tail", "orders", "--from", "beginning", "-c", &shop.config_text()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(tail.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert!(line.contains("read"), "{line}");
    drop(out);
    until("tail notices", || {
        shop.sql("UPDATE orders SET status = status || 'x'");
        tail.try_wait().unwrap().is_some()
    });
    let ended = tail.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), ended.stderr.len()), (Some(0), 0));
    let ended = shop.headwater(&["parked", "CONFIG"]);
    assert_eq!((ended.code, ended.out.as_str()), (Some(0), "nothing is parked\n"));
    assert_eq!(shop.headwater(&["parked", "CONFIG", "--json"]).out, "[]\n");
    assert_eq!(shop.headwater(&["parked", "CONFIG", "--of", "x"]).out, "nothing that is parked fits\n");
    headwater.stop(PATIENCE).await.unwrap();
}
