//! The log that proves durability: numbered, checksummed records, each synced to disk before it is acknowledged.
//! One line a record: `NUMBER SHA256 BASE64`, the checksum over number and content, so that no record can stand in
//! for another.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
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
        let mut bytes = Vec::new();
        match File::open(&self.path) {
            Ok(mut file) => drop(file.read_to_end(&mut bytes)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let (records, faults) = judge(&bytes);
        let named: Vec<&String> = faults.iter().take(FAULTS_NAMED).collect();
        Ok(json!({ "records": records, "ok": faults.is_empty(), "faults": faults.len(), "first_faults": named }))
    }
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
fn judge(bytes: &[u8]) -> (u64, Vec<String>) {
    let (mut records, mut faults) = (0u64, Vec::new());
    for (index, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let place = index as u64 + 1;
        match parse(line) {
            Some((number, _)) if number == place => records += 1,
            Some((number, _)) => faults.push(format!("line {place} holds record {number}")),
            None if line.last() != Some(&b'\n') => faults.push(format!("line {place} is cut off")),
            None => faults.push(format!("line {place} does not match its checksum")),
        }
    }
    (records, faults)
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
        // A second life goes on counting.
        let journal = Journal::at(path.clone());
        assert_eq!(journal.append(b"four").unwrap().0, 4);
        let good = std::fs::read(&path).unwrap();

        let lines: Vec<&[u8]> = good.split_inclusive(|b| *b == b'\n').collect();
        let without_second = [lines[0], lines[2], lines[3]].concat();
        assert_eq!(judge(&without_second).1[0], "line 2 holds record 3");
        let mut changed = good.clone();
        let at = changed.len() - 2;
        changed[at] ^= 1;
        assert!(judge(&changed).1[0].contains("checksum"));
        assert!(judge(&good[..good.len() - 3]).1[0].contains("cut off"));

        // A torn tail is cut away by the next life, and its number used again.
        std::fs::write(&path, &good[..good.len() - 3]).unwrap();
        let journal = Journal::at(path);
        assert_eq!(journal.append(b"four again").unwrap().0, 4);
        assert_eq!(journal.verify().unwrap()["ok"], true);
    }
}
