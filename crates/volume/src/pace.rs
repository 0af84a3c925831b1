//! How fast the background copier may go, purely: a token bucket whose rate is steered by what guests feel. It owns
//! the rate; it must not know what time it is (callers say) nor what is copied.
//!
//! Within each window, one guest that waited longer than the target halves the rate, down to a floor, so that a move
//! ends; a window without one raises it by a quarter, up to the cap. Demand fetches pay no tokens but are counted
//! against the bucket, so the copier yields the link to them.

/// What the operator allows.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// The copier never goes slower than this for a guest's sake.
    pub floor_bytes_per_s: u64,
    /// Nor faster than this; 0: it stands still (but learns the holes), and guests fetch what they need.
    pub cap_bytes_per_s: u64,
    /// A guest that waits longer for a missing block slows the copier down.
    pub guest_target_us: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { floor_bytes_per_s: 32 << 20, cap_bytes_per_s: 8 << 30, guest_target_us: 5_000 }
    }
}

const WINDOW_US: u64 = 50_000;
/// The bucket holds this much time of the rate, and at least one fetch.
const BURST_US: u64 = 20_000;
const MIN_BURST_BYTES: f64 = (2 << 20) as f64;

#[derive(Debug)]
pub struct Pace {
    limits: Limits,
    rate: f64,
    tokens: f64,
    refilled_us: u64,
    window_us: u64,
    worst_us: u64,
}

impl Pace {
    pub fn new(limits: Limits, now_us: u64) -> Self {
        let rate = limits.cap_bytes_per_s as f64;
        Self { limits, rate, tokens: MIN_BURST_BYTES, refilled_us: now_us, window_us: now_us, worst_us: 0 }
    }
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
        self.rate = self.rate.clamp(self.floor(), limits.cap_bytes_per_s as f64);
    }
    pub fn rate_bytes_per_s(&self) -> u64 {
        self.rate as u64
    }
    /// A guest waited this long for a block.
    pub fn guest_waited(&mut self, us: u64) {
        self.worst_us = self.worst_us.max(us);
    }
    /// A demand fetch used the link.
    pub fn spent(&mut self, bytes: u64) {
        self.tokens = (self.tokens - bytes as f64).max(-self.burst());
    }
    /// Whether the copier may start a fetch now; otherwise how long to wait, in microseconds.
    pub fn ready(&mut self, now_us: u64) -> Result<(), u64> {
        if self.limits.cap_bytes_per_s == 0 {
            return Err(WINDOW_US);
        }
        self.steer(now_us);
        let passed = now_us.saturating_sub(self.refilled_us);
        self.refilled_us = now_us;
        self.tokens = (self.tokens + self.rate * passed as f64 / 1e6).min(self.burst());
        if self.tokens >= 0.0 { Ok(()) } else { Err(((-self.tokens / self.rate * 1e6) as u64).clamp(100, WINDOW_US)) }
    }

    fn steer(&mut self, now_us: u64) {
        if now_us.saturating_sub(self.window_us) < WINDOW_US {
            return;
        }
        self.window_us = now_us;
        let factor = if self.worst_us > self.limits.guest_target_us { 0.5 } else { 1.25 };
        self.rate = (self.rate * factor).clamp(self.floor(), self.limits.cap_bytes_per_s as f64);
        self.worst_us = 0;
    }
    fn floor(&self) -> f64 {
        // A cap below the floor wins: it is the operator's word about the link.
        self.limits.floor_bytes_per_s.min(self.limits.cap_bytes_per_s).max(1) as f64
    }
    fn burst(&self) -> f64 {
        (self.rate * BURST_US as f64 / 1e6).max(MIN_BURST_BYTES)
    }
}
