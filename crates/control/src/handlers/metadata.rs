//! A Machine's metadata: changed without a new version, so its host need not hear of it.

use std::collections::BTreeMap;

use axum::http::HeaderMap;
use godwit_api::endpoint::Empty;
use godwit_api::endpoints::{MetadataDelete, MetadataShow, MetadataUpdate};
use godwit_api::{ApiError, AppName, MachineId};

use crate::call::Call;
use crate::control::Control;
use crate::handlers::machines::change;
use crate::validate;

pub async fn show(call: Call<MetadataShow>) -> Result<BTreeMap<String, String>, ApiError> {
    let row = call.control.machine_row(&call.app()?, &call.machine()?)?;
    Ok(row.config.metadata.clone())
}

pub async fn update(call: Call<MetadataUpdate>) -> Result<Empty, ApiError> {
    let key = call.param("key").to_owned();
    validate::metadata_key(&key)?;
    set(&call.control, &call.app()?, &call.machine()?, &call.headers, key, Some(call.body.value)).await
}

pub async fn delete(call: Call<MetadataDelete>) -> Result<Empty, ApiError> {
    let key = call.param("key").to_owned();
    set(&call.control, &call.app()?, &call.machine()?, &call.headers, key, None).await
}

async fn set(
    control: &Control,
    app: &AppName,
    machine: &MachineId,
    headers: &HeaderMap,
    key: String,
    value: Option<String>,
) -> Result<Empty, ApiError> {
    change(control, app, machine, headers, |row| {
        let metadata = &mut row.config.metadata;
        match value.clone() {
            Some(value) => drop(metadata.insert(key.clone(), value)),
            None => drop(metadata.remove(&key)),
        }
        validate::config(&row.config)
    })
    .await?;
    Ok(Empty {})
}
