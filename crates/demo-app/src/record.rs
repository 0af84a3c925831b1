//! The log that proves durability: numbered, checksummed records, each synced to disk before it is acknowledged.
//! One line a record: `NUMBER SHA256 BASE64`, the checksum over number and content, so that no record can stand in
//! for another.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::Mutex;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Faults that `verify` names; more are only counted.
const FAULTS_NAMED: usize = 10;

pub struct Journal {
    path: PathBuf,
    /// Opened, and the last number found, at the first append.
    open: Mutex<Option<Open>>,
}

struct Open {
    file: File,
    last: u64,
}

impl Journal {
    pub fn at(path: PathBuf) -> Self {
        Self { path, open: Mutex::new(None) }
    }

    /// Appends, syncs, then answers the record's number and checksum.
    pub fn append(&self, content: &[u8]) -> io::Result<(u64, String)> {
        let mut guard = self.open.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Taken out, and put back only after success: after a failed write the tail is looked at anew.
        let mut open = match guard.take() {
            Some(open) => open,
            None => self.recover()?,
        };
        let number = open.last + 1;
        let checksum = checksum(number, content);
        let line = format!("{number} {checksum} {}\n", BASE64.encode(content));
        open.file.write_all(line.as_bytes())?;
        open.file.sync_data()?;
        open.last = number;
        *guard = Some(open);
        Ok((number, checksum))
    }

    /// Opens the file at its end. A record that a crash cut off was never acknowledged and is cut away.
    fn recover(&self) -> io::Result<Open> {
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(&self.path)?;
        let (mut whole_bytes, mut last) = (0u64, 0u64);
        let mut reader = BufReader::new(&file);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line)? > 0 {
            if line.last() != Some(&b'\n') {
                break;
            }
            whole_bytes += line.len() as u64;
            if let Some((number, _)) = parse(&line) {
                last = last.max(number);
            }
            line.clear();
        }
        file.set_len(whole_bytes)?;
        file.seek(SeekFrom::End(0))?;
        file.sync_all()?;
        if let Some(folder) = self.path.parent() {
            File::open(folder)?.sync_all()?;
        }
        Ok(Open { file, last })
    }

    /// Reads every record again.
    pub fn verify(&self) -> io::Result<Value> {
        // An append that is under way would look like a torn record.
        let _guard = self.open.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (records, faults) = match File::open(&self.path) {
            Ok(file) => judge(BufReader::new(file))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => (0, Faults::default()),
            Err(error) => return Err(error),
        };
        let ok = faults.count == 0;
        Ok(json!({ "records": records, "ok": ok, "faults": faults.count, "first_faults": faults.first }))
    }

    /// Number and checksum of up to `count` records from number `from` on, so that a client can look for those that
    /// it holds an acknowledgement of.
    pub fn list(&self, from: u64, count: u64) -> io::Result<Value> {
        let _guard = self.open.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut listed = Vec::new();
        let mut lines = match File::open(&self.path) {
            Ok(file) => BufReader::new(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(json!({ "records": [] })),
            Err(error) => return Err(error),
        };
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line)? > 0 && (listed.len() as u64) < count {
            if let Some((number, content)) = parse(&line).filter(|(number, _)| *number >= from) {
                listed.push(json!([number, checksum(number, &content)]));
            }
            line.clear();
        }
        Ok(json!({ "records": listed }))
    }
}

/// What is wrong: how much, and the first few in words.
#[derive(Debug, Default)]
struct Faults {
    count: u64,
    first: Vec<String>,
}

fn checksum(number: u64, content: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(number.to_be_bytes());
    hash.update(content);
    hex::encode(hash.finalize())
}

/// Number and content of a line whose checksum is right.
fn parse(line: &[u8]) -> Option<(u64, Vec<u8>)> {
    let text = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let mut parts = text.split(' ');
    let (number, sum, content) = (parts.next()?.parse().ok()?, parts.next()?, parts.next()?);
    let content = BASE64.decode(content).ok()?;
    (parts.next().is_none() && checksum(number, &content) == sum).then_some((number, content))
}

/// How many records are whole and in their place, and what is wrong with the rest.
fn judge(mut lines: impl BufRead) -> io::Result<(u64, Faults)> {
    let (mut records, mut faults) = (0, Faults::default());
    let (mut place, mut line) = (0u64, Vec::new());
    while lines.read_until(b'\n', &mut line)? > 0 {
        place += 1;
        let fault = match parse(&line) {
            Some((number, _)) if number == place => None,
            Some((number, _)) => Some(format!("line {place} holds record {number}")),
            None if line.last() != Some(&b'\n') => Some(format!("line {place} is cut off")),
            None => Some(format!("line {place} does not match its checksum")),
        };
        match fault {
            None => records += 1,
            Some(words) => {
                faults.count += 1;
                if faults.first.len() < FAULTS_NAMED {
                    faults.first.push(words);
                }
            }
        }
        line.clear();
    }
    Ok((records, faults))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_and_a_changed_missing_or_torn_one_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data/log");
        let journal = Journal::at(path.clone());
        for content in ["one", "", "three"] {
            journal.append(content.as_bytes()).unwrap();
        }
        assert_eq!(journal.verify().unwrap()["records"], 3);
        let sums = |numbers: &[(u64, &str)]| -> Vec<Value> {
            numbers.iter().map(|(number, content)| json!([number, checksum(*number, content.as_bytes())])).collect()
        };
        assert_eq!(journal.list(2, 9).unwrap()["records"], json!(sums(&[(2, ""), (3, "three")])));
        assert_eq!(journal.list(1, 1).unwrap()["records"], json!(sums(&[(1, "one")])));
        // A second life goes on counting.
        let journal = Journal::at(path.clone());
        assert_eq!(journal.append(b"four").unwrap().0, 4);
        let good = std::fs::read(&path).unwrap();

        let lines: Vec<&[u8]> = good.split_inclusive(|b| *b == b'\n').collect();
        let first_fault = |bytes: &[u8]| judge(bytes).unwrap().1.first.remove(0);
        let without_second = [lines[0], lines[2], lines[3]].concat();
        assert_eq!(first_fault(&without_second), "line 2 holds record 3");
        let mut changed = good.clone();
        let at = changed.len() - 2;
        changed[at] ^= 1;
        assert!(first_fault(&changed).contains("checksum"));
        assert!(first_fault(&good[..good.len() - 3]).contains("cut off"));

        // A torn tail is cut away by the next life, and its number used again.
        std::fs::write(&path, &good[..good.len() - 3]).unwrap();
        let journal = Journal::at(path);
        assert_eq!(journal.append(b"four again").unwrap().0, 4);
        assert_eq!(journal.verify().unwrap()["ok"], true);
    }
}
