//! `Fly-Replay`: a Machine answers that another one shall get the request instead, and says which. Pure.
//!
//! The answer's field is a list of `key=value` with `;` between; the request that is sent again says in
//! `Fly-Replay-Src` who wanted it so.

use godwit_api::ids::{AppName, MachineId};
use http::HeaderName;

pub const FLY_REPLAY: HeaderName = HeaderName::from_static("fly-replay");
pub const FLY_REPLAY_SRC: HeaderName = HeaderName::from_static("fly-replay-src");
/// A client may name the one Machine that shall serve it.
pub const FLY_FORCE_INSTANCE_ID: HeaderName = HeaderName::from_static("fly-force-instance-id");

/// Of one field.
const MAX_BYTES: usize = 1 << 10;
/// A request that was sent on so often goes round in circles.
pub const MAX_REPLAYS: u32 = 3;

/// What a Machine said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replay {
    /// Another app; without it the same.
    pub app: Option<AppName>,
    pub region: Option<String>,
    pub instance: Option<MachineId>,
    /// Not the Machine that says so.
    pub elsewhere: bool,
    /// Handed through as it is.
    pub state: Option<String>,
}

/// The field cannot be obeyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a Fly-Replay that cannot be obeyed")]
pub struct BadReplay;

pub fn parse(field: &[u8]) -> Result<Replay, BadReplay> {
    let text = std::str::from_utf8(field).ok().filter(|text| text.len() <= MAX_BYTES).ok_or(BadReplay)?;
    let mut replay = Replay::default();
    for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
        let (key, value) = part.split_once('=').ok_or(BadReplay)?;
        let value = value.trim();
        match key.trim() {
            "app" => replay.app = Some(AppName::parse(value).map_err(|_| BadReplay)?),
            "instance" => replay.instance = Some(MachineId::parse(value).map_err(|_| BadReplay)?),
            "region" if is_region(value) => replay.region = Some(value.to_owned()),
            "elsewhere" => replay.elsewhere = value.parse().map_err(|_| BadReplay)?,
            "state" if value.bytes().all(|b| (0x21..0x7f).contains(&b)) => replay.state = Some(value.to_owned()),
            "region" | "state" => return Err(BadReplay),
            // A later version of the platform's words.
            _ => {}
        }
    }
    let leads = replay.app.is_some() || replay.region.is_some() || replay.instance.is_some() || replay.elsewhere;
    if leads { Ok(replay) } else { Err(BadReplay) }
}

fn is_region(text: &str) -> bool {
    (1..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// What the next Machine is told: who sent it on, from where, when (unix microseconds), and the state.
pub fn source(machine: &MachineId, region: &str, unix_us: u64, state: Option<&str>) -> String {
    let mut text = format!("instance={machine};region={region};t={unix_us}");
    if let Some(state) = state {
        text.push_str(";state=");
        text.push_str(state);
    }
    text
}

/// Which Machines may serve a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    pub region: Option<String>,
    pub instance: Option<MachineId>,
    pub not: Option<MachineId>,
}

impl Wanted {
    /// What `from` said of where its request shall go.
    pub fn of(replay: &Replay, from: &MachineId) -> Self {
        Self {
            region: replay.region.clone(),
            instance: replay.instance.clone(),
            not: replay.elsewhere.then(|| from.clone()),
        }
    }

    pub fn fits(&self, machine: &MachineId, region: &str) -> bool {
        self.region.as_deref().is_none_or(|wanted| wanted == region)
            && self.instance.as_ref().is_none_or(|wanted| wanted == machine)
            && self.not.as_ref() != Some(machine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_field_says_where_to_or_nothing() {
        let id = MachineId::from_bits(7);
        let all = format!("app=shop; region=fra;instance={id} ;elsewhere=true;state=a=b,c;later=x;");
        let expected = Replay {
            app: Some(AppName::parse("shop").unwrap()),
            region: Some("fra".into()),
            instance: Some(id.clone()),
            elsewhere: true,
            state: Some("a=b,c".into()),
        };
        assert_eq!(parse(all.as_bytes()), Ok(expected));
        assert!(parse(b"elsewhere=true").is_ok());
        let long = format!("region=fra;state={}", "x".repeat(MAX_BYTES));
        for wrong in [
            "",
            ";",
            "region",
            "region=",
            "region=FRA",
            "region=a b",
            "app=-",
            "instance=1",
            "elsewhere=yes",
            "elsewhere=false",
            "state=x",
            "region=fra;state=a b",
            "later=x",
            &long,
        ] {
            assert_eq!(parse(wrong.as_bytes()), Err(BadReplay), "{wrong:?}");
        }
        assert_eq!(parse(b"region=\xff"), Err(BadReplay));
        assert_eq!(source(&id, "fra", 5, Some("s")), format!("instance={id};region=fra;t=5;state=s"));
    }

    #[test]
    fn only_machines_that_fit_may_serve() {
        let (one, two) = (MachineId::from_bits(1), MachineId::from_bits(2));
        let of = |text: &str| Wanted::of(&parse(text.as_bytes()).unwrap(), &one);
        assert!(of("region=fra").fits(&one, "fra") && !of("region=fra").fits(&one, "ams"));
        assert!(!of("elsewhere=true").fits(&one, "fra") && of("elsewhere=true").fits(&two, "fra"));
        let exact = of(&format!("instance={two}"));
        assert!(exact.fits(&two, "ams") && !exact.fits(&one, "ams"));
        assert!(Wanted::default().fits(&one, "x"));
    }

    proptest! {
        #[test]
        fn whatever_a_machine_says_its_state_stays_one_header(field in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Replay { state: Some(state), .. }) = parse(&field) {
                let told = source(&MachineId::from_bits(1), "fra", 0, Some(&state));
                prop_assert!(http::HeaderValue::from_str(&told).is_ok());
                prop_assert!(!state.contains(';'));
            }
        }
    }
}
