//! The received half of a stream as an HTTP body. Capacity goes back to the sender as each chunk is taken, so that a
//! slow reader slows its sender and nobody else.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

enum Part {
    Data,
    Trailers,
    Done,
}

pub struct StreamBody {
    stream: RecvStream,
    part: Part,
    /// What Content-Length promised and has not come yet.
    left_bytes: Option<u64>,
}

impl StreamBody {
    pub fn new(stream: RecvStream, headers: &HeaderMap) -> Self {
        let length = headers.get(http::header::CONTENT_LENGTH);
        let left_bytes = length.and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
        let part = if stream.is_end_stream() { Part::Done } else { Part::Data };
        Self { stream, part, left_bytes }
    }
}

impl Body for StreamBody {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if let Part::Data = self.part {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(bytes)) => {
                    // Fails only when more is released than was received.
                    let _ = self.stream.flow_control().release_capacity(bytes.len());
                    if let Some(left) = &mut self.left_bytes {
                        *left = left.saturating_sub(bytes.len() as u64);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                // The peer needs no more of the exchange, and what it sent is whole.
                Some(Err(error)) if error.reason() == Some(Reason::NO_ERROR) => self.part = Part::Done,
                Some(Err(error)) => {
                    self.part = Part::Done;
                    return Poll::Ready(Some(Err(error)));
                }
                None => self.part = Part::Trailers,
            }
        }
        if let Part::Trailers = self.part {
            let trailers = ready!(self.stream.poll_trailers(cx));
            self.part = Part::Done;
            return match trailers {
                Ok(Some(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                Ok(None) => Poll::Ready(None),
                Err(error) => Poll::Ready(Some(Err(error))),
            };
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        match self.part {
            Part::Done => true,
            Part::Data => self.stream.is_end_stream(),
            Part::Trailers => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self.left_bytes {
            Some(left) => SizeHint::with_exact(left),
            None if self.is_end_stream() => SizeHint::with_exact(0),
            None => SizeHint::default(),
        }
    }
}
