//! When a Machine is left alone because it errs or does not start, and how it comes back. Pure: moments come in as
//! milliseconds.
//!
//! ```text
//!   healthy ──errors in a row, or one failed start──▶ ejected ──its time is over──▶ half open
//!      ▲                                                 ▲                            │ one request
//!      │                                                 └────── it failed, for longer ┤ or start
//!      └──────────────────────── it was answered ─────────────────────────────────────┘
//! ```
//!
//! What the way to a Machine shows (no connection, a break before the answer) ejects soon. An app's own errors do so only
//! when nothing else came for long, and even then it serves on while there is no other: its answer tells its client more
//! than ours would.

/// Breaks in a row.
pub const MAX_ERRORS: u32 = 3;
/// An app's own 5xx in a row.
pub const MAX_BAD_ANSWERS: u32 = 20;
/// The first ejection; each further one is twice as long.
pub const FIRST_MS: u64 = 1_000;
pub const LONGEST_MS: u64 = 30_000;
/// Whoever was well for so long begins anew with the shortest ejection.
pub const CALM_MS: u64 = 60_000;
/// A probe that nothing was heard of is no reason to wait longer for the next one.
pub const PROBE_MS: u64 = 5_000;

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// Its port took no connection.
    Connect,
    /// It broke off before its answer had begun, or answered what is no HTTP.
    Broke,
    /// It answered, with a 5xx of its own.
    Answer,
    /// It did not come up.
    Start,
}

impl Failure {
    pub const fn word(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Broke => "broke",
            Self::Answer => "answer",
            Self::Start => "start",
        }
    }
}

/// What a request may expect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Standing {
    #[default]
    Healthy,
    /// Only if there is no other.
    Doubted,
    /// Not before this moment.
    Ejected { until_ms: u64 },
    /// One may try.
    HalfOpen,
    /// One is trying.
    Probed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ejection {
    why: Failure,
    until_ms: u64,
    /// A probe is on its way, and believed in until then.
    probe_until_ms: Option<u64>,
}

/// One Machine, as its requests went.
#[derive(Debug, Clone, Default)]
pub struct Health {
    errors: u32,
    bad_answers: u32,
    ejection: Option<Ejection>,
    /// Ejections so far, and when the last one was over.
    times: u32,
    since_ms: u64,
}

impl Health {
    pub fn standing(&self, now_ms: u64) -> Standing {
        match self.ejection {
            None => Standing::Healthy,
            Some(Ejection { why, until_ms, .. }) if now_ms < until_ms => match why {
                Failure::Answer => Standing::Doubted,
                _ => Standing::Ejected { until_ms },
            },
            Some(Ejection { probe_until_ms, .. }) if probe_until_ms.is_some_and(|until_ms| now_ms < until_ms) => {
                Standing::Probed
            }
            Some(_) => Standing::HalfOpen,
        }
    }

    /// It has nothing to remember.
    pub fn is_clear(&self) -> bool {
        self.errors == 0 && self.bad_answers == 0 && self.ejection.is_none() && self.times == 0
    }

    /// A request is about to be sent: false if it must go elsewhere.
    pub fn send(&mut self, now_ms: u64) -> bool {
        match self.standing(now_ms) {
            Standing::Healthy | Standing::Doubted => true,
            Standing::Ejected { .. } | Standing::Probed => false,
            Standing::HalfOpen => {
                if let Some(ejection) = &mut self.ejection {
                    ejection.probe_until_ms = Some(now_ms.saturating_add(PROBE_MS));
                }
                true
            }
        }
    }

    /// What was sent told nothing of the Machine.
    pub fn learned_nothing(&mut self) {
        if let Some(ejection) = &mut self.ejection {
            ejection.probe_until_ms = None;
        }
    }

    /// It answered; `well`: with no error of its own. True if it is back.
    pub fn answered(&mut self, well: bool, now_ms: u64) -> bool {
        self.errors = 0;
        if well {
            self.bad_answers = 0;
        }
        if self.ejection.is_none() && self.times > 0 && now_ms.saturating_sub(self.since_ms) >= CALM_MS {
            self.times = 0;
        }
        let over = |ejection: &mut Ejection| match ejection.why {
            // It was never left alone: any good answer speaks for it.
            Failure::Answer => well,
            // The late answer to what was sent before is no news.
            _ => now_ms >= ejection.until_ms,
        };
        let back = self.ejection.take_if(over).is_some();
        if back {
            self.since_ms = now_ms;
        }
        back
    }

    /// It came up, and its port takes connections.
    pub fn started(&mut self, now_ms: u64) -> bool {
        (self.errors, self.bad_answers) = (0, 0);
        let back = self.ejection.take().is_some();
        if back {
            self.since_ms = now_ms;
        }
        back
    }

    /// True if it is ejected for this.
    pub fn failed(&mut self, why: Failure, now_ms: u64) -> bool {
        if let Some(ejection) = self.ejection {
            // What was sent before it was ejected tells nothing new.
            return now_ms >= ejection.until_ms && self.eject(why, now_ms);
        }
        let (count, most) = match why {
            Failure::Start => return self.eject(why, now_ms),
            Failure::Connect | Failure::Broke => (&mut self.errors, MAX_ERRORS),
            Failure::Answer => (&mut self.bad_answers, MAX_BAD_ANSWERS),
        };
        *count += 1;
        *count >= most && self.eject(why, now_ms)
    }

    fn eject(&mut self, why: Failure, now_ms: u64) -> bool {
        let length_ms = FIRST_MS.checked_shl(self.times.min(16)).unwrap_or(LONGEST_MS).min(LONGEST_MS);
        self.times = self.times.saturating_add(1);
        (self.errors, self.bad_answers) = (0, 0);
        self.ejection = Some(Ejection { why, until_ms: now_ms.saturating_add(length_ms), probe_until_ms: None });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ejected(why: Failure) -> Health {
        let mut health = Health::default();
        while !health.failed(why, 0) {}
        health
    }

    #[test]
    fn a_few_breaks_in_a_row_eject_and_one_answer_between_them_does_not() {
        let mut health = Health::default();
        for _ in 0..100 {
            for _ in 1..MAX_ERRORS {
                assert!(!health.failed(Failure::Broke, 0));
            }
            health.answered(true, 0);
        }
        assert_eq!(health.standing(0), Standing::Healthy);
        for _ in 1..MAX_ERRORS {
            assert!(!health.failed(Failure::Connect, 5));
        }
        assert!(health.failed(Failure::Broke, 5));
        assert_eq!(health.standing(5), Standing::Ejected { until_ms: 5 + FIRST_MS });
    }

    #[test]
    fn one_request_tries_it_and_the_next_wait_is_longer_if_it_fails() {
        let mut health = ejected(Failure::Connect);
        assert!(!health.send(FIRST_MS - 1));
        assert!(health.send(FIRST_MS) && !health.send(FIRST_MS), "one at a time");
        assert!(health.failed(Failure::Broke, FIRST_MS + 10));
        assert_eq!(health.standing(FIRST_MS + 10), Standing::Ejected { until_ms: FIRST_MS + 10 + 2 * FIRST_MS });
        let again = FIRST_MS + 10 + 2 * FIRST_MS;
        assert!(health.send(again));
        assert!(health.answered(true, again) && health.standing(again) == Standing::Healthy);
        // A probe that tells nothing leaves the door open.
        let mut health = ejected(Failure::Start);
        assert!(health.send(FIRST_MS));
        health.learned_nothing();
        assert!(health.send(FIRST_MS));
        assert!(health.send(FIRST_MS + PROBE_MS), "nobody waits for ever");
    }

    #[test]
    fn late_news_of_what_was_sent_before_changes_nothing() {
        let mut health = ejected(Failure::Broke);
        let before = health.standing(1);
        assert!(!health.failed(Failure::Broke, 1) && !health.answered(true, 1));
        assert_eq!(health.standing(1), before);
    }

    #[test]
    fn an_apps_own_errors_only_cast_doubt_and_a_good_answer_ends_it() {
        let mut health = Health::default();
        for n in 1..=MAX_BAD_ANSWERS {
            health.answered(false, 0);
            assert_eq!(health.failed(Failure::Answer, 0), n == MAX_BAD_ANSWERS);
        }
        assert_eq!(health.standing(1), Standing::Doubted);
        assert!(health.send(1) && health.answered(true, 1));
        assert_eq!(health.standing(1), Standing::Healthy);
    }

    #[test]
    fn a_long_calm_forgives() {
        let mut health = ejected(Failure::Start);
        health.started(10);
        assert!(health.failed(Failure::Start, 20));
        assert_eq!(health.standing(20), Standing::Ejected { until_ms: 20 + 2 * FIRST_MS });
        health.started(30);
        health.answered(true, 30 + CALM_MS);
        assert!(health.is_clear());
    }

    proptest! {
        #[test]
        fn ejections_are_bounded_and_end_and_probes_go_one_by_one(steps in proptest::collection::vec((0u8..7, 0u64..3_000), 0..200)) {
            let mut health = Health::default();
            let (mut now_ms, mut probe_ms) = (0, None);
            for (step, after_ms) in steps {
                now_ms += after_ms;
                let before = health.standing(now_ms);
                match step {
                    0 => drop(health.failed(Failure::Connect, now_ms)),
                    1 => drop(health.failed(Failure::Broke, now_ms)),
                    2 => drop(health.failed(Failure::Start, now_ms)),
                    3 => {
                        health.answered(false, now_ms);
                        health.failed(Failure::Answer, now_ms);
                    }
                    4 => {
                        let back = health.answered(true, now_ms);
                        let stays = matches!(before, Standing::Ejected { .. } | Standing::Healthy);
                        prop_assert_eq!(back, !stays);
                    }
                    _ => {
                        let sent = health.send(now_ms);
                        prop_assert_eq!(sent, !matches!(before, Standing::Ejected { .. } | Standing::Probed));
                        if before == Standing::HalfOpen {
                            prop_assert!(probe_ms.is_none_or(|last: u64| now_ms >= last + PROBE_MS), "two probes at once");
                            probe_ms = Some(now_ms);
                        }
                    }
                }
                if let Standing::Ejected { until_ms } = health.standing(now_ms) {
                    prop_assert!(until_ms > now_ms && until_ms <= now_ms + LONGEST_MS);
                    let mut later = health.clone();
                    prop_assert!(later.send(until_ms), "it gets its try");
                }
                if step < 5 {
                    // It was told something: the next probe is another one.
                    probe_ms = probe_ms.filter(|_| health.standing(now_ms) == Standing::Probed);
                }
            }
        }
    }
}
