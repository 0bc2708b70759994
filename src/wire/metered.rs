//! Measures every gRPC call, ours and those of others: how long it took, under which code it ended, how many are under way.
//!
//! [`Channel`] is what the roles make their clients of, [`Meter`] is in front of their services. It reads headers and trailers, and must
//! never change, hold up or swallow a message.

use super::connect::{self, BadAddress};
use super::contact::{self, Contact};
use crate::metrics::{Call, Metrics, Peers};
use http_body::{Frame, SizeHint};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::codegen::{BoxFuture, Bytes, Service};
use tonic::{Code, Status};
use tower_layer::Layer;

/// The names of all calls there are, sorted.
const METHODS: &[&str] = include!(concat!(env!("OUT_DIR"), "/methods.rs"));

/// A channel whose calls are measured. Cheap to clone.
#[derive(Clone)]
pub struct Channel {
    inner: tonic::transport::Channel,
    peer: &'static str,
    peers: Peers,
    contact: Contact,
}

/// [`connect::channel`] to a peer of this role.
///
/// # Errors
/// As there.
pub fn channel(address: &str, peer: &'static str, metrics: &Metrics) -> Result<Channel, BadAddress> {
    let (inner, peers) = (connect::channel(address)?, metrics.peers().clone());
    let contact = Contact::default();
    Ok(Channel {
        inner,
        peer,
        peers,
        contact,
    })
}

impl Channel {
    /// Whether the peer answers.
    pub fn contact(&self) -> &Contact {
        &self.contact
    }
}

impl Service<Request<Body>> for Channel {
    type Response = Response<MeteredBody>;
    type Error = tonic::transport::Error;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut call = self.peers.call(self.peer, method(request.uri().path()));
        let (answer, contact) = (self.inner.call(request), self.contact.clone());
        Box::pin(async move {
            match answer.await {
                Ok(response) => {
                    contact.answered();
                    Ok(metered(response, call, Some(contact)))
                }
                Err(error) => {
                    // No connection, or it broke before the answer began.
                    call.end(name(Code::Unavailable));
                    contact.failed(contact::told(&error));
                    Err(error)
                }
            }
        })
    }
}

/// Puts a [`MeteredService`] in front of the services of a role.
#[derive(Clone)]
pub struct Meter(Peers);

impl Meter {
    /// A meter that fills these.
    pub fn new(metrics: &Metrics) -> Self {
        Self(metrics.peers().clone())
    }
}

impl<S> Layer<S> for Meter {
    type Service = MeteredService<S>;

    fn layer(&self, inner: S) -> MeteredService<S> {
        let peers = self.0.clone();
        MeteredService { inner, peers }
    }
}

/// Services whose calls are measured.
#[derive(Clone)]
pub struct MeteredService<S> {
    inner: S,
    peers: Peers,
}

impl<S> Service<Request<Body>> for MeteredService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<MeteredBody>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let call = self.peers.serve(method(request.uri().path()));
        let answer = self.inner.call(request);
        Box::pin(async move { Ok(metered(answer.await?, call, None)) })
    }
}

/// An answer on its way. The call ends with its trailers.
pub struct MeteredBody {
    inner: Body,
    call: Call,
    /// The peer that answers; none at a server.
    contact: Option<Contact>,
}

fn metered(response: Response<Body>, mut call: Call, contact: Option<Contact>) -> Response<MeteredBody> {
    // An answer without a message has its code in the head.
    if let Some(code) = code(response.headers()) {
        call.end(code);
    }
    response.map(|inner| MeteredBody { inner, call, contact })
}

impl http_body::Body for MeteredBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(context);
        match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_ref() {
                    self.call.end(code(trailers).unwrap_or(name(Code::Unknown)));
                }
            }
            Poll::Ready(Some(Err(status))) => {
                self.call.end(name(status.code()));
                if let Some(contact) = &self.contact {
                    contact.failed(contact::told(status));
                }
            }
            // No trailers: the connection ended.
            Poll::Ready(None) => self.call.end(name(Code::Unknown)),
            Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The call that a path means: one of those there are, since a client can ask for any.
fn method(path: &str) -> &'static str {
    let name = path.strip_prefix('/').unwrap_or(path);
    METHODS.binary_search(&name).map_or("unknown", |at| METHODS[at])
}

fn code(headers: &HeaderMap) -> Option<&'static str> {
    let code = headers.get("grpc-status")?.to_str().ok()?.parse::<i32>();
    Some(name(code.map_or(Code::Unknown, Code::from)))
}

/// The code as gRPC writes it.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_calls_there_are_have_names() {
        assert_eq!(method("/fedbroker.v1.Peer/Hello"), "fedbroker.v1.Peer/Hello");
        let proposal = "fedvision.framework.coordinator.Coordinator/Proposal";
        assert_eq!(method(&format!("/{proposal}")), proposal);
        for odd in ["/fedbroker.v1.Peer/Hullo", "/", "", "/x", "/fedbroker.v1.Peer"] {
            assert_eq!(method(odd), "unknown");
        }
    }

    #[test]
    fn a_code_is_read_from_headers_and_trailers_alike() {
        let mut headers = HeaderMap::new();
        assert_eq!(code(&headers), None);
        for (text, expected) in [("0", "OK"), ("12", "UNIMPLEMENTED"), ("99", "UNKNOWN"), ("x", "UNKNOWN")] {
            headers.insert("grpc-status", text.parse().unwrap());
            assert_eq!(code(&headers), Some(expected));
        }
    }
}
