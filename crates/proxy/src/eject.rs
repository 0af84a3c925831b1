//! When others are asked before a Machine because of how its requests went, and how it comes back. Pure: moments come in
//! as milliseconds.
//!
//! ```text
//!   healthy ──breaks or bad answers in a row─────▶ doubted ──its time is over──▶ half open
//!      ▲   ──no connection, or one failed start──▶ ejected ──its time is over──▶    │ one request
//!      │                                                 ▲                          │ or start
//!      │                                                 └───── it failed, longer ──┤
//!      └──────────────────────── it was answered ───────────────────────────────────┘
//! ```
//!
//! What any client can provoke (a request that makes the app hang up, or answer 5xx) never takes a Machine out: it is
//! *doubted*, which means that others come first, and that it serves on while there is no other. Only what no request
//! causes *ejects*: a port that takes no connection, a start that fails. One that is ejected and runs is tried all the
//! same when it is the last (`choose`): docs/decisions/0020.

/// Connections in a row that were not taken.
pub const MAX_REFUSED: u32 = 3;
/// Exchanges in a row that broke off.
pub const MAX_BREAKS: u32 = 3;
/// An app's own 5xx in a row.
pub const MAX_BAD_ANSWERS: u32 = 20;
/// The first ejection or doubt; each further one is twice as long.
pub const FIRST_MS: u64 = 1_000;
pub const LONGEST_MS: u64 = 30_000;
/// Whoever was well for so long begins anew with the shortest time.
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

    /// A request can bring it about: then it says more of the request than of the Machine.
    pub const fn is_provoked(self) -> bool {
        matches!(self, Self::Broke | Self::Answer)
    }
}

/// What a request may expect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Standing {
    #[default]
    Healthy,
    /// Only if there is no other.
    Doubted,
    /// Not before this moment, unless it runs and is the last.
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
    refused: u32,
    breaks: u32,
    bad_answers: u32,
    ejection: Option<Ejection>,
    /// Ejections and doubts so far, and when the last one was over.
    times: u32,
    since_ms: u64,
}

impl Health {
    pub fn standing(&self, now_ms: u64) -> Standing {
        let Some(Ejection { why, until_ms, probe_until_ms }) = self.ejection else { return Standing::Healthy };
        let is_probed = probe_until_ms.is_some_and(|until_ms| now_ms < until_ms);
        match (now_ms < until_ms, is_probed, why.is_provoked()) {
            (true, _, true) | (false, true, true) => Standing::Doubted,
            (true, _, false) => Standing::Ejected { until_ms },
            (false, true, false) => Standing::Probed,
            (false, false, _) => Standing::HalfOpen,
        }
    }

    /// It has nothing to remember.
    pub fn is_clear(&self) -> bool {
        let counts = self.refused + self.breaks + self.bad_answers;
        counts == 0 && self.ejection.is_none() && self.times == 0
    }

    /// A request is about to be sent: false if it must go elsewhere. `last`: there is nowhere else.
    pub fn send(&mut self, last: bool, now_ms: u64) -> bool {
        match self.standing(now_ms) {
            Standing::Healthy | Standing::Doubted => true,
            Standing::Ejected { .. } | Standing::Probed => last,
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
        (self.refused, self.breaks) = (0, 0);
        if well {
            self.bad_answers = 0;
        }
        if self.ejection.is_none() && self.times > 0 && now_ms.saturating_sub(self.since_ms) >= CALM_MS {
            self.times = 0;
        }
        // Whatever it answers, it takes connections and keeps them; only good answers make up for bad ones.
        self.restore(now_ms, |why| well || why != Failure::Answer)
    }

    /// It came up, and its port takes connections.
    pub fn started(&mut self, now_ms: u64) -> bool {
        (self.refused, self.breaks, self.bad_answers) = (0, 0, 0);
        self.restore(now_ms, |_| true)
    }

    fn restore(&mut self, now_ms: u64, makes_up: impl FnOnce(Failure) -> bool) -> bool {
        let back = self.ejection.take_if(|ejection| makes_up(ejection.why)).is_some();
        if back {
            self.since_ms = now_ms;
        }
        back
    }

    /// True if it is ejected or doubted for this, from now on or for longer.
    pub fn failed(&mut self, why: Failure, now_ms: u64) -> bool {
        if let Some(ejection) = self.ejection
            && (!ejection.why.is_provoked() || why.is_provoked())
        {
            // What was sent before, or in spite of it, tells nothing new.
            return now_ms >= ejection.until_ms && self.eject(why, now_ms);
        }
        let (count, most) = match why {
            Failure::Start => return self.eject(why, now_ms),
            Failure::Connect => (&mut self.refused, MAX_REFUSED),
            Failure::Broke => (&mut self.breaks, MAX_BREAKS),
            Failure::Answer => (&mut self.bad_answers, MAX_BAD_ANSWERS),
        };
        *count += 1;
        *count >= most && self.eject(why, now_ms)
    }

    fn eject(&mut self, why: Failure, now_ms: u64) -> bool {
        let length_ms = FIRST_MS.checked_shl(self.times.min(16)).unwrap_or(LONGEST_MS).min(LONGEST_MS);
        self.times = self.times.saturating_add(1);
        (self.refused, self.breaks, self.bad_answers) = (0, 0, 0);
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
    fn refused_connections_in_a_row_eject_and_one_answer_between_them_does_not() {
        let mut health = Health::default();
        for _ in 0..100 {
            for _ in 1..MAX_REFUSED {
                assert!(!health.failed(Failure::Connect, 0));
            }
            health.answered(true, 0);
        }
        assert_eq!(health.standing(0), Standing::Healthy);
        for _ in 1..MAX_REFUSED {
            assert!(!health.failed(Failure::Connect, 5));
        }
        assert!(health.failed(Failure::Connect, 5));
        assert_eq!(health.standing(5), Standing::Ejected { until_ms: 5 + FIRST_MS });
        assert!(!health.send(false, 5) && health.send(true, 5), "the last one is asked all the same");
        assert!(health.answered(true, 6) && health.standing(6) == Standing::Healthy, "and is back by its answer");
    }

    /// One client that knows a path on which the app hangs up is all that it takes.
    #[test]
    fn no_number_of_breaks_or_errors_takes_a_machine_out() {
        for why in [Failure::Broke, Failure::Answer] {
            let mut health = Health::default();
            for ms in 0..100_000 {
                health.failed(why, ms);
                let standing = health.standing(ms);
                assert!(!matches!(standing, Standing::Ejected { .. } | Standing::Probed), "{why:?} {standing:?}");
                assert!(health.send(false, ms) && health.send(false, ms), "{why:?}: more than one at a time");
            }
            assert!(health.answered(true, 100_000), "a good answer speaks for it");
            assert_eq!(health.standing(100_000), Standing::Healthy);
        }
    }

    #[test]
    fn one_request_tries_it_and_the_next_wait_is_longer_if_it_fails() {
        let mut health = ejected(Failure::Connect);
        assert!(!health.send(false, FIRST_MS - 1));
        assert!(health.send(false, FIRST_MS) && !health.send(false, FIRST_MS), "one at a time");
        assert!(health.failed(Failure::Connect, FIRST_MS + 10));
        assert_eq!(health.standing(FIRST_MS + 10), Standing::Ejected { until_ms: FIRST_MS + 10 + 2 * FIRST_MS });
        let again = FIRST_MS + 10 + 2 * FIRST_MS;
        assert!(health.send(false, again));
        assert!(health.answered(true, again) && health.standing(again) == Standing::Healthy);
        // A probe that tells nothing leaves the door open.
        let mut health = ejected(Failure::Start);
        assert!(health.send(false, FIRST_MS));
        health.learned_nothing();
        assert!(health.send(false, FIRST_MS));
        assert!(health.send(false, FIRST_MS + PROBE_MS), "nobody waits for ever");
    }

    #[test]
    fn late_news_of_what_was_sent_before_makes_nothing_longer() {
        for why in [Failure::Connect, Failure::Start, Failure::Broke] {
            let mut health = ejected(why);
            let before = health.standing(1);
            for _ in 0..100 {
                assert!(!health.failed(Failure::Broke, 1));
            }
            assert_eq!(health.standing(1), before);
        }
    }

    #[test]
    fn who_is_doubted_is_still_ejected_if_its_port_closes() {
        let mut health = ejected(Failure::Broke);
        assert_eq!(health.standing(1), Standing::Doubted);
        assert!((1..MAX_REFUSED).all(|_| !health.failed(Failure::Connect, 1)));
        assert!(health.failed(Failure::Connect, 1));
        assert!(matches!(health.standing(1), Standing::Ejected { .. }));
    }

    #[test]
    fn an_apps_own_errors_only_cast_doubt_and_a_good_answer_ends_it() {
        let mut health = Health::default();
        for n in 1..=MAX_BAD_ANSWERS {
            health.answered(false, 0);
            assert_eq!(health.failed(Failure::Answer, 0), n == MAX_BAD_ANSWERS);
        }
        assert_eq!(health.standing(1), Standing::Doubted);
        assert!(!health.answered(false, 1) && health.standing(1) == Standing::Doubted);
        assert!(health.send(false, 1) && health.answered(true, 1));
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
                        prop_assert_eq!(back, before != Standing::Healthy);
                        prop_assert_eq!(health.standing(now_ms), Standing::Healthy);
                    }
                    _ => {
                        let sent = health.send(false, now_ms);
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
                    prop_assert!(later.send(false, until_ms), "it gets its try");
                    prop_assert!(health.clone().send(true, now_ms), "the last one is asked");
                }
                if step < 5 {
                    // It was told something: the next probe is another one.
                    probe_ms = None;
                }
            }
        }
    }
}
