//! `godwit logs`: what Machines write to their output, of one Machine or of a whole app. Lines of one Machine stand in
//! the order in which it wrote them; several Machines are merged by time, each in its own order. Nothing is gathered: a
//! few lines of each wait, and a slow reader slows the streams down.

mod resume;
mod stream;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{BufWriter, Write};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use godwit_api::endpoint::Empty;
use godwit_api::endpoints::MachinesList;
use godwit_api::host::PLATFORM_STREAM;
use godwit_api::log::{Head, Line, push_message};
use godwit_api::machine::ListMachines;
use godwit_base::clock;
use tokio::sync::mpsc;

use super::context::{AppOption, Context};
use super::output::Output;
use super::silence;
use crate::error::{CliError, Result};
use stream::Stream;

/// Of one Machine's lines, how many batches wait for their turn; the next is taken when none of them is left.
const BATCHES_QUEUED: usize = 4;
/// While following, how old a line must be before it is printed although another Machine is silent.
const WINDOW: Duration = Duration::from_millis(250);
/// Printed lines are kept back until as many bytes are there, or nothing more is.
const PRINT_BYTES: usize = 64 << 10;

/// Show the output of Machines
///
/// Lines of one Machine are in the order in which it wrote them; lines of several Machines are merged by time. A `!`
/// marks standard error, a `*` messages of the platform. With `--follow` the log continues after a restart of control or
/// of a host. A host keeps the last 256 MiB of each Machine, unless its configuration says otherwise.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    app: AppOption,
    /// Only this Machine
    #[arg(long, visible_alias = "instance", value_name = "MACHINE")]
    machine: Option<String>,
    /// Keep printing new lines
    #[arg(short, long)]
    follow: bool,
    /// The number of last lines to show of each Machine, or `all`
    #[arg(long, value_name = "N", default_value = "100", value_parser = tail)]
    tail: u64,
}

fn tail(text: &str) -> Result<u64, String> {
    match text {
        "all" => Ok(u64::MAX),
        number => number.parse().map_err(|_| "write a number of lines, or all".to_owned()),
    }
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
            output: context.output,
            app: app.clone(),
            machine: id.clone(),
            follow: options.follow,
            tail: options.tail,
        };
        let (sender, batches) = mpsc::channel(BATCHES_QUEUED);
        tokio::spawn(async move {
            if let Err(error) = stream.read(&sender).await {
                // The receiver is gone only when the whole command is.
                let _ = sender.send(Err(error)).await;
            }
        });
        lanes.push(Lane { machine: id.to_string(), batches, waiting: VecDeque::new(), ended: false });
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

/// Prints until every stream has ended.
async fn print_merged(merge: &mut Merge, output: Output) -> Result<()> {
    let mut out = Print { out: BufWriter::with_capacity(PRINT_BYTES, std::io::stdout()), output, last: None };
    loop {
        let next = match merge.ready() {
            Some(next) => Some(next),
            None => {
                // Nobody waits for what is printed while we wait for more.
                out.out.flush()?;
                merge.next(output).await
            }
        };
        let Some((lane, line)) = next else {
            out.out.flush()?;
            return Ok(());
        };
        merge.any_written |= line.head.stream != PLATFORM_STREAM;
        out.print(lane, &merge.lanes[lane].machine, &line)?;
    }
}

struct Print<W: Write> {
    out: W,
    output: Output,
    /// What stands before the message of lines of this lane that share this head.
    last: Option<(usize, Arc<Head>, Vec<u8>)>,
}

impl<W: Write> Print<W> {
    fn print(&mut self, lane: usize, machine: &str, line: &Line) -> Result<()> {
        let is_like = |(at, head, _): &(usize, Arc<Head>, Vec<u8>)| *at == lane && Arc::ptr_eq(head, &line.head);
        let last = match self.last.take().filter(is_like) {
            Some(last) => last,
            None => (lane, line.head.clone(), before_messages(self.output, machine, &line.head)?),
        };
        let (.., before) = self.last.insert(last);
        if self.output.json {
            let mut object = before.clone();
            push_message(line.message.as_bytes(), line.partial, &mut object);
            self.out.write_all(&object)?;
        } else {
            self.out.write_all(before)?;
            self.out.write_all(line.message.as_bytes())?;
            self.out.write_all(b"\n")?;
        }
        Ok(())
    }
}

fn before_messages(output: Output, machine: &str, head: &Head) -> Result<Vec<u8>> {
    if output.json {
        // The line's own object with one more member.
        let mut object = b"{\"machine\":".to_vec();
        serde_json::to_writer(&mut object, machine)?;
        object.push(b',');
        object.extend_from_slice(&head.json()[1..]);
        return Ok(object);
    }
    let mark = match head.stream.as_str() {
        "stderr" => "!",
        PLATFORM_STREAM => "*",
        _ => " ",
    };
    let style = output.style;
    Ok(format!("{} {}{mark} ", style.faint(&head.timestamp), style.faint(machine)).into_bytes())
}

/// One Machine's lines, in order.
struct Lane {
    machine: String,
    batches: mpsc::Receiver<Result<Vec<Line>>>,
    waiting: VecDeque<Line>,
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
    /// The next line and its lane, if it is known to be that without waiting.
    fn ready(&mut self) -> Option<(usize, Line)> {
        if self.lanes.iter().any(|lane| lane.waiting.is_empty() && !lane.ended) {
            return None;
        }
        self.oldest()
    }

    fn oldest(&mut self) -> Option<(usize, Line)> {
        let heads = self.lanes.iter().enumerate().filter_map(|(at, lane)| Some((at, lane.waiting.front()?)));
        let (at, _) = heads.min_by(|(_, a), (_, b)| a.head.timestamp.cmp(&b.head.timestamp))?;
        Some((at, self.lanes[at].waiting.pop_front()?))
    }

    /// The next line; `None` when all have ended.
    async fn next(&mut self, output: Output) -> Option<(usize, Line)> {
        loop {
            let missing = self.lanes.iter().any(|lane| lane.waiting.is_empty() && !lane.ended);
            if !missing {
                return self.oldest();
            }
            let oldest =
                self.lanes.iter().filter_map(|lane| lane.waiting.front()).map(|line| &line.head.timestamp).min();
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
                while lane.waiting.is_empty() {
                    match lane.batches.poll_recv(context) {
                        Poll::Ready(Some(Ok(lines))) => lane.waiting = lines.into(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::ColorChoice;
    use crate::cli::output::Style;
    use proptest::prelude::*;

    fn line(number: usize, stamp: u32) -> Line {
        let timestamp = format!("2026-01-01T00:00:00.{stamp:06}Z");
        let head = Arc::new(Head { timestamp, stream: "stdout".into() });
        Line { head, message: number.to_string(), partial: false }
    }

    fn output(json: bool) -> Output {
        Output { json, quiet: true, wide: false, style: Style::for_stdout(ColorChoice::Never) }
    }

    async fn merged(lanes: Vec<Vec<u32>>, window: Option<Duration>) -> Vec<(usize, usize, String)> {
        let mut merge = Merge { lanes: Vec::new(), window, failed: None, any_written: false };
        for (machine, stamps) in lanes.into_iter().enumerate() {
            let (sender, batches) = mpsc::channel(4);
            tokio::spawn(async move {
                let lines: Vec<_> = stamps.into_iter().enumerate().map(|(number, stamp)| line(number, stamp)).collect();
                for batch in lines.chunks(3) {
                    let _ = sender.send(Ok(batch.to_vec())).await;
                }
            });
            merge.lanes.push(Lane { machine: machine.to_string(), batches, waiting: VecDeque::new(), ended: false });
        }
        let mut all = Vec::new();
        loop {
            let next = match merge.ready() {
                Some(next) => Some(next),
                None => merge.next(output(false)).await,
            };
            let Some((lane, line)) = next else { return all };
            all.push((lane, line.message.parse().unwrap(), line.head.timestamp.clone()));
        }
    }

    #[test]
    fn printed_lines_carry_their_own_machine_time_and_mark() {
        let head = |stream: &str| Arc::new(Head { timestamp: "T".into(), stream: stream.into() });
        let (out, err) = (head("stdout"), head("stderr"));
        let lines = [(0, &out, "a"), (0, &out, "say \"b\""), (1, &out, "c"), (0, &err, "d")];
        let printed = |json: bool| {
            let mut print = Print { out: Vec::new(), output: output(json), last: None };
            for (lane, head, message) in lines {
                let line = Line { head: head.clone(), message: message.into(), partial: false };
                print.print(lane, ["m0", "m1"][lane], &line).unwrap();
            }
            String::from_utf8(print.out).unwrap()
        };
        assert_eq!(printed(false), "T m0  a\nT m0  say \"b\"\nT m1  c\nT m0! d\n");
        let first = r#"{"machine":"m0","timestamp":"T","stream":"stdout","message":"a"}"#;
        let second = r#"{"machine":"m0","timestamp":"T","stream":"stdout","message":"say \"b\""}"#;
        let text = printed(true);
        assert_eq!(text.lines().take(2).collect::<Vec<_>>(), [first, second]);
        assert!(text.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{text}");
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
