//! A connection's task that lets whatever is ready go first. Each of many streams wakes the connection as it hands over a
//! frame; polled at once each time, it would write to the socket for each of them. Polled after them it writes once for all.
//! With nothing else ready it loses one turn of the scheduler, and no time.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll};

/// Whether the last poll left the connection waiting: then the next one comes from a wake, and stands back once.
#[derive(Debug, Default)]
pub struct Batch {
    waiting: bool,
}

impl Batch {
    pub fn poll<T>(&mut self, cx: &mut Context<'_>, inner: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        if std::mem::take(&mut self.waiting) {
            // A task that wakes itself goes to the end of its queue.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let polled = inner(cx);
        self.waiting = polled.is_pending();
        polled
    }
}

/// A whole connection so.
pub async fn batched<F: Future>(connection: F) -> F::Output {
    let mut connection = pin!(connection);
    let mut batch = Batch::default();
    std::future::poll_fn(|cx| batch.poll(cx, |cx| connection.as_mut().poll(cx))).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test]
    async fn many_wakes_are_one_poll_and_none_is_lost() {
        let (asked, handed) = (Cell::new(0), Cell::new(0));
        let connection = batched(std::future::poll_fn(|cx| {
            asked.set(asked.get() + 1);
            if handed.get() == 100 {
                return Poll::Ready(());
            }
            // As a connection does, it leaves its waker with whoever has something to send.
            let waker = cx.waker().clone();
            WAKER.with(|kept| *kept.borrow_mut() = Some(waker));
            Poll::Pending
        }));
        let streams = async {
            for n in 0..100 {
                handed.set(n + 1);
                WAKER.with(|kept| kept.borrow().as_ref().map(std::task::Waker::wake_by_ref));
            }
        };
        let both = async { tokio::join!(connection, streams) };
        tokio::time::timeout(std::time::Duration::from_secs(5), both).await.expect("no wake is lost");
        assert!(asked.get() <= 3, "{}", asked.get());
    }

    thread_local! {
        static WAKER: std::cell::RefCell<Option<std::task::Waker>> = const { std::cell::RefCell::new(None) };
    }
}
