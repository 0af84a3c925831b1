//! Owns the program `nft`: running it in a namespace within a bound, and reading
//! what it lists. Must not know what the rules mean (`rules.rs` writes them).

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;

use crate::Error;
use crate::namespace::{self, Entry, io_error};

/// A transaction takes milliseconds; the kernel's ruleset lock can be held for
/// longer by a firewall daemon that reloads.
const NFT_LIMIT: Duration = Duration::from_secs(10);
/// Listing this host's table stays far below it (150 bytes an element).
const OUTPUT_MAX_BYTES: u64 = 64 << 20;
/// `PATH` of a service often lacks the system folders.
const PLACES: [&str; 3] = ["nft", "/usr/sbin/nft", "/sbin/nft"];

/// Applies `script` in one transaction: all of it or nothing.
pub(crate) async fn apply(namespace: &File, doing: &'static str, script: String) -> Result<(), Error> {
    run(namespace, doing, &["-f", "-"], script).await.map(drop)
}

/// The objects of one table, or `None` when there is no such table.
pub(crate) async fn list_table(namespace: &File, family: &str, table: &str) -> Result<Option<Vec<Value>>, Error> {
    const DOING: &str = "list a table";
    // Asking for a table that is missing is an error with a text that differs by
    // version, so look at the names first.
    if !list_tables(namespace).await?.contains(&(family.to_owned(), table.to_owned())) {
        return Ok(None);
    }
    let args = ["-j", "list", "table", family, table];
    objects(DOING, &run(namespace, DOING, &args, String::new()).await?).map(Some)
}

/// Family and name of every table.
pub(crate) async fn list_tables(namespace: &File) -> Result<Vec<(String, String)>, Error> {
    const DOING: &str = "list tables";
    let text = run(namespace, DOING, &["-j", "list", "tables"], String::new()).await?;
    let field = |table: &Value, name| table.get(name).and_then(Value::as_str).map(str::to_owned);
    Ok(objects(DOING, &text)?
        .iter()
        .filter_map(|o| o.get("table"))
        .filter_map(|t| Some((field(t, "family")?, field(t, "name")?)))
        .collect())
}

/// libnftables-json(5): `{"nftables": [object…]}`.
fn objects(doing: &'static str, text: &str) -> Result<Vec<Value>, Error> {
    #[derive(serde::Deserialize)]
    struct Listing {
        nftables: Vec<Value>,
    }
    let listing: Listing = serde_json::from_str(text).map_err(|source| Error::NftOutput { doing, source })?;
    Ok(listing.nftables)
}

async fn run(namespace: &File, doing: &'static str, args: &[&str], script: String) -> Result<String, Error> {
    let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
    let shared: Arc<Mutex<Option<Child>>> = Arc::default();
    let child = Arc::clone(&shared);
    let running = namespace::on_thread(Entry::Into(namespace), move || {
        let mut started = start(&args)?;
        let (stdin, stdout, stderr) = (started.stdin.take(), started.stdout.take(), started.stderr.take());
        // From here on the waiting side can kill it, which ends the reads below.
        *child.lock().unwrap_or_else(PoisonError::into_inner) = Some(started);
        if let Some(mut stdin) = stdin {
            // A program that refuses early closes its end; its message tells more.
            let _ = stdin.write_all(script.as_bytes());
        }
        let (mut out, mut err) = (String::new(), String::new());
        if let Some(stdout) = stdout {
            stdout.take(OUTPUT_MAX_BYTES).read_to_string(&mut out)?;
        }
        if let Some(stderr) = stderr {
            stderr.take(OUTPUT_MAX_BYTES).read_to_string(&mut err)?;
        }
        let taken = child.lock().unwrap_or_else(PoisonError::into_inner).take();
        let success = match taken {
            Some(mut child) => child.wait()?.success(),
            None => false,
        };
        Ok::<_, io::Error>((success, out, err))
    });
    let Ok(finished) = tokio::time::timeout(NFT_LIMIT, running).await else {
        if let Some(mut child) = shared.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // Already ended is as good as killed.
            let _ = child.kill();
            let _ = child.wait();
        }
        let limit_ms = NFT_LIMIT.as_millis() as u64;
        return Err(Error::NftTimeout { doing, limit_ms });
    };
    match finished.and_then(|result| result) {
        Ok((true, out, _)) => Ok(out),
        Ok((false, _, err)) => Err(Error::NftRefused { doing, message: err.trim().to_owned() }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Error::NftMissing),
        Err(source) => Err(io_error("run", Path::new(PLACES[0]), source)),
    }
}

fn start(args: &[String]) -> io::Result<Child> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for place in PLACES {
        let started =
            Command::new(place).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        match started {
            Err(e) if e.kind() == io::ErrorKind::NotFound => last = e,
            other => return other,
        }
    }
    Err(last)
}
