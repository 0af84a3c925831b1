//! Root inside tries to get out, in every way that we could think of.

use crate::fleet::Fleet;

/// Fewer than this many lines would mean that the guest gave up half-way.
const ATTEMPTS: usize = 65;

#[tokio::test]
async fn every_attempt_of_root_to_break_out_fails() {
    let fleet = Fleet::new();
    let (marker, outside) = (fleet.folder.join("machines"), std::process::id().to_string());
    let argv = ["guest", "breakouts", marker.to_str().unwrap(), &outside];
    let (exit, text) = fleet.run(&fleet.spec("m1", "i1", &argv)).await;
    assert_eq!(exit.exit_code, Some(0), "{text}");
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split('|').collect()).collect();
    println!("{:<36} {:<10} why", "root inside tries to", "outcome");
    for row in &rows {
        println!("{:<36} {:<10} {}", row[0], row[1], row[2]);
    }
    let succeeded: Vec<&str> = rows.iter().filter(|row| row[1] != "refused").map(|row| row[0]).collect();
    assert!(succeeded.is_empty(), "these got through: {succeeded:?}");
    assert!(rows.len() >= ATTEMPTS, "only {} attempts were made", rows.len());
    let newer = rows.iter().find(|row| row[0] == "a call newer than the profile").unwrap();
    assert_eq!(newer[2], "Function not implemented", "C libraries fall back only when a call does not exist");
}
