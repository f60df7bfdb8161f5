//! Giving rights on a Kafka cluster: one request of its protocol, which librdkafka's wrapper lacks.

use headwater_core::{Error, Kind, Result, ResultExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// `CreateAcls`, in the last version without tagged fields.
const CREATE_ACLS: (i16, i16) = (30, 1);
const TOPIC: u8 = 2;
const GROUP: u8 = 3;
const LITERAL: u8 = 3;
const ALLOW: u8 = 3;

/// What a user may do with every topic; groups may be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Right {
    /// Consume.
    Read = 3,
    /// Produce, and look.
    Write = 4,
    /// Make topics.
    Create = 5,
    /// Read settings.
    DescribeConfigs = 10,
}

/// Asks the broker at `address`, as whoever comes without a name.
pub(super) async fn allow(address: &str, user: &str, rights: &[Right]) -> Result<()> {
    let doing = || format!("giving rights to {user} on Kafka");
    let request = request(user, rights);
    let ask = async {
        let mut socket = TcpStream::connect(address).await?;
        socket.write_all(&request).await?;
        let size = socket.read_i32().await?;
        let mut answer = vec![0; usize::try_from(size).unwrap_or(0)];
        socket.read_exact(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = ask.await.doing(Kind::Unavailable, doing)?;
    // Correlation, throttling and the number of results; each begins with its error code.
    match answer.get(12..14) {
        Some([0, 0]) => Ok(()),
        _ => Err(Error::new(Kind::Refused, doing()).because(format!("{answer:?}"))),
    }
}

fn request(user: &str, rights: &[Right]) -> Vec<u8> {
    let mut body = Vec::new();
    let (key, version) = CREATE_ACLS;
    body.extend(key.to_be_bytes());
    body.extend(version.to_be_bytes());
    // Correlation, and a client without a name.
    body.extend(1_i32.to_be_bytes());
    body.extend((-1_i16).to_be_bytes());
    let of_topics = rights.iter().map(|right| (TOPIC, *right as u8));
    let all: Vec<(u8, u8)> = of_topics.chain([(GROUP, Right::Read as u8)]).collect();
    body.extend((all.len() as u32).to_be_bytes());
    for (resource, operation) in all {
        body.push(resource);
        string(&mut body, "*");
        body.push(LITERAL);
        string(&mut body, &format!("User:{user}"));
        string(&mut body, "*");
        body.extend([operation, ALLOW]);
    }
    let mut request = (body.len() as u32).to_be_bytes().to_vec();
    request.append(&mut body);
    request
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u16).to_be_bytes());
    out.extend(text.as_bytes());
}
