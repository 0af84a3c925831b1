//! One order at the authority, from its beginning to a certificate: RFC 8555 section 7.4. The challenge's answer is a row
//! that every edge serves; it is taken away when the order is over.

use godwit_api::hostname::{ChallengeAnswer, ChallengeRow, KeyPem};
use godwit_api::{Hostname, keys};
use godwit_base::clock;
use godwit_store::{Op, Txn};
use instant_acme::{
    Account, AuthorizationStatus, ChallengeHandle, ChallengeType, Identifier, NewOrder, Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};

use super::ORDER_TIMEOUT;
use crate::certificates::{Pair, inspect};
use crate::config::{Acme, TLS_ALPN_01};
use crate::control::Control;
use crate::rows::json;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    #[error("the authority")]
    Authority(#[from] instant_acme::Error),
    #[error("the authority offers no {0} for this name")]
    NotOffered(&'static str),
    #[error("the authority was not convinced: {0}")]
    Invalid(String),
    #[error("the certificate cannot be used: {0}")]
    Certificate(String),
    #[error("a key or request cannot be made")]
    Key(#[from] rcgen::Error),
    #[error("the fleet store")]
    Store(#[from] godwit_api::ApiError),
    #[error("the order took longer than {} s", ORDER_TIMEOUT.as_secs())]
    TimedOut,
}

impl Failed {
    /// With its causes.
    pub fn told(&self) -> String {
        godwit_base::telemetry::chain(self)
    }

    /// The account is not known to the authority any more.
    pub fn is_account_gone(&self) -> bool {
        self.is("accountDoesNotExist")
    }

    /// It would not, because of how much it has issued already. When its limit ends (Unix milliseconds), or 0 where it
    /// does not say.
    pub fn limit(&self) -> Option<u64> {
        self.is("rateLimited").then(|| limit_ends_ms(&self.told()).unwrap_or(0))
    }

    /// RFC 8555 section 6.7.
    fn is(&self, kind: &str) -> bool {
        let Self::Authority(instant_acme::Error::Api(problem)) = self else { return false };
        problem.r#type.as_deref().and_then(|of| of.strip_prefix("urn:ietf:params:acme:error:")) == Some(kind)
    }
}

pub async fn order(
    control: &Control,
    config: &Acme,
    account: &Account,
    hostname: &Hostname,
    kind: &'static str,
) -> Result<Pair, Failed> {
    let outcome = tokio::time::timeout(ORDER_TIMEOUT, through(control, config, account, hostname, kind)).await;
    // However it went: what the authority needs no more is served no more.
    control.commit(Txn::of([Op::delete(keys::challenge(hostname))])).await?;
    outcome.map_err(|_| Failed::TimedOut)?
}

async fn through(
    control: &Control,
    config: &Acme,
    account: &Account,
    hostname: &Hostname,
    kind: &'static str,
) -> Result<Pair, Failed> {
    let identifiers = [Identifier::Dns(hostname.to_string())];
    let mut order = account.new_order(&NewOrder::new(&identifiers)).await?;
    let mut authorizations = order.authorizations();
    // One name, so there is one at most; it may be valid from an earlier order.
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        if authorization.status == AuthorizationStatus::Valid {
            continue;
        }
        let of_kind = if kind == TLS_ALPN_01 { ChallengeType::TlsAlpn01 } else { ChallengeType::Http01 };
        let mut challenge = authorization.challenge(of_kind).ok_or(Failed::NotOffered(kind))?;
        let row = ChallengeRow {
            hostname: hostname.clone(),
            until_ms: clock::unix_ms() + ORDER_TIMEOUT.as_millis() as u64,
            answer: answer(hostname, kind, &challenge)?,
        };
        control.commit(Txn::of([json(keys::challenge(hostname), &row)?])).await?;
        // Edges tell nobody what they have heard, and the authority may ask any of them.
        tokio::time::sleep(config.spread).await;
        challenge.set_ready().await?;
    }
    let status = order.poll_ready(&RetryPolicy::new().timeout(ORDER_TIMEOUT)).await?;
    if status != OrderStatus::Ready && status != OrderStatus::Valid {
        return Err(Failed::Invalid(why_not(&mut order).await));
    }
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![hostname.to_string()])?;
    params.distinguished_name = DistinguishedName::new();
    order.finalize_csr(params.serialize_request(&key)?.der()).await?;
    let chain = order.poll_certificate(&RetryPolicy::new().timeout(ORDER_TIMEOUT)).await?;
    let pair = inspect(hostname, &chain, &key.serialize_pem(), clock::unix_ms());
    pair.map_err(|error| Failed::Certificate(error.error))
}

fn answer(hostname: &Hostname, kind: &str, challenge: &ChallengeHandle<'_>) -> Result<ChallengeAnswer, Failed> {
    let authorization = challenge.key_authorization();
    if kind != TLS_ALPN_01 {
        let key_authorization = authorization.as_str().to_owned();
        return Ok(ChallengeAnswer::Http01 { token: challenge.token.clone(), key_authorization });
    }
    // RFC 8737 section 3: for this name alone, with the digest in a critical extension.
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![hostname.to_string()])?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(authorization.digest().as_ref())];
    let chain_pem = params.self_signed(&key)?.pem();
    Ok(ChallengeAnswer::TlsAlpn01 { chain_pem, key_pem: KeyPem(key.serialize_pem()) })
}

/// What the authority says of the challenge that did not convince it.
async fn why_not(order: &mut Order) -> String {
    let mut said = Vec::new();
    if let Some(problem) = &order.state().error {
        said.push(problem.to_string());
    }
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        if let Ok(state) = authorization.refresh().await {
            said.extend(state.challenges.iter().filter_map(|one| one.error.as_ref()).map(ToString::to_string));
        }
    }
    if said.is_empty() { "it does not say why".to_owned() } else { said.join("; ") }
}

/// "…, retry after 2026-12-05 10:11:12 UTC: see …" is how Boulder, Let's Encrypt's program, says when its limit ends. The
/// field `Retry-After` of its answer does not reach us.
fn limit_ends_ms(told: &str) -> Option<u64> {
    let (_, after) = told.split_once("retry after ")?;
    let mut words = after.split_ascii_whitespace();
    let (day, time) = (words.next()?, words.next()?);
    clock::parse_rfc3339(&format!("{day}T{}Z", time.trim_end_matches('Z')))
}

#[cfg(test)]
mod tests {
    use instant_acme::{Error, Problem};

    use super::*;

    fn refused(kind: &str, detail: &str) -> Failed {
        let kind = format!("urn:ietf:params:acme:error:{kind}");
        let problem = serde_json::json!({ "type": kind, "detail": detail, "status": 429 });
        Failed::Authority(Error::Api(serde_json::from_value::<Problem>(problem).unwrap()))
    }

    #[test]
    fn the_end_of_an_authoritys_limit_is_read() {
        let told = "too many certificates (5) already issued for this exact set of identifiers in the last 168h0m0s, \
                    retry after 2027-01-15 08:10:00 UTC: see https://letsencrypt.org/docs/rate-limits";
        assert_eq!(refused("rateLimited", told).limit(), Some(1_800_000_600_000));
        assert_eq!(refused("rateLimited", "retry after soon").limit(), Some(0));
        assert_eq!(refused("rateLimited", "too many orders").limit(), Some(0));
        // What is no limit is none, whatever it says.
        assert_eq!(refused("malformed", told).limit(), None);
        assert!(refused("accountDoesNotExist", "").is_account_gone());
    }
}
