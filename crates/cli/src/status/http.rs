//! One plain HTTP request to a process on this machine.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use headwater_core::{Error, Kind, Result, ResultExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PATIENCE: Duration = Duration::from_secs(5);
/// More than any status has.
const MOST: u64 = 64 << 20;

/// The body of a 200 answer.
pub async fn get(address: SocketAddr, path: &str) -> Result<Vec<u8>> {
    ask(address, path, None).await
}

/// The same, of a request that changes something.
pub async fn post(address: SocketAddr, path: &str, json: &str) -> Result<Vec<u8>> {
    ask(address, path, Some(json)).await
}

async fn ask(address: SocketAddr, path: &str, json: Option<&str>) -> Result<Vec<u8>> {
    let address = reachable(address);
    let late = || Error::new(Kind::Unavailable, format!("http://{address}{path} did not answer within 5 s"));
    tokio::time::timeout(PATIENCE, exchange(address, path, json)).await.map_err(|_| late())?
}

/// A server that listens on every address is asked on this machine's own.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            Ipv4Addr::LOCALHOST.into()
        } else {
            Ipv6Addr::LOCALHOST.into()
        });
    }
    address
}

async fn exchange(address: SocketAddr, path: &str, json: Option<&str>) -> Result<Vec<u8>> {
    let doing = || format!("asking http://{address}{path}");
    let mut stream = TcpStream::connect(address).await.doing(Kind::Unavailable, doing)?;
    // HTTP/1.0: the answer is not chunked, and ends with the connection.
    let request = match json {
        None => format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n"),
        Some(json) => format!(
            "POST {path} HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{json}",
            json.len()
        ),
    };
    stream.write_all(request.as_bytes()).await.doing(Kind::Unavailable, doing)?;
    let mut answer = Vec::new();
    stream.take(MOST).read_to_end(&mut answer).await.doing(Kind::Unavailable, doing)?;
    body(answer).ok_or_else(|| Error::new(Kind::Unavailable, format!("{}: the answer is not a 200", doing())))
}

fn body(mut answer: Vec<u8>) -> Option<Vec<u8>> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let first = std::str::from_utf8(answer.get(..end)?).ok()?.lines().next()?;
    (first.split(' ').nth(1)? == "200").then(|| answer.split_off(end + 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_200_has_a_body() {
        let read = |text: &str| body(text.as_bytes().to_vec()).map(|body| String::from_utf8(body).unwrap());
        assert_eq!(read("HTTP/1.1 200 OK\r\nA: b\r\n\r\n{}\r\n\r\n"), Some("{}\r\n\r\n".into()));
        assert_eq!(read("HTTP/1.1 503 No\r\n\r\nx"), None);
        assert_eq!(read("HTTP/1.1 200"), None);
        assert_eq!(read("\r\n\r\n"), None);
    }
}
