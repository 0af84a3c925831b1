//! What is to be written: heads and framing gathered in one place, large data beside it, both in one call.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite;

use crate::h1::body::{Encoder, Mismatch};

/// Data up to this size are copied beside their framing: one buffer more costs more than the copy.
pub(super) const COPIED_BYTES: usize = 2 << 10;

#[derive(Default)]
pub struct Outbox {
    /// Goes first.
    pub text: Vec<u8>,
    written: usize,
    data: Bytes,
    tail: &'static [u8],
    /// Written, but maybe held back by a layer below (TLS).
    unflushed: bool,
    /// Where in `text` an answer begins of which nothing was written yet.
    answer_at: Option<usize>,
}

impl Outbox {
    pub fn is_empty(&self) -> bool {
        self.written == self.text.len() && self.data.is_empty() && self.tail.is_empty()
    }

    /// What follows is an answer.
    pub fn begin_answer(&mut self) {
        self.answer_at = Some(self.text.len());
    }

    /// Takes the answer back if not a byte of it is out: its client is owed another one.
    pub fn take_back(&mut self) -> bool {
        let Some(at) = self.answer_at.take() else { return false };
        self.text.truncate(at);
        (self.data, self.tail) = (Bytes::new(), &[]);
        true
    }

    /// Whether another piece of a body finds room. One at a time is in memory: the peer's window is the queue.
    pub fn has_room(&self) -> bool {
        self.data.is_empty() && self.tail.is_empty() && self.text.len() - self.written < COPIED_BYTES
    }

    /// Takes a piece of a body; only if there is room.
    pub fn push(&mut self, encoder: &mut Encoder, data: Bytes) -> Result<(), Mismatch> {
        encoder.before(data.len(), &mut self.text)?;
        let tail = encoder.after(data.len());
        if data.len() <= COPIED_BYTES {
            self.text.extend_from_slice(&data);
            self.text.extend_from_slice(tail);
        } else {
            self.data = data;
            self.tail = tail;
        }
        Ok(())
    }

    /// Writes until nothing is left; then the memory goes. Returns whether anything moved beside readiness.
    pub fn poll_flush<IO: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut IO,
        moved: &mut bool,
    ) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            self.unflushed = true;
            let text = &self.text[self.written..];
            let wrote = if self.data.is_empty() && self.tail.is_empty() {
                ready!(Pin::new(&mut *io).poll_write(cx, text))?
            } else {
                let parts = [IoSlice::new(text), IoSlice::new(&self.data), IoSlice::new(self.tail)];
                ready!(Pin::new(&mut *io).poll_write_vectored(cx, &parts))?
            };
            if wrote == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            *moved = true;
            self.advance(wrote);
        }
        self.text = Vec::new();
        self.written = 0;
        if self.unflushed {
            ready!(Pin::new(io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, wrote: usize) {
        let of_text = wrote.min(self.text.len() - self.written);
        self.written += of_text;
        self.answer_at = self.answer_at.filter(|at| self.written <= *at);
        let of_data = (wrote - of_text).min(self.data.len());
        self.data.advance(of_data);
        if self.data.is_empty() {
            self.data = Bytes::new();
        }
        self.tail = self.tail.get(wrote - of_text - of_data..).unwrap_or_default();
    }
}
