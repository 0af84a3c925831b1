//! Files of this computer that become part of a Machine: single ones, whole folders, lists of variables.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use godwit_api::config::File;

use crate::error::{CliError, Result};

/// A configuration is sent whole; folders beyond this belong into an image or a volume.
const FILES_MAX: usize = 256;
const FILES_MAX_BYTES: u64 = 256 << 10;

pub fn file(guest_path: &str, bytes: &[u8], mode: Option<u32>) -> File {
    File { guest_path: guest_path.to_owned(), raw_value: BASE64.encode(bytes), mode }
}

/// The file at `source`, or all files below it if it is a folder, as they stand below `guest_path`.
pub fn local(guest_path: &str, source: &Path) -> Result<Vec<File>> {
    let cannot = |path: &Path, error: std::io::Error| {
        CliError::usage(format!("--file-local: cannot read {}: {error}", path.display()))
    };
    let mut files = Vec::new();
    let mut total_bytes = 0;
    let mut pending: Vec<(String, PathBuf)> = vec![(guest_path.to_owned(), source.to_owned())];
    while let Some((guest_path, path)) = pending.pop() {
        let found = std::fs::metadata(&path).map_err(|error| cannot(&path, error))?;
        if found.is_dir() {
            for entry in std::fs::read_dir(&path).map_err(|error| cannot(&path, error))? {
                let entry = entry.map_err(|error| cannot(&path, error))?;
                let name = entry.file_name().into_string().map_err(|name| {
                    CliError::usage(format!("--file-local: {} is not UTF-8", path.join(name).display()))
                })?;
                pending.push((format!("{}/{name}", guest_path.trim_end_matches('/')), entry.path()));
            }
            continue;
        }
        if !found.is_file() {
            return Err(CliError::usage(format!("--file-local: {} is neither a file nor a folder", path.display())));
        }
        total_bytes += found.len();
        if files.len() == FILES_MAX || total_bytes > FILES_MAX_BYTES {
            let why = format!(
                "--file-local: {} holds more than {FILES_MAX} files or {} KiB",
                source.display(),
                FILES_MAX_BYTES >> 10
            );
            return Err(CliError::usage(why).hint("put them into the image, or copy them to a volume"));
        }
        let bytes = std::fs::read(&path).map_err(|error| cannot(&path, error))?;
        // A script must stay one; who may read it is the Machine's business.
        let is_executable = found.permissions().mode() & 0o111 != 0;
        files.push(file(&guest_path, &bytes, is_executable.then_some(0o755)));
    }
    files.sort_by(|a, b| a.guest_path.cmp(&b.guest_path));
    Ok(files)
}

/// Lines `NAME=VALUE`, as Docker reads them: `#` begins a comment, quotes are part of the value, and `NAME` alone
/// passes on a value of ours, if there is one.
pub fn variables(path: &Path) -> Result<Vec<(String, String)>> {
    let wrong = |why: String| CliError::usage(format!("--env-file {}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
    let mut variables = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = match line.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (line.trim_end(), std::env::var(line.trim_end()).ok()),
        };
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(wrong(format!("line {}: {name:?} is not a valid variable name", number + 1))
                .hint("write NAME=VALUE, without `export` and without blanks in the name"));
        }
        variables.extend(value.map(|value| (name.to_owned(), value)));
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_comes_whole_and_scripts_stay_scripts() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("a/b")).unwrap();
        std::fs::write(folder.path().join("top"), "1").unwrap();
        std::fs::write(folder.path().join("a/b/run.sh"), "#!/bin/sh").unwrap();
        std::fs::set_permissions(folder.path().join("a/b/run.sh"), PermissionsExt::from_mode(0o755)).unwrap();
        let files = local("/etc/app/", folder.path()).unwrap();
        let shown: Vec<_> = files.iter().map(|file| (file.guest_path.as_str(), file.mode)).collect();
        assert_eq!(shown, [("/etc/app/a/b/run.sh", Some(0o755)), ("/etc/app/top", None)]);
        std::fs::write(folder.path().join("large"), vec![0; 300 << 10]).unwrap();
        assert!(local("/x", folder.path()).unwrap_err().to_string().contains("256 KiB"));
        assert!(local("/x", &folder.path().join("none")).is_err());
    }

    #[test]
    fn variables_are_read_as_docker_reads_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vars");
        std::fs::write(&path, "# a comment\nA=1\n\n  B = x\nC=\"q\"=#\nNOBODY_SETS_THIS\n").unwrap();
        assert!(variables(&path).unwrap_err().to_string().contains("line 4"));
        std::fs::write(&path, "# a comment\nA=1\n\nC=\"q\"=#\nNOBODY_SETS_THIS\nD=\n").unwrap();
        let read = variables(&path).unwrap();
        let shown: Vec<_> = read.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(shown, [("A", "1"), ("C", "\"q\"=#"), ("D", "")]);
    }
}
