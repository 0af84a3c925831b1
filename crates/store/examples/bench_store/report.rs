//! The figures, as a table for people and as JSON.

use crate::{Settings, VALUE_BYTES};

pub struct Report {
    settings: Settings,
    /// One before each throughput run and one after the last: the disk and the machine in the same minute.
    pub plain_writes_per_s: Vec<f64>,
    pub throughput: Vec<Throughput>,
    pub lateness: Vec<Lateness>,
    pub syncs: Option<Syncs>,
}

pub struct Throughput {
    pub name: String,
    pub writes: u64,
    pub commits: u64,
    pub writes_per_s: f64,
    pub put: Percentiles,
    pub put_start_to_watcher: Percentiles,
    pub told: u64,
}

pub struct Lateness {
    pub name: String,
    pub puts: u64,
    pub put: Percentiles,
    pub put_start_to_each: Percentiles,
    pub put_ack_to_each: Percentiles,
}

pub struct Syncs {
    pub writes: u64,
    pub commits: u64,
    pub fsync: u64,
    pub fdatasync: u64,
}

pub struct Percentiles {
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
}

impl Percentiles {
    pub fn of(mut micros: Vec<u64>) -> Percentiles {
        micros.sort_unstable();
        let at = |share: f64| {
            let last = micros.len().saturating_sub(1) as f64;
            let index = (last * share) as usize;
            micros.get(index).copied().unwrap_or(0) as f64 / 1000.0
        };
        Percentiles { p50_ms: at(0.5), p99_ms: at(0.99), max_ms: at(1.0) }
    }

    fn json(&self) -> serde_json::Value {
        serde_json::json!({"p50_ms": self.p50_ms, "p99_ms": self.p99_ms, "max_ms": self.max_ms})
    }
}

impl std::fmt::Display for Percentiles {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "p50 {:6.2}  p99 {:6.2}  max {:6.1} ms", self.p50_ms, self.p99_ms, self.max_ms)
    }
}

impl Report {
    pub fn new(settings: &Settings) -> Report {
        Report {
            settings: settings.clone(),
            plain_writes_per_s: Vec::new(),
            throughput: Vec::new(),
            lateness: Vec::new(),
            syncs: None,
        }
    }

    /// The mean of plain SQLite just before and just after throughput run `n`.
    fn plain_beside(&self, n: usize) -> f64 {
        (self.plain_writes_per_s[n] + self.plain_writes_per_s[n + 1]) / 2.0
    }

    pub fn print(&self) {
        let Settings { watchers, writers, seconds, pace, .. } = self.settings;
        println!(
            "{VALUE_BYTES}-byte values, {writers} writers, {watchers} watchers, {seconds} s a run; load {}",
            load_average()
        );
        for (n, run) in self.throughput.iter().enumerate() {
            println!("\n{}", run.name);
            println!(
                "  durable writes/s        {:8.0}   {:.2} x plain SQLite ({:.0}/s)",
                run.writes_per_s,
                run.writes_per_s / self.plain_beside(n),
                self.plain_beside(n)
            );
            println!("  writes a commit         {:8.1}", run.writes as f64 / run.commits.max(1) as f64);
            println!("  events told             {:8}", run.told);
            println!("  put                     {}", run.put);
            println!("  put start -> watcher    {}", run.put_start_to_watcher);
        }
        for run in &self.lateness {
            println!("\n{} ({pace} puts/s, {} puts, every watcher sees each)", run.name, run.puts);
            println!("  put                     {}", run.put);
            println!("  put start -> each       {}", run.put_start_to_each);
            println!("  put ack   -> each       {}", run.put_ack_to_each);
        }
        match &self.syncs {
            Some(syncs) => println!(
                "\nunder strace: {} writes, {} commits, {} fdatasync + {} fsync = {:.2} a commit",
                syncs.writes,
                syncs.commits,
                syncs.fdatasync,
                syncs.fsync,
                syncs.a_commit()
            ),
            None => println!("\nsyncs were not counted: strace is missing or may not trace here"),
        }
    }

    pub fn json(&self) -> serde_json::Value {
        let throughput = self.throughput.iter().enumerate().map(|(n, run)| {
            serde_json::json!({
                "name": run.name,
                "writes": run.writes,
                "commits": run.commits,
                "writes_per_s": run.writes_per_s,
                "plain_sqlite_writes_per_s": self.plain_beside(n),
                "events_told": run.told,
                "put": run.put.json(),
                "put_start_to_watcher": run.put_start_to_watcher.json(),
            })
        });
        let lateness = self.lateness.iter().map(|run| {
            serde_json::json!({
                "name": run.name,
                "puts": run.puts,
                "put": run.put.json(),
                "put_start_to_each": run.put_start_to_each.json(),
                "put_ack_to_each": run.put_ack_to_each.json(),
            })
        });
        let syncs = self.syncs.as_ref().map(|syncs| {
            serde_json::json!({
                "writes": syncs.writes,
                "commits": syncs.commits,
                "fsync": syncs.fsync,
                "fdatasync": syncs.fdatasync,
                "a_commit": syncs.a_commit(),
            })
        });
        serde_json::json!({
            "value_bytes": VALUE_BYTES,
            "writers": self.settings.writers,
            "watchers": self.settings.watchers,
            "seconds": self.settings.seconds,
            "pace_per_s": self.settings.pace,
            "load_average": load_average(),
            "throughput": throughput.collect::<Vec<_>>(),
            "lateness": lateness.collect::<Vec<_>>(),
            "syncs": syncs,
        })
    }
}

impl Syncs {
    fn a_commit(&self) -> f64 {
        (self.fsync + self.fdatasync) as f64 / self.commits.max(1) as f64
    }
}

/// Of the last minute; a shared machine explains much.
fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}
