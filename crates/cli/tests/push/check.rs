//! What `headwater check` says of pushes.

use axum::http::StatusCode;
use serde_json::Value;

use crate::common::PATIENCE;
use crate::{Orders, Service};

impl Orders {
    /// Each finding of pushes: where, how bad it is, and what is said.
    pub fn check(&self) -> Vec<(String, String, String)> {
        let (_, report) = self.ask(&["check", "--json"]);
        let text = |finding: &Value, name: &str| finding[name].as_str().unwrap().to_owned();
        let findings = report["findings"].as_array().unwrap().iter();
        let of_pushes = findings.filter(|finding| text(finding, "where").starts_with("push."));
        let found = of_pushes
            .map(|finding| (text(finding, "where"), text(finding, "severity"), text(finding, "message")));
        found.collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn check_looks_for_endpoints_and_streams_and_for_what_nobody_delivers() {
    let service = Service::new(false);
    let missing = "[push.typo]\nstreams = [\"order\"]\nurl = \"https://localhost:1/\"\n";
    let orders = Orders::new(&[("features", &service)], missing);
    let found = orders.check();
    let says = |of: &str, bad: &str, what: &str| {
        found
            .iter()
            .any(|(place, severity, message)| place == of && severity == bad && message.contains(what))
    };
    assert!(says("push.features", "warning", "cannot be reached"), "{found:?}");
    assert!(says("push.typo", "warning", "localhost:1 cannot be reached"), "{found:?}");
    assert!(says("push.typo", "warning", "no stream \"order\""), "{found:?}");
    service.seen.lock().unwrap().refused = Some(("1".into(), StatusCode::UNPROCESSABLE_ENTITY));
    service.start().await;
    let answers = (String::from("push.features"), "ok".into(), format!("{} answers", service.address));
    assert!(orders.check().contains(&answers), "{:?}", orders.check());
    assert_eq!(service.seen.lock().unwrap().requests, 0, "nothing is sent");
    // Something is set aside, and the push gets another name.
    let headwater = orders.place.run().await;
    orders.write(1, 1);
    orders.aside(1);
    assert_eq!(headwater.stop(PATIENCE).await.unwrap().code(), Some(0));
    let config = std::fs::read_to_string(orders.place.config()).unwrap();
    std::fs::write(orders.place.config(), config.replace("[push.features]", "[push.renamed]")).unwrap();
    let found = orders.check();
    let left = |(place, severity, message): &(String, String, String)| {
        place == "push.features" && severity == "warning" && message.contains("no longer names this push")
    };
    assert!(found.iter().any(left), "{found:?}");
}

/// What is wrong with the bus hides nothing of the endpoints.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn endpoints_are_looked_at_beside_a_bus_that_does_not_answer() {
    let push = "[push.away]\nstreams = [\"order\"]\nurl = \"https://localhost:1/\"\n";
    let orders = Orders::new(&[], push);
    std::fs::create_dir_all(orders.place.data()).unwrap();
    std::fs::write(orders.place.data().join("bus"), "no folder").unwrap();
    let (code, report) = orders.ask(&["check", "--json"]);
    let of_bus = |finding: &Value| finding["where"] == "bus" && finding["severity"] == "error";
    assert!(code != Some(0) && report["findings"].as_array().unwrap().iter().any(of_bus), "{report}");
    let found = orders.check();
    assert!(found.len() == 1 && found[0].2.contains("localhost:1 cannot be reached"), "{found:?}");
}

/// What an earlier push has left is none of the business of those that run.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_damaged_file_that_no_push_needs_keeps_nothing_from_running() {
    let orders = Orders::new(&[], "");
    std::fs::create_dir_all(orders.place.data()).unwrap();
    std::fs::write(orders.place.data().join("push.db"), "no database ".repeat(1000)).unwrap();
    let headwater = orders.place.run().await;
    assert_eq!(headwater.stop(PATIENCE).await.unwrap().code(), Some(0));
}
