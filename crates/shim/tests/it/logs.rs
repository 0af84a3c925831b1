//! What a Machine prints is in its log, stamped, in order, bounded.

use crate::fleet::{Fleet, output};
use godwit_driver::{LogLimits, LogStream, MAX_LINE_BYTES, log_files, parse_log_line};

#[tokio::test]
async fn every_line_is_kept_with_its_stream_and_time() {
    let fleet = Fleet::new();
    let spec = fleet.spec("m1", "i1", &["guest", "lines", "5000"]);
    fleet.run(&spec).await;
    let bytes = std::fs::read(&log_files(&spec.dir)[0]).unwrap();
    let lines: Vec<_> = bytes.split(|b| *b == b'\n').filter_map(parse_log_line).collect();
    let stdout: Vec<_> = lines.iter().filter(|l| l.stream == LogStream::Stdout).collect();
    assert_eq!(stdout.len(), 5000);
    assert!(stdout.iter().enumerate().all(|(n, l)| l.text == format!("line {n}").as_bytes()));
    assert!(lines.windows(2).all(|w| w[0].time <= w[1].time));
    let stderr: Vec<_> = lines.iter().filter(|l| l.stream == LogStream::Stderr).map(|l| l.text).collect();
    assert_eq!(stderr, [b"to stderr".as_slice(), b"unfinished"]);
}

#[tokio::test]
async fn files_rotate_and_long_lines_are_cut() {
    let fleet = Fleet::new();
    let mut spec = fleet.spec("m1", "i1", &["guest", "lines", "20000"]);
    spec.log = LogLimits { file_bytes: 200_000, files: 3 };
    fleet.run(&spec).await;
    let files = log_files(&spec.dir);
    assert_eq!(files.len(), 3);
    for file in &files {
        assert!(std::fs::metadata(file).unwrap().len() <= 200_000 + 128 * 1024);
    }
    assert!(output(&spec.dir).contains("line 19999\n"));

    let spec = fleet.spec("m2", "i1", &["guest", "long", "100000"]);
    fleet.run(&spec).await;
    let text = output(&spec.dir);
    assert_eq!(text.trim_end().len(), 100_000);
    let bytes = std::fs::read(&log_files(&spec.dir)[0]).unwrap();
    let lines: Vec<_> = bytes.split(|b| *b == b'\n').filter_map(parse_log_line).collect();
    assert!(lines.iter().all(|l| l.text.len() <= MAX_LINE_BYTES) && lines[0].partial);
}
