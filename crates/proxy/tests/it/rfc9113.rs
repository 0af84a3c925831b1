//! HTTP/2 by the book: each case of `table` is sent to the real edge over TLS, and its reaction compared with what
//! RFC 9113 asks for. Where the edge deviates, the row says so, and why.

mod requests;
mod table;
mod wire;

use std::sync::atomic::Ordering;
use std::time::Duration;

use godwit_api::MachineId;
use godwit_api::machine::MachineState;

use tokio_util::task::AbortOnDropHandle;

use crate::client::until;
use crate::fleet::{Host, http_service};
use crate::smuggling::stage;
use crate::tls::{certify, connected, trust};
use table::{Case, Expect, cases};
use wire::{ACK, END_HEADERS, END_STREAM, HEADERS, Heard, PING, PREFACE, SETTINGS, Wire, block, frame};

/// Higher than any stream of a case.
const SECOND: u32 = 100_001;
const MARK: [u8; 8] = *b"the mark";
/// What shall not come gets so long to come.
const SILENCE: Duration = Duration::from_millis(150);

fn second() -> Vec<u8> {
    let fields = [(":method", "GET"), (":scheme", "https"), (":authority", "a"), (":path", "/second")];
    frame(HEADERS, END_HEADERS | END_STREAM, SECOND, &block(&fields))
}

/// What became of a case.
#[derive(Debug, Default)]
struct Outcome {
    status: Option<u16>,
    whole: bool,
    data: usize,
    reset: Option<u32>,
    goaway: Option<u32>,
    closed: bool,
    pong: Option<[u8; 8]>,
    acked: u32,
    /// Answers of the case's other streams, each status once.
    others: std::collections::BTreeSet<u16>,
    /// The second request on the same connection.
    second: Option<u16>,
}

/// Sends a case and listens until the connection ends, or a request behind it and a mark behind that are answered.
async fn play(mut wire: Wire, case: &Case) -> Outcome {
    let mut outcome = Outcome::default();
    if !case.has_preface {
        wire.send([PREFACE, &frame(SETTINGS, 0, 0, &[])].concat());
        // What the edge allows counts from our word on that we have heard it.
        while wire.hear().await != Heard::Other {}
        wire.send(frame(SETTINGS, ACK, 0, &[]));
    }
    for piece in &case.pieces {
        wire.send(piece.clone());
    }
    let mut asked = false;
    loop {
        let done = outcome.reset.is_some() || outcome.whole || matches!(case.expect, Expect::Alive | Expect::Pong(_));
        let starved = matches!(case.expect, Expect::HeadOnly) && outcome.status.is_some();
        if (done || starved) && !asked && !case.ends_in_its_preface() {
            asked = true;
            if !starved {
                wire.send(second());
            }
            wire.send(frame(PING, 0, 0, &MARK));
        }
        match wire.hear().await {
            Heard::Head { stream: SECOND, status, .. } => {
                outcome.second = status.or(Some(0));
                if !matches!(case.expect, Expect::Pong(_)) || outcome.pong.is_some() {
                    return outcome;
                }
            }
            Heard::Head { stream, status, end } if stream == case.stream => {
                outcome.status = outcome.status.or(status.or(Some(0)));
                outcome.whole |= end;
            }
            Heard::Head { status, .. } => drop(outcome.others.insert(status.unwrap_or(0))),
            Heard::Data { stream, length, end } if stream == case.stream => {
                outcome.data += length;
                outcome.whole |= end;
            }
            Heard::Reset { stream, code } if stream == case.stream => outcome.reset = Some(code),
            Heard::Reset { stream: SECOND, code } => {
                outcome.second = Some(10_000 + code as u16);
                return outcome;
            }
            Heard::GoAway { code } => outcome.goaway = outcome.goaway.or(Some(code)),
            Heard::Pong(MARK) if starved => {
                // Data that must not come has had its chance.
                match tokio::time::timeout(SILENCE, wire.hear()).await {
                    Ok(Heard::Data { length, .. }) => outcome.data += length,
                    _ => return outcome,
                }
            }
            Heard::Pong(mark) => outcome.pong = outcome.pong.or(Some(mark)),
            Heard::SettingsAck => outcome.acked += 1,
            Heard::Closed => {
                outcome.closed = true;
                return outcome;
            }
            _ => {}
        }
    }
}

fn fits(outcome: &Outcome, case: &Case) -> bool {
    let stays = outcome.goaway.is_none() && !outcome.closed;
    let serves = stays && outcome.second == Some(200);
    match &case.expect {
        Expect::Connection(codes) => {
            outcome.goaway.is_some_and(|code| codes.contains(&code)) && outcome.status != Some(200)
        }
        Expect::Gone => (outcome.closed || outcome.goaway.is_some()) && outcome.status.is_none(),
        Expect::Stream(codes) => serves && outcome.reset.is_some_and(|code| codes.contains(&code)),
        Expect::Either(codes) => {
            let code = outcome.reset.or(outcome.goaway);
            code.is_some_and(|code| codes.contains(&code)) && outcome.status != Some(200)
        }
        Expect::Answered(status) => serves && outcome.status == Some(*status) && outcome.whole,
        Expect::AnsweredThenReset(status) => stays && outcome.status == Some(*status),
        Expect::AnsweredThenClosed(status) => {
            outcome.status == Some(*status) && outcome.whole && outcome.goaway.is_none_or(|code| code == 0)
        }
        Expect::Alive => serves && outcome.reset.is_none(),
        Expect::Pong(mark) => serves && outcome.pong == Some(*mark),
        Expect::HeadOnly => stays && outcome.status == Some(200) && outcome.data == 0,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_case_is_met_as_the_rfc_says_or_as_the_row_explains() {
    let (fleet, host, machine) = stage().await;
    // A Machine that never comes up: who asks for it is held, its body unread.
    let held = MachineId::from_bits(2);
    let port = crate::backend::free_port();
    host.agent.add(held.clone(), &fleet.app, Host::epoch(1), port, vec![http_service(port)]);
    host.agent.with(&held, |held| held.listen_delay = None);
    host.agent.change(&held, |held| held.machine.state = MachineState::Stopped);
    // Nobody shall take the other one for stopped because a busy computer was slow to connect to it.
    host.agent.change(&MachineId::from_bits(1), |held| held.machine.services[0].autostart = Some(false));
    fleet.publish(&[&host]).await;
    let root = certify(&fleet.edge.certificates, "a.pem", &["a"]);
    let config = trust(&[&root], &[b"h2"]);
    drop(connected(fleet.edge.https, &config, "a").await);
    let _asks = AbortOnDropHandle::new(tokio::spawn({
        let (browser, held) = (crate::client::Browser::new(fleet.edge.addr, "a"), held.clone());
        async move {
            loop {
                browser.get_with("/held", &[("fly-force-instance-id", held.as_str())]).await;
            }
        }
    }));
    until("somebody is held", async || (host.agent.starts.load(Ordering::SeqCst) >= 1).then_some(())).await;
    let mut wrong = Vec::new();
    let cases = cases(held.as_str());
    for case in &cases {
        let wire = Wire::over(connected(fleet.edge.https, &config, "a").await);
        let outcome = match tokio::time::timeout(Duration::from_secs(20), play(wire, case)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                wrong.push(format!("{} ({}): nothing came of it", case.name, case.section));
                continue;
            }
        };
        let received = machine.take();
        if !fits(&outcome, case) {
            wrong.push(format!("{} ({}): {outcome:?} instead of {:?}", case.name, case.section, case.expect));
        }
        // What is malformed never gets to a Machine as a whole request.
        let broken = matches!(
            case.expect,
            Expect::Stream(_) | Expect::Connection(_) | Expect::Either(_) | Expect::Gone | Expect::Answered(400..)
        );
        let whole = received
            .iter()
            .filter(|request| !request.contains("/second") && crate::raw::is_whole(request.as_bytes()))
            .count();
        if broken && whole > case.may_reach {
            wrong.push(format!("{} ({}): the Machine received {received:?}", case.name, case.section));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[test]
fn the_table_is_as_wide_as_promised() {
    let cases = cases("m");
    assert!(cases.len() >= 100, "{}", cases.len());
    let mut names: Vec<_> = cases.iter().map(|case| case.name).collect();
    names.sort_unstable();
    let all = names.len();
    names.dedup();
    assert_eq!(names.len(), all, "each case has a name of its own");
    for case in &cases {
        assert!(
            case.section.starts_with(|c: char| c.is_ascii_digit()) || case.section.starts_with("RFC"),
            "{}",
            case.name
        );
        assert!(case.deviates.is_none_or(|why| why.len() > 20), "{}: why?", case.name);
    }
}
