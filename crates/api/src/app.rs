//! Apps on the wire: the named group whose Machines serve the same services.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::fleet::RawPort;

/// `POST /apps`. Newer clients send `name`, older ones `app_name`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("anyOf" = [{ "required": ["app_name"] }, { "required": ["name"] }]))]
pub struct CreateApp {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub org_slug: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
}

/// A new app: all that `GET` shows of it, and when it was made.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct CreatedApp {
    #[serde(flatten)]
    pub app: App,
    /// Unix milliseconds.
    pub created_at: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Organization {
    pub name: String,
    pub slug: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct App {
    pub id: String,
    pub name: String,
    /// `pending` without Machines, `deployed` with.
    pub status: String,
    pub organization: Organization,
    pub machine_count: u64,
    pub volume_count: u64,
    pub network: String,
    /// What its owner should know: a raw port that an edge could not open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Godwit's own: the public raw ports of its Machines, and at which edges they are open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub raw_ports: Vec<RawPort>,
    /// Where its HTTP services are reached: the edges' names for it, then its own host names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListedApp {
    pub id: String,
    pub name: String,
    pub machine_count: u64,
    pub volume_count: u64,
    pub network: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct AppList {
    pub total_apps: u64,
    pub apps: Vec<ListedApp>,
}
