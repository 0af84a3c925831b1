//! Whether a process that ended by itself starts again, and when. It must not know how.

use godwit_api::config::{Restart, RestartPolicy};
use godwit_api::event::ExitEvent;

/// Restarts in a row under `on-failure`, unless the configuration says otherwise.
pub const DEFAULT_MAX_RETRIES: u32 = 10;
/// Wait before the first restart in a row; it doubles up to the bound.
pub const BACKOFF_FIRST_MS: u64 = 500;
pub const BACKOFF_MAX_MS: u64 = 60_000;
/// A process that ran for so long was well: the count starts again.
pub const HEALTHY_AFTER_MS: u64 = 300_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// `retries`: in a row, this one included.
    Restart {
        after_ms: u64,
        retries: u32,
    },
    Stay,
}

/// Did it fail? A signal that nobody of ours sent, a lack of memory and a lost holder are failures too.
pub fn is_failure(exit: &ExitEvent) -> bool {
    exit.exit_code != 0 || exit.signal != 0 || exit.oom_killed
}

/// `retries` in a row so far; `ran_for_ms` is how long the process lived.
pub fn decide(restart: &Restart, exit: &ExitEvent, ran_for_ms: u64, retries: u32) -> Decision {
    if exit.requested_stop {
        return Decision::Stay;
    }
    let retries = if ran_for_ms >= HEALTHY_AFTER_MS { 0 } else { retries };
    let again = match restart.policy {
        RestartPolicy::No => false,
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => is_failure(exit) && retries < restart.max_retries.unwrap_or(DEFAULT_MAX_RETRIES),
    };
    if !again {
        return Decision::Stay;
    }
    let after_ms = BACKOFF_FIRST_MS.saturating_mul(1 << retries.min(16)).min(BACKOFF_MAX_MS);
    Decision::Restart { after_ms, retries: retries.saturating_add(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(code: i32) -> ExitEvent {
        ExitEvent { exit_code: code, ..ExitEvent::default() }
    }

    fn policy(policy: RestartPolicy, max_retries: Option<u32>) -> Restart {
        Restart { policy, max_retries }
    }

    /// How often a process that always ends with `code` after `ran_for_ms` is started, at most `bound` times.
    fn starts(restart: &Restart, code: i32, ran_for_ms: u64, bound: u32) -> u32 {
        let (mut starts, mut retries) = (1, 0);
        while let Decision::Restart { retries: next, .. } = decide(restart, &exit(code), ran_for_ms, retries) {
            if starts == bound {
                break;
            }
            (starts, retries) = (starts + 1, next);
        }
        starts
    }

    #[test]
    fn three_retries_make_four_starts() {
        assert_eq!(starts(&policy(RestartPolicy::OnFailure, Some(3)), 1, 10, 100), 4);
        assert_eq!(starts(&policy(RestartPolicy::OnFailure, None), 1, 10, 100), 11);
    }

    #[test]
    fn each_policy_does_what_its_name_says() {
        assert_eq!(starts(&policy(RestartPolicy::No, None), 1, 10, 100), 1);
        assert_eq!(starts(&policy(RestartPolicy::OnFailure, None), 0, 10, 100), 1);
        assert_eq!(starts(&policy(RestartPolicy::Always, Some(1)), 0, 10, 100), 100);
        assert_eq!(starts(&policy(RestartPolicy::OnFailure, Some(1)), 1, HEALTHY_AFTER_MS, 100), 100);
    }

    #[test]
    fn a_stop_that_was_asked_for_is_no_reason_to_start() {
        let stopped = ExitEvent { requested_stop: true, signal: 15, ..ExitEvent::default() };
        assert_eq!(decide(&policy(RestartPolicy::Always, None), &stopped, 10, 0), Decision::Stay);
    }

    #[test]
    fn waits_double_to_a_bound() {
        let always = policy(RestartPolicy::Always, None);
        let wait = |retries| match decide(&always, &exit(1), 10, retries) {
            Decision::Restart { after_ms, .. } => after_ms,
            Decision::Stay => panic!("always means always"),
        };
        assert_eq!((wait(0), wait(1), wait(2), wait(60)), (500, 1000, 2000, BACKOFF_MAX_MS));
    }
}
