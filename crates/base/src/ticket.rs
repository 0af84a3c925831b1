//! Signing and verifying tickets (`godwit_api::ticket`): keyed BLAKE3, with a key derived from the one that control
//! shares with the host. It must not know what a ticket permits, nor what time it is beyond what callers say.

use godwit_api::ids::{HostId, MigrationId};
use godwit_api::ticket::{SignedTicket, Ticket};

/// Separates these keys from everything else that is derived from a host's key.
const CONTEXT: &str = "godwit 2026-11-24 ticket of a move";
/// A ticket holds a few placements; what is longer is none.
pub const BODY_MAX_BYTES: usize = 4 << 20;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TicketFault {
    #[error("the ticket was not signed for this host by its control")]
    Forged,
    #[error("the ticket cannot be read: {0}")]
    Unreadable(String),
    #[error("the ticket is for host {host}, as its {role}")]
    Misdirected { host: String, role: &'static str },
    #[error("the ticket has expired")]
    Expired,
}

/// Separates the target's own name for itself from the proofs.
const CALLER_CONTEXT: &str = "godwit 2026-12-01 caller of a move";
const CALLER_PREFIX: &str = "gwm";

/// The bearer by which the target of a move names itself to the source: control gives it to the target, and the source
/// makes it anew out of the key that it shares with control. `gwm.MIGRATION.TARGET.HASH`, so that who asks is known from
/// the head of a request alone.
pub fn caller(source_key: &str, migration: &MigrationId, target: &HostId) -> String {
    let key = blake3::derive_key(CALLER_CONTEXT, source_key.as_bytes());
    let hash = blake3::keyed_hash(&key, format!("{migration}\n{target}").as_bytes());
    format!("{CALLER_PREFIX}.{migration}.{target}.{}", hash.to_hex())
}

/// Whom a bearer names, and in which move, if it is one that was made with `source_key`.
pub fn named(source_key: &str, bearer: &str) -> Option<(HostId, MigrationId)> {
    let mut parts = bearer.strip_prefix(CALLER_PREFIX)?.strip_prefix('.')?.split('.');
    let (migration, target) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let is_so = !source_key.is_empty() && crate::secret::equal(bearer, &caller(source_key, &migration, &target));
    is_so.then_some((target, migration))
}

fn proof(host_key: &str, body: &str) -> blake3::Hash {
    blake3::keyed_hash(&blake3::derive_key(CONTEXT, host_key.as_bytes()), body.as_bytes())
}

/// `source_key`, `target_key`: those by which control names itself to these hosts.
pub fn sign(ticket: &Ticket, source_key: &str, target_key: &str) -> Result<SignedTicket, TicketFault> {
    let body = serde_json::to_string(ticket).map_err(|error| TicketFault::Unreadable(error.to_string()))?;
    let for_source = proof(source_key, &body).to_hex().to_string();
    let for_target = proof(target_key, &body).to_hex().to_string();
    let caller = match ticket.names_caller {
        true => caller(source_key, &ticket.migration, &ticket.target),
        false => String::new(),
    };
    Ok(SignedTicket { body, for_source, for_target, caller })
}

/// As the source reads it.
pub fn open_as_source(signed: &SignedTicket, me: &HostId, key: &str) -> Result<Ticket, TicketFault> {
    let ticket = open(signed, &signed.for_source, key)?;
    if ticket.source != *me {
        return Err(TicketFault::Misdirected { host: ticket.source.to_string(), role: "source" });
    }
    Ok(ticket)
}

/// As the target reads it.
pub fn open_as_target(signed: &SignedTicket, me: &HostId, key: &str) -> Result<Ticket, TicketFault> {
    let ticket = open(signed, &signed.for_target, key)?;
    if ticket.target != *me {
        return Err(TicketFault::Misdirected { host: ticket.target.to_string(), role: "target" });
    }
    Ok(ticket)
}

/// The time counts only before a handoff, so it is asked about apart from the rest.
pub fn check_time(ticket: &Ticket, now_ms: u64) -> Result<(), TicketFault> {
    if now_ms > ticket.expires_at_ms { Err(TicketFault::Expired) } else { Ok(()) }
}

fn open(signed: &SignedTicket, shown: &str, key: &str) -> Result<Ticket, TicketFault> {
    if signed.body.len() > BODY_MAX_BYTES {
        return Err(TicketFault::Unreadable("it is too long".into()));
    }
    let shown = blake3::Hash::from_hex(shown).map_err(|_| TicketFault::Forged)?;
    // Hashes compare in constant time.
    if key.is_empty() || shown != proof(key, &signed.body) {
        return Err(TicketFault::Forged);
    }
    serde_json::from_str(&signed.body).map_err(|error| TicketFault::Unreadable(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket() -> Ticket {
        let lead = serde_json::json!({
            "machine": "00000000000001", "app": "shop", "host": "w2", "epoch": {"generation": 1, "n": 2},
            "instance_id": "01ARZ3NDEKTSV4RRFFQ69G5FAV", "name": "m", "region": "fra", "network": "default",
            "private_ip": "fdaa::7", "image_digest": "sha256:aa", "image_name": "demo", "launch": true,
            "config": {"image": "demo"}
        });
        let text = serde_json::json!({
            "migration": "mig_00000000000001", "source": "w1", "source_url": "http://[::1]:1", "target": "w2",
            "target_door": "[::1]:2", "lead": lead, "from_epoch": {"generation": 1, "n": 1},
            "drain_timeout_ms": 5000, "expires_at_ms": 100
        });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn only_the_two_hosts_named_can_use_a_ticket_and_nobody_can_change_it() {
        let (w1, w2) = (HostId::parse("w1").unwrap(), HostId::parse("w2").unwrap());
        let signed = sign(&ticket(), "key-of-w1", "key-of-w2").unwrap();
        assert_eq!(open_as_source(&signed, &w1, "key-of-w1"), Ok(ticket()));
        assert_eq!(open_as_target(&signed, &w2, "key-of-w2"), Ok(ticket()));
        // The target cannot make a proof for the source out of its own, nor the other way round.
        assert_eq!(open_as_source(&signed, &w1, "key-of-w2"), Err(TicketFault::Forged));
        let swapped = SignedTicket { for_source: signed.for_target.clone(), ..signed.clone() };
        assert_eq!(open_as_source(&swapped, &w1, "key-of-w1"), Err(TicketFault::Forged));
        assert!(matches!(open_as_source(&signed, &w2, "key-of-w1"), Err(TicketFault::Misdirected { .. })));
        let longer = SignedTicket { body: format!("{} ", signed.body), ..signed.clone() };
        assert_eq!(open_as_source(&longer, &w1, "key-of-w1"), Err(TicketFault::Forged));
        let none = SignedTicket::default();
        assert_eq!(open_as_target(&none, &w2, ""), Err(TicketFault::Forged));
    }

    #[test]
    fn only_the_target_is_given_what_it_names_itself_by_and_only_the_source_can_tell() {
        let signed = sign(&Ticket { names_caller: true, ..ticket() }, "key-of-w1", "key-of-w2").unwrap();
        let (w2, migration) = (HostId::parse("w2").unwrap(), ticket().migration);
        assert_eq!(named("key-of-w1", &signed.caller), Some((w2, migration)));
        assert_eq!(named("key-of-w2", &signed.caller), None, "another source's");
        assert_eq!(signed.shown().caller, "", "it never travels in a body");
        assert!(sign(&ticket(), "key-of-w1", "key-of-w2").unwrap().caller.is_empty());
        for forged in [
            signed.caller.replacen(".w2.", ".w3.", 1),
            signed.caller.replacen("01.", "02.", 1),
            signed.for_source.clone(),
            format!("gwm.mig_00000000000001.w2.{}", signed.for_source),
            "gwm...".into(),
            String::new(),
        ] {
            assert_eq!(named("key-of-w1", &forged), None, "{forged}");
        }
        assert_eq!(named("", &caller("", &ticket().migration, &ticket().target)), None, "no key names anybody");
    }

    #[test]
    fn a_ticket_ends() {
        assert_eq!(check_time(&ticket(), 100), Ok(()));
        assert_eq!(check_time(&ticket(), 101), Err(TicketFault::Expired));
    }
}
