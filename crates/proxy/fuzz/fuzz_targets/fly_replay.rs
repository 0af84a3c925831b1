//! `Fly-Replay` of any bytes: what is understood means the same when it is written anew, leads somewhere, and what the next
//! Machine is told stands in one header field.
#![no_main]

use godwit_api::ids::MachineId;
use godwit_proxy::replay::{Replay, Wanted, parse, source};

fn written(replay: &Replay) -> String {
    let mut text = format!("elsewhere={}", replay.elsewhere);
    let parts = [
        ("app", replay.app.as_ref().map(ToString::to_string)),
        ("region", replay.region.clone()),
        ("instance", replay.instance.as_ref().map(ToString::to_string)),
        ("state", replay.state.clone()),
    ];
    for (key, value) in parts {
        if let Some(value) = value {
            text.push_str(&format!("; {key} = {value}"));
        }
    }
    text
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(replay) = parse(bytes) else { return };
    assert!(replay.app.is_some() || replay.region.is_some() || replay.instance.is_some() || replay.elsewhere);
    let text = written(&replay);
    // Written with its spaces it may be longer than a field may be.
    if text.len() <= 1 << 10 {
        assert_eq!(parse(text.as_bytes()), Ok(replay.clone()));
    }
    let from = MachineId::from_bits(1);
    let told = source(&from, "fra", 0, replay.state.as_deref());
    assert!(told.bytes().all(|b| b.is_ascii_graphic()));
    assert!(
        told.starts_with("instance=")
            && told.matches(";state=").count()
                <= 1 + replay.state.as_deref().map_or(0, |state| state.matches(";state=").count())
    );
    if replay.elsewhere {
        assert!(!Wanted::of(&replay, &from).fits(&from, replay.region.as_deref().unwrap_or("fra")));
    }
});
