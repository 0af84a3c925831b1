//! Volumes: the block map, the clone device, hydration, NBD on both sides, front ends and the keeper. It knows
//! nothing of Machines, hosts or the store.
