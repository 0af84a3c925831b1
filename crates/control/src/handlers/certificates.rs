//! Host names of an app and their certificates. What a handler answers never holds a private key.

use godwit_api::certificate::{CertificateDetail, CertificateList};
use godwit_api::endpoint::Empty;
use godwit_api::endpoints::{
    CertificatesAcme, CertificatesCheck, CertificatesCustom, CertificatesDelete, CertificatesDeleteAcme,
    CertificatesDeleteCustom, CertificatesList, CertificatesShow,
};
use godwit_api::hostname::{AcmeWish, HostnameRow, Source};
use godwit_api::{ApiError, Hostname, keys};
use godwit_base::clock;
use godwit_store::Op;

use crate::call::Call;
use crate::certificates::inspect;
use crate::control::{COMMIT_ATTEMPTS, Control, contended, no_app};
use crate::hostnames::{detail, summary};
use crate::reach;

const PAGE_MAX: u32 = 500;

fn shown(control: &Control, row: &HostnameRow) -> CertificateDetail {
    detail(row, &control.config.public_addresses, clock::unix_ms())
}

fn named(text: &str) -> Result<Hostname, ApiError> {
    if text.trim().is_empty() {
        return Err(ApiError::unprocessable("hostname is missing: the name by which the app is to be reached"));
    }
    Hostname::parse(text.trim()).map_err(|error| ApiError::unprocessable(format!("hostname: {error}")))
}

pub async fn list(call: Call<CertificatesList>) -> Result<CertificateList, ApiError> {
    let app = call.app()?;
    let limit = call.query.limit.filter(|limit| (1..=PAGE_MAX).contains(limit)).unwrap_or(PAGE_MAX) as usize;
    let world = call.control.world();
    if !world.apps.contains_key(&app) {
        return Err(no_app(&app));
    }
    let filter = call.query.filter.as_deref().unwrap_or_default().to_ascii_lowercase();
    let mut rows: Vec<_> =
        world.hostnames_of(&app).filter(|row| row.hostname.as_str().contains(filter.as_str())).collect();
    let total_count = rows.len() as u64;
    if let Some(cursor) = &call.query.cursor {
        rows.retain(|row| row.hostname.as_str() > cursor.as_str());
    }
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next_cursor = rows.last().filter(|_| more).map(|row| row.hostname.to_string());
    let now_ms = clock::unix_ms();
    let certificates = rows.into_iter().map(|row| summary(row, now_ms)).collect();
    Ok(CertificateList { certificates, next_cursor, total_count })
}

pub async fn acme(call: Call<CertificatesAcme>) -> Result<CertificateDetail, ApiError> {
    let (app, control) = (call.app()?, &call.control);
    let hostname = named(&call.body.hostname)?;
    if hostname.wildcard_of().is_some() {
        return Err(ApiError::unprocessable(format!(
            "hostname: authorities vouch for {hostname} by DNS alone, which this version does not do; bring a \
             certificate of your own, or request each name by itself"
        )));
    }
    if control.config.acme.is_none() {
        return Err(ApiError::unprocessable(
            "this fleet has no certificate authority: name one in control's configuration ([acme] directory_url), or \
             bring a certificate of your own",
        ));
    }
    let wish = |row: &mut HostnameRow| {
        let wish = row.acme.get_or_insert_with(AcmeWish::default);
        // Whoever asks again has mended something.
        (wish.next_at_ms, wish.last_error, wish.limited_until_ms) = (0, None, None);
    };
    let row = control.put_hostname(&app, &hostname, wish, None).await?;
    Ok(shown(control, &row))
}

pub async fn custom(call: Call<CertificatesCustom>) -> Result<CertificateDetail, ApiError> {
    let (app, control) = (call.app()?, &call.control);
    let hostname = named(&call.body.hostname)?;
    let pair = inspect(&hostname, &call.body.fullchain, &call.body.private_key, clock::unix_ms())?;
    let put = |row: &mut HostnameRow| row.custom = Some(pair.info.clone());
    let row = control.put_hostname(&app, &hostname, put, Some((&pair, Source::Custom))).await?;
    Ok(shown(control, &row))
}

pub async fn show(call: Call<CertificatesShow>) -> Result<CertificateDetail, ApiError> {
    let row = call.control.hostname_row(&call.app()?, &call.hostname()?)?;
    Ok(shown(&call.control, &row))
}

pub async fn delete(call: Call<CertificatesDelete>) -> Result<Empty, ApiError> {
    let (app, hostname) = (call.app()?, call.hostname()?);
    for _ in 0..COMMIT_ATTEMPTS {
        let row = call.control.hostname_row(&app, &hostname)?;
        if call.control.delete_hostname(&row).await? {
            return Ok(Empty {});
        }
    }
    Err(contended())
}

/// Looks from here whether the name leads to an edge. A certificate that is pending is tried at once.
pub async fn check(call: Call<CertificatesCheck>) -> Result<CertificateDetail, ApiError> {
    let (app, hostname, control) = (call.app()?, call.hostname()?, &call.control);
    control.hostname_row(&app, &hostname)?;
    let found = reach::check(control, &hostname).await?;
    let note = |row: &mut HostnameRow| {
        row.check = Some(found.clone());
        if let Some(wish) = &mut row.acme {
            wish.next_at_ms = 0;
        }
    };
    let row = control.change_hostname(&app, &hostname, note, Vec::new()).await?;
    Ok(shown(control, &row))
}

pub async fn delete_acme(call: Call<CertificatesDeleteAcme>) -> Result<CertificateDetail, ApiError> {
    let clear = |row: &mut HostnameRow| (row.acme, row.issued) = (None, None);
    delete_of(&call.control, &call.app()?, &call.hostname()?, Source::Acme, clear).await
}

pub async fn delete_custom(call: Call<CertificatesDeleteCustom>) -> Result<CertificateDetail, ApiError> {
    let clear = |row: &mut HostnameRow| row.custom = None;
    delete_of(&call.control, &call.app()?, &call.hostname()?, Source::Custom, clear).await
}

async fn delete_of(
    control: &Control,
    app: &godwit_api::AppName,
    hostname: &Hostname,
    source: Source,
    clear: impl Fn(&mut HostnameRow),
) -> Result<CertificateDetail, ApiError> {
    let row = control.hostname_row(app, hostname)?;
    let is_there = match source {
        Source::Custom => row.custom.is_some(),
        Source::Acme => row.acme.is_some() || row.issued.is_some(),
    };
    if !is_there {
        return Err(ApiError::not_found(format!("{hostname} has no {} certificate", source.as_str())));
    }
    let row =
        control.change_hostname(app, hostname, clear, vec![Op::delete(keys::certificate(hostname, source))]).await?;
    Ok(shown(control, &row))
}
