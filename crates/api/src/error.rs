//! The one error body of every HTTP answer: `{"error": …, "status": …}`. It tells whose fault it is by its code
//! and whether to try again by `retry_after_s`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Machine-readable reason, as clients of the Machines API know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Unknown,
    InsufficientCapacity,
    NameTaken,
    NotFound,
    InvalidArgument,
    /// A known field of the API that this version does not build; the message names it.
    NotImplemented,
    Conflict,
    LeaseHeld,
    Unauthenticated,
    Forbidden,
    Timeout,
    Unavailable,
}

/// An error as it is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{error}")]
pub struct ApiError {
    /// What is wrong, why, and what to do next.
    pub error: String,
    pub status: Status,
    /// The HTTP code; not part of the body.
    #[serde(skip, default = "internal")]
    pub code: u16,
    /// When to try again, sent as `Retry-After`; not part of the body.
    #[serde(skip)]
    pub retry_after_s: Option<u32>,
}

fn internal() -> u16 {
    500
}

impl ApiError {
    pub fn new(code: u16, status: Status, error: impl Into<String>) -> Self {
        Self { error: error.into(), status, code, retry_after_s: None }
    }
    pub fn bad_request(error: impl Into<String>) -> Self {
        Self::new(400, Status::InvalidArgument, error)
    }
    pub fn unauthenticated(error: impl Into<String>) -> Self {
        Self::new(401, Status::Unauthenticated, error)
    }
    pub fn forbidden(error: impl Into<String>) -> Self {
        Self::new(403, Status::Forbidden, error)
    }
    pub fn not_found(error: impl Into<String>) -> Self {
        Self::new(404, Status::NotFound, error)
    }
    pub fn conflict(error: impl Into<String>) -> Self {
        Self::new(409, Status::Conflict, error)
    }
    /// The request is well formed and cannot be done as it stands.
    pub fn unprocessable(error: impl Into<String>) -> Self {
        Self::new(422, Status::InvalidArgument, error)
    }
    /// A known field that is not built yet, set to anything but its default.
    pub fn not_built(field: &str) -> Self {
        Self::new(
            422,
            Status::NotImplemented,
            format!("`{field}` is not supported by this version of Godwit; leave it out or set it to its default"),
        )
    }
    pub fn unavailable(error: impl Into<String>, retry_after_s: u32) -> Self {
        Self { retry_after_s: Some(retry_after_s), ..Self::new(503, Status::Unavailable, error) }
    }
    pub fn internal(error: impl Into<String>) -> Self {
        Self::new(500, Status::Unknown, error)
    }
    /// May the same request be sent again without a change?
    pub fn is_retryable(&self) -> bool {
        matches!(self.code, 502..=504) || self.retry_after_s.is_some()
    }
    pub fn is_callers_fault(&self) -> bool {
        (400..500).contains(&self.code)
    }
}
