//! Rows as the store takes them, and what its failures mean to who asked. It must not know what a row is about.

use godwit_api::{ApiError, Status};
use godwit_store::{Op, put_json};

pub(crate) fn json<T: serde::Serialize + ?Sized>(key: String, value: &T) -> Result<Op, ApiError> {
    put_json(key, value).map_err(store_error)
}

/// Turns a store's failure into an answer.
pub(crate) fn store_error(error: godwit_store::Error) -> ApiError {
    if let godwit_store::Error::TooLarge { .. } = error {
        return ApiError::new(413, Status::InvalidArgument, error.to_string());
    }
    tracing::error!(error = godwit_base::telemetry::chain(&error), "the fleet store failed");
    match error.is_retryable() {
        true => ApiError::unavailable("the fleet store is not available; try again", 1),
        false => ApiError::internal("the fleet store failed; the log of control has the cause"),
    }
}
