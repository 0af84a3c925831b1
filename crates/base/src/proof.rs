//! What control has given, provable: a keyed BLAKE3 hash over (host, machine, epoch), made with a secret that control
//! alone has. It travels with each placement and comes back in the host's facts. Nobody but control can make or judge
//! one: a host cannot say that it was given a Machine, or an epoch, that it was not. Pure.

use godwit_api::ids::{Epoch, HostId, MachineId};

/// Separates these keys from everything else that might be derived from the same secret.
const CONTEXT: &str = "godwit 2026-12-01 proof of a placement";

/// Makes proofs and judges them. The default one has no secret: it makes none, and believes none.
#[derive(Clone, Default)]
pub struct Prover(Option<[u8; 32]>);

impl std::fmt::Debug for Prover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Prover(…)")
    }
}

impl Prover {
    pub fn new(secret: &str) -> Self {
        Self((!secret.is_empty()).then(|| blake3::derive_key(CONTEXT, secret.as_bytes())))
    }

    /// That `host` was given `machine` (a Machine, or the carrier of a volume) at `epoch`: 64 hexadecimal digits.
    pub fn prove(&self, host: &HostId, machine: &MachineId, epoch: Epoch) -> String {
        self.hash(host, machine, epoch).map(|hash| hash.to_hex().to_string()).unwrap_or_default()
    }

    pub fn believes(&self, proof: &str, host: &HostId, machine: &MachineId, epoch: Epoch) -> bool {
        let Ok(shown) = blake3::Hash::from_hex(proof) else { return false };
        // Hashes compare in constant time.
        self.hash(host, machine, epoch).is_some_and(|hash| hash == shown)
    }

    /// No id holds a line's end, so no two triples make one text.
    fn hash(&self, host: &HostId, machine: &MachineId, epoch: Epoch) -> Option<blake3::Hash> {
        let text = format!("{host}\n{machine}\n{epoch}");
        Some(blake3::keyed_hash(self.0.as_ref()?, text.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_of_one_host_one_machine_one_epoch_and_one_control() {
        let host = |text: &str| HostId::parse(text).unwrap();
        let (m, n) = (MachineId::from_bits(1), MachineId::from_bits(2));
        let epoch = Epoch { generation: 7, n: 3 };
        let prover = Prover::new("gwp_secret");
        let proof = prover.prove(&host("w1"), &m, epoch);
        assert!(prover.believes(&proof, &host("w1"), &m, epoch));
        assert!(!prover.believes(&proof, &host("w2"), &m, epoch));
        assert!(!prover.believes(&proof, &host("w1"), &n, epoch));
        assert!(!prover.believes(&proof, &host("w1"), &m, epoch.next()));
        assert!(!prover.believes(&proof, &host("w1"), &m, Epoch { generation: 8, n: 3 }));
        assert!(!Prover::new("gwp_other").believes(&proof, &host("w1"), &m, epoch));
        for none in [Prover::default(), Prover::new("")] {
            assert_eq!(none.prove(&host("w1"), &m, epoch), "");
            assert!(!none.believes("", &host("w1"), &m, epoch) && !none.believes(&proof, &host("w1"), &m, epoch));
        }
    }
}
