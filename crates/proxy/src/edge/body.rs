//! What goes back to a client, and the place that it holds in the counts until it is gone.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Empty;
use tokio::sync::oneshot;

use super::app::App;
use super::record::Record;
use super::tally::Tally;
use crate::h1::io::{Answer, Failed};
use crate::link::body::StreamBody;
use crate::link::peek::Peeked;
use crate::link::tunnel::Tunnel;

/// A request or connection in flight through this edge; dropping it counts it out.
pub struct InFlight {
    app: Arc<App>,
    tally: Arc<Tally>,
}

impl InFlight {
    pub fn enter(app: &Arc<App>, tally: &Arc<Tally>) -> Self {
        tally.enter();
        app.metrics.in_flight().inc();
        Self { app: app.clone(), tally: tally.clone() }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.tally.leave();
        self.app.metrics.in_flight().dec();
        self.app.gate.free();
    }
}

pub enum AnswerBody {
    Empty,
    Text(Bytes),
    /// The protocol is switched; whoever carries the connection waits for its record.
    Switching(Option<oneshot::Sender<Box<Record>>>),
    /// A Machine's answer.
    Stream {
        body: Peeked<StreamBody>,
        _in_flight: InFlight,
    },
    /// The answer of a Machine that did not want to upgrade.
    Declined {
        body: Box<Declined>,
        _in_flight: InFlight,
    },
}

/// What comes back through a tunnel that was opened for an upgrade.
pub type Declined = Answer<Tunnel, Empty<Bytes>>;

#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    #[error("the door broke off")]
    Door(#[source] h2::Error),
    #[error("the Machine broke off")]
    Machine(#[source] Failed),
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        match self.get_mut() {
            Self::Empty | Self::Switching(_) => Poll::Ready(None),
            Self::Text(text) if text.is_empty() => Poll::Ready(None),
            Self::Text(text) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(text))))),
            Self::Stream { body, .. } => Pin::new(body).poll_frame(cx).map_err(AnswerError::Door),
            Self::Declined { body, .. } => Pin::new(body.as_mut()).poll_frame(cx).map_err(AnswerError::Machine),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty | Self::Switching(_) => true,
            Self::Text(text) => text.is_empty(),
            Self::Stream { body, .. } => body.is_end_stream(),
            Self::Declined { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty | Self::Switching(_) => SizeHint::with_exact(0),
            Self::Text(text) => SizeHint::with_exact(text.len() as u64),
            Self::Stream { body, .. } => body.size_hint(),
            Self::Declined { body, .. } => body.size_hint(),
        }
    }
}
