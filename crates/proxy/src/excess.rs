//! Which running Machines an app can do without. Pure; the door has the last word, for it alone knows who is idle.
//!
//! The platform keeps, of n running Machines, those over their soft limit and one more; a Machine without any load
//! goes too when it is the last. Here the pass stops half of the excess at once (at least one), so that a thousand
//! idle Machines are gone after ten passes, and a short lull does not empty an app.

/// A running Machine that may be stopped when idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running {
    pub load: u32,
    pub soft: u32,
}

/// Indices of those to ask for a stop-if-idle in this pass. `min_running` counts Machines of this app and region.
pub fn excess(machines: &[Running], min_running: usize) -> Vec<usize> {
    let load: u64 = machines.iter().map(|one| u64::from(one.load)).sum();
    let over_soft = machines.iter().filter(|one| one.load >= one.soft).count();
    let room_each = machines.iter().map(|one| u64::from(one.soft.max(1))).min().unwrap_or(1);
    let by_load = usize::try_from(load.div_ceil(room_each)).unwrap_or(usize::MAX);
    let needed = if load == 0 { 0 } else { by_load.max(over_soft + 1) }.max(min_running);
    let spare = machines.len().saturating_sub(needed);
    let idle = machines.iter().enumerate().filter(|(_, one)| one.load == 0).map(|(index, _)| index);
    idle.take(spare.div_ceil(2)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn loads(loads: &[u32]) -> Vec<Running> {
        loads.iter().map(|load| Running { load: *load, soft: 20 }).collect()
    }

    #[test]
    fn an_idle_app_goes_to_sleep_and_a_busy_one_keeps_what_it_needs() {
        assert_eq!(excess(&loads(&[0]), 0), [0]);
        assert_eq!(excess(&loads(&[0]), 1), [0; 0]);
        assert_eq!(excess(&loads(&[0, 0, 0, 0]), 0), [0, 1]);
        assert_eq!(excess(&loads(&[3, 0]), 0), [1]);
        assert_eq!(excess(&loads(&[20, 0]), 0), [0; 0]);
        assert_eq!(excess(&loads(&[20, 0, 0]), 0), [1]);
        assert_eq!(excess(&[], 3), [0; 0]);
    }

    proptest! {
        #[test]
        fn only_idle_ones_go_and_the_minimum_stays(all in proptest::collection::vec(0u32..40, 0..30), min in 0usize..10) {
            let all = loads(&all);
            let stopped = excess(&all, min);
            prop_assert!(stopped.iter().all(|index| all[*index].load == 0));
            prop_assert!(all.len() - stopped.len() >= min.min(all.len()));
            // What stays carries the load under its soft limits.
            let load: u32 = all.iter().map(|one| one.load).sum();
            let before = all.len() as u32 * 20;
            prop_assert!(load > before || load <= (all.len() - stopped.len()) as u32 * 20);
        }
    }
}
