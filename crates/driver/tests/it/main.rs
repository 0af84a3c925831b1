//! The fake driver keeps a driver's promises. The container driver's tests stand beside the shim that it starts.

mod fake;
