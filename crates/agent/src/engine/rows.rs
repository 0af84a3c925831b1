//! Rows of the journal as text.

use serde::Serialize;

/// Our own rows always become JSON: no map of theirs has keys that are not text.
pub(super) fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
