//! Owns the rule elements of a host's table: what is in the kernel, and the
//! exact change to what should be. Must not know links or namespaces.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;

use serde_json::Value;
use tokio::sync::Mutex;

use crate::rules::{self, Element};
use crate::{Error, nft};

/// Elements by the full name of the interface that they are for.
pub(crate) type ByInterface = BTreeMap<String, BTreeSet<Element>>;

/// The elements of one table. Only this process changes them, so they are listed
/// once and remembered; when the kernel refuses a change because somebody else
/// meddled, they are listed anew.
pub(crate) struct Elements {
    table: String,
    known: Mutex<Option<ByInterface>>,
}

impl Elements {
    pub(crate) fn new(table: String) -> Self {
        Self { table, known: Mutex::default() }
    }

    /// Makes the elements of `interface` exactly `wanted`. `rebuild` writes the
    /// whole table, with the elements of every link, should it be gone.
    pub(crate) async fn set(
        &self,
        namespace: &File,
        interface: &str,
        wanted: &BTreeSet<Element>,
        rebuild: impl AsyncFn() -> Result<String, Error>,
    ) -> Result<(), Error> {
        let mut known = self.known.lock().await;
        let mut fresh = false;
        loop {
            if known.is_none() {
                let listed = list(namespace, &self.table).await?;
                if listed.is_none() && !wanted.is_empty() {
                    nft::apply(namespace, "rebuild the rules", rebuild().await?).await?;
                    *known = list(namespace, &self.table).await?;
                } else {
                    *known = listed;
                }
                fresh = true;
            }
            let mine = known.as_ref().and_then(|k| k.get(interface));
            let stale = mine.map_or_else(BTreeSet::new, |m| m.difference(wanted).copied().collect());
            // Those that should be there are added even when known: an addition
            // repeated is no change, and it heals what somebody else deleted.
            let script = rules::change_elements(&self.table, interface, &stale, wanted);
            if script.is_empty() {
                return Ok(());
            }
            match nft::apply(namespace, "change the rules", script).await {
                Ok(()) => {
                    let all = known.get_or_insert_default();
                    if wanted.is_empty() {
                        all.remove(interface);
                    } else {
                        all.insert(interface.to_owned(), wanted.clone());
                    }
                    return Ok(());
                }
                Err(Error::NftRefused { .. }) if !fresh => *known = None,
                Err(error) => return Err(error),
            }
        }
    }

    /// What the kernel holds now.
    pub(crate) async fn list(&self, namespace: &File) -> Result<ByInterface, Error> {
        let mut known = self.known.lock().await;
        *known = list(namespace, &self.table).await?;
        Ok(known.clone().unwrap_or_default())
    }

    /// Applies a script that changes more than elements, and forgets.
    pub(crate) async fn replace(&self, namespace: &File, doing: &'static str, script: String) -> Result<(), Error> {
        let mut known = self.known.lock().await;
        *known = None;
        nft::apply(namespace, doing, script).await
    }
}

async fn list(namespace: &File, table: &str) -> Result<Option<ByInterface>, Error> {
    let Some(objects) = nft::list_table(namespace, "inet", table).await? else {
        return Ok(None);
    };
    let mut found = ByInterface::new();
    for set in objects.iter().filter_map(|o| o.get("set")) {
        let name = set.get("name").and_then(Value::as_str).unwrap_or_default();
        let elements = set.get("elem").and_then(Value::as_array);
        for (interface, element) in elements.into_iter().flatten().filter_map(|e| read(name, e)) {
            found.entry(interface).or_default().insert(element);
        }
    }
    Ok(Some(found))
}

/// `{"concat": ["gw…", "fdaa::1"]}`, or with `{"prefix": {"addr": …, "len": …}}` second.
fn read(set: &str, element: &Value) -> Option<(String, Element)> {
    // Elements with a counter or timeout are wrapped once more; ours have none.
    let [interface, value] = element.get("concat")?.as_array()?.as_slice() else {
        return None;
    };
    let value = match value.get("prefix") {
        Some(prefix) => format!("{}/{}", prefix.get("addr")?.as_str()?, prefix.get("len")?.as_u64()?),
        None => value.as_str()?.to_owned(),
    };
    Some((interface.as_str()?.to_owned(), rules::element_of(set, &value)?))
}
