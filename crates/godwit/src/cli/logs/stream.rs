//! The log of one Machine as a stream of lines. A stream that is followed goes on after a break (control or the host's agent
//! was restarted) where it was, without a line twice; how long it tries is bounded. It prints no line.

use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use godwit_api::endpoint::Empty;
use godwit_api::endpoints::{MACHINE_LOGS, MachinesShow};
use godwit_api::host::LogQuery;
use godwit_api::log::{Line, Reader};
use godwit_api::machine::MachineState;
use godwit_api::{AppName, MachineId};
use godwit_base::http::client::{Client, HEAD_TIMEOUT, empty, query_string};
use http_body_util::BodyExt;
use memchr::memchr;
use tokio::sync::mpsc;

use super::resume::{Known, Seen};
use crate::cli::output::Output;
use crate::error::{CliError, Result};
use crate::exit::Exit;

/// A batch is what came at once, and no more than so many bytes and a line.
const BATCH_BYTES: usize = 64 << 10;
/// A line longer than this is no log line of ours.
const LINE_LIMIT_BYTES: usize = 1 << 20;
/// How long without a byte, once connected, before a log that is not followed counts as broken.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// A followed log that broke is asked for again for so long.
const RESUME_TIMEOUT: Duration = Duration::from_secs(120);
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A stream that held for so long is not the same fault going on.
const HELD: Duration = Duration::from_secs(10);

pub struct Stream {
    pub client: Client,
    pub output: Output,
    pub app: AppName,
    pub machine: MachineId,
    pub follow: bool,
    /// Lines from the end.
    pub tail: u64,
}

/// How a stream that was followed ended.
enum End {
    /// Nobody takes the lines any more.
    Unwanted,
    Broken(CliError),
}

impl Stream {
    /// Hands lines on until the log ends or, if it is followed, until it cannot be had any more.
    pub async fn read(&self, sender: &mpsc::Sender<Result<Vec<Line>>>) -> Result<()> {
        let mut seen = Seen::default();
        if !self.follow {
            let path = self.path(None);
            return match self.once(&path, &mut seen, sender, &mut || {}).await? {
                End::Unwanted => Ok(()),
                End::Broken(error) => Err(error),
            };
        }
        let (mut pause, mut broke) = (PAUSE_MIN, None::<Instant>);
        loop {
            let (begun, path) = (Instant::now(), self.path(seen.since()));
            let mut is_open = false;
            let mut opened = || {
                is_open = true;
                if broke.is_some() {
                    self.output.say(format!("The log of Machine {} continues.", self.machine));
                }
            };
            let error = match self.once(&path, &mut seen, sender, &mut opened).await {
                Ok(End::Unwanted) => return Ok(()),
                Ok(End::Broken(error)) => error,
                // At first, and where trying again cannot help, an error is one.
                Err(error) if broke.is_none() || error.exit != Exit::Unreachable => return Err(error),
                Err(error) => error,
            };
            if is_open && begun.elapsed() >= HELD {
                (pause, broke) = (PAUSE_MIN, None);
            }
            if self.is_over().await {
                return Ok(());
            }
            match broke {
                None => {
                    self.output.warn(format!("{error}; reconnecting"));
                    broke = Some(Instant::now());
                }
                Some(since) if since.elapsed() >= RESUME_TIMEOUT => return Err(error),
                Some(_) => {}
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// A Machine that is destroyed writes no more.
    async fn is_over(&self) -> bool {
        let path = [self.app.as_str(), self.machine.as_str()];
        match self.client.call::<MachinesShow>(&path, &Empty {}, &Empty {}).await {
            Ok(machine) => machine.state == MachineState::Destroyed,
            Err(error) => CliError::from(error).exit == Exit::NotFound,
        }
    }

    fn path(&self, since: Option<&str>) -> String {
        let path = MACHINE_LOGS.replace("{app_name}", self.app.as_str());
        let path = path.replace("{machine_id}", self.machine.as_str());
        let tail = if since.is_some() { u64::MAX } else { self.tail };
        let query = LogQuery { follow: Some(self.follow), tail: Some(tail), since: since.map(str::to_owned) };
        format!("{path}?{}", query_string(&query))
    }

    /// One request. Of a log that is not followed, its end is the end of nobody's interest in more.
    async fn once(
        &self,
        path: &str,
        seen: &mut Seen,
        sender: &mpsc::Sender<Result<Vec<Line>>>,
        opened: &mut (dyn FnMut() + Send),
    ) -> Result<End> {
        let response = self.client.send(path, http::Request::new(empty()), HEAD_TIMEOUT).await?;
        opened();
        let mut body = response.into_body();
        let (mut buffer, mut reader, mut known) = (BytesMut::new(), Reader::default(), seen.known());
        loop {
            let frame = if self.follow {
                body.frame().await
            } else {
                let frame = tokio::time::timeout(READ_TIMEOUT, body.frame()).await;
                frame.map_err(|_| self.broken("timeout: no data was received"))?
            };
            let frame = match frame {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Ok(End::Broken(self.broken(&godwit_base::telemetry::chain(&error)))),
                None => break,
            };
            let Ok(data) = frame.into_data() else { continue };
            buffer.extend_from_slice(&data);
            loop {
                let (lines, bytes) = self.batch(&buffer, &mut reader)?;
                buffer.advance(bytes);
                if bytes == 0 {
                    break;
                }
                if !hand_on(lines, &mut known, seen, sender).await {
                    return Ok(End::Unwanted);
                }
            }
            if buffer.len() > LINE_LIMIT_BYTES {
                return Err(self.broken("a line without an end"));
            }
        }
        if self.follow {
            return Ok(End::Broken(self.broken("its host or control closed the connection")));
        }
        buffer.extend_from_slice(b"\n");
        let (lines, _) = self.batch(&buffer, &mut reader)?;
        hand_on(lines, &mut known, seen, sender).await;
        Ok(End::Unwanted)
    }

    /// Whole lines at the buffer's start, and how many bytes they are. Empty lines keep a quiet stream open.
    fn batch(&self, buffer: &[u8], reader: &mut Reader) -> Result<(Vec<Line>, usize)> {
        let (mut lines, mut bytes) = (Vec::new(), 0);
        while bytes < BATCH_BYTES
            && let Some(length) = memchr(b'\n', &buffer[bytes..])
        {
            let line = &buffer[bytes..bytes + length];
            bytes += length + 1;
            if !line.iter().all(u8::is_ascii_whitespace) {
                lines.push(reader.read(line).map_err(|error| self.broken(&error.to_string()))?);
            }
        }
        Ok((lines, bytes))
    }

    fn broken(&self, why: &str) -> CliError {
        CliError::new(Exit::Unreachable, format!("the log of Machine {} was interrupted: {why}", self.machine))
    }
}

/// Those that are new. False when nobody takes them any more.
async fn hand_on(
    mut lines: Vec<Line>,
    known: &mut Known,
    seen: &mut Seen,
    sender: &mpsc::Sender<Result<Vec<Line>>>,
) -> bool {
    lines.retain(|line| !known.has(line));
    lines.iter().for_each(|line| seen.note(line));
    lines.is_empty() || sender.send(Ok(lines)).await.is_ok()
}
