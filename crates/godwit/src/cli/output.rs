//! What goes to the terminal and how: answers on standard output, all chatter on standard error; tables for people,
//! JSON for programs; progress only where somebody watches.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::args::ColorChoice;
use crate::error::Result;

#[derive(Clone, Copy)]
pub struct Style {
    color: bool,
}

impl Style {
    pub fn for_stderr(choice: ColorChoice) -> Self {
        Self { color: wanted(choice, std::io::stderr().is_terminal()) }
    }
    pub fn for_stdout(choice: ColorChoice) -> Self {
        Self { color: wanted(choice, std::io::stdout().is_terminal()) }
    }
    fn paint(self, code: &str, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
    pub fn error(self, text: &str) -> String {
        self.paint("1;31", text)
    }
    pub fn strong(self, text: &str) -> String {
        self.paint("1", text)
    }
    pub fn faint(self, text: &str) -> String {
        self.paint("2", text)
    }
}

/// NO_COLOR (no-color.org) and TERM=dumb count only where nobody chose.
fn wanted(choice: ColorChoice, terminal: bool) -> bool {
    match choice {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto => {
            let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
            let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
            !set("NO_COLOR") && ((terminal && !dumb) || set("CLICOLOR_FORCE"))
        }
    }
}

/// How this invocation speaks.
#[derive(Clone, Copy)]
pub struct Output {
    pub json: bool,
    pub quiet: bool,
    pub style: Style,
}

impl Output {
    /// One JSON document on standard output.
    pub fn json<T: Serialize>(self, value: &T) -> Result<()> {
        let mut text = serde_json::to_string_pretty(value)?;
        text.push('\n');
        std::io::stdout().write_all(text.as_bytes())?;
        Ok(())
    }

    /// What was done, for a person: on standard error, unless `--quiet` or `--json`.
    pub fn say(self, text: impl AsRef<str>) {
        if !self.quiet && !self.json {
            eprintln!("{}", text.as_ref());
        }
    }

    /// Something that must not be missed, even with `--quiet`; with `--json`, an object on a line of its own.
    pub fn warn(self, text: impl AsRef<str>) {
        if self.json {
            eprintln!("{}", serde_json::json!({ "warning": text.as_ref() }));
        } else {
            eprintln!("warning: {}", text.as_ref());
        }
    }

    /// Rows under headings; wide cells are never cut.
    pub fn table(self, headings: &[&str], rows: Vec<Vec<String>>) {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(headings);
        table.add_rows(rows);
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        for (number, line) in table.lines().enumerate() {
            let line = line.trim_end();
            if number == 0 { println!("{}", self.style.strong(line)) } else { println!("{line}") }
        }
    }

    /// Names with values, aligned.
    pub fn facts(self, facts: &[(&str, String)]) {
        let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, value) in facts {
            println!("{} {value}", self.style.faint(&format!("{name:width$} ")));
        }
    }

    /// A spinner while something goes on.
    pub fn progress(self, what: impl Into<String>) -> Progress {
        let what = what.into();
        if self.quiet || self.json {
            return Progress(None);
        }
        if !std::io::stderr().is_terminal() {
            eprintln!("{what} ...");
            return Progress(None);
        }
        let bar = ProgressBar::new_spinner().with_message(what);
        bar.enable_steady_tick(Duration::from_millis(100));
        Progress(Some(bar))
    }

    /// A bar over a number of bytes; hidden where nobody watches.
    pub fn byte_progress(self, what: &str, total_bytes: u64) -> ProgressBar {
        if self.quiet || self.json || !std::io::stderr().is_terminal() {
            self.say(format!("{what} ..."));
            return ProgressBar::with_draw_target(Some(total_bytes), ProgressDrawTarget::hidden());
        }
        let bar = ProgressBar::new(total_bytes).with_message(what.to_owned());
        let template = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar
    }
}

pub struct Progress(Option<ProgressBar>);

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// `1536` → `1.5 KB`: decimal, as disks and networks count.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KB", "MB", "GB", "TB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// `sha256:9d81…`: enough to tell two images apart.
pub fn short_digest(digest: &str) -> String {
    const SHOWN: usize = "sha256:".len() + 12;
    if digest.len() > SHOWN && digest.is_ascii() { format!("{}…", &digest[..SHOWN]) } else { digest.to_owned() }
}

/// A value of JSON on one line, cut where it would fill the screen.
pub fn short_value(value: &serde_json::Value) -> String {
    const SHOWN: usize = 60;
    let text = value.to_string();
    if text.chars().count() <= SHOWN { text } else { format!("{}…", text.chars().take(SHOWN).collect::<String>()) }
}
