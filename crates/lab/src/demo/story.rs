//! How the story looks: chapters with the time they began, commands as they were typed, numbers in words.

use std::io::IsTerminal;
use std::path::Path;
use std::time::Instant;

use godwit_lab::traffic::TrafficReport;

use crate::load::Report as Load;

const FAILURES_SHOWN: usize = 5;

/// A command that went well.
pub struct Ran {
    pub shown: String,
    pub stdout: String,
}

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
            story.paint("1", "Godwit: an image runs, wakes on a request, outlives what watches over it, and moves")
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
        self.command(&ran.shown);
        for line in ran.stdout.lines() {
            self.line(format!("  {line}"));
        }
    }

    /// A command, before it is run.
    pub fn command(&self, shown: &str) {
        self.line(self.paint("36", &format!("$ {shown}")));
    }

    pub fn fault(&self, words: &str) {
        self.line(self.paint("1;31", words));
    }

    pub fn traffic(&self, traffic: &TrafficReport) {
        let kinds: Vec<String> = traffic.kinds.iter().map(|(kind, sent)| format!("{sent} {kind}")).collect();
        self.line(format!(
            "{} requests ({}): {}; slowest quick one {} ms",
            traffic.requests_sent,
            kinds.join(", "),
            self.verdict(traffic.requests_failed),
            traffic.latency_ms_max
        ));
        self.line(format!("{} WebSockets, closed at each move and opened again", traffic.web_sockets_opened));
        for failure in traffic.failures.iter().take(FAILURES_SHOWN) {
            self.line(format!("  {failure}"));
        }
    }

    fn verdict(&self, failed: u64) -> String {
        match failed {
            0 => self.paint("32", "none failed"),
            failed => self.paint("1;31", &format!("{failed} FAILED")),
        }
    }

    pub fn load(&self, load: &Load) {
        self.line(format!(
            "{} requests, {:.0} a second: {} (p50 {} ms, p99 {} ms, slowest {} ms)",
            load.requests_sent,
            load.requests_per_second,
            self.verdict(load.requests_failed),
            load.latency_ms_p50,
            load.latency_ms_p99,
            load.latency_ms_max
        ));
        for failure in load.failures.iter().take(FAILURES_SHOWN) {
            self.line(format!("  {failure}"));
        }
    }

    pub fn end(&self, good: bool, sent: u64, failed: u64, lost: Option<u64>, report: &Path) {
        let writes = lost.map_or(String::new(), |lost| format!(", {lost} lost writes"));
        let (code, verdict) = match good {
            true if lost.is_some() => ("1;32", format!("{sent} requests, not one failed; not one write was lost.")),
            true => ("1;32", format!("{sent} requests, not one failed.")),
            false => ("1;31", format!("It did not go well: {failed} of {sent} requests failed{writes}.")),
        };
        println!("\n{} The numbers are in {}.", self.paint(code, &verdict), report.display());
    }
}
