//! Messages whose encoding is kept somewhere: a call, or its answer, with a body that is read from there while it is sent.
//!
//! Used by the roles for tasks and proposals, which may have hundreds of megabytes. On the wire it is what tonic would have written. tonic makes
//! the call with an empty message in its place, so that metadata, deadlines and metrics are as everywhere. A body must never be longer or
//! shorter than it said, and one that breaks off must never look whole.

use super::connect::MESSAGE_MAX;
use futures_util::stream::{self, Stream, StreamExt};
use http_body::Frame;
use http_body_util::StreamBody;
use std::convert::Infallible;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, HeaderValue, Request, Response};
use tonic::codegen::{BoxFuture, Bytes, Service, StdError};
use tonic::server::NamedService;

/// What goes before a message: whether it is compressed, and its length.
pub const FRAME: usize = 5;

/// The frame of a message that is `head` and `len` bytes more.
fn frame(head: &Bytes, len: u64) -> Result<Bytes, Status> {
    let all = head.len() as u64 + len;
    let length = u32::try_from(all)
        .ok()
        .filter(|length| *length as usize <= MESSAGE_MAX)
        .ok_or_else(|| {
            let limit = format!("the limit is: {MESSAGE_MAX} bytes");
            Status::out_of_range(format!("Error, encoded message length too large: found {all} bytes, {limit}"))
        })?;
    let mut begun = Vec::with_capacity(FRAME + head.len());
    begun.push(0);
    begun.extend_from_slice(&length.to_be_bytes());
    begun.extend_from_slice(head);
    Ok(begun.into())
}

/// The body of a call: a message of `head` and then `pieces`, `len` bytes in all. An error among the pieces resets the stream: the peer has no call.
///
/// # Errors
/// OUT_OF_RANGE: the message is longer than any peer takes.
pub fn call<E>(head: &Bytes, len: u64, pieces: impl Stream<Item = Result<Bytes, E>> + Send + 'static) -> Result<Body, Status>
where
    E: Into<StdError> + Send + 'static,
{
    let begun = stream::iter([Ok(frame(head, len)?)]);
    Ok(Body::new(StreamBody::new(begun.chain(pieces).map(|piece| piece.map(Frame::data)))))
}

/// The body of an answer: as that of a [`call`], with the trailers of a success behind it. An error among the pieces becomes DATA_LOSS in the trailers of
/// a message that is not whole.
///
/// # Errors
/// OUT_OF_RANGE: the message is longer than any peer takes.
pub fn answer<E>(head: &Bytes, len: u64, pieces: impl Stream<Item = Result<Bytes, E>> + Send + 'static) -> Result<Answer, Status>
where
    E: Display + Send + 'static,
{
    let begun = stream::iter([Ok(frame(head, len)?)]);
    let mut over = HeaderMap::new();
    over.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = begun
        .chain(pieces)
        .map(|piece| match piece {
            Ok(piece) => (Frame::data(piece), true),
            Err(error) => (Frame::trailers(lost(&error)), false),
        })
        .chain(stream::iter([(Frame::trailers(over), false)]));
    // The first trailers are the last frame.
    let frames = frames.scan(true, |goes_on, (frame, more)| {
        let frame = goes_on.then_some(frame);
        *goes_on = *goes_on && more;
        std::future::ready(frame.map(Ok::<_, Status>))
    });
    Ok(Answer(Arc::new(Mutex::new(Some(Body::new(StreamBody::new(frames)))))))
}

fn lost(error: &impl Display) -> HeaderMap {
    let status = Status::data_loss(format!("what was asked for cannot be read: {error}"));
    let mut trailers = HeaderMap::new();
    if status.add_header(&mut trailers).is_err() {
        trailers.insert("grpc-status", HeaderValue::from(i32::from(status.code())));
    }
    trailers
}

/// Put by a handler into the extensions of its response, whose message is then empty; see [`Answering`].
#[derive(Clone)]
pub struct Answer(Arc<Mutex<Option<Body>>>);

/// A connection for one call, whose body is this one in place of what tonic wrote.
pub struct Calling<S> {
    inner: S,
    body: Option<Body>,
}

impl<S> Calling<S> {
    /// Make a client of it, and call it once.
    pub fn new(inner: S, body: Body) -> Self {
        let body = Some(body);
        Self { inner, body }
    }
}

impl<S: Service<Request<Body>>> Service<Request<Body>> for Calling<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> S::Future {
        let body = self.body.take();
        self.inner.call(request.map(|written| body.unwrap_or(written)))
    }
}

/// A service whose handlers may give an [`Answer`].
#[derive(Clone)]
pub struct Answering<S>(pub S);

impl<S: NamedService> NamedService for Answering<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Answering<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answer = self.0.call(request);
        Box::pin(async move {
            let mut response = answer.await?;
            let body = response
                .extensions_mut()
                .remove::<Answer>()
                .and_then(|answer| answer.0.lock().unwrap_or_else(PoisonError::into_inner).take());
            Ok(match body {
                Some(body) => response.map(|_| body),
                None => response,
            })
        })
    }
}
