//! A request's body on its way from the connection's task to whoever reads it: one piece at a time, and only after
//! the first was asked for.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::h1::framing::Framing;
use crate::h1::refusal::Refusal;

/// Why a body ended early. The client's fault, each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    #[error("the client's body breaks its framing ({0})")]
    Refused(Refusal),
    #[error("the client's body did not go on in time")]
    Timeout,
    #[error("the client's connection ended within its body")]
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Done,
    Failed(BodyError),
}

#[derive(Debug)]
struct Slot {
    frame: Option<Frame<Bytes>>,
    state: State,
    wanted: bool,
    gone: bool,
    reader: Option<Waker>,
    driver: Option<Waker>,
}

type Shared = Arc<Mutex<Slot>>;

fn lock(shared: &Shared) -> MutexGuard<'_, Slot> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// The body of a client's request. Reading is what makes the connection read; dropping it early is allowed.
#[derive(Debug)]
pub struct RequestBody {
    shared: Option<Shared>,
    left: Option<u64>,
}

/// The connection's end.
#[derive(Debug)]
pub(super) struct Upload {
    shared: Option<Shared>,
}

/// What the reader wants.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Want {
    Nothing,
    More,
    /// It is gone.
    Never,
}

pub(super) fn channel(framing: Framing) -> (Upload, RequestBody) {
    let left = match framing {
        Framing::None => return (Upload { shared: None }, RequestBody { shared: None, left: Some(0) }),
        Framing::Length(length) => Some(length),
        Framing::Chunked | Framing::UntilClose => None,
    };
    let slot = Slot { frame: None, state: State::Open, wanted: false, gone: false, reader: None, driver: None };
    let shared = Arc::new(Mutex::new(slot));
    (Upload { shared: Some(shared.clone()) }, RequestBody { shared: Some(shared), left })
}

impl Upload {
    pub fn poll_want(&self, cx: &mut Context<'_>) -> Want {
        let Some(shared) = &self.shared else { return Want::Nothing };
        let mut slot = lock(shared);
        if slot.gone {
            return Want::Never;
        }
        if slot.wanted && slot.frame.is_none() {
            return Want::More;
        }
        if !slot.driver.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            slot.driver = Some(cx.waker().clone());
        }
        Want::Nothing
    }

    pub fn push(&self, frame: Frame<Bytes>) {
        self.change(|slot| slot.frame = Some(frame));
    }

    pub fn end(&self) {
        self.change(|slot| slot.state = State::Done);
    }

    pub fn fail(&self, error: BodyError) {
        self.change(|slot| {
            if slot.state == State::Open {
                slot.state = State::Failed(error);
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut Slot)) {
        if let Some(shared) = &self.shared {
            let mut slot = lock(shared);
            change(&mut slot);
            let reader = slot.reader.take();
            drop(slot);
            wake(reader);
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.fail(BodyError::Lost);
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(shared) = &self.shared else { return Poll::Ready(None) };
        let mut slot = lock(shared);
        slot.wanted = true;
        let polled = match (slot.frame.take(), slot.state) {
            (Some(frame), _) => Poll::Ready(Some(Ok(frame))),
            (None, State::Done) => Poll::Ready(None),
            (None, State::Failed(error)) => Poll::Ready(Some(Err(error))),
            (None, State::Open) => {
                slot.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        };
        let driver = slot.driver.take();
        drop(slot);
        wake(driver);
        if let (Poll::Ready(Some(Ok(frame))), Some(left)) = (&polled, self.left.as_mut()) {
            *left -= frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.shared {
            None => true,
            Some(shared) => {
                let slot = lock(shared);
                slot.frame.is_none() && slot.state == State::Done
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Some(shared) = &self.shared {
            let mut slot = lock(shared);
            slot.gone = true;
            slot.frame = None;
            let driver = slot.driver.take();
            drop(slot);
            wake(driver);
        }
    }
}
