//! What an endpoint's answer means.

use std::time::{Duration, SystemTime};

use headwater_runtime::consume::Failure;
use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};

/// An endpoint cannot ask for a longer wait.
const LONGEST: Duration = Duration::from_hours(1);

/// How much of what an endpoint says is kept.
const SAID: usize = 300;

/// `Ok` for 2xx; otherwise whether another try may help.
pub(super) fn judge(
    status: StatusCode,
    headers: &HeaderMap,
    said: &str,
    now: SystemTime,
) -> Result<(), Failure> {
    if status.is_success() {
        return Ok(());
    }
    let said: String = said.chars().filter(|char| !char.is_control()).take(SAID).collect();
    let error = if said.is_empty() {
        format!("it answered {status}")
    } else {
        format!("it answered {status}: {said}")
    };
    if status.is_redirection() {
        return Err(Failure::park(format!(
            "{error}; redirects are not followed: put the place it is at into `url`"
        )));
    }
    if !may_help(status) {
        return Err(Failure::park(error));
    }
    let after = headers.get(RETRY_AFTER).and_then(|value| retry_after(value.to_str().ok()?, now));
    Err(after
        .map_or_else(|| Failure::retry(error.clone()), |after| Failure::retry_after(error.clone(), after)))
}

fn may_help(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
}

/// A number of seconds, or a date.
fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    let after = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().map_or(LONGEST, Duration::from_secs)
    } else {
        httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default()
    };
    Some(after.min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date_and_bounded() {
        let now = httpdate::parse_http_date("Fri, 31 Dec 1999 23:59:29 GMT").unwrap();
        let after = |text| retry_after(text, now);
        assert_eq!(after("120"), Some(Duration::from_mins(2)));
        assert_eq!(after("Fri, 31 Dec 1999 23:59:59 GMT"), Some(Duration::from_secs(30)));
        assert_eq!(after("Fri, 31 Dec 1999 23:00:00 GMT"), Some(Duration::ZERO));
        for long in ["7200", "99999999999999999999999", "Fri, 31 Dec 2100 23:59:59 GMT"] {
            assert_eq!(after(long), Some(LONGEST), "{long}");
        }
        for none in ["", "-1", "soon", "1.5"] {
            assert_eq!(after(none), None, "{none}");
        }
    }

    #[test]
    fn what_another_try_may_mend_is_tried_again_and_all_else_parked() {
        for (status, again) in
            [(408, true), (429, true), (500, true), (503, true), (404, false), (422, false), (307, false)]
        {
            let status = StatusCode::from_u16(status).unwrap();
            let failure = judge(status, &HeaderMap::new(), "no\n", SystemTime::now()).unwrap_err();
            let failure = format!("{failure:?}");
            assert_eq!(failure.contains("Retry"), again, "{failure}");
            assert!(failure.contains(": no"), "{failure}");
        }
        assert!(judge(StatusCode::ACCEPTED, &HeaderMap::new(), "", SystemTime::now()).is_ok());
    }
}
