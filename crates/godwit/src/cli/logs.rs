//! `godwit logs`: what Machines write to their output, of one Machine or of a whole app.

use std::time::Duration;

use bytes::BytesMut;
use godwit_api::AppName;
use godwit_api::endpoint::Empty;
use godwit_api::endpoints::{MACHINE_LOGS, MachinesList};
use godwit_api::host::{LogLine, LogQuery, PLATFORM_STREAM};
use godwit_api::machine::ListMachines;
use godwit_base::http::client::{Client, HEAD_TIMEOUT, empty, query_string};
use http_body_util::BodyExt;
use tokio::sync::mpsc;

use super::context::{AppOption, Context};
use super::output::Output;
use super::silence;
use crate::error::{CliError, Result};
use crate::exit::Exit;

/// Lines that wait to be printed; a slow terminal slows the streams down.
const LINES_QUEUED: usize = 1024;
/// A line longer than this is no log line of ours.
const LINE_LIMIT_BYTES: usize = 1 << 20;
/// How long without a byte, once connected, before a log that is not followed counts as broken.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    app: AppOption,
    /// Only this Machine
    #[arg(long, visible_alias = "instance", value_name = "ID")]
    machine: Option<String>,
    /// Go on as lines come
    #[arg(short, long)]
    follow: bool,
    /// Lines from the end, of each Machine
    #[arg(long, value_name = "N", default_value_t = 100)]
    tail: u64,
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
    let ids = machines.clone();
    let (sender, mut lines) = mpsc::channel(LINES_QUEUED);
    for id in machines {
        let stream = Stream {
            client: context.client.clone(),
            path: path_of(&app, id.as_str(), options),
            machine: id.to_string(),
            follow: options.follow,
        };
        let sender = sender.clone();
        tokio::spawn(async move {
            if let Err(error) = stream.read(&sender).await {
                // The receiver is gone only when the whole command is.
                let _ = sender.send(Err(error)).await;
            }
        });
    }
    drop(sender);
    let mut gathered: Vec<Entry> = Vec::new();
    let mut failed = None;
    loop {
        let next = tokio::select! {
            next = lines.recv() => next,
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        match next {
            Some(Ok(entry)) if options.follow => print(context.output, &entry)?,
            Some(Ok(entry)) => gathered.push(entry),
            // One host that does not answer hides no other's lines.
            Some(Err(error)) => {
                context.output.warn(error.to_string());
                failed = Some(error);
            }
            None => break,
        }
    }
    gathered.sort_by(|a, b| a.line.timestamp.cmp(&b.line.timestamp));
    for entry in &gathered {
        print(context.output, entry)?;
    }
    if !options.follow && failed.is_none() && gathered.iter().all(|entry| entry.line.stream == PLATFORM_STREAM) {
        for id in &ids {
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

fn print(output: Output, entry: &Entry) -> Result<()> {
    if output.json {
        println!("{}", serde_json::to_string(entry)?);
        return Ok(());
    }
    let LogLine { timestamp, stream, message, .. } = &entry.line;
    let mark = match stream.as_str() {
        "stderr" => "!",
        PLATFORM_STREAM => "*",
        _ => " ",
    };
    println!("{} {}{mark} {message}", output.style.faint(timestamp), output.style.faint(&entry.machine));
    Ok(())
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
