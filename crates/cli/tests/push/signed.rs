//! Requests as a receiver checks them that knows the Standard Webhooks scheme and nothing else.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::world::{Asked, World};

pub const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// How old a signature may be: each try has its own.
const OLD: u64 = 30;

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
}

/// What is wrong with the signature of a request.
pub fn wrong(headers: &HeaderMap, body: &[u8]) -> Option<String> {
    let (id, time) = (text(headers, "webhook-id"), text(headers, "webhook-timestamp"));
    let key = BASE64_STANDARD.decode(SECRET.trim_start_matches("whsec_")).unwrap();
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
    mac.update(&[id.as_bytes(), b".", time.as_bytes(), b".", body].concat());
    let expected = format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes()));
    let found = text(headers, "webhook-signature");
    if id.is_empty() || found != expected {
        return Some(format!("id {id:?}: {found:?} is not {expected:?}"));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let age = now.abs_diff(time.parse().unwrap());
    (age > OLD).then(|| format!("id {id:?} is {age} seconds old"))
}

/// Each try is signed for itself, when it is made; what it is about keeps its id.
#[tokio::test(flavor = "multi_thread")]
async fn a_try_has_a_time_of_its_own_and_the_id_of_the_first() {
    for batch in [1, 10] {
        let (first, second) = tries(batch).await;
        for (headers, body) in [&first, &second] {
            assert_eq!(wrong(headers, body), None);
        }
        assert_eq!(first.0["webhook-id"], second.0["webhook-id"], "batch {batch}");
        assert_eq!(first.1, second.1, "batch {batch}");
        let time =
            |(headers, _): &(HeaderMap, Bytes)| text(headers, "webhook-timestamp").parse::<u64>().unwrap();
        assert!(time(&second) >= time(&first) + 2, "batch {batch}: {} {}", time(&first), time(&second));
    }
}

/// Two tries of a request that the third event is in.
async fn tries(batch: usize) -> ((HeaderMap, Bytes), (HeaderMap, Bytes)) {
    let third = |asked: &&Asked| asked.events().iter().any(|(_, n)| *n == 2);
    let world = World::new(move |_, asked| match third(&asked) {
        true => (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "2")]).into_response(),
        false => StatusCode::NO_CONTENT.into_response(),
    })
    .await;
    // While the first is on its way, others come that share a request then.
    world.slow(Duration::from_millis(200));
    world.publish(&[("a", ""); 5]).await;
    let running =
        world.run(&format!("batch = {batch}\nconcurrency = 1\nsigning_secrets = [\"{SECRET}\"]")).await;
    let asked = world.until("it was tried again", |asked| asked.iter().filter(third).count() >= 2).await;
    running.stop().await;
    let mut tries = asked.iter().filter(third).map(|asked| (asked.headers.clone(), asked.body.clone()));
    (tries.next().unwrap(), tries.next().unwrap())
}

/// A request that waits for its turn behind one that hangs is signed when it is sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_signed_when_its_turn_has_come() {
    let world = World::new(|_, _| StatusCode::NO_CONTENT.into_response()).await;
    world.slow(Duration::from_millis(2500));
    // Their keys are of different lanes, nearly all; one request is on its way at a time.
    let keys = ["a", "b", "c", "d"];
    world.publish(&keys.map(|key| (key, "1"))).await;
    let running = world.run(&format!("concurrency = 1\nsigning_secrets = [\"{SECRET}\"]")).await;
    let asked = world.until("all have come", |asked| asked.len() >= keys.len()).await;
    running.stop().await;
    for asked in asked {
        let time: u64 = text(&asked.headers, "webhook-timestamp").parse().unwrap();
        assert!(asked.at.abs_diff(time) <= 2, "signed at {time}, came at {}", asked.at);
    }
}
