//! Sending on a stream no faster than its reader takes it.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body;

/// In which a connection has written what it was given, also on a busy machine: h2 tells nobody when it has. Only what broke
/// off waits for it.
const TIME_TO_WRITE: Duration = Duration::from_millis(25);

/// Why a body did not get through whole.
#[derive(Debug)]
pub enum Broken {
    /// The stream or its connection ended: the reader wants no more.
    Stream,
    /// The body itself failed.
    Body,
}

/// Ready with the bytes that may be sent now, at least one.
pub fn poll_capacity(
    stream: &mut SendStream<Bytes>,
    wanted: usize,
    cx: &mut Context<'_>,
) -> Poll<Result<usize, Broken>> {
    stream.reserve_capacity(wanted);
    loop {
        let capacity = stream.capacity();
        if capacity > 0 {
            return Poll::Ready(Ok(capacity.min(wanted)));
        }
        match stream.poll_capacity(cx) {
            Poll::Ready(Some(Ok(_))) => {}
            Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(Err(Broken::Stream)),
            Poll::Pending => return Poll::Pending,
        }
    }
}

/// Sends all of `data`, waiting for the window as often as needed.
pub async fn send_data(stream: &mut SendStream<Bytes>, mut data: Bytes, end: bool) -> Result<(), Broken> {
    if data.is_empty() && end {
        return stream.send_data(data, true).map_err(|_| Broken::Stream);
    }
    while !data.is_empty() {
        let capacity = poll_fn(|cx| poll_capacity(stream, data.len(), cx)).await?;
        let chunk = data.split_to(capacity);
        stream.send_data(chunk, end && data.is_empty()).map_err(|_| Broken::Stream)?;
    }
    Ok(())
}

/// Sends a whole body with its trailers and ends the stream; resets it if the body fails, so that the reader never
/// takes a part for the whole.
pub async fn send_body<B>(stream: &mut SendStream<Bytes>, body: B) -> Result<(), Broken>
where
    B: Body<Data = Bytes> + Unpin,
{
    let sent = send_frames(stream, body).await;
    if let Err(Broken::Body) = sent {
        stream.send_reset(Reason::INTERNAL_ERROR);
    }
    sent
}

/// The same for a reader that shall see how far it came: a reset takes back what is not written yet, the head too. The
/// connection's task gets its turn first.
pub async fn send_body_visibly<B>(stream: &mut SendStream<Bytes>, body: B) -> Result<(), Broken>
where
    B: Body<Data = Bytes> + Unpin,
{
    let sent = send_frames(stream, body).await;
    if let Err(Broken::Body) = sent {
        tokio::time::sleep(TIME_TO_WRITE).await;
        stream.send_reset(Reason::INTERNAL_ERROR);
    }
    sent
}

async fn send_frames<B>(stream: &mut SendStream<Bytes>, mut body: B) -> Result<(), Broken>
where
    B: Body<Data = Bytes> + Unpin,
{
    loop {
        if body.is_end_stream() {
            return send_data(stream, Bytes::new(), true).await;
        }
        match next_frame(stream, &mut body).await? {
            None => return send_data(stream, Bytes::new(), true).await,
            Some(Err(_)) => return Err(Broken::Body),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    let end = body.is_end_stream();
                    send_data(stream, data, end).await?;
                    if end {
                        return Ok(());
                    }
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        return stream.send_trailers(trailers).map_err(|_| Broken::Stream);
                    }
                }
            },
        }
    }
}

/// The next frame of `body`, unless the reader of `stream` gives up first.
async fn next_frame<B>(
    stream: &mut SendStream<Bytes>,
    body: &mut B,
) -> Result<Option<Result<http_body::Frame<Bytes>, B::Error>>, Broken>
where
    B: Body<Data = Bytes> + Unpin,
{
    poll_fn(|cx| {
        if let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) {
            return Poll::Ready(Ok(frame));
        }
        match stream.poll_reset(cx) {
            Poll::Ready(_) => Poll::Ready(Err(Broken::Stream)),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
