//! A body that was looked at before its head is sent on: if it has broken already, its reader is still owed an answer.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// A body, and the frame of it that was there already.
pub struct Peeked<B> {
    body: B,
    first: Option<Frame<Bytes>>,
    /// The whole length, if the body stated it.
    length: Option<u64>,
}

impl<B: Body<Data = Bytes> + Unpin> Peeked<B> {
    /// Looks without waiting: an error that is known now.
    pub async fn look(mut body: B) -> Result<Self, B::Error> {
        let length = body.size_hint().exact();
        if body.is_end_stream() {
            return Ok(Self { body, first: None, length });
        }
        let polled = poll_fn(|cx| Poll::Ready(Pin::new(&mut body).poll_frame(cx))).await;
        let first = match polled {
            Poll::Ready(Some(frame)) => Some(frame?),
            // Its end is told once more when it is asked for again.
            Poll::Ready(None) | Poll::Pending => None,
        };
        Ok(Self { body, first, length })
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Peeked<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.first.take() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None => Pin::new(&mut self.body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.first {
            None => self.body.size_hint(),
            Some(_) => self.length.map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, Full, StreamBody};

    #[tokio::test]
    async fn what_was_there_comes_first_and_what_broke_is_known_at_once() {
        let whole = Peeked::look(Full::new(Bytes::from_static(b"abc"))).await.unwrap();
        assert_eq!((whole.size_hint().exact(), whole.is_end_stream()), (Some(3), false));
        assert_eq!(whole.collect().await.unwrap().to_bytes(), "abc");
        let of = |frames: Vec<Result<&'static str, &'static str>>| {
            let frames = frames.into_iter().map(|one| one.map(|text| Frame::data(Bytes::from_static(text.as_bytes()))));
            StreamBody::new(futures_util::stream::iter(frames))
        };
        assert_eq!(Peeked::look(of(vec![Err("broken")])).await.err(), Some("broken"));
        let mut later = Peeked::look(of(vec![Ok("a"), Ok("b"), Err("broken")])).await.unwrap();
        assert_eq!(later.size_hint().exact(), None);
        for expected in ["a", "b"] {
            assert_eq!(later.frame().await.unwrap().unwrap().into_data().unwrap(), expected);
        }
        assert_eq!(later.frame().await.unwrap().err(), Some("broken"));
        let silent = Peeked::look(StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, ()>>())).await;
        assert!(silent.is_ok());
    }
}
