//! What became of each event.

use std::time::Instant;

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::common::PATIENCE;
use crate::{Orders, Service};

impl Orders {
    /// What `headwater trace` says of an event at the only push.
    fn trace(&self, id: &str) -> (Option<i32>, Value) {
        let (code, lines) = self.ask(&["trace", id, "--json"]);
        assert_eq!(lines.as_array().map(Vec::len), Some(1), "{lines}");
        (code, lines[0].clone())
    }

    /// The ids of what is set aside, when there are so many.
    pub fn aside(&self, count: usize) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let listed = self.parked(&["list", "--json"]);
            let waiting = listed[0]["waiting"].as_u64().map_or(0, |waiting| waiting as usize + 1);
            if waiting == count && listed[0]["state"] == "parked" {
                break;
            }
            assert!(Instant::now() < deadline, "{listed}");
        }
        let config = self.place.config();
        let shown = std::process::Command::new(crate::common::program())
            .args(["parked", "show", "--json"])
            .arg(config)
            .output()
            .unwrap();
        let events = serde_json::Deserializer::from_slice(&shown.stdout).into_iter::<Value>();
        events.map(|event| event.unwrap()["id"].as_str().unwrap().to_owned()).collect()
    }
}

fn refuse(service: &Service, status: Option<StatusCode>) {
    let mut seen = service.seen.lock().unwrap();
    seen.refused = status.map(|status| ("1".to_owned(), status));
}

/// The one id that has come and is not among these.
fn new_id(service: &Service, known: &[String]) -> String {
    let seen = service.seen.lock().unwrap();
    let mut new = seen.ids.iter().filter(|id| !known.contains(id));
    let id = new.next().unwrap().clone();
    assert_eq!(new.next(), None);
    id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_event_says_whether_it_was_delivered_dropped_or_waits() {
    let service = Service::new(false);
    refuse(&service, Some(StatusCode::SERVICE_UNAVAILABLE));
    service.start().await;
    let orders = Orders::new(&[("features", &service)], "");
    let headwater = orders.run().await;
    orders.write(1, 1);
    service.until("it was tried twice", |seen| seen.refusals >= 2).await;
    refuse(&service, None);
    service.until("it has come", |seen| seen.ids.len() == 1).await;
    let first = new_id(&service, &[]);
    orders.write(1, 2);
    service.until("the next has come", |seen| seen.ids.len() == 2).await;
    let second = new_id(&service, std::slice::from_ref(&first));
    refuse(&service, Some(StatusCode::UNPROCESSABLE_ENTITY));
    orders.write(1, 3);
    orders.write(1, 4);
    let aside = orders.aside(2);
    // By now the first two are written down, as they are before later ones of their key.
    let (code, found) = orders.trace(&first);
    assert_eq!((code, &found["state"], &found["push"]), (Some(0), &json!("delivered"), &json!("features")));
    assert!(found["attempts"].as_u64() >= Some(3) && found["at"].is_string(), "{found}");
    let (_, found) = orders.trace(&second);
    assert_eq!((&found["state"], &found["attempts"]), (&json!("delivered"), &json!(1)), "{found}");
    let (_, found) = orders.trace(&aside[0]);
    assert_eq!(found["state"], "parked");
    assert_eq!(found["error"], "it answered 422 Unprocessable Entity: no such order");
    assert_eq!(orders.trace(&aside[1]).1["state"], "waiting");
    // A person drops the first, and lets the next go when the service takes it.
    orders.parked(&["drop", "--id", &aside[0], "--json"]);
    let (code, found) = orders.trace(&aside[0]);
    assert_eq!(
        (code, &found["state"], &found["attempts"]),
        (Some(0), &json!("dropped"), &json!(1)),
        "{found}"
    );
    assert_eq!(orders.aside(1), aside[1..]);
    refuse(&service, None);
    assert_eq!(orders.parked(&["retry", "--id", &aside[1], "--json"]), json!({ "retried": 1 }));
    service.until("it has come", |seen| seen.ids.len() == 3).await;
    assert_eq!(headwater.stop(PATIENCE).await.unwrap().code(), Some(0));
    assert_eq!(orders.trace(&aside[1]).1["state"], "delivered");
    let (code, found) = orders.trace("018f85d0-c334-7123-8567-89abcdef0123");
    assert_eq!((code, &found["state"], &found["at"]), (Some(1), &json!("unknown"), &Value::Null));
}
