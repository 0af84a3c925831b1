//! A database goes out through `machine exec` and comes back in.

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::Duration;

use godwit_api::machine::MachineState;
use godwit_lab::fleet::{Fleet, binary, eventually};
use serde_json::json;

use crate::postgres::postgres_image;
use crate::support::run;

/// The first start makes the cluster.
const PATIENCE: Duration = Duration::from_secs(120);
/// Some 4 MB of dump: four times what one answer in JSON may hold.
const ROWS: u32 = 100_000;

/// A program of the image's PostgreSQL, inside.
fn inside(fleet: &Fleet, machine: &str, line: &str) -> Command {
    let dev = fleet.dev().expect("dev.json");
    let line = format!("exec /usr/lib/postgresql/*/bin/{line}");
    let mut command = Command::new(binary("godwit").expect("it is built"));
    command.args(["machine", "exec", "-i", "-a", "db", machine, "--", "sh", "-c", &line]);
    command.env("GODWIT_API_URL", dev.api_url).env("GODWIT_TOKEN", dev.token).stdin(Stdio::null());
    command
}

fn sql(fleet: &Fleet, machine: &str, database: &str, text: &str) -> anyhow::Result<String> {
    let line = format!("psql -h 127.0.0.1 -U postgres -d {database} -XqAt -v ON_ERROR_STOP=1 -c \"{text}\"");
    let output = inside(fleet, machine, &line).output()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

#[test]
fn a_dump_through_exec_restores_to_the_same_rows() {
    run(async {
        let fleet = Fleet::start(1, &[]).expect("the dev fleet starts");
        let image = postgres_image();
        fleet.cli_ok(&["image", "load", image.to_str().expect("UTF-8"), "--name", "postgres"]).expect("it loads");
        fleet.create_app("db").await.expect("the app");
        let config = json!({ "image": "postgres", "guest": { "cpu_kind": "shared", "cpus": 1, "memory_mb": 256 } });
        let machine = fleet.create_machine("db", json!({ "config": config })).await.expect("the Machine");
        let id = machine.id.as_str().to_owned();
        fleet.wait_state("db", &id, &[MachineState::Started], PATIENCE).await.expect("it starts");
        let up = async || Ok(sql(&fleet, &id, "postgres", "select 1").ok());
        eventually("the database answers", PATIENCE, up).await.expect("up");
        let fill = format!("create table t as select n, md5(n::text) as h from generate_series(1, {ROWS}) n");
        sql(&fleet, &id, "postgres", &fill).expect("rows");

        let dump = fleet.dir().join("dump.sql");
        let status = inside(&fleet, &id, "pg_dump -h 127.0.0.1 -U postgres postgres")
            .stdout(File::create(&dump).expect("a file"))
            .status()
            .expect("pg_dump runs");
        assert!(status.success());
        assert!(std::fs::metadata(&dump).expect("the dump").len() > 3 << 20);
        sql(&fleet, &id, "postgres", "create database again").expect("a database");
        let status = inside(&fleet, &id, "psql -h 127.0.0.1 -U postgres -d again -Xq -v ON_ERROR_STOP=1")
            .stdin(File::open(&dump).expect("the dump"))
            .stdout(Stdio::null())
            .status()
            .expect("psql runs");
        assert!(status.success());
        let all = "select count(*), md5(string_agg(n || h, ',' order by n)) from t";
        let (before, after) = (sql(&fleet, &id, "postgres", all).unwrap(), sql(&fleet, &id, "again", all).unwrap());
        assert!(before.starts_with(&ROWS.to_string()) && before == after, "{before} {after}");
    });
}

#[test]
fn a_cluster_at_the_root_of_a_volume_is_refused_by_initdb_as_on_any_ext4_and_a_folder_below_it_works() {
    run(async {
        let fleet = Fleet::start(1, &[]).expect("the dev fleet starts");
        let image = postgres_image();
        fleet.cli_ok(&["image", "load", image.to_str().expect("UTF-8"), "--name", "postgres"]).expect("it loads");
        fleet.create_app("db").await.expect("the app");
        let volume = fleet.cli_ok(&["volumes", "create", "root", "-a", "db", "--size", "1"]).expect("a volume");
        let config = json!({
            "image": "postgres",
            "guest": { "cpu_kind": "shared", "cpus": 1, "memory_mb": 256 },
            "init": { "exec": ["/bin/sh", "-c", "exec sleep 100000"] },
            "mounts": [{ "volume": volume.trim(), "path": "/root-of-it", "uid": 999, "gid": 999 }],
        });
        let machine = fleet.create_machine("db", json!({ "config": config })).await.expect("the Machine");
        let id = machine.id.as_str().to_owned();
        fleet.wait_state("db", &id, &[MachineState::Started], PATIENCE).await.expect("it starts");
        let initdb = |folder: &str| {
            let dev = fleet.dev().expect("dev.json");
            let line =
                format!("LC_ALL=C exec /usr/lib/postgresql/*/bin/initdb -D {folder} --no-locale --encoding=UTF8");
            let mut command = Command::new(binary("godwit").expect("it is built"));
            command.args(["machine", "exec", "-a", "db", "--user", "postgres", &id, "--", "sh", "-c", &line]);
            command.env("GODWIT_API_URL", dev.api_url).env("GODWIT_TOKEN", dev.token).stdin(Stdio::null());
            command.output().expect("the command line runs")
        };
        let refused = initdb("/root-of-it");
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains("lost+found"), "{}: {said}", refused.status);
        let made = initdb("/root-of-it/data");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    });
}
