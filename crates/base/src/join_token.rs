//! The join token as hosts and edges find it in a file: what may be wrong with the file, and what to do about it. It must
//! not know whether control takes the token.

use std::io;
use std::path::{Path, PathBuf};

/// Says what, why, and what to do next; for the operator.
#[derive(Debug, thiserror::Error)]
pub enum JoinTokenError {
    #[error(
        "the join token {} does not exist, and this server has not joined the fleet yet; copy it there from control's \
         server, where control's first start wrote it (by default to its data_dir/join-token)",
        path.display()
    )]
    Missing { path: PathBuf },
    #[error("cannot read the join token {}; it must be readable by the user that runs this role", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("the join token {} is empty; copy it again from control's server", path.display())]
    Empty { path: PathBuf },
    #[error("{} holds {kind}, not the join token; copy control's join-token there", path.display())]
    Other { path: PathBuf, kind: &'static str },
}

/// The token in the file, without the white space around it.
pub fn read(path: &Path) -> Result<String, JoinTokenError> {
    let text = std::fs::read_to_string(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => JoinTokenError::Missing { path: path.to_owned() },
        _ => JoinTokenError::Unreadable { path: path.to_owned(), source },
    })?;
    let token = text.trim();
    if token.is_empty() {
        return Err(JoinTokenError::Empty { path: path.to_owned() });
    }
    // As `secret::new_key` marks them. An operator may have written a join token of their own: any other text may be one.
    let kinds = [("gwo_", "an operator's token"), ("gwh_", "a host's key"), ("gwe_", "an edge's key")];
    match kinds.iter().find(|(prefix, _)| token.starts_with(prefix)) {
        Some((_, kind)) => Err(JoinTokenError::Other { path: path.to_owned(), kind }),
        None => Ok(token.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_missing_empty_or_of_another_kind_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("join-token");
        let said = |path: &Path| crate::telemetry::chain(&read(path).unwrap_err());
        assert!(said(&path).contains("does not exist") && said(&path).contains("copy it there from control's server"));
        assert!(said(folder.path()).contains("cannot read"), "a folder");
        for (text, part) in [("", "empty"), (" \n", "empty"), ("gwo_1\n", "operator's token"), ("gwh_1", "host's key")]
        {
            std::fs::write(&path, text).unwrap();
            assert!(said(&path).contains(part), "{text:?}");
        }
        std::fs::write(&path, " gwj_12\n").unwrap();
        assert_eq!(read(&path).unwrap(), "gwj_12");
        std::fs::write(&path, "my own words\n").unwrap();
        assert_eq!(read(&path).unwrap(), "my own words");
    }
}
