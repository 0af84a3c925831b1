//! The two doors of an upgrade while the old one drains: it tells what it has in flight, which counts for limits, idle stops
//! and drains in the new one; the new one tells what is to be cut off.
//!
//! One JSON object a line, both ways. The stream's end is the old door's.

use std::sync::Arc;
use std::time::Duration;

use godwit_api::ids::MachineId;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::Door;
use super::machines::Counts;

/// Between two looks at what is in flight.
const TELL_INTERVAL: Duration = Duration::from_millis(20);
/// One line: every Machine of a host with its ports.
const MAX_LINE_BYTES: u64 = 16 << 20;
/// Cuts that wait to be told.
pub const MAX_CUTS: usize = 1_024;
/// A new door waits so long for the first word, so that no limit is passed in between.
const FIRST_TIMEOUT: Duration = Duration::from_secs(2);

/// The old door's part, until it is dropped.
pub(super) async fn tell(door: Arc<Door>, stream: UnixStream) {
    let (read, mut write) = stream.into_split();
    let tells = async {
        let mut told: Option<Counts> = None;
        loop {
            let counts = door.machines.counts();
            if told.as_ref() != Some(&counts) {
                let mut line = serde_json::to_vec(&counts).unwrap_or_default();
                line.push(b'\n');
                if write.write_all(&line).await.is_err() {
                    return;
                }
                told = Some(counts);
            }
            tokio::time::sleep(TELL_INTERVAL).await;
        }
    };
    let hears = async {
        let mut lines = BufReader::new(read.take(MAX_LINE_BYTES)).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if let Some(entry) = door.machines.get(&line) {
                let cut = entry.cut_off();
                tracing::info!(machine = line, cut, "the new door closes a Machine");
            }
        }
        std::future::pending().await
    };
    tokio::select! {
        () = tells => {}
        () = hears => {}
    }
}

/// The new door's part: returns once the first counts are in; goes on by itself until the old door is gone.
pub(super) async fn hear(door: &Arc<Door>, stream: UnixStream, mut cuts: mpsc::Receiver<MachineId>) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let first = tokio::time::timeout(FIRST_TIMEOUT, next(&mut read)).await;
    let Ok(Some(first)) = first else { return };
    door.machines.set_before(&first);
    let of = door.clone();
    door.group.spawn_cancellable(async move {
        let hears = async {
            while let Some(counts) = next(&mut read).await {
                of.machines.set_before(&counts);
            }
        };
        let tells = async {
            while let Some(machine) = cuts.recv().await {
                // If it is gone, what it had in flight is too.
                let _ = write.write_all(format!("{machine}\n").as_bytes()).await;
            }
            std::future::pending().await
        };
        tokio::select! {
            () = hears => {}
            () = tells => {}
        }
        of.machines.set_before(&Counts::new());
        tracing::info!("the door before this one has ended");
    });
}

async fn next(read: &mut BufReader<tokio::net::unix::OwnedReadHalf>) -> Option<Counts> {
    let mut line = String::new();
    let length = read.take(MAX_LINE_BYTES).read_line(&mut line).await.ok()?;
    if length == 0 { None } else { serde_json::from_str(&line).ok() }
}
