//! Which Machine gets a request. Pure: loads, states and a number of chance come in, a choice goes out.
//!
//! The platform's rules: a Machine under its soft limit first, then one between soft and hard, never one at its hard
//! limit; the own region before others, and there the nearest by measured round trip; ties by chance. If none is under
//! its soft limit, one stopped Machine is started, and only one at a time: a slow start must not wake its neighbours.

use godwit_api::route::Readiness;

use crate::eject::Standing;

/// A Machine of the app as the edge sees it now. All of it is a hint: the door decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// In the edge's own region.
    pub local: bool,
    /// How far away its host is, in classes (`distance_of`).
    pub distance: u8,
    pub readiness: Readiness,
    pub cordoned: bool,
    /// A start that this edge asked for is on its way.
    pub waking: bool,
    /// It, or the way to it, failed a moment ago.
    pub avoided: bool,
    /// How its requests went.
    pub standing: Standing,
    /// Requests or connections in flight.
    pub load: u32,
    pub soft: u32,
    pub hard: Option<u32>,
    pub autostart: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    Serve(usize),
    /// Serve there, and start the other besides: all that run are above their soft limit.
    ServeAndStart {
        serve: usize,
        start: usize,
    },
    /// Hold the request and start this one, or join the start that is on its way.
    Start(usize),
    /// Serve there though it is left alone: nothing else runs or can be started.
    Last(usize),
    /// Hold the request: something may come to serve it.
    Wait,
    /// None of those that could serve it takes connections, or starts: not before the first of them may be tried again.
    Ejected {
        until_ms: u64,
    },
    /// No Machine will ever serve it as things stand.
    Nothing,
}

impl Candidate {
    fn may_serve(&self) -> bool {
        self.is_in() && self.may_be_last()
    }

    /// It runs, and has room: however its requests went, it may be all that is left.
    fn may_be_last(&self) -> bool {
        !self.cordoned && !self.avoided && self.readiness == Readiness::Running && !self.is_at_hard()
    }

    fn is_in(&self) -> bool {
        !matches!(self.standing, Standing::Ejected { .. } | Standing::Probed)
    }

    fn is_doubted(&self) -> bool {
        self.standing == Standing::Doubted
    }

    fn is_at_hard(&self) -> bool {
        self.hard.is_some_and(|hard| self.load >= hard)
    }

    fn is_under_soft(&self) -> bool {
        self.load < self.soft && !self.is_at_hard()
    }

    fn may_start(&self) -> bool {
        !self.cordoned && !self.avoided && (self.waking || (self.is_in() && self.startable()))
    }

    /// A start call for one that is starting already only waits for its port.
    fn startable(&self) -> bool {
        match self.readiness {
            Readiness::Stopped => self.autostart,
            Readiness::Starting => true,
            Readiness::Running | Readiness::Unavailable => false,
        }
    }

    fn may_come(&self) -> bool {
        self.may_ever_come() && !matches!(self.standing, Standing::Ejected { .. })
    }

    fn may_ever_come(&self) -> bool {
        !self.cordoned && (self.readiness != Readiness::Stopped || self.autostart)
    }

    /// Lower is better.
    fn serve_rank(&self) -> u8 {
        let class = 4 * u8::from(self.is_doubted()) + 2 * u8::from(!self.local) + u8::from(!self.is_under_soft());
        class * (FARTHEST + 1) + self.distance.min(FARTHEST)
    }

    fn start_rank(&self) -> u8 {
        let progress = match (self.waking, self.readiness) {
            (true, _) => 0,
            (false, Readiness::Starting) => 1,
            (false, _) => 2,
        };
        (2 * progress + u8::from(!self.local)) * (FARTHEST + 1) + self.distance.min(FARTHEST)
    }
}

/// The last class of distance.
const FARTHEST: u8 = 15;

/// Round trips up to this one are equally near: so far apart are the hosts of one region, and by so much is a measurement off
/// on a busy one. With a finer grain one of two equal Machines would get all that comes one at a time.
const NEAR_MS: u128 = 16;

/// The class of a round trip: all below `NEAR_MS` are equally near, and from there each class is twice as wide as the one
/// before, so that what a measurement is off by seldom matters. Whom nobody has measured yet counts as near: one request
/// is how it comes to be measured.
pub fn distance_of(round_trip: Option<std::time::Duration>) -> u8 {
    let ms = round_trip.map_or(0, |time| time.as_millis());
    let class = (u128::BITS - (ms / NEAR_MS).leading_zeros()).min(u32::from(FARTHEST));
    u8::try_from(class).unwrap_or(FARTHEST)
}

/// `chance` is any number; equal candidates are told apart by it alone.
pub fn choose(candidates: &[Candidate], chance: u64) -> Choice {
    let serve = best(candidates, chance, Candidate::may_serve, Candidate::serve_rank);
    let start = best(candidates, chance, Candidate::may_start, Candidate::start_rank);
    match (serve, start) {
        (Some(serve), Some(start)) => {
            let crowded = !candidates.iter().any(|one| one.may_serve() && one.is_under_soft() && !one.is_doubted());
            let one_is_coming = candidates[start].waking || candidates[start].readiness == Readiness::Starting;
            if crowded && !one_is_coming { Choice::ServeAndStart { serve, start } } else { Choice::Serve(serve) }
        }
        (Some(serve), None) => Choice::Serve(serve),
        (None, Some(start)) => Choice::Start(start),
        (None, None) => nobody(candidates, chance),
    }
}

/// What is left when none that is well serves or can be started.
fn nobody(candidates: &[Candidate], chance: u64) -> Choice {
    if let Some(last) = best(candidates, chance, Candidate::may_be_last, Candidate::serve_rank) {
        return Choice::Last(last);
    }
    if candidates.iter().any(Candidate::may_come) {
        return Choice::Wait;
    }
    first_try(candidates).map_or(Choice::Nothing, |until_ms| Choice::Ejected { until_ms })
}

/// When the first of those that are left alone may be tried again.
fn first_try(candidates: &[Candidate]) -> Option<u64> {
    let tries = candidates.iter().filter(|one| one.may_ever_come()).filter_map(|one| match one.standing {
        Standing::Ejected { until_ms } => Some(until_ms),
        _ => None,
    });
    tries.min()
}

/// The one of lowest rank among those that pass, by chance among equals; two passes, no allocation.
fn best(
    candidates: &[Candidate],
    chance: u64,
    passes: fn(&Candidate) -> bool,
    rank: fn(&Candidate) -> u8,
) -> Option<usize> {
    let mut lowest = u8::MAX;
    let mut equals: u64 = 0;
    for candidate in candidates.iter().filter(|one| passes(one)) {
        match rank(candidate) {
            rank if rank < lowest => (lowest, equals) = (rank, 1),
            rank if rank == lowest => equals += 1,
            _ => {}
        }
    }
    let nth = usize::try_from(chance.checked_rem(equals)?).ok()?;
    let equal = candidates.iter().enumerate().filter(|(_, one)| passes(one) && rank(one) == lowest);
    equal.map(|(index, _)| index).nth(nth)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn running(load: u32) -> Candidate {
        Candidate {
            local: true,
            distance: 0,
            readiness: Readiness::Running,
            cordoned: false,
            waking: false,
            avoided: false,
            standing: Standing::Healthy,
            load,
            soft: 20,
            hard: Some(25),
            autostart: true,
        }
    }
    fn stopped() -> Candidate {
        Candidate { readiness: Readiness::Stopped, load: 0, ..running(0) }
    }
    fn away(candidate: Candidate) -> Candidate {
        Candidate { local: false, ..candidate }
    }

    #[test]
    fn the_least_crowded_near_machine_serves() {
        assert_eq!(choose(&[running(22), running(3)], 7), Choice::Serve(1));
        assert_eq!(choose(&[away(running(0)), running(19)], 7), Choice::Serve(1));
        assert_eq!(choose(&[away(running(0)), running(25)], 7), Choice::Serve(0));
    }

    #[test]
    fn among_those_under_their_soft_limit_the_nearest_serves() {
        let at = |distance, load| Candidate { distance, ..running(load) };
        for chance in 0..4 {
            assert_eq!(choose(&[at(4, 0), at(1, 19), at(2, 3)], chance), Choice::Serve(1));
            assert_eq!(choose(&[at(4, 0), at(1, 20), at(2, 3)], chance), Choice::Serve(2), "crowded ones come after");
            assert_eq!(choose(&[away(at(0, 0)), at(15, 21)], chance), Choice::Serve(1), "the own region first");
            let stopped = |distance| Candidate { distance, ..stopped() };
            assert_eq!(choose(&[stopped(3), stopped(2)], chance), Choice::Start(1));
        }
        let class = |us| distance_of(Some(std::time::Duration::from_micros(us)));
        let classes = [0, 999, 1_000, 15_999, 16_000, 31_999, 32_000, 63_000, 64_000, 127_999, 128_000].map(class);
        assert_eq!(classes, [0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4]);
        assert_eq!((distance_of(None), class(u64::MAX)), (0, FARTHEST));
    }

    #[test]
    fn one_stopped_machine_is_started_when_all_are_crowded_and_never_a_second() {
        let crowd = [running(20), stopped(), stopped()];
        assert_eq!(choose(&crowd, 0), Choice::ServeAndStart { serve: 0, start: 1 });
        let waking = Candidate { waking: true, ..stopped() };
        assert_eq!(choose(&[running(20), stopped(), waking.clone()], 0), Choice::Serve(0));
        assert_eq!(choose(&[stopped(), waking], 0), Choice::Start(1));
    }

    #[test]
    fn a_full_house_waits_and_an_empty_one_says_so() {
        assert_eq!(choose(&[running(25)], 3), Choice::Wait);
        assert_eq!(choose(&[Candidate { autostart: false, ..stopped() }], 3), Choice::Nothing);
        assert_eq!(choose(&[Candidate { cordoned: true, ..running(0) }], 3), Choice::Nothing);
        assert_eq!(choose(&[], 3), Choice::Nothing);
        assert_eq!(choose(&[Candidate { readiness: Readiness::Unavailable, ..running(0) }], 3), Choice::Wait);
    }

    #[test]
    fn who_errs_is_passed_over_and_the_last_one_that_runs_is_asked_all_the_same() {
        let out = |until_ms| Candidate { standing: Standing::Ejected { until_ms }, ..running(0) };
        assert_eq!(choose(&[out(9), running(24)], 0), Choice::Serve(1));
        assert_eq!(choose(&[out(9), away(out(7)), Candidate { cordoned: true, ..out(1) }], 1), Choice::Last(0));
        assert_eq!(choose(&[out(9), stopped()], 0), Choice::Start(1));
        // It was asked a moment ago.
        let avoided = |until_ms| Candidate { avoided: true, ..out(until_ms) };
        assert_eq!(choose(&[avoided(9), avoided(7)], 0), Choice::Ejected { until_ms: 7 });
        let failed = Candidate { readiness: Readiness::Stopped, ..out(5) };
        assert_eq!(choose(std::slice::from_ref(&failed), 0), Choice::Ejected { until_ms: 5 });
        assert_eq!(choose(&[failed.clone(), stopped()], 0), Choice::Start(1));
        // A start that is on its way is joined.
        assert_eq!(choose(&[Candidate { waking: true, ..failed }], 0), Choice::Start(0));
        let half = Candidate { standing: Standing::HalfOpen, ..running(0) };
        assert_eq!(choose(&[out(9), half], 0), Choice::Serve(1));
        let probed = Candidate { standing: Standing::Probed, ..running(0) };
        assert_eq!(choose(&[out(9), probed.clone()], 1), Choice::Last(1));
        assert_eq!(choose(&[Candidate { readiness: Readiness::Starting, ..probed }], 0), Choice::Wait);
        // An app's own errors: any other comes first, even a far or a crowded one, and a stopped one is started.
        let doubted = Candidate { standing: Standing::Doubted, ..running(0) };
        assert_eq!(choose(&[doubted.clone(), away(running(24))], 0), Choice::Serve(1));
        assert_eq!(choose(&[doubted.clone(), stopped()], 0), Choice::ServeAndStart { serve: 0, start: 1 });
        assert_eq!(choose(&[doubted], 0), Choice::Serve(0));
    }

    fn standing() -> impl Strategy<Value = Standing> {
        prop_oneof![
            4 => Just(Standing::Healthy),
            1 => Just(Standing::Doubted),
            1 => Just(Standing::HalfOpen),
            1 => Just(Standing::Probed),
            1 => (1u64..9).prop_map(|until_ms| Standing::Ejected { until_ms }),
        ]
    }

    fn candidate() -> impl Strategy<Value = Candidate> {
        let readiness = prop_oneof![
            Just(Readiness::Running),
            Just(Readiness::Starting),
            Just(Readiness::Stopped),
            Just(Readiness::Unavailable)
        ];
        let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
        let numbers = (0u32..8, 0u32..6, proptest::option::of(0u32..8), 0u8..18);
        (readiness, flags, standing(), numbers).prop_map(
            |(readiness, (local, cordoned, waking, avoided, autostart), standing, (load, soft, hard, distance))| {
                Candidate {
                    local,
                    distance,
                    readiness,
                    cordoned,
                    waking,
                    avoided,
                    standing,
                    load,
                    soft,
                    hard,
                    autostart,
                }
            },
        )
    }

    proptest! {
        #[test]
        fn whoever_is_chosen_may_serve_or_start(all in proptest::collection::vec(candidate(), 0..8), chance: u64) {
            let choice = choose(&all, chance);
            let (serve, start) = match choice {
                Choice::Serve(serve) => (Some(serve), None),
                Choice::ServeAndStart { serve, start } => (Some(serve), Some(start)),
                Choice::Start(start) => (None, Some(start)),
                Choice::Last(last) => {
                    prop_assert!(all[last].may_be_last() && !all[last].is_in());
                    prop_assert!(!all.iter().any(|one| one.may_serve() || one.may_start()));
                    (None, None)
                }
                Choice::Wait | Choice::Ejected { .. } | Choice::Nothing => (None, None),
            };
            for index in [serve, start].into_iter().flatten() {
                prop_assert!(!all[index].cordoned && !all[index].avoided);
                // Nothing is sent to whom it was decided to leave alone.
                prop_assert!(all[index].is_in() || all[index].waking);
            }
            if let Some(index) = serve {
                let chosen = &all[index];
                prop_assert!(chosen.readiness == Readiness::Running);
                prop_assert!(chosen.hard.is_none_or(|hard| chosen.load < hard));
                // Never a worse one while a better one would do.
                for other in all.iter().filter(|one| one.may_serve()) {
                    prop_assert!(chosen.serve_rank() <= other.serve_rank());
                }
                // A second start never joins one that is on its way.
                if start.is_some() {
                    prop_assert!(!all.iter().any(|one| one.may_start() && one.waking));
                }
            }
            // Nobody is told to come again while anything runs or comes.
            if matches!(choice, Choice::Ejected { .. }) {
                prop_assert!(!all.iter().any(|one| one.may_serve() || one.may_start() || one.may_come()));
            }
            // A request is turned away only if nothing runs, comes or may be started.
            if choice == Choice::Nothing {
                prop_assert!(all.iter().all(|one| one.cordoned
                    || (one.readiness == Readiness::Stopped && !one.autostart)));
            }
        }

        #[test]
        fn equals_share_the_traffic(trips_us in proptest::collection::vec(proptest::option::of(0u64..16_000), 1..6)) {
            // As far from each other as hosts of one region are, and as measurements of them on busy ones.
            let at = |us: &Option<u64>| distance_of(us.map(std::time::Duration::from_micros));
            let all: Vec<Candidate> = trips_us.iter().map(|us| Candidate { distance: at(us), ..running(0) }).collect();
            let count = all.len();
            let chosen: std::collections::BTreeSet<usize> = (0..count as u64)
                .map(|chance| match choose(&all, chance) { Choice::Serve(index) => index, other => panic!("{other:?}") })
                .collect();
            prop_assert_eq!(chosen.len(), count);
        }
    }
}
