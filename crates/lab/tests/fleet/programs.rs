//! Programs that people really run, as their own makers set them up (scripts/sample-images), each started by the command
//! line as a newcomer starts it: it runs and answers, or the first message names what is wrong. Knows no role from inside.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::StreamExt;
use godwit_lab::fleet::{Fleet, binary, eventually, free_port};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{PATIENCE, run};

/// Programs that are tried at the same time.
const SIDE_BY_SIDE: usize = 4;
/// By then a command has ended that starts what cannot run: all of these come to grief within two seconds of their start, and
/// are started three times at most, on a machine that may be busy.
const FAILS_WITHIN: Duration = Duration::from_secs(60);
/// Who waits for a start waits no longer.
const WAIT_TIMEOUT: &str = "90s";

/// What a newcomer sees.
#[derive(Clone, Copy)]
enum Expect {
    /// `GET /` is answered 200 with this in its body.
    Http(&'static str),
    /// These bytes are answered with something that begins so, over a raw port.
    Tcp(&'static [u8], &'static [u8]),
    /// No port: this stands in its log.
    Log(&'static str),
    /// The command fails and says all of this.
    Fails(&'static [&'static str]),
    /// The command succeeds, and the 503 says all of this.
    Unreachable(&'static [&'static str]),
}

struct Program {
    name: &'static str,
    image: &'static str,
    /// Public port 80 leads here, as HTTP; 0 for none.
    port: u16,
    flags: &'static [&'static str],
    command: &'static [&'static str],
    expect: Expect,
}

const fn http(name: &'static str, port: u16, body: &'static str) -> Program {
    Program { name, image: name, port, flags: &[], command: &[], expect: Expect::Http(body) }
}

const fn ends(name: &'static str, flags: &'static [&'static str], expect: Expect) -> Program {
    Program { name, image: "ends", port: 8000, flags, command: &[], expect }
}

const POSTGRES_SSL_REQUEST: &[u8] = &[0, 0, 0, 8, 4, 210, 22, 47];

const PROGRAMS: &[Program] = &[
    http("nginx", 80, "Welcome to nginx!"),
    http("nginx-entrypoint", 80, "Welcome to nginx!"),
    http("nginx-unprivileged", 8080, "unprivileged"),
    http("apache2", 80, "Welcome to nginx!"),
    http("lighttpd", 80, "Welcome to nginx!"),
    http("haproxy", 8404, "haproxy"),
    http("nats", 8222, "nats"),
    http("uvicorn", 8000, "fastapi"),
    http("gunicorn", 8000, "flask"),
    http("flask", 5000, "flask"),
    http("http-server", 8000, "web.py"),
    http("http-server-v4", 8000, "web.py"),
    http("node", 3000, "node"),
    http("node-v4", 3000, "node"),
    http("express", 3000, "express"),
    Program { flags: &["--vm-memory", "512"], ..http("java", 8080, "java") },
    http("php", 80, "php 8"),
    http("static", 8080, "static"),
    Program {
        name: "redis",
        image: "redis",
        port: 0,
        flags: &["--volume", "redis:/data", "--port", "RAW:6379"],
        command: &["redis-server", "--protected-mode", "no", "--bind", "0.0.0.0", "--appendonly", "yes"],
        expect: Expect::Tcp(b"SET a 1\r\nPING\r\n", b"+OK\r\n+PONG"),
    },
    Program {
        name: "postgres",
        image: "postgres",
        port: 0,
        flags: &["--volume", "postgres:/var/lib/postgresql/data", "--port", "RAW:5432", "--vm-memory", "512"],
        command: &[],
        expect: Expect::Tcp(POSTGRES_SSL_REQUEST, b"N"),
    },
    Program {
        name: "memcached",
        image: "memcached",
        port: 0,
        flags: &["--port", "RAW:11211"],
        command: &[],
        expect: Expect::Tcp(b"version\r\n", b"VERSION"),
    },
    Program { name: "cron", image: "cron", port: 0, flags: &[], command: &[], expect: Expect::Log("tick 2") },
    Program { name: "worker", image: "worker", port: 0, flags: &[], command: &[], expect: Expect::Log("job 2 done") },
    Program {
        name: "command",
        image: "nginx",
        port: 0,
        flags: &[],
        command: &["nginx", "-v"],
        expect: Expect::Log("nginx version"),
    },
    ends("slow", &["--env", "LISTEN_AFTER=20"], Expect::Http("web.py")),
    Program { expect: Expect::Unreachable(&["127.0.0.1:5000", "0.0.0.0"]), ..http("flask-local", 5000, "") },
    Program {
        name: "uvicorn-wrong-port",
        expect: Expect::Unreachable(&["0.0.0.0:8000", "8080"]),
        ..http("uvicorn", 8080, "")
    },
    ends("dies-at-once", &["--env", "AFTER=0", "--env", "CODE=7"], Expect::Fails(&["code 7", "giving up"])),
    ends("dies-after-1s", &["--env", "AFTER=1", "--env", "CODE=3"], Expect::Fails(&["code 3", "giving up"])),
    ends("raises", &["--env", "RAISE=no SECRET_KEY is set"], Expect::Fails(&["RuntimeError: no SECRET_KEY is set"])),
    ends("eats-memory", &["--env", "MEMORY_MB=2000", "--vm-memory", "256"], Expect::Fails(&["out of memory"])),
    Program {
        name: "no-program",
        image: "nginx",
        port: 80,
        flags: &[],
        command: &["/no/such"],
        expect: Expect::Fails(&["/no/such", "does not exist"]),
    },
    Program {
        name: "no-command-in-path",
        image: "gunicorn",
        port: 8000,
        flags: &[],
        command: &["gunicron", "web:app"],
        expect: Expect::Fails(&["gunicron", "not found", "PATH"]),
    },
    // Known only after half a minute, when it was long said to have started.
    ends("dies-after-30s", &["--env", "AFTER=30", "--env", "CODE=4"], Expect::Log("code 4")),
];

fn images() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the workspace").join("target/images")
}

/// The layout of scripts/sample-images, made if it is not there yet.
pub fn sample_images() -> PathBuf {
    let script = images().ancestors().nth(2).expect("the workspace").join("scripts/sample-images");
    let made = Command::new(script).stdin(Stdio::null()).status().expect("scripts/sample-images starts");
    assert!(made.success(), "scripts/sample-images: {made}");
    images()
}

fn printed(output: &std::process::Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn thirty_programs_answer_or_say_what_is_wrong() {
    let layout = sample_images().join("layout");
    run(async {
        let fleet =
            Fleet::start(1, &["--capacity", "cpus=32,memory_mb=32768,disk_mb=100000"]).expect("the fleet starts");
        fleet.cli_ok(&["image", "load", layout.to_str().expect("UTF-8"), "--name", "programs"]).expect("it loads");
        let fleet = Arc::new(fleet);
        let mut tried = futures_util::stream::iter(PROGRAMS)
            .map(async |program| {
                let begin = Instant::now();
                let seen = trial(&fleet, program).await;
                (program.name, begin.elapsed(), seen)
            })
            .buffered(SIDE_BY_SIDE);
        let mut failed = Vec::new();
        println!("{:<20} {:>7}  what a newcomer sees", "program", "seconds");
        while let Some((name, took, seen)) = tried.next().await {
            match seen {
                Ok(seen) => println!("{name:<20} {:>7.1}  {seen}", took.as_secs_f32()),
                Err(error) => {
                    println!("{name:<20} {:>7.1}  WRONG: {error:#}", took.as_secs_f32());
                    failed.push(name);
                }
            }
        }
        assert!(PROGRAMS.len() >= 30, "{} programs", PROGRAMS.len());
        assert!(failed.is_empty(), "not as a newcomer needs it: {failed:?}");
    });
}

async fn trial(fleet: &Arc<Fleet>, program: &'static Program) -> Result<String> {
    let app = format!("app-{}", program.name);
    let raw = free_port()?.to_string();
    godwit(fleet, &["apps", "create", &app]).await?;
    let mut arguments = vec!["machine".to_owned(), "run".into(), format!("programs:{}", program.image)];
    arguments.extend(["-a".into(), app.clone(), "--wait-timeout".into(), WAIT_TIMEOUT.into()]);
    if program.port != 0 {
        arguments.extend(["--port".into(), format!("80:{}/tcp:http", program.port)]);
    }
    for flag in program.flags {
        arguments.push(flag.replace("RAW", &raw));
        if let Some((volume, _)) = flag.split_once(":/") {
            godwit(fleet, &["volumes", "create", volume, "-a", &app, "--size", "1"]).await?;
        }
    }
    if !program.command.is_empty() {
        arguments.push("--".into());
        arguments.extend(program.command.iter().map(|word| (*word).to_owned()));
    }
    let begin = Instant::now();
    let output = command(fleet, arguments).await?;
    let (took, said) = (begin.elapsed(), printed(&output));
    match program.expect {
        Expect::Http(body) => {
            ensure!(output.status.success(), "the command failed: {said}");
            let answer = fleet.get(&app, "/", PATIENCE).await?;
            ensure!(answer.status == 200 && answer.text().contains(body), "{}: {}", answer.status, answer.text());
            Ok(format!("200 {}", first_line(&answer.text())))
        }
        Expect::Unreachable(words) => unreachable(fleet, &app, &output, words).await,
        Expect::Tcp(question, beginning) => {
            ensure!(output.status.success(), "the command failed: {said}");
            let address = format!("127.0.0.1:{raw}");
            eventually("the raw port answers", PATIENCE, async || {
                let answer = ask(&address, question, beginning.len()).await?;
                Ok((answer == beginning).then_some(()))
            })
            .await?;
            Ok(format!("answers {:?}", String::from_utf8_lossy(beginning)))
        }
        Expect::Log(line) => {
            // A one-off job may have ended by now.
            let log = eventually("its log holds the line", PATIENCE, async || {
                let log = godwit(fleet, &["logs", "-a", &app]).await?;
                Ok(log.contains(line).then_some(log))
            })
            .await
            .with_context(|| format!("{line:?}; the command said: {said}"))?;
            let line = log.lines().find(|found| found.contains(line)).unwrap_or_default();
            Ok(format!("log: {}", first_line(line)))
        }
        Expect::Fails(words) => {
            ensure!(!output.status.success(), "it is called started: {said}");
            for word in words {
                ensure!(said.contains(word), "{word:?} is not said: {said}");
            }
            ensure!(took < FAILS_WITHIN, "told after {took:?}");
            Ok(format!("exit {}: {}", output.status.code().unwrap_or(-1), told(&said)))
        }
    }
}

/// The Machine runs, nothing reaches it, and the 503 says so in `words`, long before its client would give up.
async fn unreachable(fleet: &Fleet, app: &str, output: &std::process::Output, words: &[&str]) -> Result<String> {
    let said = printed(output);
    let answer = fleet.get(app, "/", PATIENCE).await?;
    ensure!(answer.status == 503, "{}: {}", answer.status, answer.text());
    for word in words {
        ensure!(
            answer.text().contains(word),
            "{word:?} is not in the 503: {}; the command said: {said}",
            answer.text()
        );
    }
    let machine = godwit(fleet, &["machine", "list", "-a", app, "--quiet"]).await?;
    let status = godwit(fleet, &["machine", "status", machine.trim(), "-a", app]).await?;
    for word in words {
        ensure!(status.contains(word), "{word:?} is not in the status: {status}");
    }
    Ok(format!("503 {}", first_line(&answer.text())))
}

async fn ask(address: &str, question: &[u8], length: usize) -> Result<Vec<u8>> {
    let talk = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(question).await?;
        let mut answer = vec![0; length];
        stream.read_exact(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    Ok(tokio::time::timeout(Duration::from_secs(10), talk).await??)
}

fn first_line(text: &str) -> String {
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().chars().take(90).collect()
}

/// The line in which the command says what is wrong.
fn told(said: &str) -> String {
    first_line(said.lines().find(|line| line.starts_with("error")).unwrap_or(said))
}

async fn command(fleet: &Arc<Fleet>, arguments: Vec<String>) -> Result<std::process::Output> {
    let fleet = fleet.clone();
    tokio::task::spawn_blocking(move || {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        fleet.cli(&arguments)
    })
    .await?
}

/// A command that must succeed; answers what it printed.
async fn godwit(fleet: &Fleet, arguments: &[&str]) -> Result<String> {
    let dev = fleet.dev()?;
    let mut command = tokio::process::Command::new(binary("godwit")?);
    command.args(arguments).env("GODWIT_API_URL", dev.api_url).env("GODWIT_TOKEN", dev.token).env("NO_COLOR", "1");
    let output = command.stdin(Stdio::null()).output().await?;
    if !output.status.success() {
        bail!("godwit {}: {}", arguments.join(" "), printed(&output));
    }
    Ok(printed(&output))
}
