//! `godwit logs`: what Machines write to their output, of one Machine or of a whole app. Lines of one Machine stand in
//! the order in which it wrote them; several Machines are merged by time, each in its own order. Nothing is gathered: a
//! few lines of each wait, and a slow reader slows the streams down.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{BufWriter, Write};
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use godwit_api::AppName;
use godwit_api::endpoint::Empty;
use godwit_api::endpoints::{MACHINE_LOGS, MachinesList};
use godwit_api::host::{LogLine, LogQuery, PLATFORM_STREAM};
use godwit_api::machine::ListMachines;
use godwit_base::clock;
use godwit_base::http::client::{Client, HEAD_TIMEOUT, empty, query_string};
use http_body_util::BodyExt;
use tokio::sync::mpsc;

use super::context::{AppOption, Context};
use super::output::Output;
use super::silence;
use crate::error::{CliError, Result};
use crate::exit::Exit;

/// Lines of one Machine that wait for their turn.
const LINES_QUEUED: usize = 1024;
/// A line longer than this is no log line of ours.
const LINE_LIMIT_BYTES: usize = 1 << 20;
/// How long without a byte, once connected, before a log that is not followed counts as broken.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// While following, how old a line must be before it is printed although another Machine is silent.
const WINDOW: Duration = Duration::from_millis(250);
/// Printed lines are kept back until as many bytes are there, or nothing more is.
const PRINT_BYTES: usize = 64 << 10;

/// Show what Machines write to their output
///
/// Lines of one Machine stand in the order in which it wrote them; those of several are merged by time. A `!` marks
/// standard error, a `*` the platform's remarks. A host keeps the last 24 MiB of each Machine.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    app: AppOption,
    /// Only this Machine
    #[arg(long, visible_alias = "instance", value_name = "MACHINE")]
    machine: Option<String>,
    /// Go on as lines come
    #[arg(short, long)]
    follow: bool,
    /// Lines from the end, of each Machine: a number, or `all`
    #[arg(long, value_name = "N", default_value = "100", value_parser = tail)]
    tail: u64,
}

fn tail(text: &str) -> Result<u64, String> {
    match text {
        "all" => Ok(u64::MAX),
        number => number.parse().map_err(|_| "say a number of lines, or all".to_owned()),
    }
}

/// A line and who wrote it.
#[derive(serde::Serialize)]
struct Entry {
    machine: String,
    #[serde(flatten)]
    line: LogLine,
}

pub async fn run(options: &Options, context: &Context) -> Result<()> {
    let (app, machines) = match &options.machine {
        Some(which) => {
            let (app, machine) = context.machine(&options.app, which).await?;
            (app, vec![machine.id])
        }
        None => {
            let app = context.app(&options.app)?;
            let all = context.client.call::<MachinesList>(&[app.as_str()], &ListMachines::default(), &Empty {}).await?;
            (app, all.into_iter().map(|machine| machine.id).collect())
        }
    };
    if machines.is_empty() {
        context.output.say(format!("App {app} has no Machines."));
        return Ok(());
    }
    let mut lanes = Vec::new();
    for id in &machines {
        let stream = Stream {
            client: context.client.clone(),
            path: path_of(&app, id.as_str(), options),
            machine: id.to_string(),
            follow: options.follow,
        };
        let (sender, lines) = mpsc::channel(LINES_QUEUED);
        tokio::spawn(async move {
            if let Err(error) = stream.read(&sender).await {
                // The receiver is gone only when the whole command is.
                let _ = sender.send(Err(error)).await;
            }
        });
        lanes.push(Lane { lines, waiting: VecDeque::new(), ended: false });
    }
    let window = options.follow.then_some(WINDOW);
    let mut merge = Merge { lanes, window, failed: None, any_written: false };
    tokio::select! {
        printed = print_merged(&mut merge, context.output) => printed?,
        _ = tokio::signal::ctrl_c() => return Ok(()),
    }
    let Merge { failed, any_written, .. } = merge;
    if !options.follow && failed.is_none() && !any_written {
        for id in &machines {
            context.output.say(silence::why(&app, &context.show(&app, id).await?));
        }
    }
    failed.map_or(Ok(()), |error: CliError| Err(CliError::new(error.exit, "not every log could be read")))
}

fn path_of(app: &AppName, id: &str, options: &Options) -> String {
    let path = MACHINE_LOGS.replace("{app_name}", app.as_str()).replace("{machine_id}", id);
    let query = LogQuery { follow: Some(options.follow), tail: Some(options.tail) };
    format!("{path}?{}", query_string(&query))
}

/// Prints until every stream has ended.
async fn print_merged(merge: &mut Merge, output: Output) -> Result<()> {
    let mut out = BufWriter::with_capacity(PRINT_BYTES, std::io::stdout());
    loop {
        let next = match merge.ready() {
            Some(entry) => Some(entry),
            None => {
                // Nobody waits for what is printed while we wait for more.
                out.flush()?;
                merge.next(output).await
            }
        };
        match next {
            Some(entry) => {
                merge.any_written |= entry.line.stream != PLATFORM_STREAM;
                print(&mut out, output, &entry)?;
            }
            None => {
                out.flush()?;
                return Ok(());
            }
        }
    }
}

fn print(out: &mut impl Write, output: Output, entry: &Entry) -> Result<()> {
    if output.json {
        serde_json::to_writer(&mut *out, entry)?;
        out.write_all(b"\n")?;
        return Ok(());
    }
    let LogLine { timestamp, stream, message, .. } = &entry.line;
    let mark = match stream.as_str() {
        "stderr" => "!",
        PLATFORM_STREAM => "*",
        _ => " ",
    };
    writeln!(out, "{} {}{mark} {message}", output.style.faint(timestamp), output.style.faint(&entry.machine))?;
    Ok(())
}

/// One Machine's lines, in order.
struct Lane {
    lines: mpsc::Receiver<Result<Entry>>,
    waiting: VecDeque<Entry>,
    ended: bool,
}

/// The next line over all lanes: the oldest of their heads, each lane in its own order.
struct Merge {
    lanes: Vec<Lane>,
    /// Without one, every lane is waited for. With one, a silent lane holds lines up no longer than this.
    window: Option<Duration>,
    /// What went wrong with any.
    failed: Option<CliError>,
    /// A Machine has written something itself.
    any_written: bool,
}

impl Merge {
    /// The next line, if it is known to be that without waiting.
    fn ready(&mut self) -> Option<Entry> {
        if self.lanes.iter().any(|lane| lane.waiting.is_empty() && !lane.ended) {
            return None;
        }
        self.oldest()
    }

    fn oldest(&mut self) -> Option<Entry> {
        let heads = self.lanes.iter().enumerate().filter_map(|(at, lane)| Some((at, lane.waiting.front()?)));
        let (at, _) = heads.min_by(|(_, a), (_, b)| a.line.timestamp.cmp(&b.line.timestamp))?;
        self.lanes[at].waiting.pop_front()
    }

    /// The next line; `None` when all have ended.
    async fn next(&mut self, output: Output) -> Option<Entry> {
        loop {
            let missing = self.lanes.iter().any(|lane| lane.waiting.is_empty() && !lane.ended);
            if !missing {
                return self.oldest();
            }
            let oldest = self.lanes.iter().filter_map(|lane| lane.waiting.front()).map(|e| &e.line.timestamp).min();
            match (self.window, oldest) {
                (Some(window), Some(oldest)) if *oldest <= stamp_before_now(window) => return self.oldest(),
                // It comes of age soon, or an older one comes first.
                (Some(window), Some(_)) => {
                    let _ = tokio::time::timeout(window / 4, self.fill(output)).await;
                }
                _ => self.fill(output).await,
            }
        }
    }

    /// Takes in lines of lanes that have none, at least one, or the end of one.
    async fn fill(&mut self, output: Output) {
        let Self { lanes, failed, .. } = self;
        poll_fn(|context| {
            let mut any = false;
            for lane in lanes.iter_mut().filter(|lane| lane.waiting.is_empty() && !lane.ended) {
                while lane.waiting.len() < LINES_QUEUED {
                    match lane.lines.poll_recv(context) {
                        Poll::Ready(Some(Ok(entry))) => lane.waiting.push_back(entry),
                        // One host that does not answer hides no other's lines.
                        Poll::Ready(Some(Err(error))) => {
                            output.warn(error.to_string());
                            *failed = Some(error);
                        }
                        Poll::Ready(None) => {
                            lane.ended = true;
                            break;
                        }
                        Poll::Pending => break,
                    }
                }
                any |= lane.ended || !lane.waiting.is_empty();
            }
            if any { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

/// A moment that lies so far back, in the form of log lines' stamps, which compare as texts.
fn stamp_before_now(window: Duration) -> String {
    let unix_ms = clock::unix_ms().saturating_sub(u64::try_from(window.as_millis()).unwrap_or(0));
    let second = clock::rfc3339(unix_ms - unix_ms % 1000);
    format!("{}.{:03}000Z", second.trim_end_matches('Z'), unix_ms % 1000)
}

struct Stream {
    client: Client,
    path: String,
    machine: String,
    follow: bool,
}

impl Stream {
    async fn read(&self, sender: &mpsc::Sender<Result<Entry>>) -> Result<()> {
        let response = self.client.send(&self.path, http::Request::new(empty()), HEAD_TIMEOUT).await?;
        let mut body = response.into_body();
        let mut buffer = BytesMut::new();
        loop {
            let frame = if self.follow {
                body.frame().await
            } else {
                let frame = tokio::time::timeout(READ_TIMEOUT, body.frame()).await;
                frame.map_err(|_| self.broken("nothing comes any more"))?
            };
            let Some(frame) = frame else { break };
            let frame = frame.map_err(|error| self.broken(&error.to_string()))?;
            let Ok(data) = frame.into_data() else { continue };
            buffer.extend_from_slice(&data);
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line = buffer.split_to(end + 1);
                if !self.hand_on(&line, sender).await? {
                    return Ok(());
                }
            }
            if buffer.len() > LINE_LIMIT_BYTES {
                return Err(self.broken("a line without an end"));
            }
        }
        if self.follow {
            return Err(self.broken("its host, or control, ended the stream"));
        }
        if buffer.is_empty() { Ok(()) } else { self.hand_on(&buffer, sender).await.map(|_| ()) }
    }

    /// False when nobody listens any more. Empty lines keep a quiet stream open.
    async fn hand_on(&self, line: &[u8], sender: &mpsc::Sender<Result<Entry>>) -> Result<bool> {
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(true);
        }
        let line: LogLine = serde_json::from_slice(line).map_err(|error| self.broken(&error.to_string()))?;
        Ok(sender.send(Ok(Entry { machine: self.machine.clone(), line })).await.is_ok())
    }

    fn broken(&self, why: &str) -> CliError {
        CliError::new(Exit::Unreachable, format!("the log of Machine {} broke off: {why}", self.machine))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::ColorChoice;
    use crate::cli::output::Style;
    use proptest::prelude::*;

    fn entry(machine: usize, number: usize, stamp: u32) -> Entry {
        let line = LogLine {
            timestamp: format!("2026-01-01T00:00:00.{stamp:06}Z"),
            stream: "stdout".into(),
            message: number.to_string(),
            partial: false,
        };
        Entry { machine: machine.to_string(), line }
    }

    async fn merged(lanes: Vec<Vec<u32>>, window: Option<Duration>) -> Vec<(usize, usize, String)> {
        let output = Output { json: false, quiet: true, wide: false, style: Style::for_stdout(ColorChoice::Never) };
        let mut merge = Merge { lanes: Vec::new(), window, failed: None, any_written: false };
        for (machine, stamps) in lanes.into_iter().enumerate() {
            let (sender, lines) = mpsc::channel(4);
            tokio::spawn(async move {
                for (number, stamp) in stamps.into_iter().enumerate() {
                    let _ = sender.send(Ok(entry(machine, number, stamp))).await;
                }
            });
            merge.lanes.push(Lane { lines, waiting: VecDeque::new(), ended: false });
        }
        let mut all = Vec::new();
        loop {
            let next = match merge.ready() {
                Some(entry) => Some(entry),
                None => merge.next(output).await,
            };
            let Some(entry) = next else { return all };
            all.push((entry.machine.parse().unwrap(), entry.line.message.parse().unwrap(), entry.line.timestamp));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn each_machine_keeps_its_order_and_all_are_merged_by_time(
            lanes in proptest::collection::vec(proptest::collection::vec(0_u32..40, 0..30), 1..5),
            follow in any::<bool>(),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let window = follow.then_some(WINDOW);
            let all = runtime.block_on(merged(lanes.clone(), window));
            prop_assert_eq!(all.len(), lanes.iter().map(Vec::len).sum::<usize>());
            for (machine, stamps) in lanes.iter().enumerate() {
                let numbers: Vec<usize> = all.iter().filter(|line| line.0 == machine).map(|line| line.1).collect();
                // Also where a clock went back: equal or falling stamps do not shuffle one Machine's lines.
                prop_assert_eq!(numbers, (0..stamps.len()).collect::<Vec<_>>());
            }
            let rising = lanes.iter().all(|stamps| stamps.is_sorted());
            if rising && !follow {
                prop_assert!(all.iter().map(|line| &line.2).is_sorted());
            }
        }
    }

    #[test]
    fn the_stamp_of_the_window_compares_with_those_of_lines() {
        let (older, newer) = (stamp_before_now(Duration::from_secs(5)), stamp_before_now(Duration::ZERO));
        assert!(older < newer && older.len() == "2026-01-01T00:00:00.000000Z".len(), "{older} {newer}");
        assert_eq!((tail("all"), tail("0"), tail("x").is_err()), (Ok(u64::MAX), Ok(0), true));
    }
}
