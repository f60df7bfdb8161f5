//! Giving and taking rights on a Kafka cluster: requests of its protocol that librdkafka's wrapper lacks.

use headwater_core::{Error, Kind, Result, ResultExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// `CreateAcls` and `DeleteAcls`, in the last version without tagged fields.
const CREATE_ACLS: (i16, i16) = (30, 1);
const DELETE_ACLS: (i16, i16) = (31, 1);
const TOPIC: u8 = 2;
const GROUP: u8 = 3;
const LITERAL: u8 = 3;
const DENY: u8 = 2;
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

/// Lets a user do this with every topic, and read with every group.
pub(super) async fn allow(address: &str, user: &str, rights: &[Right]) -> Result<()> {
    let of_topics = rights.iter().map(|right| (TOPIC, *right));
    let all = of_topics.chain([(GROUP, Right::Read)]);
    let entries = all.map(|(resource, right)| entry((resource, "*"), user, right, ALLOW)).collect();
    ask(address, CREATE_ACLS, entries).await
}

/// Takes a right on one topic away from a user who may do it with every topic.
pub(super) async fn deny(address: &str, user: &str, right: Right, topic: &str) -> Result<()> {
    ask(address, CREATE_ACLS, vec![entry((TOPIC, topic), user, right, DENY)]).await
}

/// Gives back what [`deny`] took.
pub(super) async fn undeny(address: &str, user: &str, right: Right, topic: &str) -> Result<()> {
    ask(address, DELETE_ACLS, vec![entry((TOPIC, topic), user, right, DENY)]).await
}

/// Asks the broker at `address`, as whoever comes without a name.
async fn ask(address: &str, what: (i16, i16), entries: Vec<Vec<u8>>) -> Result<()> {
    let doing = || "changing rights on Kafka".to_owned();
    let request = request(what, &entries);
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

fn request((key, version): (i16, i16), entries: &[Vec<u8>]) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(key.to_be_bytes());
    body.extend(version.to_be_bytes());
    // Correlation, and a client without a name.
    body.extend(1_i32.to_be_bytes());
    body.extend((-1_i16).to_be_bytes());
    body.extend((entries.len() as u32).to_be_bytes());
    body.extend(entries.iter().flatten());
    let mut request = (body.len() as u32).to_be_bytes().to_vec();
    request.append(&mut body);
    request
}

/// One right; to make one and to name those to remove, it is written alike.
fn entry((resource, name): (u8, &str), user: &str, right: Right, permission: u8) -> Vec<u8> {
    let mut body = vec![resource];
    string(&mut body, name);
    body.push(LITERAL);
    string(&mut body, &format!("User:{user}"));
    string(&mut body, "*");
    body.extend([right as u8, permission]);
    body
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u16).to_be_bytes());
    out.extend(text.as_bytes());
}
