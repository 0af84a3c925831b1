//! A client's body that must go on: a stream of HTTP/2 has no clock of its own, so a client that begins a body and
//! falls silent would hold its place at a Machine for ever.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

pub struct Steady<B> {
    body: B,
    timeout: Duration,
    /// Made by the first wait; set anew by each.
    timer: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum Unsteady<E> {
    #[error("the client's body did not go on in time")]
    Stalled,
    #[error(transparent)]
    Body(E),
}

impl<B> Steady<B> {
    /// `timeout`: between two pieces, while one is asked for.
    pub fn new(body: B, timeout: Duration) -> Self {
        Self { body, timeout, timer: None, waiting: false }
    }
}

impl<B: Body + Unpin> Body for Steady<B> {
    type Data = B::Data;
    type Error = Unsteady<B::Error>;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, Self::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.waiting = false;
            return Poll::Ready(frame.map(|frame| frame.map_err(Unsteady::Body)));
        }
        let deadline = Instant::now() + self.timeout;
        let begins = !std::mem::replace(&mut self.waiting, true);
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if begins {
            timer.as_mut().reset(deadline);
        }
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Some(Err(Unsteady::Stalled)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http_body_util::{BodyExt, StreamBody};

    fn steady(
        frames: tokio::sync::mpsc::Receiver<&'static str>,
        timeout: Duration,
    ) -> Steady<impl Body<Data = Bytes, Error = std::convert::Infallible> + Unpin> {
        let frames = futures_util::stream::unfold(frames, |mut frames| async {
            let text = frames.recv().await?;
            Some((Ok(Frame::data(Bytes::from_static(text.as_bytes()))), frames))
        });
        Steady::new(StreamBody::new(Box::pin(frames)), timeout)
    }

    #[tokio::test]
    async fn a_body_that_goes_on_is_whole_and_one_that_stops_fails() {
        let (feed, frames) = tokio::sync::mpsc::channel(1);
        let body = steady(frames, Duration::from_secs(60));
        tokio::spawn(async move {
            for _ in 0..50 {
                feed.send("x").await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        assert_eq!(body.collect().await.unwrap().to_bytes().len(), 50);
        let (feed, frames) = tokio::sync::mpsc::channel(1);
        feed.send("x").await.unwrap();
        let body = steady(frames, Duration::from_millis(5));
        assert!(matches!(body.collect().await, Err(Unsteady::Stalled)));
        drop(feed);
    }
}
