//! Signing and verifying tickets (`godwit_api::ticket`): keyed BLAKE3, with a key derived from the one that control
//! shares with the host. It must not know what a ticket permits, nor what time it is beyond what callers say.

use godwit_api::ids::HostId;
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

fn proof(host_key: &str, body: &str) -> blake3::Hash {
    blake3::keyed_hash(&blake3::derive_key(CONTEXT, host_key.as_bytes()), body.as_bytes())
}

/// `source_key`, `target_key`: those by which control names itself to these hosts.
pub fn sign(ticket: &Ticket, source_key: &str, target_key: &str) -> Result<SignedTicket, TicketFault> {
    let body = serde_json::to_string(ticket).map_err(|error| TicketFault::Unreadable(error.to_string()))?;
    let for_source = proof(source_key, &body).to_hex().to_string();
    let for_target = proof(target_key, &body).to_hex().to_string();
    Ok(SignedTicket { body, for_source, for_target })
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
    fn a_ticket_ends() {
        assert_eq!(check_time(&ticket(), 100), Ok(()));
        assert_eq!(check_time(&ticket(), 101), Err(TicketFault::Expired));
    }
}
