//! How the story looks: chapters with the time they began, commands as they were typed, numbers in words.

use std::io::IsTerminal;
use std::path::Path;
use std::time::Instant;

use super::fleet::Ran;
use crate::load::Report as Load;

pub struct Story {
    begin: Instant,
    chapter: usize,
    color: bool,
}

impl Story {
    pub fn begin() -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let story = Self { begin: Instant::now(), chapter: 0, color: !plain && std::io::stdout().is_terminal() };
        println!(
            "{}",
            story.paint("1", "Godwit: an image runs, wakes on a request, and outlives what watches over it")
        );
        story
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub fn chapter(&mut self, title: &str) {
        self.chapter += 1;
        let seconds = self.begin.elapsed().as_secs_f64();
        let stamp = self.paint("2", &format!("[{seconds:5.1} s]"));
        println!("\n{stamp} {}", self.paint("1", &format!("{}. {title}", self.chapter)));
    }

    pub fn line(&self, text: impl AsRef<str>) {
        println!("          {}", text.as_ref());
    }

    /// A command and what it answered.
    pub fn ran(&self, ran: &Ran) {
        self.line(self.paint("36", &format!("$ {}", ran.shown)));
        for line in ran.stdout.lines() {
            self.line(format!("  {line}"));
        }
    }

    pub fn load(&self, load: &Load) {
        let verdict = match load.requests_failed {
            0 => self.paint("32", "none failed"),
            failed => self.paint("1;31", &format!("{failed} FAILED")),
        };
        self.line(format!(
            "{} requests, {:.0} a second: {verdict} (p50 {} ms, p99 {} ms, slowest {} ms)",
            load.requests_sent, load.requests_per_second, load.latency_ms_p50, load.latency_ms_p99, load.latency_ms_max
        ));
        for failure in load.failures.iter().take(5) {
            self.line(format!("  {failure}"));
        }
    }

    pub fn end(&self, good: bool, sent: u64, failed: u64, report: &Path) {
        let verdict = if good {
            self.paint("1;32", &format!("{sent} requests, not one failed."))
        } else {
            self.paint("1;31", &format!("{failed} of {sent} requests failed."))
        };
        println!("\n{verdict} The numbers are in {}.", report.display());
    }
}
