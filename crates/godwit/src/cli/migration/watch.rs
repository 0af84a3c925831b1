//! Following a move until it ends: looks at it again and again, and tells what changes, as a bar where somebody
//! watches and as lines elsewhere. It only looks: however the looking ends, the move goes on.

use std::io::{IsTerminal, Write};
use std::pin::Pin;
use std::time::{Duration, Instant};

use godwit_api::MigrationId;
use godwit_api::endpoint::Empty;
use godwit_api::endpoints::MigrationsShow;
use godwit_api::migration::Migration;
use http::HeaderMap;
use indicatif::{ProgressBar, ProgressStyle};

use super::words;
use crate::cli::context::Context;
use crate::cli::output::Output;
use crate::error::{CliError, Result};
use crate::exit::Exit;

const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// One look; control that hangs is asked anew.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long control may be gone, for it may be starting again, before looking is given up.
const SILENCE_MAX: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(100);

/// Whom the telling is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Voice {
    /// It is what was asked for, and goes to standard output.
    Answer,
    /// It goes along with another answer, and to standard error.
    Chatter,
}

/// Tells a move from what is known of it to its end. `Ok` only if it is completed.
pub async fn follow(context: &Context, first: Migration, voice: Voice, timeout: Option<Duration>) -> Result<Migration> {
    let mut teller = Teller::new(context.output, voice);
    let mut looker = Looker::new(context, &first.id, timeout);
    let mut migration = first;
    loop {
        teller.tell(&migration)?;
        if migration.phase.is_over() {
            break;
        }
        migration = looker.next(&mut |words| teller.aside(words)).await?;
    }
    let ending = words::ending(&migration);
    // A script that reads the object on standard output gets it for a failure too.
    if ending.is_err() && voice == Voice::Chatter && context.output.json {
        context.output.json(&migration)?;
    }
    teller.end(&ending?)?;
    Ok(migration)
}

/// Waits until it is decided whether a move that was asked to end does so.
pub async fn until_called_off(context: &Context, asked: Migration, timeout: Duration) -> Result<Migration> {
    let mut looker = Looker::new(context, &asked.id, Some(timeout));
    let mut migration = asked;
    loop {
        if let Some(verdict) = words::cancel_verdict(&migration) {
            return verdict.map(|()| migration);
        }
        migration = looker.next(&mut |words| context.output.say(words)).await?;
    }
}

/// Looks at a move at intervals, through short absences of control.
struct Looker<'a> {
    context: &'a Context,
    id: MigrationId,
    /// One for all looks: a signal between two of them counts.
    interrupted: Pin<Box<dyn Future<Output = std::io::Result<()>>>>,
    deadline: Option<(Instant, Duration)>,
    silent_since: Option<Instant>,
}

impl<'a> Looker<'a> {
    fn new(context: &'a Context, id: &MigrationId, timeout: Option<Duration>) -> Self {
        Self {
            context,
            id: id.clone(),
            interrupted: Box::pin(tokio::signal::ctrl_c()),
            deadline: timeout.map(|timeout| (Instant::now() + timeout, timeout)),
            silent_since: None,
        }
    }

    /// What it looks like a moment later. `aside` hears of control's absences.
    async fn next(&mut self, aside: &mut dyn FnMut(&str)) -> Result<Migration> {
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
                _ = &mut self.interrupted => return Err(no_longer(&self.id)),
            }
            if let Some((deadline, timeout)) = self.deadline
                && Instant::now() > deadline
            {
                let why =
                    format!("migration {} has not ended after {} s; it continues", self.id, timeout.as_secs_f64());
                return Err(CliError::new(Exit::TimedOut, why).hint(again(&self.id)));
            }
            let (path, headers) = ([self.id.as_str()], HeaderMap::new());
            let client = &self.context.client;
            let looked = tokio::select! {
                looked = client.call_with::<MigrationsShow>(&path, &Empty {}, &Empty {}, &headers, LOOK_TIMEOUT) => looked,
                _ = &mut self.interrupted => return Err(no_longer(&self.id)),
            };
            match looked.map_err(CliError::from) {
                Ok(migration) => {
                    if self.silent_since.take().is_some() {
                        aside("control answers again");
                    }
                    return Ok(migration);
                }
                Err(error) if error.exit == Exit::Unreachable => self.silent(error, aside)?,
                Err(error) => return Err(error),
            }
        }
    }

    fn silent(&mut self, error: CliError, aside: &mut dyn FnMut(&str)) -> Result<()> {
        let Some(since) = self.silent_since else {
            self.silent_since = Some(Instant::now());
            aside("control does not answer; looking on, while the hosts go on with the move");
            return Ok(());
        };
        if since.elapsed() < SILENCE_MAX {
            return Ok(());
        }
        let why = format!("control has not answered for {} s: {}", SILENCE_MAX.as_secs(), error.message);
        Err(CliError::new(Exit::Unreachable, why).hint(again(&self.id)))
    }
}

fn no_longer(id: &MigrationId) -> CliError {
    CliError::new(Exit::Interrupted, format!("stopped watching; migration {id} continues")).hint(again(id))
}

fn again(id: &MigrationId) -> String {
    format!("`godwit migration watch {id}` follows it again; `godwit migration cancel {id}` cancels it")
}

/// Tells changes, each in the way that fits who reads.
struct Teller {
    output: Output,
    voice: Voice,
    bar: Option<ProgressBar>,
    before: Option<Migration>,
}

impl Teller {
    fn new(output: Output, voice: Voice) -> Self {
        let watched = !output.quiet && (!output.json || voice == Voice::Chatter) && std::io::stderr().is_terminal();
        let bar = watched.then(ProgressBar::new_spinner);
        if let Some(bar) = &bar {
            bar.enable_steady_tick(TICK);
        }
        Self { output, voice, bar, before: None }
    }

    fn tell(&mut self, migration: &Migration) -> Result<()> {
        if self.output.json && self.voice == Voice::Answer {
            if self.before.as_ref().is_none_or(|before| differs(before, migration)) {
                let mut line = serde_json::to_string(migration)?;
                line.push('\n');
                std::io::stdout().write_all(line.as_bytes())?;
            }
        } else {
            for line in words::changes(self.before.as_ref(), migration) {
                self.line(&line);
            }
        }
        if let Some(bar) = &self.bar {
            show(bar, migration);
        }
        self.before = Some(migration.clone());
        Ok(())
    }

    /// A line of the story, where the bar does not tell it.
    fn line(&self, line: &str) {
        match self.voice {
            Voice::Answer if self.output.quiet || self.bar.is_some() && std::io::stdout().is_terminal() => {}
            Voice::Answer => println!("{line}"),
            Voice::Chatter if self.bar.is_some() => {}
            Voice::Chatter => self.output.say(line),
        }
    }

    /// Something beside the story.
    fn aside(&self, words: &str) {
        match &self.bar {
            Some(bar) => bar.println(words),
            None => self.output.say(words),
        }
    }

    fn end(&mut self, summary: &str) -> Result<()> {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        match self.voice {
            Voice::Answer if self.output.json || self.output.quiet => {}
            Voice::Answer => writeln!(std::io::stdout(), "{summary}")?,
            Voice::Chatter => self.output.say(summary),
        }
        Ok(())
    }
}

impl Drop for Teller {
    /// An error must not be written into a bar.
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// That time goes by is no change.
fn differs(before: &Migration, now: &Migration) -> bool {
    Migration { seconds: now.seconds, ..before.clone() } != *now
}

fn show(bar: &ProgressBar, migration: &Migration) {
    let gauge = words::gauge(migration);
    let template = match gauge.filled {
        Some((done, total)) => {
            bar.set_length(total);
            bar.set_position(done);
            "{spinner} {prefix} [{bar:24}] {percent} %, {wide_msg}"
        }
        None => "{spinner} {prefix} {wide_msg}",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(gauge.phase);
    bar.set_message(gauge.message);
}
