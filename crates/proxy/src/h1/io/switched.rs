//! A connection whose protocol changed: its socket, and what was read of the new protocol already.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

/// Resolves once the 101 is written; to nothing if it never is.
#[derive(Debug)]
pub struct OnSwitch<IO>(oneshot::Receiver<Switched<IO>>);

pub(super) fn pair<IO>() -> (oneshot::Sender<Switched<IO>>, OnSwitch<IO>) {
    let (sender, receiver) = oneshot::channel();
    (sender, OnSwitch(receiver))
}

impl<IO> Future for OnSwitch<IO> {
    type Output = Option<Switched<IO>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(Result::ok)
    }
}

#[derive(Debug)]
pub struct Switched<IO> {
    read: Bytes,
    io: IO,
}

impl<IO> Switched<IO> {
    pub(super) fn new(io: IO, read: Bytes) -> Self {
        Self { read, io }
    }

    /// The socket, and the bytes that come before what it will say.
    pub fn into_parts(self) -> (IO, Bytes) {
        (self.io, self.read)
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Switched<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, out);
        }
        let take = self.read.len().min(out.remaining());
        out.put_slice(&self.read[..take]);
        self.read.advance(take);
        if self.read.is_empty() {
            self.read = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Switched<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
