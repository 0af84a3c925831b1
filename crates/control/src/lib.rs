//! Control.
pub mod place;
