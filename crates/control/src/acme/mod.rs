//! Certificates from an authority: control orders and renews them, edges answer for it (`docs/decisions/0014`).
//!
//! `plan` says which host names are due, `order` carries one order through. An order is claimed in the name's row first, so
//! that of several controls one makes it; a claim whose control died lapses.

mod order;
pub mod plan;

use std::sync::Arc;
use std::time::Duration;

use godwit_api::hostname::{AcmeAccountRow, HostnameRow, Source};
use godwit_api::{ApiError, Hostname, keys};
use godwit_base::clock;
use godwit_store::{Compare, Op, StoreExt, Txn};
use instant_acme::{Account, AccountCredentials, NewAccount};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::certificates::Pair;
use crate::config::Acme;
use crate::control::Control;
use crate::hostnames::certificate_row;
use crate::rows::{json, store_error};
use order::{Failed, order};

/// An order ends by then.
const ORDER_TIMEOUT: Duration = Duration::from_secs(120);
/// Longer than an order takes with all around it.
const CLAIM_MS: u64 = 180_000;
/// Orders under way at once.
const ORDERS_MAX: usize = 8;
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Changes gather for so long before the next look.
const GATHER: Duration = Duration::from_millis(20);
/// The authority's directory and the account are there by then.
const ACCOUNT_TIMEOUT: Duration = Duration::from_secs(30);

/// Orders what is due, for ever. Without an authority in the configuration there is nothing to do.
pub async fn run(control: Arc<Control>) {
    let Some(config) = control.config.acme.clone() else { return };
    let (config, account) = (Arc::new(config), Arc::new(Mutex::new(None)));
    let mut orders = JoinSet::new();
    let mut changes = control.changes();
    loop {
        changes.borrow_and_update();
        for row in due(&control, &config, ORDERS_MAX - orders.len()) {
            match claim(&control, &row).await {
                Ok(true) => {
                    let one = one(control.clone(), config.clone(), account.clone(), row);
                    orders.spawn(one);
                }
                Ok(false) => {}
                Err(error) => tracing::warn!(hostname = %row.hostname, %error, "an order cannot be claimed"),
            }
        }
        tokio::time::sleep(GATHER).await;
        tokio::select! {
            // Elapsed is as good a reason to look as a change; the end of the changes ends with the group.
            _ = tokio::time::timeout(LOOK_INTERVAL, changes.changed()) => {}
            Some(_) = orders.join_next() => {}
        }
    }
}

fn due(control: &Control, config: &Acme, most: usize) -> Vec<HostnameRow> {
    let (world, now_ms) = (control.world(), clock::unix_ms());
    let rows = world.hostnames.values().filter(|row| !world.is_hostname_orphan(row));
    let due = rows.filter(|row| plan::is_due(row, now_ms, config.renew_left_permille));
    due.take(most).map(|row| (*row.value).clone()).collect()
}

/// Whether the order is ours to make.
async fn claim(control: &Control, seen: &HostnameRow) -> Result<bool, ApiError> {
    let Some(row) = control.world().hostnames.get(&seen.hostname).cloned() else { return Ok(false) };
    if *row.value != *seen {
        return Ok(false);
    }
    let mut next = seen.clone();
    if let Some(wish) = &mut next.acme {
        wish.ordering_until_ms = clock::unix_ms() + CLAIM_MS;
    }
    let key = keys::hostname(&seen.hostname);
    let txn = Txn::of([json(key.clone(), &next)?]).when(Compare::unchanged(key, row.revision));
    Ok(control.commit(txn).await?.succeeded)
}

async fn one(control: Arc<Control>, config: Arc<Acme>, account: Arc<Mutex<Option<Account>>>, row: HostnameRow) {
    let failures = row.acme.as_ref().map_or(0, |wish| wish.failures);
    // There is always one: the configuration was checked for it.
    let kind = plan::challenge(&config.challenges, failures).unwrap_or(crate::config::HTTP_01);
    let hostname = &row.hostname;
    let ordered = async {
        let account = the_account(&control, &config, &account).await?;
        order(&control, &config, &account, hostname, kind).await
    };
    let outcome = ordered.await;
    match &outcome {
        Ok(pair) => tracing::info!(%hostname, kind, issuer = pair.info.issuer, "a certificate was issued"),
        Err(error) => tracing::warn!(%hostname, kind, error = error.told(), "no certificate was issued"),
    }
    if outcome.as_ref().err().is_some_and(Failed::is_account_gone) {
        *account.lock().await = None;
        if let Err(error) = control.commit(Txn::of([Op::delete(keys::ACME_ACCOUNT)])).await {
            tracing::warn!(%error, "the account cannot be forgotten");
        }
    }
    let kept = keep(&control, &config, hostname, kind, outcome).await;
    if let Err(error) = kept {
        // The claim lapses, and then it is ordered again.
        tracing::warn!(%hostname, %error, "the outcome of an order was not kept");
    }
}

/// Writes what came of an order, unless the name is gone or wants none any more.
async fn keep(
    control: &Control,
    config: &Acme,
    hostname: &Hostname,
    kind: &str,
    outcome: Result<Pair, Failed>,
) -> Result<(), ApiError> {
    for _ in 0..crate::control::COMMIT_ATTEMPTS {
        let Some(row) = control.world().hostnames.get(hostname).cloned() else { return Ok(()) };
        let Some(wish) = &row.acme else { return Ok(()) };
        let mut next = (*row.value).clone();
        next.updated_at_ms = clock::unix_ms();
        let key = keys::hostname(hostname);
        let mut ops = Vec::new();
        match &outcome {
            Ok(pair) => {
                next.acme = Some(plan::succeeded(kind));
                next.issued = Some(pair.info.clone());
                let of = keys::certificate(hostname, Source::Acme);
                ops.push(json(of, &certificate_row(hostname, Source::Acme, pair))?);
            }
            Err(error) => {
                next.acme =
                    Some(plan::failed(wish, &error.told(), error.limit(), next.updated_at_ms, config.retry_first_ms));
            }
        }
        ops.push(json(key.clone(), &next)?);
        if control.commit(Txn::of(ops).when(Compare::unchanged(key, row.revision))).await?.succeeded {
            return Ok(());
        }
    }
    Err(crate::control::contended())
}

/// The account at the authority, made at the first order and kept in the store.
async fn the_account(control: &Control, config: &Acme, known: &Mutex<Option<Account>>) -> Result<Account, Failed> {
    let mut known = known.lock().await;
    if let Some(account) = &*known {
        return Ok(account.clone());
    }
    let opened = tokio::time::timeout(ACCOUNT_TIMEOUT, open_account(control, config)).await;
    let account = opened.map_err(|_| Failed::TimedOut)??;
    *known = Some(account.clone());
    Ok(account)
}

async fn open_account(control: &Control, config: &Acme) -> Result<Account, Failed> {
    let builder = || match &config.root_file {
        Some(path) => Account::builder_with_root(path),
        None => Account::builder(),
    };
    let row = control.store.get_json::<AcmeAccountRow>(keys::ACME_ACCOUNT).await.map_err(store_error)?;
    if let Some(row) = row.filter(|row| row.value.directory_url == config.directory_url)
        && let Ok(credentials) = serde_json::from_value::<AccountCredentials>(row.value.credentials)
    {
        return Ok(builder()?.from_credentials(credentials).await?);
    }
    let contact: Vec<&str> = config.contact.iter().map(String::as_str).collect();
    let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
    let (account, credentials) = builder()?.create(&new, config.directory_url.clone(), None).await?;
    let credentials = serde_json::to_value(credentials).map_err(instant_acme::Error::Json)?;
    let row = AcmeAccountRow { directory_url: config.directory_url.clone(), credentials };
    control.commit(Txn::of([json(keys::ACME_ACCOUNT.to_owned(), &row)?])).await?;
    tracing::info!(directory = config.directory_url, "an account was made at the certificate authority");
    Ok(account)
}
