//! The host reached from outside, and cut off from it: the host API, logs, checks, and life without control.

use godwit_api::Method;
use godwit_api::host::LogLine;
use godwit_api::machine::{ExecAnswer, ExecMachine, MachineState, ProcessStat};
use godwit_base::http::client::{CallError, Client, empty};
use godwit_driver::fake::Knobs;
use http_body_util::BodyExt;

use crate::control::Control;
use crate::host::{DEADLINE, Host};

#[tokio::test]
async fn only_control_commands_a_host_and_only_at_the_epoch_that_is_held() {
    let control = Control::start().await;
    let host = Host::started(&control).await;
    let placement = host.placement(1, 1);
    host.launched(&placement).await;
    let path = format!("/host/v1/machines/{}", placement.machine);
    let stranger = Client::tcp(&host.client.peer(), Some("gwc_other".into()));
    let refused = stranger.json::<(), serde_json::Value>(Method::Get, &path, None, DEADLINE).await.unwrap_err();
    assert!(matches!(refused, CallError::Answered(error) if error.code == 401));

    let code = |result: Result<_, CallError>| match result {
        Err(CallError::Answered(error)) => error.code,
        Err(other) => panic!("{other}"),
        Ok(godwit_api::machine::Acknowledged { .. }) => 200,
    };
    let mut other = placement.clone();
    other.epoch.n = 0;
    assert_eq!(code(host.call_stop(&other).await), 409, "an epoch that is over");
    other.epoch.n = 9;
    assert_eq!(code(host.call_stop(&other).await), 503, "one that has not arrived");
    assert_eq!(code(host.call_stop(&host.placement(5, 1)).await), 404, "a Machine that is not here");
    let mut foreign = placement.clone();
    foreign.host = godwit_api::HostId::parse("somebody").unwrap();
    assert!(matches!(host.call_place(&foreign).await, Err(CallError::Answered(error)) if error.code == 400));
}

#[tokio::test]
async fn a_host_that_lost_control_goes_on_and_tells_what_happened_when_it_is_back() {
    let control = Control::start().await;
    let host = Host::started(&control).await;
    let (stopped, crashes) = (host.placement(1, 1), host.placement(2, 1));
    host.launched(&stopped).await;
    host.launched(&crashes).await;
    control.stop().await;

    host.call_stop(&stopped).await.unwrap();
    let path = format!("/host/v1/machines/{}", stopped.machine);
    let state = async || -> Option<String> {
        let fact: serde_json::Value = host.client.json::<(), _>(Method::Get, &path, None, DEADLINE).await.ok()?;
        Some(fact["state"].as_str()?.to_owned())
    };
    host.until("it stops", async || (state().await? == "stopped").then_some(())).await;
    host.call_start(&stopped).await.unwrap();
    host.until("it starts", async || (state().await? == "started").then_some(())).await;
    host.call_stop(&stopped).await.unwrap();
    // A failing process is restarted by policy.
    host.driver.set(crashes.machine.as_str(), Knobs { exit_code: 1, ..Knobs::default() });
    host.call_restart(&crashes, false).await.unwrap();
    let signal = godwit_api::machine::SignalMachine { signal: "SIGTERM".into() };
    let path = format!("/host/v1/machines/{}/signal", crashes.machine);
    let _: serde_json::Value = host.client.json(Method::Post, &path, Some(&signal), DEADLINE).await.unwrap();
    host.until("the policy starts it", async || (host.driver.starts(crashes.machine.as_str()) == 3).then_some(()))
        .await;

    let before = control.fact(&stopped.host, &stopped.machine).await.unwrap();
    assert_eq!(before.state, MachineState::Started, "nobody could be told");
    control.come_back().await;
    host.told(&stopped, MachineState::Stopped).await;
    let fact = host.told(&crashes, MachineState::Started).await;
    assert_eq!(fact.restart_count, 1);
    host.until("nothing is left to tell", async || host.journal().outbox.is_empty().then_some(())).await;
}

#[tokio::test]
async fn facts_wait_in_the_journal_over_a_restart() {
    let control = Control::start().await;
    let mut host = Host::started(&control).await;
    let placement = host.placement(1, 1);
    host.launched(&placement).await;
    control.stop().await;
    host.call_stop(&placement).await.unwrap();
    host.until("it stops", async || {
        let row = host.journal().machines[0].row.clone();
        row.contains("\"state\":\"stopped\"").then_some(())
    })
    .await;
    host.restart().await;
    control.come_back().await;
    host.told(&placement, MachineState::Stopped).await;
}

#[tokio::test]
async fn what_a_machine_writes_is_read_and_followed_over_a_rotation() {
    let control = Control::start().await;
    let host = Host::started(&control).await;
    let placement = host.placement(1, 1);
    host.launched(&placement).await;
    let folder = host.machine_dir(&placement.machine).join("log");
    std::fs::create_dir_all(&folder).unwrap();
    let current = folder.join(godwit_driver::LOG_NAME);
    let line = |n: u32| format!("2026-01-02T03:04:05.678Z stdout F line {n}\n");
    let append = |text: String| {
        use std::io::Write;
        let mut file = std::fs::File::options().create(true).append(true).open(&current).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    };
    append((0..10).map(line).collect());
    std::fs::rename(&current, godwit_driver::rotated_name(&current, 1)).unwrap();
    append((10..15).map(line).collect());

    let path = format!("/host/v1/machines/{}/logs", placement.machine);
    let get = async |query: &str| {
        let request = http::Request::new(empty());
        host.client.send(&format!("{path}?{query}"), request, DEADLINE).await.unwrap().into_body()
    };
    let lines = |bytes: &[u8]| -> Vec<String> {
        let lines = bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice::<LogLine>(line).unwrap().message).collect()
    };
    // Written long before it was started: the platform's remarks come after that.
    let remarks = ["created", "started"];
    let tail = get("tail=9").await.collect().await.unwrap().to_bytes();
    let written: Vec<String> = (8..15).map(|n| format!("line {n}")).collect();
    assert_eq!(lines(&tail), [&written[..], &remarks.map(str::to_owned)].concat());

    let mut body = get("tail=3&follow=true").await;
    append(line(15));
    std::fs::rename(&current, godwit_driver::rotated_name(&current, 1)).unwrap();
    append(line(16));
    let mut followed = Vec::new();
    while lines(&followed).len() < 5 {
        let frame = tokio::time::timeout(DEADLINE, body.frame()).await.unwrap().unwrap().unwrap();
        followed.extend_from_slice(frame.data_ref().unwrap());
    }
    // Line 15 may have been read together with those that were there before: the remarks then stand after it.
    let (told, written): (Vec<_>, Vec<_>) = lines(&followed).into_iter().partition(|line| remarks.contains(&&**line));
    assert_eq!((told, written), (remarks.map(str::to_owned).to_vec(), (14..17).map(|n| format!("line {n}")).collect()));
    // What happens to it is told at its place, after all that it wrote before.
    append(line(17));
    host.call_stop(&placement).await.unwrap();
    while lines(&followed).last().is_none_or(|last| last != "stopped") {
        let frame = tokio::time::timeout(DEADLINE, body.frame()).await.unwrap().unwrap().unwrap();
        followed.extend_from_slice(frame.data_ref().unwrap());
    }
    let told = lines(&followed);
    assert_eq!(told[5..7], ["line 17", "stopping, as asked"]);
}

#[tokio::test]
async fn commands_run_inside_a_running_machine_only() {
    let control = Control::start().await;
    let host = Host::started(&control).await;
    let placement = host.placement(1, 1);
    host.launched(&placement).await;
    let path = |verb: &str| format!("/host/v1/machines/{}/{verb}", placement.machine);
    let call = ExecMachine { cmd: Some("echo 'a b'".into()), ..ExecMachine::default() };
    let answer: ExecAnswer = host.client.json(Method::Post, &path("exec"), Some(&call), DEADLINE).await.unwrap();
    assert_eq!((answer.exit_code, answer.stdout.trim()), (0, "echo a b"));
    let processes: Vec<ProcessStat> =
        host.client.json::<(), _>(Method::Get, &path("ps"), None, DEADLINE).await.unwrap();
    assert!(!processes.is_empty());
    host.call_stop(&placement).await.unwrap();
    host.told(&placement, MachineState::Stopped).await;
    let refused = host.client.json::<_, ExecAnswer>(Method::Post, &path("exec"), Some(&call), DEADLINE).await;
    assert!(matches!(refused, Err(CallError::Answered(error)) if error.code == 409));
}

#[tokio::test]
async fn checks_tell_passing_and_critical() {
    let control = Control::start().await;
    let host = Host::started(&control).await;
    let listener = tokio::net::TcpListener::bind("[::1]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let ill = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let answers = ill.clone();
    let router = axum::Router::new().route(
        "/health",
        axum::routing::get(move || {
            let ill = answers.load(std::sync::atomic::Ordering::Relaxed);
            async move {
                if ill { (axum::http::StatusCode::BAD_GATEWAY, "ill") } else { (axum::http::StatusCode::OK, "well") }
            }
        }),
    );
    let serving = tokio::spawn(async move { axum::serve(listener, router).await });
    let mut placement = host.placement(1, 1);
    placement.config = serde_json::from_value(serde_json::json!({
        "image": "demo", "guest": {"memory_mb": 128},
        "checks": {"web": {"type": "http", "port": port, "path": "/health", "interval": "200ms", "grace_period": "0s"}},
        "services": [{"internal_port": port, "checks": [{"type": "tcp", "interval": "200ms", "grace_period": "0s"}]}]
    }))
    .unwrap();
    host.launched(&placement).await;
    let status = async |name: &str| {
        let fact = control.fact(&placement.host, &placement.machine).await?;
        Some(fact.checks.into_iter().find(|check| check.name == name)?.status)
    };
    let service = format!("servicecheck-00-tcp-{port}");
    host.until("both pass", async || {
        (status("web").await? == "passing" && status(&service).await? == "passing").then_some(())
    })
    .await;
    ill.store(true, std::sync::atomic::Ordering::Relaxed);
    host.until("the answer turns critical", async || (status("web").await? == "critical").then_some(())).await;
    serving.abort();
    host.until("so does the port", async || (status(&service).await? == "critical").then_some(())).await;
}
