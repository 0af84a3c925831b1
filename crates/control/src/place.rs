//! Where a new Machine goes. Pure: a picture of the hosts that is kept up to date change by change, and one decision
//! on it. It must not know the store, the clock or how a host is reached.
//!
//! Among the hosts that can take the Machine it chooses the one with the fewest Machines of the same app, then the
//! one that will be least loaded, then by the tie that the caller drew.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use godwit_api::fact::Resources;
use godwit_api::{AppName, HostId, MachineId};

/// What is to be placed.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    pub app: &'a AppName,
    pub region: Option<&'a str>,
    /// Taken now: processor and memory only if it will be started.
    pub need: Resources,
    /// Taken while it runs: a host that is smaller as a whole is none for it.
    pub running: Resources,
    /// Processors that it will see.
    pub cpus: u32,
    /// The hosts that come into question, if not all: those of its volumes, or where it is asked to move.
    pub only: Option<&'a [HostId]>,
    /// Hosts that have refused it.
    pub refused: &'a [HostId],
    /// Breaks ties, so that equal hosts fill evenly.
    pub tie: u64,
}

/// A host as control's row describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostEntry {
    pub region: String,
    pub cordoned: bool,
}

/// Why no host was found: how many hosts each constraint excluded, every host counted at its first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NoHost {
    pub hosts: u32,
    pub other_region: u32,
    /// None of those that come into question.
    pub elsewhere: u32,
    pub cordoned: u32,
    pub lost: u32,
    /// Nothing has been heard from them yet.
    pub silent: u32,
    pub refused: u32,
    /// Smaller than the Machine even when empty.
    pub too_small: u32,
    /// Too full now.
    pub full: u32,
}

impl NoHost {
    /// The Machine is larger than every host of its region: waiting does not help.
    pub fn never_fits(&self) -> bool {
        self.too_small > 0 && self.too_small == self.hosts - self.other_region - self.elsewhere
    }
    /// There is no host in the region at all.
    pub fn no_region(&self) -> bool {
        self.hosts > 0 && self.other_region == self.hosts
    }

    /// In words, for a `what` that was to be placed.
    pub fn told(&self, what: &str) -> String {
        if self.hosts == 0 {
            return format!("no host can take the {what}: the fleet has no hosts yet");
        }
        let mut text = format!("no host can take the {what}: of {} hosts", self.hosts);
        let too_small = format!("smaller than the {what}");
        let reasons = [
            (self.other_region, "in another region"),
            (self.elsewhere, "not allowed for it"),
            (self.cordoned, "cordoned"),
            (self.lost, "unreachable"),
            (self.silent, "not reported yet"),
            (self.refused, "refused it"),
            (self.too_small, too_small.as_str()),
            (self.full, "full"),
        ];
        let mut comma = "";
        for (count, words) in reasons.into_iter().filter(|(count, _)| *count > 0) {
            text.push_str(&format!("{comma} {count} {words}"));
            comma = ",";
        }
        text
    }
}

impl fmt::Display for NoHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.told("Machine"))
    }
}

/// Amounts as the scan reads them: half the size, and what does not fit counts as the largest that does.
#[derive(Debug, Clone, Copy, Default)]
struct Amounts {
    cpu_millis: u32,
    memory_mb: u32,
    disk_mb: u32,
}

impl From<Resources> for Amounts {
    fn from(of: Resources) -> Self {
        let narrow = |amount: u64| u32::try_from(amount).unwrap_or(u32::MAX);
        Self { cpu_millis: narrow(of.cpu_millis), memory_mb: narrow(of.memory_mb), disk_mb: narrow(of.disk_mb) }
    }
}

/// What is read of every host at every decision: kept small and side by side.
#[derive(Debug, Clone, Copy, Default)]
struct Hot {
    region: u32,
    open: bool,
    free: Amounts,
    capacity: Amounts,
    /// 1 / capacity, so that the scan does not divide.
    per_memory: f32,
    per_cpu: f32,
}

/// What the scan asks of each host.
struct Ask {
    region: Option<u32>,
    need: Amounts,
    running: Amounts,
    cpu_millis_min: u32,
}

impl Ask {
    fn of(request: &Request, region: Option<u32>) -> Self {
        let cpu_millis_min = request.cpus.saturating_mul(1000);
        Self { region, need: request.need.into(), running: request.running.into(), cpu_millis_min }
    }
}

#[derive(Debug, Clone, Default)]
struct Cold {
    id: Option<HostId>,
    cordoned: bool,
    lost: bool,
    capacity: Resources,
    used: Resources,
    applied_revision: u64,
    heard: bool,
    /// Placements that the host's `used` does not hold yet, and their sum.
    pending: BTreeMap<MachineId, (u64, Resources)>,
    pending_sum: Resources,
}

impl Cold {
    fn expect(&mut self, machine: &MachineId, revision: u64, need: Resources) {
        self.forget(machine);
        self.pending.insert(machine.clone(), (revision, need));
        self.pending_sum = plus(self.pending_sum, need);
    }

    fn forget(&mut self, machine: &MachineId) {
        if let Some((_, need)) = self.pending.remove(machine) {
            self.pending_sum = minus(self.pending_sum, need);
        }
    }
}

/// A placement's revision before its transaction is known.
pub const RESERVED: u64 = u64::MAX;

#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    hot: Vec<Hot>,
    cold: Vec<Cold>,
    index: HashMap<HostId, u32>,
    regions: HashMap<String, u32>,
    /// Machines of an app by host, in the order of hosts.
    spread: HashMap<AppName, BTreeMap<u32, u32>>,
    placed: HashMap<(HostId, MachineId), AppName>,
}

impl Snapshot {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a host or changes it.
    pub fn host(&mut self, id: &HostId, entry: &HostEntry) {
        let next = u32::try_from(self.regions.len()).unwrap_or(u32::MAX);
        let region = *self.regions.entry(entry.region.clone()).or_insert(next);
        let at = self.slot(id);
        self.cold[at].id = Some(id.clone());
        self.cold[at].cordoned = entry.cordoned;
        self.hot[at].region = region;
        self.refresh(at);
    }

    /// Forgets a host's row. What it reported stays, for the case that it comes back.
    pub fn host_gone(&mut self, id: &HostId) {
        let at = self.slot(id);
        self.cold[at].id = None;
        self.refresh(at);
    }

    pub fn lost(&mut self, id: &HostId, lost: bool) {
        let at = self.slot(id);
        if self.cold[at].lost != lost {
            self.cold[at].lost = lost;
            self.refresh(at);
        }
    }

    /// What a host reports: placements up to `applied_revision` are within `used`.
    pub fn report(&mut self, id: &HostId, capacity: Resources, used: Resources, applied_revision: u64) {
        let at = self.slot(id);
        let cold = &mut self.cold[at];
        cold.capacity = capacity;
        cold.used = used;
        cold.applied_revision = applied_revision;
        cold.heard = true;
        cold.pending.retain(|_, (revision, _)| *revision > applied_revision);
        cold.pending_sum = cold.pending.values().fold(Resources::default(), |sum, (_, need)| plus(sum, *need));
        self.refresh(at);
    }

    /// A placement was written at `revision` (or is about to be: `RESERVED`).
    pub fn placed(&mut self, host: &HostId, machine: &MachineId, app: &AppName, need: Resources, revision: u64) {
        let at = self.slot(host);
        if self.placed.insert((host.clone(), machine.clone()), app.clone()).is_none() {
            let index = self.index[host];
            *self.spread.entry(app.clone()).or_default().entry(index).or_insert(0) += 1;
        }
        let cold = &mut self.cold[at];
        if revision > cold.applied_revision {
            cold.expect(machine, revision, need);
        } else {
            cold.forget(machine);
        }
        self.refresh(at);
    }

    /// A placement is gone, or is a tombstone.
    pub fn unplaced(&mut self, host: &HostId, machine: &MachineId) {
        let at = self.slot(host);
        if let Some(app) = self.placed.remove(&(host.clone(), machine.clone())) {
            let index = self.index[host];
            if let Some(hosts) = self.spread.get_mut(&app) {
                if let Some(count) = hosts.get_mut(&index) {
                    *count -= 1;
                    if *count == 0 {
                        hosts.remove(&index);
                    }
                }
                if hosts.is_empty() {
                    self.spread.remove(&app);
                }
            }
        }
        self.cold[at].forget(machine);
        self.refresh(at);
    }

    /// Chooses a host, or says what excluded each.
    pub fn place(&self, request: &Request) -> Result<HostId, NoHost> {
        let region = match request.region {
            None => None,
            Some(name) => match self.regions.get(name) {
                Some(region) => Some(*region),
                None => return Err(self.why_not(request, Some(u32::MAX))),
            },
        };
        let ask = Ask::of(request, region);
        let refused: Vec<u32> = request.refused.iter().filter_map(|id| self.index.get(id).copied()).collect();
        let only: Option<Vec<u32>> =
            request.only.map(|hosts| hosts.iter().filter_map(|id| self.index.get(id).copied()).collect());
        let mut of_app = self.spread.get(request.app).into_iter().flatten().peekable();
        let mut best: Option<(u64, u32)> = None;
        for (index, hot) in (0u32..).zip(&self.hot) {
            let here = match of_app.peek() {
                Some((host, count)) if **host == index => {
                    let count = **count;
                    of_app.next();
                    count
                }
                _ => 0,
            };
            if !hot.takes(&ask) || (!refused.is_empty() && refused.contains(&index)) {
                continue;
            }
            if only.as_ref().is_some_and(|only| !only.contains(&index)) {
                continue;
            }
            let rank = rank(here, hot.load_with(&ask.running), chance(index, request.tie));
            if best.is_none_or(|(least, _)| rank < least) {
                best = Some((rank, index));
            }
        }
        let chosen = best.and_then(|(_, index)| self.cold[index as usize].id.clone());
        chosen.ok_or_else(|| self.why_not(request, region))
    }

    /// Does the host still have room for `more` beside all that it holds?
    pub fn has_room(&self, host: &HostId, more: Resources) -> bool {
        self.index.get(host).is_none_or(|index| fits(&more.into(), &self.hot[*index as usize].free))
    }

    /// Is any host large enough for it, were the host empty?
    pub fn fits_anywhere(&self, running: Resources, cpus: u32) -> bool {
        let (running, cpu_millis_min) = (Amounts::from(running), cpus.saturating_mul(1000));
        let known = self.hot.iter().zip(&self.cold).filter(|(_, cold)| cold.id.is_some() && cold.heard);
        let mut known = known.map(|(hot, _)| hot.is_large_enough(&running, cpu_millis_min)).peekable();
        known.peek().is_none() || known.any(|fits| fits)
    }

    fn why_not(&self, request: &Request, region: Option<u32>) -> NoHost {
        let mut why = NoHost::default();
        let ask = Ask::of(request, region);
        for (hot, cold) in self.hot.iter().zip(&self.cold) {
            let Some(id) = &cold.id else { continue };
            why.hosts += 1;
            let reason = if region.is_some_and(|region| region != hot.region) {
                &mut why.other_region
            } else if request.only.is_some_and(|only| !only.contains(id)) {
                &mut why.elsewhere
            } else if cold.cordoned {
                &mut why.cordoned
            } else if cold.lost {
                &mut why.lost
            } else if !cold.heard {
                &mut why.silent
            } else if !hot.is_large_enough(&ask.running, ask.cpu_millis_min) {
                &mut why.too_small
            } else if request.refused.contains(id) {
                &mut why.refused
            } else {
                &mut why.full
            };
            *reason += 1;
        }
        why
    }

    fn slot(&mut self, id: &HostId) -> usize {
        if let Some(index) = self.index.get(id) {
            return *index as usize;
        }
        let at = self.cold.len();
        self.index.insert(id.clone(), u32::try_from(at).unwrap_or(u32::MAX));
        self.cold.push(Cold::default());
        self.hot.push(Hot { region: u32::MAX, ..Hot::default() });
        at
    }

    /// Computes what the scan reads.
    fn refresh(&mut self, at: usize) {
        let (cold, hot) = (&self.cold[at], &mut self.hot[at]);
        hot.open = cold.id.is_some() && !cold.cordoned && !cold.lost && cold.heard;
        hot.capacity = cold.capacity.into();
        hot.free = minus(minus(cold.capacity, cold.used), cold.pending_sum).into();
        hot.per_memory = 1.0 / (cold.capacity.memory_mb.max(1) as f32);
        hot.per_cpu = 1.0 / (cold.capacity.cpu_millis.max(1) as f32);
    }
}

impl Hot {
    fn takes(&self, ask: &Ask) -> bool {
        self.open
            && ask.region.is_none_or(|region| region == self.region)
            && fits(&ask.need, &self.free)
            && self.is_large_enough(&ask.running, ask.cpu_millis_min)
    }

    fn is_large_enough(&self, running: &Amounts, cpu_millis_min: u32) -> bool {
        fits(running, &self.capacity) && cpu_millis_min <= self.capacity.cpu_millis
    }

    /// The fuller of memory and processor once `more` is added, as a share of the whole.
    fn load_with(&self, more: &Amounts) -> f32 {
        let share = |capacity: u32, free: u32, more: u32, per: f32| {
            (capacity.saturating_sub(free)).saturating_add(more) as f32 * per
        };
        let memory = share(self.capacity.memory_mb, self.free.memory_mb, more.memory_mb, self.per_memory);
        let cpu = share(self.capacity.cpu_millis, self.free.cpu_millis, more.cpu_millis, self.per_cpu);
        memory.max(cpu)
    }
}

fn fits(need: &Amounts, free: &Amounts) -> bool {
    (need.memory_mb <= free.memory_mb) & (need.cpu_millis <= free.cpu_millis) & (need.disk_mb <= free.disk_mb)
}

fn plus(a: Resources, b: Resources) -> Resources {
    Resources {
        cpu_millis: a.cpu_millis.saturating_add(b.cpu_millis),
        memory_mb: a.memory_mb.saturating_add(b.memory_mb),
        disk_mb: a.disk_mb.saturating_add(b.disk_mb),
    }
}

fn minus(a: Resources, b: Resources) -> Resources {
    Resources {
        cpu_millis: a.cpu_millis.saturating_sub(b.cpu_millis),
        memory_mb: a.memory_mb.saturating_sub(b.memory_mb),
        disk_mb: a.disk_mb.saturating_sub(b.disk_mb),
    }
}

/// One number to compare: Machines of the app (16 bits), then the load (24 bits), then chance (24 bits).
fn rank(of_app: u32, load: f32, chance: u64) -> u64 {
    // A host is never given more than it has, so the load is at most 1; the cast holds it below 24 bits in any case.
    let load = ((load * (1 << 20) as f32) as u64).min((1 << 24) - 1);
    (u64::from(of_app.min(0xffff)) << 48) | (load << 24) | (chance >> 40)
}

/// An order of hosts that differs with each tie (a Fibonacci hash).
fn chance(index: u32, tie: u64) -> u64 {
    (u64::from(index) ^ tie).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests;
