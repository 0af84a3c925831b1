//! The gate of one Machine: the only counter of what it has in flight. Pure: moments come in as milliseconds.
//!
//! A request, an upgraded connection and a raw one count one each, whatever the service's concurrency is called: a
//! client's connection ends at the edge, so its requests are all that a door can see of it.
//!
//! ```text
//!            close_if_idle (nothing in flight, idle long enough)
//!     open ───────────────────────────────────────────────▶ closed for a stop-if-idle
//!      ▲ ▲            reopen (the agent refused)               │
//!      │ └─────────────────────────────────────────────────────┘
//!      │  close (the agent is about to stop it)
//!      └──────────────────────────────────────────────────▶ closing: what is in flight ends, then Drained
//! ```

use std::collections::BTreeMap;

/// Why nothing is admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// The agent is about to stop the Machine; the token of its `Closing`.
    ByAgent { token: u64 },
    /// This door asked for a stop because nothing was in flight.
    Idle,
}

/// Counts per port of the Machine, and whether any more come in.
#[derive(Debug, Default)]
pub struct Gate {
    in_flight: BTreeMap<u16, u32>,
    total: u32,
    /// Those of `total` that have no end of their own.
    tunnels: u32,
    /// In flight in the process that served before this one: requests and tunnels by port.
    before: BTreeMap<u16, (u32, u32)>,
    /// Start calls under way: whoever waits for a start is not idle.
    starts: u32,
    closed: Option<Closed>,
    /// When something was last in flight, or when the Machine came to run.
    busy_ms: u64,
}

/// What comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One that will end by itself.
    Request,
    /// An upgraded or raw connection: nobody can say when it ends.
    Tunnel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// In, as the n-th in flight on its port. Must be given back with `leave`.
    In { load: u32 },
    /// At the hard limit, or closed.
    Busy { load: u32 },
}

impl Gate {
    pub fn admit(&mut self, port: u16, hard: Option<u32>, kind: Kind) -> Admission {
        let before = self.before(port);
        let count = self.in_flight.entry(port).or_insert(0);
        let load = *count + before;
        if self.closed.is_some() || hard.is_some_and(|hard| load >= hard) {
            return Admission::Busy { load };
        }
        *count += 1;
        self.total += 1;
        self.tunnels += u32::from(kind == Kind::Tunnel);
        Admission::In { load: load + 1 }
    }

    /// One admitted is done.
    pub fn leave(&mut self, port: u16, kind: Kind, now_ms: u64) {
        let count = self.in_flight.get_mut(&port).filter(|count| **count > 0);
        debug_assert!(count.is_some(), "port {port} left more often than it was entered");
        if let Some(count) = count {
            *count -= 1;
            self.total = self.total.saturating_sub(1);
            self.tunnels = self.tunnels.saturating_sub(u32::from(kind == Kind::Tunnel));
        }
        self.busy_ms = now_ms;
    }

    /// A start call begins: no idle stop until it is over.
    pub fn expect(&mut self) {
        self.starts += 1;
    }

    /// A start call is over; those who waited for it are about to come.
    pub fn expected(&mut self, now_ms: u64) {
        debug_assert!(self.starts > 0);
        self.starts = self.starts.saturating_sub(1);
        self.busy_ms = now_ms;
    }

    pub fn load(&self, port: u16) -> u32 {
        self.in_flight.get(&port).copied().unwrap_or(0) + self.before(port)
    }

    fn before(&self, port: u16) -> u32 {
        self.before.get(&port).map_or(0, |(requests, tunnels)| requests + tunnels)
    }

    /// What the process before this one has in flight now.
    pub fn set_before(&mut self, before: BTreeMap<u16, (u32, u32)>, now_ms: u64) {
        if before != self.before {
            self.before = before;
            self.busy_ms = now_ms;
        }
    }

    /// In flight here, by port: requests and tunnels. (Tunnels are not told apart by port: all stand with the first.)
    pub fn counts(&self) -> BTreeMap<u16, (u32, u32)> {
        let mut tunnels = self.tunnels;
        let mut counts = BTreeMap::new();
        for (&port, &count) in self.in_flight.iter().filter(|(_, count)| **count > 0) {
            let here = tunnels.min(count);
            tunnels -= here;
            counts.insert(port, (count - here, here));
        }
        counts
    }

    pub fn total(&self) -> u32 {
        self.total + self.before.values().map(|(requests, tunnels)| requests + tunnels).sum::<u32>()
    }

    /// In flight, without the tunnels.
    pub fn requests(&self) -> u32 {
        self.total - self.tunnels + self.before.values().map(|(requests, _)| requests).sum::<u32>()
    }

    pub fn closed(&self) -> Option<Closed> {
        self.closed
    }

    /// The Machine came to run: it is open, and its idle time begins.
    pub fn ran(&mut self, now_ms: u64) {
        self.busy_ms = now_ms;
        if self.closed == Some(Closed::Idle) {
            self.closed = None;
        }
    }

    /// The agent is about to stop it. True if this closing is a new one.
    pub fn close(&mut self, token: u64) -> bool {
        let closed = Some(Closed::ByAgent { token });
        let new = self.closed != closed;
        self.closed = closed;
        new
    }

    /// The agent's closing is over (the Machine stopped, or stays). An idle stop is not the agent's to open.
    pub fn reopen_by_agent(&mut self) {
        if matches!(self.closed, Some(Closed::ByAgent { .. })) {
            self.closed = None;
        }
    }

    /// Closes, in one step with the look at the count, if nothing was in flight for `idle_ms`.
    pub fn close_if_idle(&mut self, idle_ms: u64, now_ms: u64) -> bool {
        if self.total() > 0 || self.starts > 0 || self.closed.is_some() || now_ms.saturating_sub(self.busy_ms) < idle_ms
        {
            return false;
        }
        self.closed = Some(Closed::Idle);
        true
    }

    /// The agent refused the idle stop.
    pub fn reopen_idle(&mut self) {
        if self.closed == Some(Closed::Idle) {
            self.closed = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_hard_limit_holds_for_each_port() {
        let mut gate = Gate::default();
        assert_eq!(gate.admit(80, Some(1), Kind::Request), Admission::In { load: 1 });
        assert_eq!(gate.admit(80, Some(1), Kind::Request), Admission::Busy { load: 1 });
        assert_eq!(gate.admit(81, Some(1), Kind::Request), Admission::In { load: 1 });
        gate.leave(80, Kind::Request, 5);
        assert_eq!(gate.admit(80, Some(1), Kind::Request), Admission::In { load: 1 });
    }

    #[test]
    fn an_idle_stop_is_undone_by_a_refusal_and_by_a_start_but_not_by_the_agents_own_closing() {
        let mut gate = Gate::default();
        gate.ran(1_000);
        assert!(!gate.close_if_idle(500, 1_400));
        assert!(gate.close_if_idle(500, 1_500));
        assert_eq!(gate.admit(80, None, Kind::Request), Admission::Busy { load: 0 });
        gate.reopen_by_agent();
        assert_eq!(gate.closed(), Some(Closed::Idle));
        gate.reopen_idle();
        assert!(matches!(gate.admit(80, None, Kind::Request), Admission::In { .. }));
        assert!(!gate.close_if_idle(0, 9_999), "something is in flight");
        assert!(gate.close(7) && !gate.close(7) && gate.close(8));
        gate.ran(2_000);
        assert_eq!(gate.closed(), Some(Closed::ByAgent { token: 8 }));
    }

    #[test]
    fn nobody_who_waits_for_a_start_is_taken_for_idle() {
        let mut gate = Gate::default();
        gate.expect();
        assert!(!gate.close_if_idle(0, 100));
        gate.expected(100);
        assert!(!gate.close_if_idle(50, 149));
        assert!(gate.close_if_idle(50, 150));
    }

    #[test]
    fn what_the_process_before_has_in_flight_counts_here_too() {
        let mut old = Gate::default();
        for kind in [Kind::Request, Kind::Tunnel, Kind::Request] {
            old.admit(80, None, kind);
        }
        old.admit(81, None, Kind::Request);
        assert_eq!(old.counts(), BTreeMap::from([(80, (2, 1)), (81, (1, 0))]));
        let mut new = Gate::default();
        new.set_before(old.counts(), 5);
        assert_eq!((new.total(), new.requests(), new.load(80)), (4, 3, 3));
        assert_eq!(new.admit(80, Some(3), Kind::Request), Admission::Busy { load: 3 });
        assert_eq!(new.admit(80, Some(4), Kind::Request), Admission::In { load: 4 });
        new.leave(80, Kind::Request, 6);
        assert!(!new.close_if_idle(0, 99), "the other process has something in flight");
        new.set_before(BTreeMap::new(), 100);
        assert!(!new.close_if_idle(50, 149) && new.close_if_idle(50, 150));
    }

    proptest! {
        #[test]
        fn what_enters_leaves_and_a_closed_gate_lets_nobody_in(steps in proptest::collection::vec(0u8..8, 0..60)) {
            let mut gate = Gate::default();
            let (mut inside, mut tunnels) = (0u32, 0u32);
            for (now, step) in steps.into_iter().enumerate() {
                let now = now as u64;
                match step {
                    0 | 1 => {
                        let closed = gate.closed().is_some();
                        let kind = if step == 0 { Kind::Request } else { Kind::Tunnel };
                        if let Admission::In { load } = gate.admit(80, Some(3), kind) {
                            inside += 1;
                            tunnels += u32::from(step == 1);
                            prop_assert!(!closed && load <= 3);
                        }
                    }
                    2 if inside > tunnels => { gate.leave(80, Kind::Request, now); inside -= 1; }
                    6 if tunnels > 0 => { gate.leave(80, Kind::Tunnel, now); inside -= 1; tunnels -= 1; }
                    3 => prop_assert!(!gate.close_if_idle(1, now) || inside == 0),
                    4 => gate.reopen_idle(),
                    _ => {}
                }
                prop_assert_eq!(gate.total(), inside);
                prop_assert_eq!(gate.load(80), inside);
                prop_assert_eq!(gate.requests(), inside - tunnels);
            }
        }
    }
}
