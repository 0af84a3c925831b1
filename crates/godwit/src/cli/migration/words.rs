//! What is said of a move: in a table, on one line a change, beside a bar, at its end. Pure: from a migration as the
//! API shows it to texts; it must not know clocks, terminals or the network.

use godwit_api::migration::{Migration, MigrationPhase};

use crate::cli::output::bytes;
use crate::error::CliError;
use crate::exit::Exit;

pub const HEADINGS: [&str; 12] =
    ["ID", "MOVES", "APP", "FROM", "TO", "PHASE", "FILLED", "RATE", "LEFT", "DOWN", "STARTED", "NOTE"];

/// What stands where there is nothing to tell.
const NOTHING: &str = "-";

pub fn phase(phase: MigrationPhase) -> &'static str {
    match phase {
        MigrationPhase::Preparing => "preparing",
        MigrationPhase::HandingOff => "handing off",
        MigrationPhase::Starting => "starting",
        MigrationPhase::Hydrating => "hydrating",
        MigrationPhase::Completed => "completed",
        MigrationPhase::Cancelled => "cancelled",
        MigrationPhase::Failed => "failed",
    }
}

/// Whom it moves.
pub fn subject(migration: &Migration) -> String {
    match (&migration.machine, migration.volumes.as_slice()) {
        (Some(machine), _) => format!("Machine {machine}"),
        (None, [volume]) => format!("volume {volume}"),
        (None, volumes) => format!("{} volumes", volumes.len()),
    }
}

pub fn beginning(migration: &Migration) -> String {
    let Migration { id, source, target, .. } = migration;
    format!("Migration {id}: {} moves from {source} to {target}", subject(migration))
}

/// Why nothing moves, if nothing does.
pub fn stalled(migration: &Migration) -> Option<String> {
    if migration.phase.is_over() {
        return None;
    }
    let silent = migration.is_stalled.then(|| "no step ended and no byte moved for a while".to_owned());
    migration.progress.stalled.clone().or(silent)
}

/// Whole hundredths, never rounded up to the end.
pub fn percent(done: u64, total: u64) -> u64 {
    if total == 0 { 100 } else { (u128::from(done.min(total)) * 100 / u128::from(total)) as u64 }
}

/// `182 ms`, `1.2 s`, `75.0 s`.
fn ms(count: u64) -> String {
    if count < 1000 { format!("{count} ms") } else { format!("{:.1} s", count as f64 / 1000.0) }
}

/// `8 s`, `3 min 20 s`, `2 h 5 min`.
fn left(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// `612.0 MB of 1.1 GB`, if there is anything to fill.
fn filled(migration: &Migration) -> Option<String> {
    let progress = &migration.progress;
    (progress.data_bytes > 0).then(|| format!("{} of {}", bytes(progress.hydrated_bytes), bytes(progress.data_bytes)))
}

/// `512.0 MB copied ahead (pass 2, 40 %)`, if that was asked for.
fn ahead(migration: &Migration) -> Option<String> {
    let ahead = migration.progress.precopy.as_ref()?;
    let looked_at = percent(ahead.seen_bytes, ahead.size_bytes);
    Some(format!("{} copied ahead (pass {}, {looked_at} %)", bytes(ahead.copied_bytes), ahead.pass))
}

fn rate(migration: &Migration) -> Option<String> {
    let rate = migration.progress.rate_bytes_per_s;
    (rate > 0 && !migration.phase.is_over()).then(|| format!("{}/s", bytes(rate)))
}

fn eta(migration: &Migration) -> Option<String> {
    migration.progress.eta_s.filter(|_| !migration.phase.is_over()).map(left)
}

/// Until the target runs it, the time still goes on.
fn is_down(migration: &Migration) -> bool {
    matches!(migration.phase, MigrationPhase::HandingOff | MigrationPhase::Starting)
}

/// A row of `migration list`.
pub fn row(migration: &Migration) -> Vec<String> {
    let or_nothing = |text: Option<String>| text.unwrap_or_else(|| NOTHING.to_owned());
    let share = filled(migration).map(|text| {
        format!("{text} ({} %)", percent(migration.progress.hydrated_bytes, migration.progress.data_bytes))
    });
    vec![
        migration.id.to_string(),
        subject(migration),
        migration.app.to_string(),
        migration.source.to_string(),
        migration.target.to_string(),
        phase(migration.phase).to_owned(),
        or_nothing(share),
        or_nothing(rate(migration)),
        or_nothing(eta(migration)),
        or_nothing(migration.progress.downtime_ms.map(ms)),
        migration.started_at.clone(),
        note(migration),
    ]
}

/// What is worth an operator's look.
fn note(migration: &Migration) -> String {
    let mut notes = Vec::new();
    if let Some(why) = stalled(migration) {
        notes.push(format!("stalled: {why}"));
    }
    if migration.cancel_requested && !migration.phase.is_over() {
        notes.push("asked to end".to_owned());
    }
    notes.extend(migration.reason.clone());
    notes.join("; ")
}

/// Names and values of `migration show`.
pub fn facts(migration: &Migration) -> Vec<(&'static str, String)> {
    let progress = &migration.progress;
    let mut facts = vec![
        ("Migration", migration.id.to_string()),
        ("Moves", moved_things(migration)),
        ("App", migration.app.to_string()),
        ("From", migration.source.to_string()),
        ("To", migration.target.to_string()),
        ("Phase", phase(migration.phase).to_owned()),
    ];
    facts.extend(stalled(migration).map(|why| ("Stalled", why)));
    facts.extend(migration.reason.clone().map(|why| ("Reason", why)));
    if migration.cancel_requested && !migration.phase.is_over() {
        facts.push(("Asked to end", "yes; its source decides".to_owned()));
    }
    facts.push(("Requested by", migration.requested_by.clone()));
    facts.push(("Started", migration.started_at.clone()));
    facts.extend(migration.ended_at.clone().map(|when| ("Ended", when)));
    facts.push(("Took", format!("{:.1} s", migration.seconds)));
    facts.extend(progress.downtime_ms.map(|down| ("Downtime", ms(down))));
    if let Some(ahead) = &progress.precopy {
        let (copied, wire) = (bytes(ahead.copied_bytes), bytes(ahead.wire_bytes));
        facts.push(("Copied ahead", format!("{copied} in {} passes, {wire} on the wire", ahead.pass)));
    }
    if let Some(filled) = filled(migration) {
        let rest = [rate(migration), eta(migration).map(|left| format!("{left} left"))];
        let parts: Vec<String> = [Some(filled)].into_iter().chain(rest).flatten().collect();
        facts.push(("Filled", parts.join(", ")));
        facts.push(("On the wire", bytes(progress.wire_bytes)));
        facts.push(("Blocks", format!("{} of {}", progress.done_blocks, progress.total_blocks)));
        facts.push(("Demand fetches", progress.demand_fetches.to_string()));
        facts.push(("Fetched again", progress.mismatches.to_string()));
        facts.push(("Verified", if progress.verified { "yes" } else { "not yet" }.to_owned()));
    }
    let at_running = progress.map_permille_at_running.map(|full| format!("{:.1} %", full as f64 / 10.0));
    facts.extend(at_running.map(|full| ("Data there when it ran", full)));
    facts.extend(progress.first_read_ms.map(|time| ("First read", format!("{time:.1} ms"))));
    facts
}

/// Names and values of a dry run.
pub fn plan(plan: &Migration) -> Vec<(&'static str, String)> {
    let mut facts =
        vec![("Would move", moved_things(plan)), ("From", plan.source.to_string()), ("To", plan.target.to_string())];
    if plan.progress.data_bytes > 0 {
        facts.push(("Data", bytes(plan.progress.data_bytes)));
    }
    facts
}

fn moved_things(migration: &Migration) -> String {
    let volumes: Vec<&str> = migration.volumes.iter().map(|volume| volume.as_str()).collect();
    match (&migration.machine, volumes.is_empty()) {
        (Some(machine), true) => format!("Machine {machine}"),
        (Some(machine), false) => format!("Machine {machine} with {}", volumes.join(", ")),
        (None, _) => volumes.join(", "),
    }
}

/// What is new since it was last looked at, one line each: the phase, and whether it stalls.
pub fn changes(before: Option<&Migration>, now: &Migration) -> Vec<String> {
    let mut lines = Vec::new();
    // How it ended well is told by its summary.
    if before.is_none_or(|before| before.phase != now.phase) && now.phase != MigrationPhase::Completed {
        lines.push(format!("{}: {}", phase(now.phase), meaning(now)));
    }
    if now.cancel_requested && before.is_some_and(|before| !before.cancel_requested) && !now.phase.is_over() {
        lines.push("asked to end: its source decides".to_owned());
    }
    match (before.and_then(stalled), stalled(now)) {
        (old, Some(why)) if old.as_ref() != Some(&why) => lines.push(format!("stalled: {why}")),
        (Some(_), None) if !now.phase.is_over() => lines.push("goes on again".to_owned()),
        _ => {}
    }
    lines.into_iter().map(|line| format!("{:6.1} s  {line}", now.seconds)).collect()
}

/// What goes on in this phase, with what is known of it.
fn meaning(migration: &Migration) -> String {
    let Migration { source, target, progress, .. } = migration;
    let mut parts = match migration.phase {
        MigrationPhase::Preparing => {
            vec![format!("{target} reserves room and pulls the image; the Machine still runs on {source}")]
        }
        MigrationPhase::HandingOff => vec![format!("{source} lets requests end and hands off")],
        MigrationPhase::Starting => vec![format!("{target} takes over")],
        MigrationPhase::Hydrating => vec![format!("it is at {target}, and its data follows")],
        MigrationPhase::Completed | MigrationPhase::Cancelled | MigrationPhase::Failed => vec![whereabouts(migration)],
    };
    if migration.phase == MigrationPhase::Hydrating {
        parts.extend(filled(migration));
    }
    parts.extend(progress.downtime_ms.map(|down| {
        if is_down(migration) {
            format!("down for {} so far", ms(down))
        } else {
            format!("it was down for {}", ms(down))
        }
    }));
    parts.join(", ")
}

/// Where it is after its end.
fn whereabouts(migration: &Migration) -> String {
    match migration.phase {
        MigrationPhase::Completed => format!("{} is at {}", subject(migration), migration.target),
        _ => format!("{} stays at {}", subject(migration), migration.source),
    }
}

/// What a bar shows.
#[derive(Debug, PartialEq, Eq)]
pub struct Gauge {
    pub phase: &'static str,
    /// Bytes filled and bytes in all; nothing while it is not known how much there is.
    pub filled: Option<(u64, u64)>,
    /// Bytes, rate, time left and downtime so far in words, as far as they are known; or that nothing moves.
    pub message: String,
}

pub fn gauge(migration: &Migration) -> Gauge {
    let progress = &migration.progress;
    let parts = [
        stalled(migration).map(|why| format!("STALLED: {why}")),
        ahead(migration).filter(|_| migration.phase == MigrationPhase::Preparing),
        filled(migration),
        rate(migration),
        eta(migration).map(|left| format!("{left} left")),
        progress
            .downtime_ms
            .map(|down| format!("down for {}{}", ms(down), if is_down(migration) { " so far" } else { "" })),
        (migration.cancel_requested && !migration.phase.is_over()).then(|| "asked to end".to_owned()),
    ];
    let ahead = progress.precopy.as_ref().filter(|_| migration.phase == MigrationPhase::Preparing);
    let filled = (progress.data_bytes > 0)
        .then_some((progress.hydrated_bytes.min(progress.data_bytes), progress.data_bytes))
        .or_else(|| ahead.map(|ahead| (ahead.seen_bytes, ahead.size_bytes)));
    Gauge { phase: phase(migration.phase), filled, message: parts.into_iter().flatten().collect::<Vec<_>>().join(", ") }
}

/// How it ended: the summary, or why it did not come to be and what next.
pub fn ending(migration: &Migration) -> Result<String, CliError> {
    let Migration { id, app, source, target, seconds, progress, .. } = migration;
    if migration.phase == MigrationPhase::Completed {
        let down =
            progress.downtime_ms.map_or_else(|| "without downtime".to_owned(), |down| format!("down for {}", ms(down)));
        let moved = format!("{} moved from {source} to {target} in {seconds:.1} s", subject(migration));
        return Ok(format!("Migration {id} is completed: {moved}, {down}{}.", copied(migration)));
    }
    let why = migration.reason.as_deref().unwrap_or("no reason was given");
    let down = progress.downtime_ms.filter(|down| *down > 0).map(|down| format!(" It was down for {}.", ms(down)));
    let was = if migration.phase == MigrationPhase::Cancelled { "was cancelled" } else { "failed" };
    let message = format!(
        "migration {id} {was} after {seconds:.1} s: {why}. {}.{}",
        capital(&whereabouts(migration)),
        down.unwrap_or_default()
    );
    let again = match (&migration.machine, migration.volumes.first()) {
        (Some(machine), _) => format!("`godwit machine migrate {machine} -a {app}` tries again"),
        (None, Some(volume)) => format!("`godwit volumes migrate {volume} -a {app}` tries again"),
        (None, None) => "look at it, then try again".to_owned(),
    };
    Err(CliError::failed(message).hint(format!("`godwit migration show {id}` shows each step; {again}")))
}

fn copied(migration: &Migration) -> String {
    let progress = &migration.progress;
    if migration.volumes.is_empty() {
        return String::new();
    }
    let verified = if progress.verified { "every block verified" } else { "NOT verified" };
    let again = match progress.mismatches {
        0 => String::new(),
        1 => ", 1 block fetched again".to_owned(),
        count => format!(", {count} blocks fetched again"),
    };
    format!(
        "; {} copied, {} on the wire, {verified}{again}",
        bytes(progress.hydrated_bytes),
        bytes(progress.wire_bytes)
    )
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// Whether asking it to end has come to something; nothing while its source has not decided.
pub fn cancel_verdict(migration: &Migration) -> Option<Result<(), CliError>> {
    let Migration { id, target, .. } = migration;
    match migration.phase {
        MigrationPhase::Cancelled | MigrationPhase::Failed => Some(Ok(())),
        // With the data on its way behind a running Machine there is no way back.
        MigrationPhase::Completed | MigrationPhase::Hydrating => {
            let error =
                CliError::new(Exit::Conflict, format!("that came too late: {} is at {target}", subject(migration)));
            Some(Err(error
                .hint(format!("`godwit migration show {id}` shows each step; moving it back is a move of its own"))))
        }
        MigrationPhase::Preparing | MigrationPhase::HandingOff | MigrationPhase::Starting => None,
    }
}

pub fn called_off(migration: &Migration) -> String {
    let failed = match (&migration.reason, migration.phase) {
        (Some(why), MigrationPhase::Failed) => format!(" (it had failed: {why})"),
        _ => String::new(),
    };
    format!("Migration {} is called off{failed}: {}.", migration.id, whereabouts(migration))
}

#[cfg(test)]
mod tests {
    use godwit_api::migration::MigrationProgress;

    use super::*;

    fn moving(phase: MigrationPhase) -> Migration {
        let migration = serde_json::json!({
            "id": "mig_00000000000abc", "app": "shop", "machine": "00000000000007", "volumes": ["vol_00000000000001"],
            "source": "w1", "target": "w2", "phase": phase, "requested_by": "operator", "started_at": "2026-01-01T00:00:00Z",
            "seconds": 12.34, "cancel_requested": false, "is_stalled": false, "progress": {}, "events": [],
        });
        serde_json::from_value(migration).unwrap()
    }

    fn hydrating() -> Migration {
        let progress = MigrationProgress {
            downtime_ms: Some(182),
            data_bytes: 1_100_000_000,
            hydrated_bytes: 612_000_000,
            wire_bytes: 612_500_000,
            rate_bytes_per_s: 95_100_000,
            eta_s: Some(65),
            ..MigrationProgress::default()
        };
        Migration { progress, ..moving(MigrationPhase::Hydrating) }
    }

    #[test]
    fn a_bar_tells_bytes_rate_time_left_and_downtime_so_far() {
        let shown = gauge(&hydrating());
        assert_eq!(shown.phase, "hydrating");
        assert_eq!(shown.filled, Some((612_000_000, 1_100_000_000)));
        assert_eq!(shown.message, "612.0 MB of 1.1 GB, 95.1 MB/s, 1 min 5 s left, down for 182 ms");
        let mut starting = moving(MigrationPhase::Starting);
        starting.progress.downtime_ms = Some(1_230);
        let shown = gauge(&starting);
        assert_eq!((shown.filled, shown.message.as_str()), (None, "down for 1.2 s so far"));
    }

    #[test]
    fn a_stalled_move_is_called_out_in_words() {
        let mut migration = hydrating();
        migration.progress.stalled = Some("w1 does not answer".into());
        assert!(gauge(&migration).message.starts_with("STALLED: w1 does not answer, "));
        assert!(row(&migration).last().unwrap().starts_with("stalled: w1 does not answer"));
        assert!(facts(&migration).contains(&("Stalled", "w1 does not answer".into())));
        let silent = Migration { is_stalled: true, ..hydrating() };
        assert_eq!(row(&silent).last().unwrap(), "stalled: no step ended and no byte moved for a while");
        // What is over stalls no more, whatever its last report says.
        assert_eq!(stalled(&Migration { phase: MigrationPhase::Completed, ..migration }), None);
    }

    #[test]
    fn one_line_is_written_for_each_change() {
        let (first, then) = (moving(MigrationPhase::Preparing), hydrating());
        let begun = changes(None, &first);
        assert_eq!(begun, ["  12.3 s  preparing: w2 reserves room and pulls the image; the Machine still runs on w1"]);
        assert!(changes(Some(&first), &first).is_empty());
        let more = "  12.3 s  hydrating: it is at w2, and its data follows, 612.0 MB of 1.1 GB, it was down for 182 ms";
        assert_eq!(changes(Some(&first), &then), [more]);
        let mut stuck = then.clone();
        stuck.progress.stalled = Some("w1 does not answer".into());
        assert_eq!(changes(Some(&then), &stuck), ["  12.3 s  stalled: w1 does not answer"]);
        assert!(changes(Some(&stuck), &stuck).is_empty());
        assert_eq!(changes(Some(&stuck), &then), ["  12.3 s  goes on again"]);
        let asked = Migration { cancel_requested: true, ..first.clone() };
        assert_eq!(changes(Some(&first), &asked), ["  12.3 s  asked to end: its source decides"]);
        // The summary tells how it ended.
        assert!(changes(Some(&stuck), &Migration { phase: MigrationPhase::Completed, ..stuck.clone() }).is_empty());
    }

    #[test]
    fn the_end_is_told_with_downtime_bytes_seconds_and_whether_it_was_verified() {
        let mut migration = Migration { phase: MigrationPhase::Completed, ..hydrating() };
        migration.progress.verified = true;
        assert_eq!(
            ending(&migration).unwrap(),
            "Migration mig_00000000000abc is completed: Machine 00000000000007 moved from w1 to w2 in 12.3 s, down for \
             182 ms; 612.0 MB copied, 612.5 MB on the wire, every block verified."
        );
        migration.progress.mismatches = 2;
        assert!(ending(&migration).unwrap().ends_with("every block verified, 2 blocks fetched again."));
        migration.progress.verified = false;
        assert!(ending(&migration).unwrap().contains("NOT verified"));
        let bare = Migration { volumes: Vec::new(), ..moving(MigrationPhase::Completed) };
        assert!(ending(&bare).unwrap().ends_with("moved from w1 to w2 in 12.3 s, without downtime."));
    }

    #[test]
    fn a_move_that_did_not_come_to_be_says_why_where_it_is_and_what_next() {
        let mut migration = Migration { reason: Some("w2's disk is full".into()), ..moving(MigrationPhase::Failed) };
        migration.progress.downtime_ms = Some(400);
        let error = ending(&migration).unwrap_err();
        assert_eq!(error.exit, Exit::Failed);
        assert_eq!(
            error.message,
            "migration mig_00000000000abc failed after 12.3 s: w2's disk is full. Machine 00000000000007 stays at w1. \
             It was down for 400 ms."
        );
        let hint = error.hint.unwrap();
        assert!(hint.contains("migration show mig_00000000000abc"), "{hint}");
        assert!(hint.contains("machine migrate 00000000000007 -a shop"), "{hint}");
        let cancelled = Migration { machine: None, ..moving(MigrationPhase::Cancelled) };
        let error = ending(&cancelled).unwrap_err().to_string();
        assert!(error.contains("was cancelled") && error.contains("Volume vol_00000000000001 stays at w1"), "{error}");
        assert!(error.contains("volumes migrate vol_00000000000001"), "{error}");
    }

    #[test]
    fn a_cancel_ends_well_only_before_the_handoff() {
        use MigrationPhase::*;
        for (phase, ends_well) in [
            (Preparing, None),
            (HandingOff, None),
            (Starting, None),
            (Cancelled, Some(true)),
            (Failed, Some(true)),
            (Hydrating, Some(false)),
            (Completed, Some(false)),
        ] {
            assert_eq!(cancel_verdict(&moving(phase)).map(|verdict| verdict.is_ok()), ends_well, "{phase:?}");
        }
    }

    #[test]
    fn spans_and_shares_are_told_shortly() {
        assert_eq!([left(0), left(59), left(200), left(7_500)], ["0 s", "59 s", "3 min 20 s", "2 h 5 min"]);
        assert_eq!(
            (percent(999, 1000), percent(0, 0), percent(5, 2), percent(u64::MAX, u64::MAX)),
            (99, 100, 100, 100)
        );
    }
}
