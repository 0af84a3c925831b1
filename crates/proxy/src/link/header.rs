//! The fields between edge and door as names that need neither be parsed nor allocated for each request.

use godwit_api::door::header as of;
use http::HeaderName;

pub const MACHINE: HeaderName = HeaderName::from_static(of::MACHINE);
pub const PORT: HeaderName = HeaderName::from_static(of::PORT);
pub const EPOCH: HeaderName = HeaderName::from_static(of::EPOCH);
pub const REFUSAL: HeaderName = HeaderName::from_static(of::REFUSAL);
pub const HOST: HeaderName = HeaderName::from_static(of::HOST);
pub const DOOR: HeaderName = HeaderName::from_static(of::DOOR);
pub const LOAD: HeaderName = HeaderName::from_static(of::LOAD);
pub const TUNNEL: HeaderName = HeaderName::from_static(of::TUNNEL);
pub const FAILED: HeaderName = HeaderName::from_static(of::FAILED);
pub const HINT: HeaderName = HeaderName::from_static(of::HINT);
pub const TARGET: HeaderName = HeaderName::from_static(of::TARGET);
pub const UPGRADE: HeaderName = HeaderName::from_static(of::UPGRADE);
