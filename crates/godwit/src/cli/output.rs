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

/// A column of a list: its heading and its rank. Rank 0 is always shown.
#[derive(Clone, Copy)]
pub struct Column<'a>(pub &'a str, pub u8);

/// The columns that fit, by their numbers.
fn fitting(columns: &[Column], rows: &[Vec<String>], width: usize) -> Vec<usize> {
    let needed = |at: usize| {
        let cells = rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
        cells.max(columns[at].0.chars().count()) + 2
    };
    let mut shown: Vec<usize> = (0..columns.len()).collect();
    // The last column's padding is trimmed.
    while shown.iter().map(|at| needed(*at)).sum::<usize>() > width.saturating_add(2) {
        let Some(worst) = shown.iter().copied().filter(|at| columns[*at].1 > 0).max_by_key(|at| columns[*at].1) else {
            break;
        };
        shown.retain(|at| *at != worst);
    }
    shown
}

fn width() -> usize {
    terminal_size::terminal_size().map_or(80, |(width, _)| usize::from(width.0).max(80))
}

/// "3 min ago"; times that are yet to come count as now.
pub fn ago(ms: u64) -> String {
    match ms / 1000 {
        0..=1 => "just now".to_owned(),
        s @ 2..=119 => format!("{s} s ago"),
        s @ 120..=7_199 => format!("{} min ago", s / 60),
        s @ 7_200..=172_799 => format!("{} h ago", s / 3_600),
        s => format!("{} days ago", s / 86_400),
    }
}

/// How this invocation speaks.
#[derive(Clone, Copy)]
pub struct Output {
    pub json: bool,
    pub quiet: bool,
    pub wide: bool,
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
        let columns: Vec<Column> = headings.iter().map(|heading| Column(heading, 0)).collect();
        self.print_table(&columns, rows, usize::MAX);
    }

    /// A table that fits the terminal (80 columns where there is none): the columns of the highest rank are left out
    /// first, all are there with `--wide`.
    pub fn list(self, columns: &[Column], rows: Vec<Vec<String>>) {
        let width = if self.wide { usize::MAX } else { width() };
        self.print_table(columns, rows, width);
    }

    fn print_table(self, columns: &[Column], rows: Vec<Vec<String>>, width: usize) {
        let shown = fitting(columns, &rows, width);
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(shown.iter().map(|at| columns[*at].0));
        table.add_rows(rows.iter().map(|row| shown.iter().map(|at| row[*at].as_str()).collect::<Vec<_>>()));
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        for (number, line) in table.lines().enumerate() {
            let line = line.trim_end();
            if number == 0 { println!("{}", self.style.strong(line)) } else { println!("{line}") }
        }
    }

    /// A moment as an answer holds it (RFC 3339): "3 min ago", or as it is with `--wide`.
    pub fn when(self, moment: &str) -> String {
        let now_ms = godwit_base::clock::unix_ms();
        match godwit_base::clock::parse_rfc3339(moment) {
            Some(then_ms) if !self.wide => ago(now_ms.saturating_sub(then_ms)),
            _ => moment.to_owned(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_leaves_out_what_is_least_wanted_until_it_fits() {
        let columns = [Column("ID", 0), Column("A", 2), Column("B", 1), Column("C", 3)];
        let rows = vec![vec!["x".repeat(14), "a".repeat(20), "b".repeat(20), "c".repeat(40)]];
        assert_eq!(fitting(&columns, &rows, usize::MAX), [0, 1, 2, 3]);
        assert_eq!(fitting(&columns, &rows, 80), [0, 1, 2]);
        assert_eq!(fitting(&columns, &rows, 50), [0, 2]);
        assert_eq!(fitting(&columns, &rows, 1), [0], "rank 0 stays, and no cell is cut");
    }

    #[test]
    fn times_are_told_as_people_say_them() {
        for (ms, text) in [
            (0, "just now"),
            (59_000, "59 s ago"),
            (180_000, "3 min ago"),
            (7_300_000, "2 h ago"),
            (260_000_000, "3 days ago"),
        ] {
            assert_eq!(ago(ms), text);
        }
    }
}
