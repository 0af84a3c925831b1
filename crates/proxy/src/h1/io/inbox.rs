//! What was read and not yet understood.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};

/// A first read: most heads fit. It goes through the stack, so that waiting for it takes no memory.
const FIRST_READ_BYTES: usize = 4 << 10;
/// A read while more is known to come.
const READ_BYTES: usize = 32 << 10;

#[derive(Default)]
pub struct Inbox {
    buf: BytesMut,
    pub ended: bool,
}

impl Inbox {
    pub fn bytes(&self) -> &[u8] {
        &self.buf
    }

    /// Takes what a step is done with.
    pub fn take(&mut self, consumed: usize) -> Bytes {
        let taken = self.buf.split_to(consumed).freeze();
        if self.buf.is_empty() {
            // Whoever has the taken bytes keeps their memory alive, no one else does.
            self.buf = BytesMut::new();
        }
        taken
    }

    pub fn skip(&mut self, consumed: usize) {
        if consumed == self.buf.len() {
            self.buf = BytesMut::new();
        } else if consumed > 0 {
            let _ = self.buf.split_to(consumed);
        }
    }

    pub fn into_bytes(self) -> Bytes {
        self.buf.freeze()
    }

    /// Reads more. `bulk` when a body flows: then bytes go straight to where they stay.
    pub fn poll_fill<IO: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut IO,
        bulk: bool,
    ) -> Poll<io::Result<()>> {
        let read = if self.buf.is_empty() && !bulk {
            let mut space = [MaybeUninit::uninit(); FIRST_READ_BYTES];
            let mut space = ReadBuf::uninit(&mut space);
            ready!(Pin::new(io).poll_read(cx, &mut space))?;
            self.buf.extend_from_slice(space.filled());
            space.filled().len()
        } else {
            self.buf.reserve(READ_BYTES);
            match tokio_util::io::poll_read_buf(Pin::new(io), cx, &mut self.buf) {
                Poll::Ready(read) => read?,
                Poll::Pending => {
                    if self.buf.is_empty() {
                        self.buf = BytesMut::new();
                    }
                    return Poll::Pending;
                }
            }
        };
        self.ended |= read == 0;
        Poll::Ready(Ok(()))
    }
}
