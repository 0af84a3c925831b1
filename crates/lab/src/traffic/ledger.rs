//! What the app acknowledged, and whether it is there: one record for each append, checked against the app's own list.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::plain;

/// Records asked for at a time.
const PAGE: u64 = 2000;
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);

/// Acknowledged records: number and checksum.
#[derive(Debug, Default)]
pub struct Ledger {
    acknowledged: Mutex<BTreeMap<u64, String>>,
}

/// What became of acknowledged writes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Audit {
    pub acknowledged: u64,
    pub found: u64,
    /// Acknowledged, and missing or different.
    pub lost: u64,
    /// There, and never acknowledged: written by requests that failed, or written twice.
    pub extra: u64,
}

impl Ledger {
    /// Notes an acknowledgement of `content`. Two of one number, or a checksum that is not the content's, are wrong.
    pub fn note(&self, number: u64, sha256: &str, content: &[u8]) -> Result<(), String> {
        let mut hash = Sha256::new();
        hash.update(number.to_be_bytes());
        hash.update(content);
        if hex::encode(hash.finalize()) != sha256 {
            return Err(format!("record {number} was acknowledged with a wrong checksum"));
        }
        let mut acknowledged = self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        match acknowledged.insert(number, sha256.to_owned()) {
            None => Ok(()),
            Some(_) => Err(format!("record {number} was acknowledged twice")),
        }
    }

    pub fn take(&self) -> Self {
        let taken = std::mem::take(&mut *self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner));
        Self { acknowledged: Mutex::new(taken) }
    }

    /// Reads the app's list and compares.
    pub async fn audit(&self, addr: SocketAddr, host: &str) -> Result<Audit> {
        let mut there = BTreeMap::new();
        loop {
            let from = there.last_key_value().map_or(1, |(last, _): (&u64, &String)| last + 1);
            let path = format!("/log?from={from}&count={PAGE}");
            let answer = plain::get(&addr.to_string(), host, &path, PAGE_TIMEOUT).await?;
            ensure!(answer.status == 200, "{path}: {} {}", answer.status, answer.text());
            let page: Page = serde_json::from_slice(&answer.body).context(path)?;
            if page.records.is_empty() {
                break;
            }
            there.extend(page.records);
        }
        Ok(self.compare(&there))
    }

    fn compare(&self, there: &BTreeMap<u64, String>) -> Audit {
        let acknowledged = self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        let found = acknowledged.iter().filter(|(number, sum)| there.get(number) == Some(sum)).count() as u64;
        Audit {
            acknowledged: acknowledged.len() as u64,
            found,
            lost: acknowledged.len() as u64 - found,
            extra: there.keys().filter(|number| !acknowledged.contains_key(number)).count() as u64,
        }
    }
}

#[derive(Deserialize)]
struct Page {
    records: Vec<(u64, String)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(number: u64, content: &str) -> String {
        hex::encode(Sha256::digest([&number.to_be_bytes(), content.as_bytes()].concat()))
    }

    #[test]
    fn a_record_that_is_missing_different_or_too_many_is_counted() {
        let ledger = Ledger::default();
        for (number, content) in [(1, "one"), (2, "two"), (3, "three")] {
            ledger.note(number, &sum(number, content), content.as_bytes()).unwrap();
        }
        assert!(ledger.note(4, &sum(4, "four"), b"for").is_err());
        assert!(ledger.note(3, &sum(3, "three"), b"three").is_err());
        let there = BTreeMap::from([(1, sum(1, "one")), (2, sum(2, "two!")), (9, sum(9, "nine"))]);
        let audit = ledger.compare(&there);
        assert_eq!((audit.acknowledged, audit.found, audit.lost, audit.extra), (3, 1, 2, 1));
    }
}
