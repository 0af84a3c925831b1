//! Owns the rule elements of a host's table: what is in the kernel, and the
//! exact change to what should be. Must not know links or namespaces.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::Path;

use serde_json::Value;
use tokio::sync::Mutex;

use crate::namespace::io_error;
use crate::nfnetlink::Nfnetlink;
use crate::rules::{self, Element};
use crate::{Error, nft};

/// Elements by the full name of the interface that they are for.
pub(crate) type ByInterface = BTreeMap<String, BTreeSet<Element>>;

/// The elements of one table of one namespace. Only this process changes them, so they are listed
/// once and remembered; when the kernel refuses a change because somebody else
/// meddled, they are listed anew.
pub(crate) struct Elements {
    table: String,
    namespace: File,
    nfnetlink: Nfnetlink,
    known: Mutex<Option<ByInterface>>,
}

/// How a change of elements ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    /// Somebody deleted the table; [`Elements::replace`] it and try again.
    NoTable,
}

impl Elements {
    pub(crate) async fn open(namespace: File, table: String) -> Result<Self, Error> {
        Ok(Self { table, nfnetlink: Nfnetlink::open(&namespace).await?, namespace, known: Mutex::default() })
    }

    /// Makes the elements of `interface` exactly `wanted`.
    pub(crate) async fn set(&self, interface: &str, wanted: &BTreeSet<Element>) -> Result<Outcome, Error> {
        let mut known = self.known.lock().await;
        let mut listed_now = false;
        loop {
            // Taken out for the time of the change: should the caller vanish in the
            // middle of it, nobody knows its outcome, and the next one lists anew.
            let mut all = match known.take() {
                Some(all) => all,
                None => {
                    listed_now = true;
                    match self.read().await? {
                        Some(listed) => listed,
                        None if wanted.is_empty() => return Ok(Outcome::Done),
                        None => return Ok(Outcome::NoTable),
                    }
                }
            };
            let mine = all.get(interface);
            let stale = mine.map_or_else(BTreeSet::new, |m| m.difference(wanted).copied().collect());
            // Those that should be there are added even when known: an addition
            // repeated is no change, and it heals what somebody else deleted.
            let changed = match stale.is_empty() && wanted.is_empty() {
                true => Ok(()),
                false => self.nfnetlink.change(&self.table, interface, &stale, wanted).await,
            };
            match changed {
                Ok(()) => {
                    match wanted.is_empty() {
                        true => all.remove(interface),
                        false => all.insert(interface.to_owned(), wanted.clone()),
                    };
                    *known = Some(all);
                    return Ok(Outcome::Done);
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound && !listed_now => {}
                Err(source) => {
                    let table = Path::new(&self.table);
                    return Err(io_error("change the elements of table", table, source));
                }
            }
        }
    }

    /// What the kernel holds now.
    pub(crate) async fn list(&self) -> Result<ByInterface, Error> {
        let mut known = self.known.lock().await;
        *known = self.read().await?;
        Ok(known.clone().unwrap_or_default())
    }

    /// Applies a script that changes more than elements, and forgets.
    pub(crate) async fn replace(&self, doing: &'static str, script: String) -> Result<(), Error> {
        let mut known = self.known.lock().await;
        *known = None;
        nft::apply(&self.namespace, doing, script).await
    }

    async fn read(&self) -> Result<Option<ByInterface>, Error> {
        let Some(objects) = nft::list_table(&self.namespace, "inet", &self.table).await? else {
            return Ok(None);
        };
        let mut found = ByInterface::new();
        for set in objects.iter().filter_map(|o| o.get("set")) {
            let name = set.get("name").and_then(Value::as_str).unwrap_or_default();
            let elements = set.get("elem").and_then(Value::as_array);
            let elements = elements.into_iter().flatten();
            for (interface, element) in elements.filter_map(|e| read(name, e)) {
                found.entry(interface).or_default().insert(element);
            }
        }
        Ok(Some(found))
    }
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
