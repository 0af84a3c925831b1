//! What an agent last said of the ports of one Machine that refused: one question at a time, and an answer serves all who ask
//! in the same moment. It must not know how it is asked.

use std::future::Future;
use std::time::Duration;

use godwit_api::door::Listening;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// An answer serves those who ask so shortly after it.
const FRESH: Duration = Duration::from_millis(300);

/// By port: never more ports than the Machine has services.
#[derive(Default)]
pub struct Answers(Mutex<Vec<(u16, Instant, Listening)>>);

impl Answers {
    /// What was said a moment ago, or what `ask` brings.
    pub async fn of(&self, port: u16, ask: impl Future<Output = Listening>) -> Listening {
        let mut answers = self.0.lock().await;
        if let Some((_, _, known)) = answers.iter().find(|(of, at, _)| *of == port && at.elapsed() < FRESH) {
            return known.clone();
        }
        let listening = ask.await;
        answers.retain(|(of, at, _)| *of != port && at.elapsed() < FRESH);
        answers.push((port, Instant::now(), listening.clone()));
        listening
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn a_thousand_who_ask_together_ask_once() {
        let (answers, asked) = (Answers::default(), AtomicU32::new(0));
        let ask = || async {
            asked.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            Listening { hint: Some("closed".into()), lasting: true }
        };
        let all = futures_util::future::join_all((0..1_000).map(|_| answers.of(80, ask()))).await;
        assert!(all.iter().all(|one| one.lasting));
        // A machine that is busy for longer than an answer is fresh may ask again.
        assert!(asked.load(Ordering::SeqCst) < 20, "{asked:?}");
        let other = answers.of(81, async { Listening::default() }).await;
        assert_eq!(other, Listening::default(), "each port has its own answer");
    }
}
