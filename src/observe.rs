//! What an operator's tools ask any role: `/metrics` and `/livez`, on a port of their own where the role has no other HTTP door.
//!
//! Started by the roles at their start, before they open their data. One short answer for each connection, with a limit on everything: whoever
//! asks must never cost the role its files, its memory or its end. Says nothing about jobs; decides nothing.

use crate::metrics::CONTENT_TYPE;
use crate::supervisor::{Policy, Supervisor};
use crate::telemetry::say;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http_body_util::Full;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE as CONTENT_TYPE_HEADER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// Connections at once; a scraper has one, and who comes beyond waits in the queue of the system.
const CONNECTIONS: usize = 16;
/// How long one connection may take, from accept to the last byte: a scraper gives up after ten seconds by itself.
const LIMIT: Duration = Duration::from_secs(10);
/// How long after a failed accept the next one is tried.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Listen, if a port was given, and serve until the role stops; 0 takes a free port, which a line on stdout names.
///
/// # Errors
/// The address cannot be bound.
pub async fn start(role: &str, host: &str, port: Option<u16>, supervisor: &Supervisor) -> anyhow::Result<Option<SocketAddr>> {
    let Some(port) = port else { return Ok(None) };
    let bound = TcpListener::bind((host, port)).await;
    let listener = bound.map_err(|error| {
        anyhow::anyhow!("--metrics-port: cannot listen on {host}:{port}: {error}; choose another one (0 takes a free one)")
    })?;
    let address = listener.local_addr()?;
    say(&format!("{role} metrics on http://{address}/metrics"));
    supervisor.spawn("metrics", Policy::Ordinary, serve(listener, supervisor.clone(), LIMIT));
    Ok(Some(address))
}

/// All metrics of a role as text, of the type [`CONTENT_TYPE`].
pub async fn exposition(supervisor: &Supervisor) -> String {
    let metrics = supervisor.metrics().clone();
    Supervisor::blocking(move || metrics.text()).await.unwrap_or_default()
}

async fn serve(listener: TcpListener, supervisor: Supervisor, limit: Duration) {
    let mut open = FuturesUnordered::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if open.len() < CONNECTIONS => match accepted {
                Ok((stream, _)) => open.push(tokio::time::timeout(limit, connection(stream, supervisor.clone()))),
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
            Some(_) = open.next() => {}
        }
    }
}

async fn connection(stream: TcpStream, supervisor: Supervisor) {
    let service = service_fn(|request| answer(request, &supervisor));
    let served = http1::Builder::new()
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the metrics ended badly");
    }
}

async fn answer(request: Request<hyper::body::Incoming>, supervisor: &Supervisor) -> Result<Response<Full<Bytes>>, Infallible> {
    const TEXT: &str = "text/plain; charset=utf-8";
    let known = matches!(request.uri().path(), "/metrics" | "/livez");
    let (status, kind, body) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => (StatusCode::OK, CONTENT_TYPE, exposition(supervisor).await),
        (&Method::GET | &Method::HEAD, "/livez") if supervisor.is_stopped() => {
            (StatusCode::SERVICE_UNAVAILABLE, "application/json", "{\"alive\":false}".to_owned())
        }
        (&Method::GET | &Method::HEAD, "/livez") => (StatusCode::OK, "application/json", "{\"alive\":true}".to_owned()),
        _ if known => (StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, TEXT, "here are /metrics and /livez\n".to_owned()),
    };
    let response = Response::builder()
        .status(status)
        .header(CONTENT_TYPE_HEADER, kind)
        .header(CACHE_CONTROL, "no-store");
    Ok(response.body(Full::from(body)).expect("the parts above are constants and fit"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(format!("{request} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn two_pages_and_nothing_else() {
        let supervisor = Supervisor::new();
        assert_eq!(start("x", "127.0.0.1", None, &supervisor).await.unwrap(), None);
        let address = start("x", "127.0.0.1", Some(0), &supervisor).await.unwrap().unwrap();
        supervisor.metrics().begin("x", 0);
        let metrics = ask(address, "GET /metrics").await;
        assert!(
            metrics.starts_with("HTTP/1.1 200") && metrics.contains("fedbroker_build_info{role=\"x\""),
            "{metrics}"
        );
        assert!(metrics.contains(&format!("content-type: {CONTENT_TYPE}\r\n")), "{metrics}");
        assert!(ask(address, "GET /livez").await.ends_with("{\"alive\":true}"));
        assert!(ask(address, "HEAD /livez").await.ends_with("\r\n\r\n"));
        assert!(ask(address, "GET /metric").await.starts_with("HTTP/1.1 404"));
        assert!(ask(address, "POST /metrics").await.starts_with("HTTP/1.1 405"));
        let taken = start("x", "127.0.0.1", Some(address.port()), &supervisor)
            .await
            .unwrap_err()
            .to_string();
        assert!(taken.starts_with("--metrics-port: cannot listen on 127.0.0.1:"), "{taken}");
    }

    #[tokio::test]
    async fn those_who_say_nothing_do_not_keep_others_out_for_ever() {
        let supervisor = Supervisor::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = serve(listener, supervisor.clone(), Duration::from_millis(100));
        supervisor.spawn("metrics", Policy::Ordinary, served);
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        assert!(ask(address, "GET /livez").await.contains("alive"));
    }
}
