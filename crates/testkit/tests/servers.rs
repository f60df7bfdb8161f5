//! Kafka and the proxy start, break and end as they say.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use headwater_testkit::servers::{Kafka, Proxy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A server that sends back what it gets.
async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                tokio::io::copy(&mut from, &mut to).await
            });
        }
    });
    port
}

async fn connect(proxy: &Proxy) -> TcpStream {
    TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap()
}

async fn round_trip(stream: &mut TcpStream) -> std::io::Result<[u8; 2]> {
    stream.write_all(b"hi").await?;
    let mut answer = [0; 2];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn what_is_held_comes_after_release() {
    let proxy = Proxy::start(("127.0.0.1", echo().await)).await.unwrap();
    let mut stream = connect(&proxy).await;
    assert_eq!(round_trip(&mut stream).await.unwrap(), *b"hi");
    proxy.hold();
    let held = tokio::time::timeout(Duration::from_millis(200), round_trip(&mut stream)).await;
    assert!(held.is_err(), "nothing passes");
    proxy.release();
    let mut answer = [0; 2];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, *b"hi");
}

#[tokio::test]
async fn cut_and_refused_connections_end_in_a_reset() {
    let proxy = Proxy::start(("127.0.0.1", echo().await)).await.unwrap();
    let mut stream = connect(&proxy).await;
    round_trip(&mut stream).await.unwrap();
    proxy.cut();
    let error = stream.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    round_trip(&mut connect(&proxy).await).await.unwrap();
    proxy.refuse();
    round_trip(&mut connect(&proxy).await).await.unwrap_err();
    proxy.release();
    round_trip(&mut connect(&proxy).await).await.unwrap();
}

#[tokio::test]
async fn kafka_comes_back_on_its_port() {
    let kafka = Kafka::start().await.unwrap();
    let connects = async || TcpStream::connect(kafka.brokers()).await.is_ok();
    assert!(connects().await);
    kafka.kill();
    assert!(!connects().await);
    kafka.restart().await.unwrap();
    assert!(connects().await);
    kafka.stop().await.unwrap();
    assert!(!connects().await);
}
