//! The kinds of connections that FedVision 0.1's service takes: HTTP/1.0, kept alive, several requests at once, bodies in chunks.

use super::{Wire, master, request};

const ASK: &[u8] = br#"{"job_id": 1}"#;
const ECHO: &str = r#"{"job_id": 1, "status": "_JobStatus.NOTFOUND"}"#;

#[tokio::test(flavor = "multi_thread")]
async fn http_1_0_is_answered_and_closed_unless_it_asks_to_be_kept() {
    let dir = tempfile::tempdir().unwrap();
    let master = master(dir.path()).await;
    let mut wire = Wire::to(&master.address).await;
    let ask = |more: &str| [format!("POST /query HTTP/1.0\r\nContent-Length: 13\r\n{more}\r\n").as_bytes(), ASK].concat();
    for _ in 0..3 {
        wire.say(&ask("Connection: keep-alive\r\n")).await;
        let answer = wire.answer().await;
        assert_eq!((answer.line.as_str(), answer.body.as_str()), ("HTTP/1.0 404 Not Found", ECHO));
        assert_eq!(answer.header("connection"), "keep-alive");
    }
    wire.say(&ask("")).await;
    assert_eq!(wire.answer().await.body, ECHO);
    assert_eq!(wire.rest().await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_requests_at_once_are_answered_in_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let master = master(dir.path()).await;
    let mut wire = Wire::to(&master.address).await;
    let asked: Vec<u8> = (0..50)
        .flat_map(|n| request("POST", "/query", &[], format!(r#"{{"job_id": {n}}}"#).as_bytes()))
        .collect();
    wire.say(&asked).await;
    for n in 0..50 {
        let answer = wire.answer().await;
        assert_eq!(answer.body, format!(r#"{{"job_id": {n}, "status": "_JobStatus.NOTFOUND"}}"#));
    }
    // A refusal does not end the connection, and its body is not taken for the next request.
    wire.say(&[request("PUT", "/query", &[], ASK), request("POST", "/nope", &[], ASK)].concat())
        .await;
    assert_eq!(wire.answer().await.line, "HTTP/1.1 405 Method Not Allowed");
    assert_eq!(wire.answer().await.line, "HTTP/1.1 404 Not Found");
    wire.say(&request("POST", "/query", &["connection: close"], ASK)).await;
    assert_eq!(wire.answer().await.body, ECHO);
    assert_eq!(wire.rest().await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_in_chunks_are_put_together() {
    let dir = tempfile::tempdir().unwrap();
    let master = master(dir.path()).await;
    let mut wire = Wire::to(&master.address).await;
    let head = b"POST /query HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".as_slice();
    let chunks: Vec<u8> = ASK
        .iter()
        .flat_map(|byte| [b"1;x=y\r\n".as_slice(), &[*byte], b"\r\n"].concat())
        .collect();
    wire.say(&[head, &chunks, b"0\r\nTrailer: x\r\n\r\n"].concat()).await;
    assert_eq!(wire.answer().await.body, ECHO);
    // Too much of it is told apart from a broken one, with the size that was seen.
    let chunk = [b"10000\r\n".as_slice(), &[b' '; 0x10000], b"\r\n"].concat();
    wire.say(&[head, &chunk.repeat(17), b"0\r\n\r\n"].concat()).await;
    let answer = wire.answer().await;
    assert_eq!(answer.line, "HTTP/1.1 413 Request Entity Too Large");
    let size = answer
        .body
        .strip_prefix("Maximum request body size 1048576 exceeded, actual body size ");
    assert!(size.unwrap().parse::<usize>().unwrap() >= 1_048_576, "{}", answer.body);
    // Who asks first is told at once that it is too much.
    let mut wire = Wire::to(&master.address).await;
    wire.say(b"POST /submit HTTP/1.1\r\nHost: x\r\nContent-Length: 1048576\r\nExpect: 100-continue\r\n\r\n")
        .await;
    assert_eq!(wire.answer().await.line, "HTTP/1.1 413 Request Entity Too Large");
}
