//! Which host names need a certificate now, and what becomes of a wish after an order. Pure.

use godwit_api::hostname::{AcmeWish, CertificateInfo, HostnameRow};

/// Failures double the wait up to this.
const RETRY_MAX_MS: u64 = 6 * 3_600 * 1_000;
/// No authority is believed about a limit that lasts longer: a week is the longest of Let's Encrypt's.
const LIMIT_MAX_MS: u64 = 8 * 24 * 3_600 * 1_000;
/// What is told of a failure.
const ERROR_MAX_CHARS: usize = 600;

/// Whether an order should be made now.
pub fn is_due(row: &HostnameRow, now_ms: u64, renew_left_permille: u32) -> bool {
    let Some(wish) = &row.acme else { return false };
    wish.next_at_ms <= now_ms
        && wish.ordering_until_ms <= now_ms
        && row.issued.as_ref().is_none_or(|info| is_old(info, now_ms, renew_left_permille))
}

fn is_old(info: &CertificateInfo, now_ms: u64, renew_left_permille: u32) -> bool {
    let life_ms = info.not_after_ms.saturating_sub(info.not_before_ms);
    let left_ms = info.not_after_ms.saturating_sub(now_ms);
    u128::from(left_ms) * 1_000 < u128::from(life_ms) * u128::from(renew_left_permille)
}

/// The kind of challenge for the next order: another one after each failure.
pub fn challenge<'c>(challenges: &[&'c str], failures: u32) -> Option<&'c str> {
    challenges.get(failures as usize % challenges.len().max(1)).copied()
}

/// After an order that brought a certificate.
pub fn succeeded(challenge: &str) -> AcmeWish {
    AcmeWish { challenge: Some(challenge.to_owned()), ..AcmeWish::default() }
}

/// After one that did not. The last kind of challenge that worked stays known. `limit`: it met one of the authority, that
/// ends then (0: it did not say), and it is not asked again before.
pub fn failed(wish: &AcmeWish, why: &str, limit: Option<u64>, now_ms: u64, retry_first_ms: u64) -> AcmeWish {
    let wait_ms = retry_first_ms.saturating_mul(1 << wish.failures.min(20)).min(RETRY_MAX_MS);
    let next_at_ms = limit.unwrap_or(0).min(now_ms + LIMIT_MAX_MS).max(now_ms + wait_ms);
    AcmeWish {
        failures: wish.failures.saturating_add(1),
        next_at_ms,
        ordering_until_ms: 0,
        last_error: Some(why.chars().take(ERROR_MAX_CHARS).collect()),
        failed_at_ms: Some(now_ms),
        challenge: wish.challenge.clone(),
        limited_until_ms: limit.map(|_| next_at_ms),
    }
}

#[cfg(test)]
mod tests {
    use godwit_api::{AppName, Hostname};

    use super::*;

    fn row(acme: Option<AcmeWish>, issued: Option<(u64, u64)>) -> HostnameRow {
        let info = |(not_before_ms, not_after_ms)| CertificateInfo {
            names: vec!["a.example".into()],
            issuer: String::new(),
            serial: String::new(),
            not_before_ms,
            not_after_ms,
            key_type: "ecdsa".into(),
            sha256: String::new(),
            self_signed: false,
            stored_at_ms: 0,
        };
        HostnameRow {
            hostname: Hostname::parse("a.example").unwrap(),
            app: AppName::parse("web").unwrap(),
            created_at_ms: 0,
            updated_at_ms: 0,
            acme,
            custom: None,
            issued: issued.map(info),
            check: None,
        }
    }

    #[test]
    fn a_certificate_is_ordered_once_and_renewed_in_the_last_third_of_its_life() {
        let wish = Some(AcmeWish::default());
        assert!(is_due(&row(wish.clone(), None), 5, 333));
        assert!(!is_due(&row(None, None), 5, 333), "nobody wants one");
        let ninety = Some((0, 90_000));
        assert!(!is_due(&row(wish.clone(), ninety), 60_000, 333));
        assert!(is_due(&row(wish.clone(), ninety), 60_100, 333));
        assert!(is_due(&row(wish, ninety), 200_000, 333));
        let busy = AcmeWish { ordering_until_ms: 10, ..AcmeWish::default() };
        assert!(!is_due(&row(Some(busy.clone()), None), 9, 333) && is_due(&row(Some(busy), None), 10, 333));
        let later = AcmeWish { next_at_ms: 10, ..AcmeWish::default() };
        assert!(!is_due(&row(Some(later), None), 9, 333));
    }

    #[test]
    fn each_failure_waits_longer_and_tries_the_other_way() {
        let mut wish = AcmeWish { challenge: Some("http-01".into()), ..AcmeWish::default() };
        let mut waits = Vec::new();
        for _ in 0..12 {
            wish = failed(&wish, "no", None, 1_000, 60_000);
            waits.push(wish.next_at_ms - 1_000);
        }
        assert_eq!(waits[..3], [60_000, 120_000, 240_000]);
        assert_eq!(waits[11], RETRY_MAX_MS);
        assert_eq!((wish.failures, wish.challenge.as_deref()), (12, Some("http-01")));
        assert!(failed(&wish, &"x".repeat(9_999), None, 0, 1).last_error.unwrap().len() == ERROR_MAX_CHARS);
        let kinds = ["http-01", "tls-alpn-01"];
        assert_eq!(
            (0..3).filter_map(|n| challenge(&kinds, n)).collect::<Vec<_>>(),
            ["http-01", "tls-alpn-01", "http-01"]
        );
        assert_eq!(succeeded("http-01").failures, 0);
    }

    #[test]
    fn a_limit_of_the_authority_is_waited_for() {
        let failed = |limit| failed(&AcmeWish::default(), "no", limit, 1_000, 60_000);
        let told = |wish: AcmeWish| (wish.next_at_ms, wish.limited_until_ms);
        assert_eq!(told(failed(Some(500_000))), (500_000, Some(500_000)));
        // One that names no moment, or one that is past, is waited for as any failure is.
        assert_eq!(told(failed(Some(0))), (61_000, Some(61_000)));
        assert_eq!(told(failed(Some(u64::MAX))), (1_000 + LIMIT_MAX_MS, Some(1_000 + LIMIT_MAX_MS)));
        assert_eq!(told(failed(None)), (61_000, None));
    }
}
