//! One HTTP client a host, kept between calls.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use godwit_api::HostId;
use godwit_api::row::HostRow;
use godwit_base::http::client::Client;

/// One client a host, made anew when the host's URL or key changed.
#[derive(Default)]
pub struct HostClients {
    clients: Mutex<HashMap<HostId, (String, String, Client)>>,
}

impl HostClients {
    pub fn of(&self, row: &HostRow) -> Client {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((url, key, client)) = clients.get(&row.id)
            && *url == row.agent_url
            && *key == row.control_key
        {
            return client.clone();
        }
        let client = Client::tcp(&row.agent_url, Some(row.control_key.clone()));
        clients.insert(row.id.clone(), (row.agent_url.clone(), row.control_key.clone(), client.clone()));
        client
    }
}
