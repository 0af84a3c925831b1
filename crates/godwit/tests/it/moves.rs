//! Moves by the command line: begun, followed on a pipe and on a terminal, called off, and told apart by exit code.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::api::Api;
use crate::cli::{godwit_with, home, stderr, stdout};
use crate::volumes::{MACHINE, lay_over, machine, volume};

const ID: &str = "mig_00000000000abc";
const LOOK: &str = "GET /v1/migrations/mig_00000000000abc";

fn migration(phase: &str, changes: Value) -> Value {
    let mut migration = json!({
        "id": ID, "app": "shop", "machine": MACHINE, "volumes": ["vol_00000000000001"], "source": "w1", "target": "w2",
        "phase": phase, "requested_by": "operator", "started_at": "2026-01-01T00:00:00Z", "seconds": 3.25,
        "cancel_requested": false, "is_stalled": false, "progress": {}, "events": [],
    });
    lay_over(&mut migration, changes);
    migration
}

fn hydrating(hydrated_bytes: u64) -> Value {
    migration(
        "hydrating",
        json!({ "progress": {
            "downtime_ms": 182, "data_bytes": 1_000_000_000, "hydrated_bytes": hydrated_bytes,
            "wire_bytes": hydrated_bytes, "rate_bytes_per_s": 95_000_000, "eta_s": 4,
        }}),
    )
}

fn completed() -> Value {
    migration(
        "completed",
        json!({ "ended_at": "2026-01-01T00:00:12Z", "seconds": 12.5, "progress": {
            "downtime_ms": 182, "data_bytes": 1_000_000_000, "hydrated_bytes": 1_000_000_000,
            "wire_bytes": 1_001_000_000, "verified": true,
        }}),
    )
}

/// The whole of a move that goes well, and a stall on the way.
fn going_well() -> Vec<(u16, Value)> {
    let mut stalled = hydrating(400_000_000);
    stalled["progress"]["stalled"] = json!("w1 does not answer");
    let down = json!({ "progress": { "downtime_ms": 90 } });
    vec![
        (200, migration("preparing", json!({ "seconds": 0.1 }))),
        (200, migration("preparing", json!({ "seconds": 0.3 }))),
        (200, migration("handing_off", down)),
        (200, hydrating(100_000_000)),
        (200, stalled),
        (200, hydrating(700_000_000)),
        (200, completed()),
    ]
}

fn api() -> Api {
    let api = Api::start();
    api.on(&format!("GET /v1/apps/shop/machines/{MACHINE}"), [(200, machine(json!({ "image": "img" })))])
        .on("GET /v1/apps/shop/volumes/vol_00000000000001", [(200, volume(1, "data", json!({})))]);
    api
}

fn migrate() -> String {
    format!("POST /v1/apps/shop/machines/{MACHINE}/migrate")
}

fn run(api: &Api, arguments: &[&str]) -> Output {
    godwit_with(home().path(), arguments, &[("GODWIT_API_URL", &api.url), ("GODWIT_APP", "shop")])
}

#[test]
fn a_move_is_followed_line_by_line_where_no_terminal_is() {
    let api = api();
    api.on(LOOK, going_well());
    let watched = run(&api, &["migration", "watch", ID]);
    assert!(watched.status.success(), "{}", stderr(&watched));
    let expected = "   0.1 s  preparing: w2 reserves room and pulls the image; the Machine still runs on w1\n   \
        3.2 s  handing off: w1 lets requests end and hands off, down for 90 ms so far\n   \
        3.2 s  hydrating: it is at w2, and its data follows, 100.0 MB of 1.0 GB, it was down for 182 ms\n   \
        3.2 s  stalled: w1 does not answer\n   \
        3.2 s  goes on again\n\
        Migration mig_00000000000abc is completed: Machine 0000000000000a moved from w1 to w2 in 12.5 s, down for \
        182 ms; 1.0 GB copied, 1.0 GB on the wire, every block verified.\n";
    assert_eq!(stdout(&watched), expected);
    assert_eq!(stderr(&watched), "");

    api.on(LOOK, going_well());
    let lines = stdout(&run(&api, &["migration", "watch", ID, "--json"]));
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON a line")).collect();
    let phases: Vec<&str> = lines.iter().map(|line| line["phase"].as_str().expect("a phase")).collect();
    // That time went by is no change, more bytes are.
    assert_eq!(phases, ["preparing", "handing_off", "hydrating", "hydrating", "hydrating", "completed"]);

    api.on(LOOK, going_well());
    let quiet = run(&api, &["migration", "watch", ID, "--quiet"]);
    assert!(quiet.status.success() && quiet.stdout.is_empty() && quiet.stderr.is_empty());
}

#[test]
fn migrate_sends_what_was_asked_and_waits_to_the_end() {
    let api = api();
    api.on(&migrate(), [(202, migration("preparing", json!({})))]).on(LOOK, going_well());
    let moved =
        run(&api, &["machine", "migrate", MACHINE, "--to", "w2", "--drain-timeout", "2500ms", "--rate", "100MiB/s"]);
    assert!(moved.status.success(), "{}", stderr(&moved));
    assert_eq!(stdout(&moved), format!("{ID}\n"), "a script gets the id alone");
    let told = stderr(&moved);
    for words in ["moves from w1 to w2", "handing off: ", "down for 182 ms; 1.0 GB copied", "every block verified"] {
        assert!(told.contains(words), "should say {words:?}: {told}");
    }
    let wanted = json!({ "host": "w2", "drain_timeout_ms": 2500, "rate_bytes_per_s": 100 << 20 });
    assert_eq!(api.sent(&migrate()), [wanted]);

    api.on(LOOK, [(200, completed())]);
    let json = run(&api, &["machine", "migrate", MACHINE, "--region", "ams", "--wait", "--json"]);
    let json: Value = serde_json::from_str(&stdout(&json)).expect("one JSON object");
    assert_eq!(json["phase"], "completed");
    assert_eq!(api.sent(&migrate())[1], json!({ "region": "ams" }));

    let looks = api.sent(LOOK).len();
    let detached = run(&api, &["machine", "migrate", MACHINE, "--detach"]);
    assert_eq!(stdout(&detached), format!("{ID}\n"));
    assert!(stderr(&detached).contains(&format!("godwit migration watch {ID}")), "{}", stderr(&detached));
    assert_eq!(api.sent(LOOK).len(), looks, "detached, nothing is looked at");
    assert_eq!(api.sent(&migrate())[2], json!({}), "unset flags say nothing");
}

#[test]
fn a_volume_that_nothing_holds_moves_alike_and_a_held_one_is_explained() {
    let api = api();
    let call = "POST /v1/apps/shop/volumes/vol_00000000000001/migrate";
    let mut alone = completed();
    lay_over(
        &mut alone,
        json!({ "machine": null, "progress": {
        "data_bytes": 5_000_000, "hydrated_bytes": 5_000_000, "wire_bytes": 5_000_000, "verified": true } }),
    );
    api.on(call, [(202, migration("preparing", json!({ "machine": null })))]).on(LOOK, [(200, alone)]);
    let moved = run(&api, &["volumes", "migrate", "vol_00000000000001", "--to", "w2"]);
    assert!(moved.status.success(), "{}", stderr(&moved));
    assert!(stderr(&moved).contains("volume vol_00000000000001 moved from w1 to w2"), "{}", stderr(&moved));

    let held = volume(1, "data", json!({ "attached_machine_id": MACHINE }));
    api.on("GET /v1/apps/shop/volumes/vol_00000000000001", [(200, held)])
        .on(call, [(409, json!({ "error": "a Machine holds it", "status": "conflict" }))]);
    let refused = run(&api, &["volumes", "migrate", "vol_00000000000001"]);
    assert_eq!(refused.status.code(), Some(4));
    assert!(stderr(&refused).contains(&format!("godwit machine migrate {MACHINE} -a shop")), "{}", stderr(&refused));
}

#[test]
fn a_dry_run_tells_what_would_be_done_and_looks_no_further() {
    let api = api();
    let step =
        json!({ "timestamp": 1_767_225_600_000u64, "phase": "preparing", "at": "w2", "detail": "reserve 10 GB" });
    let plan = json!({ "dry_run": true, "events": [step], "progress": { "data_bytes": 1_000_000_000 } });
    api.on(&migrate(), [(202, migration("preparing", plan.clone()))]);
    let told = run(&api, &["machine", "migrate", MACHINE, "--dry-run"]);
    assert!(told.status.success(), "{}", stderr(&told));
    for words in [&format!("Machine {MACHINE} with vol_00000000000001"), "w2", "1.0 GB", "reserve 10 GB"] {
        assert!(stdout(&told).contains(words), "should say {words:?}: {}", stdout(&told));
    }
    assert!(stderr(&told).contains("nothing was changed"), "{}", stderr(&told));
    assert_eq!(api.sent(&migrate()), [json!({ "dry_run": true })]);
    assert!(api.sent(LOOK).is_empty());
    let json: Value =
        serde_json::from_str(&stdout(&run(&api, &["machine", "migrate", MACHINE, "--dry-run", "--json"])))
            .expect("one JSON object");
    assert_eq!(json["dry_run"], true);

    let mut impossible = migration("failed", plan);
    impossible["reason"] = json!("no host in ams has room");
    api.on(&migrate(), [(202, impossible)]);
    let refused = run(&api, &["machine", "migrate", MACHINE, "--dry-run", "--region", "ams"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("could not move: no host in ams has room"), "{}", stderr(&refused));
    assert!(!stderr(&refused).contains("warning"));
}

/// A move that fails or is called off: exit code 1, why, where it is, and what next.
#[test]
fn a_move_that_does_not_come_to_be_says_why_and_what_next() {
    let api = api();
    for (phase, was) in [("failed", "failed"), ("cancelled", "was cancelled")] {
        let ended = migration(phase, json!({ "reason": "w2's disk is full", "progress": { "downtime_ms": 400 } }));
        api.on(&migrate(), [(202, migration("preparing", json!({})))])
            .on(LOOK, [(200, migration("starting", json!({}))), (200, ended)]);
        let moved = run(&api, &["machine", "migrate", MACHINE]);
        assert_eq!(moved.status.code(), Some(1), "{phase}");
        let told = stderr(&moved);
        let words = [was, "w2's disk is full", "stays at w1", "down for 400 ms", "migration show", "tries again"];
        for words in words {
            assert!(told.contains(words), "{phase} should say {words:?}: {told}");
        }
        assert!(moved.stdout.is_empty());
        let watched = run(&api, &["migration", "watch", ID]);
        assert_eq!(watched.status.code(), Some(1));
        assert!(stdout(&watched).contains(&format!("{phase}: Machine {MACHINE} stays at w1")), "{}", stdout(&watched));
        let json = run(&api, &["machine", "migrate", MACHINE, "--json"]);
        assert_eq!(json.status.code(), Some(1));
        let object: Value = serde_json::from_str(&stdout(&json)).expect("the object comes all the same");
        assert_eq!(object["reason"], "w2's disk is full");
    }
    let full = json!({ "error": "host w2 has no room", "status": "insufficient_capacity" });
    let taken = json!({ "error": "it is moving already", "status": "conflict" });
    for (code, error, exit, hint) in [(422, full, 1, "godwit host list"), (409, taken, 4, "godwit migration list")] {
        api.on(&migrate(), [(code, error)]);
        let refused = run(&api, &["machine", "migrate", MACHINE]);
        assert_eq!(refused.status.code(), Some(exit));
        assert!(stderr(&refused).contains(hint), "{}", stderr(&refused));
    }
    let unknown = run(&api, &["migration", "show", "mig_00000000000fff"]);
    assert_eq!(unknown.status.code(), Some(3));
    assert!(stderr(&unknown).contains("godwit migration list --all"), "{}", stderr(&unknown));
}

#[test]
fn moves_are_listed_and_stalled_ones_called_out() {
    let api = api();
    let mut stuck = hydrating(400_000_000);
    lay_over(&mut stuck, json!({ "id": "mig_00000000000def", "is_stalled": true }));
    api.on("GET /v1/migrations", [(200, json!([hydrating(700_000_000), stuck]))])
        .on("GET /v1/migrations?all=true&app=shop", [(200, json!([completed()]))]);
    let listed = run(&api, &["migration", "list"]);
    let table = stdout(&listed);
    assert!(table.contains("700.0 MB of 1.0 GB (70 %)") && table.contains("95.0 MB/s"), "{table}");
    let row = table.lines().find(|line| line.starts_with("mig_00000000000def")).expect("its row");
    assert!(row.ends_with("stalled: no step ended and no byte moved for a while"), "{row}");
    assert!(stderr(&listed).contains("1 move is stalled"), "{}", stderr(&listed));
    let ended = stdout(&run(&api, &["migrations", "ls", "--all", "--app", "shop"]));
    assert!(ended.contains("completed"), "{ended}");
    assert_eq!(stdout(&run(&api, &["migration", "list", "-q"])), format!("{ID}\nmig_00000000000def\n"));

    let mut shown = completed();
    shown["events"] =
        json!([{ "timestamp": 1_767_225_600_000u64, "phase": "handing_off", "at": "w1", "detail": "closed" }]);
    api.on(LOOK, [(200, shown)]);
    let shown = stdout(&run(&api, &["migration", "show", ID]));
    for words in ["182 ms", "1.0 GB of 1.0 GB", "2026-01-01T00:00:00Z", "handing off", "closed"] {
        assert!(shown.contains(words), "should say {words:?}: {shown}");
    }
}

#[test]
fn a_cancel_waits_for_the_source_and_says_when_it_came_too_late() {
    let api = api();
    let call = format!("POST /v1/migrations/{ID}/cancel");
    let asked = migration("handing_off", json!({ "cancel_requested": true }));
    api.on(&call, [(202, asked.clone())]).on(LOOK, [(200, asked.clone()), (200, migration("cancelled", json!({})))]);
    let cancelled = run(&api, &["migration", "cancel", ID]);
    assert!(cancelled.status.success(), "{}", stderr(&cancelled));
    assert!(stderr(&cancelled).contains("is called off: Machine 0000000000000a stays at w1"), "{}", stderr(&cancelled));
    api.on(LOOK, [(200, asked), (200, hydrating(1))]);
    let late = run(&api, &["migration", "cancel", ID]);
    assert_eq!(late.status.code(), Some(4));
    assert!(stderr(&late).contains("came too late: Machine 0000000000000a is at w2"), "{}", stderr(&late));
    let detached = run(&api, &["migration", "cancel", ID, "--detach", "--json"]);
    let object: Value = serde_json::from_str(&stdout(&detached)).expect("one JSON object");
    assert_eq!(object["cancel_requested"], true);
}

#[test]
fn looking_outlives_an_absence_of_control_and_ends_by_its_own_time() {
    let api = api();
    let gone = (503, json!({ "error": "control is starting", "status": "unavailable" }));
    api.on(LOOK, [(200, hydrating(1)), gone.clone(), gone, (200, completed())]);
    let watched = run(&api, &["migration", "watch", ID]);
    assert!(watched.status.success(), "{}", stderr(&watched));
    let told = stderr(&watched);
    assert_eq!(told.matches("control does not answer").count(), 1, "{told}");
    assert!(told.contains("control answers again"), "{told}");
    api.on(LOOK, [(200, hydrating(1))]);
    let late = run(&api, &["migration", "watch", ID, "--wait-timeout", "300ms"]);
    assert_eq!(late.status.code(), Some(6), "{}", stderr(&late));
    assert!(stderr(&late).contains("it continues") && stderr(&late).contains("migration watch"), "{}", stderr(&late));
}

/// A command that is ended when the test is, however that ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn spawn(api: &Api, stderr: Stdio) -> Running {
    let mut command = Command::new(env!("CARGO_BIN_EXE_godwit"));
    command.args(["migration", "watch", ID]).env_clear().env("HOME", "/").env("GODWIT_API_URL", &api.url);
    command.env("TERM", "xterm").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
    Running(command.spawn().expect("godwit runs"))
}

#[test]
fn ctrl_c_ends_the_looking_and_not_the_move() {
    let api = api();
    api.on(LOOK, [(200, hydrating(1))]);
    let mut watching = spawn(&api, Stdio::piped());
    let mut line = String::new();
    BufReader::new(watching.0.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
    assert!(line.contains("hydrating"), "{line}");
    // It listens for the signal before it looks a second time.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while api.sent(LOOK).len() < 2 && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    kill(Pid::from_raw(watching.0.id() as i32), Signal::SIGINT).expect("it runs");
    let mut told = String::new();
    watching.0.stderr.take().expect("piped").read_to_string(&mut told).expect("UTF-8");
    assert_eq!(watching.0.wait().expect("it ended").code(), Some(130), "{told}");
    assert!(told.contains(&format!("migration {ID} continues")), "{told}");
    assert!(told.contains(&format!("godwit migration watch {ID}")), "{told}");
    assert!(api.sent(&format!("POST /v1/migrations/{ID}/cancel")).is_empty());
}

#[test]
fn a_terminal_gets_a_bar_with_bytes_rate_time_left_and_downtime() {
    let api = api();
    api.on(
        LOOK,
        [
            (200, migration("preparing", json!({}))),
            (200, hydrating(250_000_000)),
            (200, hydrating(250_000_000)),
            (200, hydrating(750_000_000)),
            (200, hydrating(750_000_000)),
            (200, completed()),
        ],
    );
    let size = nix::pty::Winsize { ws_row: 24, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = nix::pty::openpty(Some(&size), None).expect("a terminal");
    let mut watching = spawn(&api, Stdio::from(pty.slave));
    let mut screen = Vec::new();
    let mut terminal = std::fs::File::from(pty.master);
    let mut part = [0; 4096];
    // Once nobody holds its other end, a terminal's reader gets EIO.
    while let Ok(count) = terminal.read(&mut part) {
        if count == 0 {
            break;
        }
        screen.extend_from_slice(&part[..count]);
    }
    let screen = String::from_utf8_lossy(&screen);
    let mut told = String::new();
    watching.0.stdout.take().expect("piped").read_to_string(&mut told).expect("UTF-8");
    assert!(watching.0.wait().expect("it ended").success(), "{screen}");
    for words in
        ["preparing", "hydrating [", "] 25 %, 250.0 MB of 1.0 GB, 95.0 MB/s, 4 s left, down for 182 ms", "75 %"]
    {
        assert!(screen.contains(words), "the bar should show {words:?}: {screen:?}");
    }
    assert!(told.ends_with("every block verified.\n"), "the pipe gets the story: {told}");
}
