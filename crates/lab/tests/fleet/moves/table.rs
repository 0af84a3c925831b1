//! The table that is printed: one row a fault, with what it cost and what held.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use godwit_api::migration::Migration;

#[derive(Debug, Default)]
pub struct Row {
    pub name: String,
    pub end: String,
    pub downtime_ms: Option<u64>,
    pub acknowledged: usize,
    pub lost: usize,
    pub failed: Vec<String>,
    pub copies: usize,
    pub starts: usize,
    pub gap: Duration,
    pub wrong: Vec<String>,
    pub kept: Option<PathBuf>,
}

impl Row {
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    pub fn ended(&mut self, over: &Migration) {
        self.end = over.phase.as_str().to_owned();
        self.downtime_ms = over.progress.downtime_ms;
    }

    /// A row that is not one of a bed's own.
    pub fn judged(&mut self, done: anyhow::Result<()>, bed: &super::bed::Bed) {
        self.acknowledged = bed.ledger.tally().acknowledged;
        self.wrong.extend(bed.ledger.contradictions());
        if let Err(error) = done {
            self.wrong.push(format!("{error:#}"));
            self.kept = bed.keep_logs(&self.name);
        }
        println!("{self}");
    }

    fn cells(&self) -> [String; 9] {
        let verdict = if self.wrong.is_empty() { "ok" } else { "WRONG" };
        [
            self.name.clone(),
            self.end.clone(),
            self.downtime_ms.map(|ms| ms.to_string()).unwrap_or_default(),
            self.gap.as_millis().to_string(),
            self.acknowledged.to_string(),
            self.lost.to_string(),
            self.failed.len().to_string(),
            self.copies.to_string(),
            verdict.to_owned(),
        ]
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.cells().join(" | "))?;
        for failure in self.failed.iter().take(2) {
            write!(f, "\n    a request failed: {failure}")?;
        }
        for wrong in &self.wrong {
            write!(f, "\n    WRONG: {wrong}")?;
        }
        match &self.kept {
            Some(kept) => write!(f, "\n    logs: {}", kept.display()),
            None => Ok(()),
        }
    }
}

/// Prints the table; fails if a row is wrong.
pub fn conclude(rows: &[Row]) {
    let mut table = comfy_table::Table::new();
    let header = ["fault", "the move", "down ms", "client's gap ms", "writes", "lost", "failed", "copies", "verdict"];
    table.set_header(header);
    for row in rows {
        table.add_row(row.cells());
    }
    println!("{table}");
    let wrong: Vec<String> = rows.iter().filter(|row| !row.wrong.is_empty()).map(Row::to_string).collect();
    assert!(wrong.is_empty(), "{} of {} rows are wrong:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}
