//! How a Machine's process is asked to stop: which signal and how long it has. It must not know who sends it.

use godwit_api::config::StopConfig;

/// Without a word from the request, the configuration or the image.
pub const DEFAULT_SIGNAL: i32 = 2;
pub const DEFAULT_TIMEOUT_MS: u64 = 5_000;
/// Nobody gets longer than this between signal and kill.
pub const MAX_TIMEOUT_MS: u64 = 3_600_000;

/// Linux numbers on x86-64 and aarch64 (signal(7)).
const NAMES: [(&str, i32); 31] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];
/// As the C library gives them to programs.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// Reads `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`, `RTMAX-1`.
pub fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return ((1..=31).contains(&number) || (RTMIN..=RTMAX).contains(&number)).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset =
        |rest: &str, sign| if rest.is_empty() { Some(0) } else { rest.strip_prefix(sign)?.parse::<i32>().ok() };
    let number = if let Some(rest) = name.strip_prefix("RTMIN") {
        RTMIN.checked_add(offset(rest, '+')?)?
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        RTMAX.checked_sub(offset(rest, '-')?)?
    } else {
        return NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    };
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

/// The name of a signal that `parse` reads: `SIGTERM`, `SIGRTMIN+3`.
pub fn name(number: i32) -> String {
    match NAMES.iter().find(|(_, known)| *known == number) {
        Some((name, _)) => format!("SIG{name}"),
        None => format!("SIGRTMIN+{}", number - RTMIN),
    }
}

/// The request's own signal, else the configuration's, else the image's, else SIGINT. One that cannot be read counts
/// as absent: control refuses it in requests, and an image's typo must not make a Machine that cannot be stopped.
pub fn stop_signal(asked: Option<&str>, config: &StopConfig, image: Option<&str>) -> i32 {
    [asked, config.signal.as_deref(), image].into_iter().flatten().find_map(parse).unwrap_or(DEFAULT_SIGNAL)
}

/// How long the process has between signal and kill. No time at all counts as not set: it is what clients send who have
/// set nothing, and a database must not pay for it. To kill at once is a signal of its own.
pub fn stop_timeout_ms(asked: Option<u64>, config: &StopConfig) -> u64 {
    let configured = config.timeout.map(|timeout| timeout.as_millis());
    asked.filter(|ms| *ms > 0).or(configured.filter(|ms| *ms > 0)).unwrap_or(DEFAULT_TIMEOUT_MS).min(MAX_TIMEOUT_MS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_api::Span;

    #[test]
    fn signals_are_read_as_people_write_them() {
        for (text, number) in
            [("SIGTERM", 15), ("term", 15), ("9", 9), ("SIGRTMIN+3", 37), ("RTMAX", 64), ("SIGRTMAX-2", 62)]
        {
            assert_eq!(parse(text), Some(number), "{text}");
        }
        for number in 1..=RTMAX {
            assert!(matches!(number, 32 | 33) || parse(&name(number)) == Some(number), "{number}");
        }
        for bad in ["", "0", "65", "-1", "SIG", "SIGNOPE", "RTMIN+99", "RTMIN-1", "RTMAX+1"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_nearest_word_counts() {
        let config = StopConfig { signal: Some("SIGUSR1".into()), timeout: Some(Span::from_secs(9)) };
        assert_eq!(stop_signal(Some("KILL"), &config, Some("QUIT")), 9);
        assert_eq!(stop_signal(None, &config, Some("QUIT")), 10);
        assert_eq!(stop_signal(None, &StopConfig::default(), Some("QUIT")), 3);
        assert_eq!(stop_signal(None, &StopConfig::default(), Some("nonsense")), DEFAULT_SIGNAL);
        assert_eq!((stop_timeout_ms(Some(1), &config), stop_timeout_ms(None, &config)), (1, 9_000));
        let zero = StopConfig { timeout: Some(Span::from_secs(0)), ..config.clone() };
        assert_eq!((stop_timeout_ms(Some(0), &config), stop_timeout_ms(Some(0), &zero)), (9_000, DEFAULT_TIMEOUT_MS));
        assert_eq!(stop_timeout_ms(Some(u64::MAX), &config), MAX_TIMEOUT_MS);
    }
}
