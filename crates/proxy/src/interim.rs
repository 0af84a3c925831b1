//! Interim answers (1xx; RFC 9110 section 15.2) on their way to a client: whoever serves its request leaves them here, and
//! whoever carries its connection takes them before the answer. Both run in one task, so nobody need be woken.
//!
//! It must not know how a connection frames them, nor where they come from.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use http::Response;

/// Interim answers of one request that are passed on; what a Machine says beyond that is dropped, and its answer is not.
pub const MAX_PASSED: usize = 16;

/// Those of one request at a time; a connection uses it again for the next.
#[derive(Debug, Default)]
pub struct Interims {
    /// Whether `kept` holds any: nearly never, and then no request takes the lock.
    any: AtomicBool,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    waiting: Vec<Response<()>>,
    passed: usize,
}

impl Interims {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves one for the client.
    pub fn add(&self, interim: Response<()>) {
        let mut kept = self.lock();
        if kept.passed < MAX_PASSED {
            kept.passed += 1;
            kept.waiting.push(interim);
            self.any.store(true, Ordering::Relaxed);
        }
    }

    /// All that wait, in their order.
    pub fn take(&self) -> Vec<Response<()>> {
        if self.any.swap(false, Ordering::Relaxed) { std::mem::take(&mut self.lock().waiting) } else { Vec::new() }
    }

    /// Another request begins.
    pub fn renew(&self) {
        let mut kept = self.lock();
        kept.waiting.clear();
        kept.passed = 0;
        self.any.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_come_in_order_and_beyond_the_bound_not_at_all() {
        let interims = Interims::default();
        let hint = |n: usize| Response::builder().status(103).header("x-n", n).body(()).unwrap();
        (0..MAX_PASSED + 5).for_each(|n| interims.add(hint(n)));
        let taken: Vec<_> =
            interims.take().iter().map(|one| one.headers()["x-n"].to_str().unwrap().to_owned()).collect();
        assert_eq!(taken, (0..MAX_PASSED).map(|n| n.to_string()).collect::<Vec<_>>());
        interims.add(hint(0));
        assert!(interims.take().is_empty());
        interims.renew();
        interims.add(hint(0));
        assert_eq!(interims.take().len(), 1);
    }
}
