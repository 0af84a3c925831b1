//! Host names of apps: whose they are, what is told of them, and how their rows change. A name belongs to one app of the
//! fleet; a certificate of it is written in the transaction that says so in the name's own row.

use std::net::IpAddr;

use godwit_api::certificate::{
    CertificateDetail, CertificateSummary, CertificateValidation, DnsRequirements, IssuedCertificate,
    StoredCertificate, ValidationError,
};
use godwit_api::error::Status;
use godwit_api::hostname::{CertificateInfo, CertificateRow, HostnameRow, Source};
use godwit_api::{ApiError, AppName, Hostname, keys};
use godwit_base::clock::{self, rfc3339};
use godwit_store::{Compare, Op, Txn};

use crate::certificates::Pair;
use crate::control::{COMMIT_ATTEMPTS, Control, contended, no_app};
use crate::rows::json;
use crate::world::Known;

/// Host names of one app, and of the fleet: every edge holds them all.
pub const OF_APP_MAX: usize = 1_000;
pub const OF_FLEET_MAX: usize = 50_000;

impl Control {
    pub(crate) fn hostname_row(&self, app: &AppName, hostname: &Hostname) -> Result<Known<HostnameRow>, ApiError> {
        let world = self.world();
        if !world.apps.contains_key(app) {
            return Err(no_app(app));
        }
        let row = world.hostnames.get(hostname).filter(|row| row.app == *app && !world.is_hostname_orphan(row));
        row.cloned().ok_or_else(|| ApiError::not_found(format!("app {app} has no host name {hostname}")))
    }

    /// Gives the app the name, unless it has it, and changes its row; a pair is stored with it.
    pub(crate) async fn put_hostname(
        &self,
        app: &AppName,
        hostname: &Hostname,
        change: impl Fn(&mut HostnameRow),
        pair: Option<(&Pair, Source)>,
    ) -> Result<Known<HostnameRow>, ApiError> {
        for _ in 0..COMMIT_ATTEMPTS {
            let (app_revision, stands, orphaned) = {
                let world = self.world();
                let app_row = world.apps.get(app).ok_or_else(|| no_app(app))?;
                let stands = world.hostnames.get(hostname).cloned();
                let orphaned = stands.as_ref().is_some_and(|row| world.is_hostname_orphan(row));
                if stands.is_none() {
                    bounded(world.hostnames_of(app).count(), OF_APP_MAX, "an app")?;
                    bounded(world.hostnames.len(), OF_FLEET_MAX, "a fleet")?;
                }
                (app_row.revision, stands, orphaned)
            };
            if stands.as_ref().is_some_and(|row| row.app != *app) && !orphaned {
                return Err(ApiError::new(409, Status::NameTaken, format!("{hostname} belongs to another app")));
            }
            let now_ms = clock::unix_ms();
            let mut row = match &stands {
                Some(row) if !orphaned => (*row.value).clone(),
                _ => fresh(app, hostname, now_ms),
            };
            change(&mut row);
            row.updated_at_ms = now_ms;
            let key = keys::hostname(hostname);
            let mut ops = vec![json(key.clone(), &row)?];
            if orphaned {
                // Nothing of the app that had it before goes over.
                ops.extend(Source::ALL.map(|source| Op::delete(keys::certificate(hostname, source))));
                ops.push(Op::delete(keys::challenge(hostname)));
            }
            if let Some((pair, source)) = pair {
                let of = keys::certificate(hostname, source);
                ops.retain(|op| op.key() != of);
                ops.push(json(of, &certificate_row(hostname, source, pair))?);
            }
            let txn = Txn::of(ops)
                .when(Compare::unchanged(key, stands.map_or(0, |row| row.revision)))
                .when(Compare::unchanged(keys::app(app), app_revision));
            if self.commit(txn).await?.succeeded {
                return self.hostname_row(app, hostname);
            }
        }
        Err(contended())
    }

    /// Changes the row of a name that the app has; `with` beside it, in the same transaction.
    pub(crate) async fn change_hostname(
        &self,
        app: &AppName,
        hostname: &Hostname,
        change: impl Fn(&mut HostnameRow),
        with: Vec<Op>,
    ) -> Result<Known<HostnameRow>, ApiError> {
        for _ in 0..COMMIT_ATTEMPTS {
            let stands = self.hostname_row(app, hostname)?;
            let mut row = (*stands.value).clone();
            change(&mut row);
            row.updated_at_ms = clock::unix_ms();
            let key = keys::hostname(hostname);
            let ops = [json(key.clone(), &row)?].into_iter().chain(with.iter().cloned());
            if self.commit(Txn::of(ops).when(Compare::unchanged(key, stands.revision))).await?.succeeded {
                return self.hostname_row(app, hostname);
            }
        }
        Err(contended())
    }

    pub(crate) async fn delete_hostname(&self, row: &Known<HostnameRow>) -> Result<bool, ApiError> {
        let key = keys::hostname(&row.hostname);
        let certificates = Source::ALL.map(|source| Op::delete(keys::certificate(&row.hostname, source)));
        let ops = [Op::delete(key.clone()), Op::delete(keys::challenge(&row.hostname))];
        let txn = Txn::of(ops.into_iter().chain(certificates)).when(Compare::unchanged(key, row.revision));
        Ok(self.commit(txn).await?.succeeded)
    }
}

fn bounded(count: usize, most: usize, what: &str) -> Result<(), ApiError> {
    if count < most {
        return Ok(());
    }
    Err(ApiError::unprocessable(format!("{what} has at most {most} host names: remove one that is not used")))
}

fn fresh(app: &AppName, hostname: &Hostname, now_ms: u64) -> HostnameRow {
    HostnameRow {
        hostname: hostname.clone(),
        app: app.clone(),
        created_at_ms: now_ms,
        updated_at_ms: now_ms,
        acme: None,
        custom: None,
        issued: None,
        check: None,
    }
}

pub(crate) fn certificate_row(hostname: &Hostname, source: Source, pair: &Pair) -> CertificateRow {
    CertificateRow {
        hostname: hostname.clone(),
        source,
        not_after_ms: pair.info.not_after_ms,
        chain_pem: pair.chain_pem.clone(),
        key_pem: pair.key_pem.clone(),
    }
}

// ---- how it is told -----------------------------------------------------------------

/// The certificate that edges serve: the owner's as long as it is valid, then the issued one.
fn served(row: &HostnameRow, now_ms: u64) -> Option<&CertificateInfo> {
    [&row.custom, &row.issued].into_iter().flatten().find(|info| info.not_after_ms > now_ms)
}

fn status(row: &HostnameRow, now_ms: u64) -> &'static str {
    if served(row, now_ms).is_some() {
        return "active";
    }
    match &row.acme {
        Some(wish) if wish.last_error.is_some() => "failed",
        Some(_) => "pending_validation",
        None if row.custom.is_none() && row.issued.is_none() => "no_certificate",
        None => "expired",
    }
}

fn is_here(row: &HostnameRow, public: &[IpAddr]) -> bool {
    let Some(check) = &row.check else { return false };
    let ours = |addr: &String| addr.parse().is_ok_and(|addr: IpAddr| public.contains(&addr));
    !check.addresses.is_empty() && (public.is_empty() || check.addresses.iter().all(ours))
}

pub(crate) fn summary(row: &HostnameRow, now_ms: u64) -> CertificateSummary {
    let by = |kind: &str| row.acme.as_ref().and_then(|wish| wish.challenge.as_deref()) == Some(kind);
    let served = served(row, now_ms);
    CertificateSummary {
        hostname: row.hostname.to_string(),
        status: status(row, now_ms).to_owned(),
        dns_provider: None,
        configured: served.is_some(),
        acme_requested: row.acme.is_some(),
        has_custom_certificate: row.custom.is_some(),
        has_fly_certificate: row.issued.is_some(),
        acme_dns_configured: false,
        acme_alpn_configured: by("tls-alpn-01"),
        acme_http_configured: by("http-01") || row.check.as_ref().is_some_and(|check| check.http_reached),
        ownership_txt_configured: false,
        expires_at: served.map(|info| rfc3339(info.not_after_ms)),
        created_at: rfc3339(row.created_at_ms),
        updated_at: rfc3339(row.updated_at_ms),
    }
}

/// `public`: addresses at which edges are known to be reached.
pub(crate) fn detail(row: &HostnameRow, public: &[IpAddr], now_ms: u64) -> CertificateDetail {
    let short = summary(row, now_ms);
    let mut certificates: Vec<StoredCertificate> = [(Source::Custom, &row.custom), (Source::Acme, &row.issued)]
        .into_iter()
        .filter_map(|(source, info)| Some(stored(source, info.as_ref()?, now_ms)))
        .collect();
    certificates.sort_by_key(|one| one.status != "active");
    let pick = |v4: bool| public.iter().filter(|addr| addr.is_ipv4() == v4).map(IpAddr::to_string).collect();
    CertificateDetail {
        hostname: short.hostname,
        status: short.status,
        dns_provider: short.dns_provider,
        rate_limited_until: limited_until(row, now_ms),
        configured: short.configured,
        acme_requested: short.acme_requested,
        certificates,
        validation: CertificateValidation {
            dns_configured: is_here(row, public),
            alpn_configured: short.acme_alpn_configured,
            http_configured: short.acme_http_configured,
            ownership_txt_configured: false,
            addresses: row.check.as_ref().map(|check| check.addresses.clone()).unwrap_or_default(),
            checked_at: row.check.as_ref().map(|check| rfc3339(check.checked_at_ms)),
        },
        validation_errors: errors(row),
        dns_requirements: DnsRequirements { a: pick(true), aaaa: pick(false), cname: String::new() },
        next_attempt_at: row.acme.as_ref().filter(|wish| wish.failures > 0).map(|wish| rfc3339(wish.next_at_ms)),
        created_at: short.created_at,
        updated_at: short.updated_at,
    }
}

fn limited_until(row: &HostnameRow, now_ms: u64) -> Option<String> {
    let until_ms = row.acme.as_ref()?.limited_until_ms.filter(|until_ms| *until_ms > now_ms)?;
    Some(rfc3339(until_ms))
}

fn stored(source: Source, info: &CertificateInfo, now_ms: u64) -> StoredCertificate {
    StoredCertificate {
        source: source.as_str().to_owned(),
        status: if info.not_after_ms > now_ms { "active" } else { "expired" }.to_owned(),
        names: info.names.clone(),
        issuer: info.issuer.clone(),
        serial: info.serial.clone(),
        key_type: info.key_type.clone(),
        sha256: info.sha256.clone(),
        self_signed: info.self_signed,
        valid_from: rfc3339(info.not_before_ms),
        expires_at: rfc3339(info.not_after_ms),
        created_at: rfc3339(info.stored_at_ms),
        issued: (source == Source::Acme).then(|| issued(info)).into_iter().collect(),
    }
}

fn issued(info: &CertificateInfo) -> IssuedCertificate {
    // The one word that clients know; any other authority is named as it names itself.
    let is_lets_encrypt = info.issuer.starts_with("Let's Encrypt");
    IssuedCertificate {
        kind: info.key_type.clone(),
        expires_at: rfc3339(info.not_after_ms),
        certificate_authority: if is_lets_encrypt { "lets_encrypt" } else { &info.issuer }.to_owned(),
    }
}

fn errors(row: &HostnameRow) -> Vec<ValidationError> {
    let mut errors = Vec::new();
    if let Some((check, why)) = row.check.as_ref().and_then(|check| Some((check, check.error.as_ref()?))) {
        errors.push(ValidationError {
            code: if check.addresses.is_empty() { "dns" } else { "http" }.to_owned(),
            message: why.clone(),
            remediation: format!("let {} lead to the addresses of your edges, with port 80 open", row.hostname),
            timestamp: rfc3339(check.checked_at_ms),
        });
    }
    if let Some((wish, why)) = row.acme.as_ref().and_then(|wish| Some((wish, wish.last_error.as_ref()?))) {
        errors.push(ValidationError {
            code: "acme".to_owned(),
            message: why.clone(),
            remediation: "fix the cause, then retry with `certs check`".to_owned(),
            timestamp: rfc3339(wish.failed_at_ms.unwrap_or(row.updated_at_ms)),
        });
    }
    errors
}
