//! The REST contract of FedVision 0.1 at our master, over plain sockets: status line, headers and body of each answer.

mod connections;
mod oracle;
mod rows;
mod strange;
mod submitter;

use crate::support::{DEADLINE, Role};
use std::path::Path;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// A master on its own: it serves without a coordinator and without a cluster.
async fn master(dir: &Path) -> Role {
    let mut master = Role::master_alone("p1-master", dir, &dir.join("data"));
    master.start().await;
    master
}

/// A connection to a master.
struct Wire(BufReader<TcpStream>);

/// An answer, byte by byte.
#[derive(Debug)]
struct Answer {
    /// `HTTP/1.1 200 OK`
    line: String,
    /// As they came, names in lower case.
    headers: Vec<(String, String)>,
    body: String,
}

impl Wire {
    async fn to(address: &str) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self(BufReader::new(stream))
    }

    /// POST over HTTP/1.1 and take the answer. `headers` are whole lines.
    async fn post(&mut self, path: &str, headers: &[&str], body: &[u8]) -> Answer {
        self.say(&request("POST", path, headers, body)).await;
        self.answer().await
    }

    async fn say(&mut self, bytes: &[u8]) {
        tokio::time::timeout(DEADLINE, self.0.write_all(bytes)).await.unwrap().unwrap();
    }

    /// The next answer, which has to say its length.
    async fn answer(&mut self) -> Answer {
        let mut answer = self.head().await;
        let length: usize = answer.header("content-length").parse().unwrap_or_else(|_| panic!("{answer:?}"));
        let mut body = vec![0; length];
        tokio::time::timeout(DEADLINE, self.0.read_exact(&mut body)).await.unwrap().unwrap();
        answer.body = String::from_utf8(body).unwrap();
        answer
    }

    /// The next answer to a HEAD.
    async fn head(&mut self) -> Answer {
        let mut answer = Answer {
            line: self.line().await,
            headers: Vec::new(),
            body: String::new(),
        };
        loop {
            let line = self.line().await;
            if line.is_empty() {
                return answer;
            }
            let (name, value) = line.split_once(": ").unwrap_or_else(|| panic!("{line:?} is no header"));
            answer.headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        tokio::time::timeout(DEADLINE, self.0.read_line(&mut line)).await.unwrap().unwrap();
        line.strip_suffix("\r\n")
            .unwrap_or_else(|| panic!("{line:?} is no line"))
            .to_owned()
    }

    /// What else comes until the master closes.
    async fn rest(mut self) -> String {
        let mut rest = String::new();
        tokio::time::timeout(DEADLINE, self.0.read_to_string(&mut rest))
            .await
            .unwrap()
            .unwrap();
        rest
    }
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map_or("", |(_, value)| value)
    }

    /// The status line without the version.
    fn status(&self) -> &str {
        self.line.split_once(' ').unwrap().1
    }

    /// Check all of it.
    fn is(&self, what: &str, status: &str, content_type: &str, body: &str) {
        assert_eq!((self.status(), self.body.as_str()), (status, body), "{what}");
        assert_eq!(self.header("content-type"), content_type, "{what}");
        assert!(self.header("date").ends_with(" GMT"), "{what}: {self:?}");
        assert_eq!(self.header("content-length"), body.len().to_string(), "{what}");
    }
}

/// A request over HTTP/1.1.
fn request(method: &str, path: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let lines: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n{lines}\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}
