//! A request's body on its way to a door, so that a refusal never costs a byte of it.
//!
//! What was read from the client is kept until it outgrows `REPLAY_BYTES`; past that nothing is read before the door
//! has admitted the request. So each refusal finds either the whole of what was read, or an untouched client.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::SendStream;
use http::HeaderMap;
use http_body::Body;

use super::record::Passed;
use crate::link::send::{Broken, poll_capacity};

/// Kept of a body in case it must be sent again.
pub const REPLAY_BYTES: usize = 64 << 10;

/// The client's body and what was read of it.
pub struct Upload<B> {
    body: B,
    kept: VecDeque<Bytes>,
    kept_bytes: usize,
    /// `kept` holds all that was read so far.
    whole: bool,
    ended: bool,
    trailers: Option<HeaderMap>,
    passed: Arc<Passed>,
}

/// How far one attempt has come with it.
#[derive(Default)]
pub struct Progress {
    /// Index of the next chunk in `kept`.
    next: usize,
    pending: Bytes,
}

impl<B> Upload<B>
where
    B: Body<Data = Bytes> + Unpin,
{
    pub fn new(body: B, passed: Arc<Passed>) -> Self {
        let ended = body.is_end_stream();
        Self { body, kept: VecDeque::new(), kept_bytes: 0, whole: true, ended, trailers: None, passed }
    }

    /// There is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.ended && self.kept.is_empty() && self.trailers.is_none()
    }

    /// It can be sent from its beginning again.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Sends on until the body's end (then the stream is ended too). Pending also when the door must admit first;
    /// whoever polls this polls for that as well.
    pub fn poll_send(
        &mut self,
        progress: &mut Progress,
        stream: &mut SendStream<Bytes>,
        admitted: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Broken>> {
        loop {
            while !progress.pending.is_empty() {
                let capacity = ready!(poll_capacity(stream, progress.pending.len(), cx))?;
                let chunk = progress.pending.split_to(capacity);
                stream.send_data(chunk, false).map_err(|_| Broken::Stream)?;
            }
            if let Some(chunk) = self.kept.get(progress.next) {
                progress.pending = chunk.clone();
                progress.next += 1;
            } else if self.ended {
                return Poll::Ready(self.finish(stream));
            } else if self.kept_bytes >= REPLAY_BYTES && !admitted {
                return Poll::Pending;
            } else {
                ready!(self.poll_read(progress, admitted, cx))?;
            }
        }
    }

    /// Reads to the end for nobody.
    pub async fn discard(&mut self) {
        while let Some(Ok(_)) = poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await {}
    }

    fn finish(&mut self, stream: &mut SendStream<Bytes>) -> Result<(), Broken> {
        let sent = match &self.trailers {
            Some(trailers) => stream.send_trailers(trailers.clone()),
            None => stream.send_data(Bytes::new(), true),
        };
        sent.map_err(|_| Broken::Stream)
    }

    fn poll_read(&mut self, progress: &mut Progress, admitted: bool, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            None => self.ended = true,
            Some(Err(_)) => return Poll::Ready(Err(Broken::Body)),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => self.take(data, progress, admitted),
                Err(frame) => {
                    self.trailers = frame.into_trailers().ok();
                    self.ended = true;
                }
            },
        }
        Poll::Ready(Ok(()))
    }

    fn take(&mut self, data: Bytes, progress: &mut Progress, admitted: bool) {
        self.passed.inward.fetch_add(data.len() as u64, Ordering::Relaxed);
        if self.whole && admitted && self.kept_bytes + data.len() > REPLAY_BYTES {
            // It will never be sent again from here.
            self.whole = false;
            self.kept.clear();
            progress.next = 0;
        }
        if self.whole {
            self.kept_bytes += data.len();
            self.kept.push_back(data.clone());
            progress.next = self.kept.len();
        }
        progress.pending = data;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::Full;

    #[test]
    fn an_empty_body_is_known_at_once() {
        assert!(Upload::new(Full::new(Bytes::new()), Arc::default()).is_empty());
        assert!(!Upload::new(Full::new(Bytes::from_static(b"x")), Arc::default()).is_empty());
    }
}
