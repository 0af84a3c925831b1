//! `godwit certs`: host names of an app's own, and the certificates by which they are served.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Subcommand;
use godwit_api::certificate::{
    CertificateDetail, CertificateSummary, ImportCertificate, ListCertificates, RequestCertificate, StoredCertificate,
};
use godwit_api::endpoint::Empty;
use godwit_api::endpoints::{
    CertificatesAcme, CertificatesCheck, CertificatesCustom, CertificatesDelete, CertificatesList, CertificatesShow,
};
use godwit_api::{AppName, Hostname};
use godwit_base::clock;

use super::context::{AppOption, Context, LOOK_INTERVAL};
use super::machine::WaitOption;
use crate::error::{CliError, Result};
use crate::exit::Exit;

/// A file that is no certificate is not sent to control.
const FILE_MAX_BYTES: u64 = 256 << 10;
const BAR_WIDTH: u64 = 30;
const DAY_MS: u64 = 24 * 3_600 * 1_000;
/// A certificate that ends sooner is called out.
const SOON: Duration = Duration::from_secs(14 * 24 * 3_600);

#[derive(Subcommand)]
pub enum Command {
    /// Add a host name to an app, with your own certificate or one requested for it
    #[command(visible_aliases = ["create", "import"])]
    Add(AddOptions),
    /// List the host names of an app
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        app: AppOption,
        /// Only host names that contain this text
        #[arg(long, value_name = "TEXT")]
        filter: Option<String>,
    },
    /// Show a host name and its certificates
    #[command(visible_alias = "status")]
    Show(Target),
    /// Check whether a host name points to this fleet, and retry a pending certificate
    Check(Target),
    /// Remove a host name and its certificates from an app
    #[command(visible_aliases = ["delete", "rm"])]
    Remove(Target),
}

#[derive(clap::Args)]
pub struct AddOptions {
    #[command(flatten)]
    app: AppOption,
    /// The host name: www.example.com, or *.example.com with your own certificate
    #[arg(value_name = "HOSTNAME", value_parser = hostname)]
    hostname: Hostname,
    /// The certificate chain in PEM, leaf first
    #[arg(long, value_name = "FILE", visible_alias = "cert", requires = "private_key")]
    fullchain: Option<PathBuf>,
    /// The private key in PEM
    #[arg(long, value_name = "FILE", visible_alias = "key", requires = "fullchain")]
    private_key: Option<PathBuf>,
    #[command(flatten)]
    wait: WaitOption,
}

#[derive(clap::Args)]
pub struct Target {
    #[command(flatten)]
    app: AppOption,
    /// The host name
    #[arg(value_name = "HOSTNAME", value_parser = hostname)]
    hostname: Hostname,
}

fn hostname(text: &str) -> Result<Hostname, String> {
    Hostname::parse(text).map_err(|error| error.to_string())
}

pub async fn run(command: Command, context: &Context) -> Result<()> {
    match command {
        Command::Add(options) => add(options, context).await,
        Command::List { app, filter } => list(context, &context.app(&app)?, filter).await,
        Command::Show(target) => {
            let (app, seen) = seen(context, &target).await?;
            show(context, &app, &seen)
        }
        Command::Check(target) => check(context, &target).await,
        Command::Remove(target) => remove(context, &target).await,
    }
}

async fn seen(context: &Context, target: &Target) -> Result<(AppName, CertificateDetail)> {
    let app = context.app(&target.app)?;
    let path = [app.as_str(), target.hostname.as_str()];
    let called = context.client.call::<CertificatesShow>(&path, &Empty {}, &Empty {}).await;
    let seen = called.map_err(|error| unknown(CliError::from(error), &app))?;
    Ok((app, seen))
}

fn unknown(error: CliError, app: &AppName) -> CliError {
    match error.exit {
        Exit::NotFound => error.hint(format!("`godwit certs list -a {app}` lists the app's host names")),
        _ => error,
    }
}

async fn add(options: AddOptions, context: &Context) -> Result<()> {
    let app = context.app(&options.app)?;
    let output = context.output;
    let hostname = options.hostname.to_string();
    let made = match (&options.fullchain, &options.private_key) {
        (Some(chain), Some(key)) => {
            let request = ImportCertificate { hostname, fullchain: file(chain)?, private_key: file(key)? };
            context.client.call::<CertificatesCustom>(&[app.as_str()], &Empty {}, &request).await
        }
        _ => {
            let request = RequestCertificate { hostname };
            context.client.call::<CertificatesAcme>(&[app.as_str()], &Empty {}, &request).await
        }
    };
    let mut made = made.map_err(|error| {
        let error = CliError::from(error);
        match options.fullchain {
            None if error.exit == Exit::Failed => {
                error.hint("a certificate of your own: `godwit certs add NAME --fullchain FILE --private-key FILE`")
            }
            _ => error,
        }
    })?;
    output.say(format!("{} belongs to app {app}.", made.hostname));
    if !made.configured {
        dns_hint(context, &made);
        if !options.wait.detach {
            made = until_issued(context, &app, made, &options.wait).await?;
        }
    }
    if output.json {
        return output.json(&made);
    }
    if let Some(served) = made.certificates.first() {
        output.say(format!("Its certificate ({}) is valid until {}.", served.issuer, served.expires_at));
    }
    println!("{}", made.hostname);
    Ok(())
}

/// Says where the name must lead.
fn dns_hint(context: &Context, made: &CertificateDetail) {
    let output = context.output;
    let records = [("A", &made.dns_requirements.a), ("AAAA", &made.dns_requirements.aaaa)];
    output.say("Point it to your edges, with ports 80 and 443 open:");
    if records.iter().all(|(_, addresses)| addresses.is_empty()) {
        return output.say(format!("  {}  A or AAAA  the address of an edge", made.hostname));
    }
    for (kind, addresses) in records {
        for address in addresses {
            output.say(format!("  {}  {kind}  {address}", made.hostname));
        }
    }
}

async fn until_issued(
    context: &Context,
    app: &AppName,
    mut seen: CertificateDetail,
    wait: &WaitOption,
) -> Result<CertificateDetail> {
    let _progress = context.output.progress(format!("waiting for the certificate of {}", seen.hostname));
    let deadline = Instant::now() + wait.wait_timeout;
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    let goes_on = format!("it continues: `godwit certs show {} -a {app}` shows it", seen.hostname);
    while !seen.configured {
        if let Some(error) = seen.validation_errors.iter().find(|error| error.code == "acme") {
            let again = seen.next_attempt_at.as_deref().unwrap_or("later");
            return Err(CliError::failed(format!("the authority refused {}: {}", seen.hostname, error.message)).hint(
                format!("it is tried again at {again}; `godwit certs check {} -a {app}` tries at once", seen.hostname),
            ));
        }
        if Instant::now() > deadline {
            let why = format!("{} has no certificate after {} s", seen.hostname, wait.wait_timeout.as_secs());
            return Err(CliError::new(Exit::TimedOut, why).hint(goes_on));
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            _ = &mut interrupted => {
                return Err(CliError::new(Exit::Interrupted, "stopped waiting; the Machine was not changed").hint(goes_on));
            }
        }
        let path = [app.as_str(), seen.hostname.as_str()];
        match context.client.call::<CertificatesShow>(&path, &Empty {}, &Empty {}).await.map_err(CliError::from) {
            Ok(now) => seen = now,
            Err(error) if error.exit == Exit::Unreachable => {}
            Err(error) => return Err(error),
        }
    }
    Ok(seen)
}

async fn list(context: &Context, app: &AppName, filter: Option<String>) -> Result<()> {
    let output = context.output;
    let mut found: Vec<CertificateSummary> = Vec::new();
    let mut query = ListCertificates { filter, ..ListCertificates::default() };
    loop {
        let page = context.client.call::<CertificatesList>(&[app.as_str()], &query, &Empty {}).await?;
        found.extend(page.certificates);
        match page.next_cursor {
            Some(cursor) => query.cursor = Some(cursor),
            None => break,
        }
    }
    if output.json {
        return output.json(&found);
    }
    if output.quiet {
        found.iter().for_each(|one| println!("{}", one.hostname));
        return Ok(());
    }
    let now_ms = clock::unix_ms();
    let rows = found.iter().map(|one| {
        let source = match (one.has_custom_certificate, one.has_fly_certificate) {
            (true, true) => "custom, acme",
            (true, false) => "custom",
            (false, true) => "acme",
            (false, false) => "-",
        };
        let left = one.expires_at.as_deref().and_then(clock::parse_rfc3339).map(|at| left(at.saturating_sub(now_ms)));
        vec![
            one.hostname.clone(),
            one.status.clone(),
            source.to_owned(),
            left.unwrap_or_else(|| "-".to_owned()),
            one.created_at.clone(),
        ]
    });
    output.table(&["HOSTNAME", "STATUS", "CERTIFICATE", "LEFT", "CREATED"], rows.collect());
    if found.iter().any(|one| one.status == "failed") {
        output.say("failed: `godwit certs show HOSTNAME` says why; it is tried again by itself");
    }
    Ok(())
}

fn show(context: &Context, app: &AppName, seen: &CertificateDetail) -> Result<()> {
    let output = context.output;
    if output.json {
        return output.json(seen);
    }
    let mut facts =
        vec![("Hostname", seen.hostname.clone()), ("App", app.to_string()), ("Status", seen.status.clone())];
    let check = &seen.validation;
    if let Some(at) = &check.checked_at {
        let reached = if check.http_configured { "answered by this fleet" } else { "not answered by this fleet" };
        let addresses = if check.addresses.is_empty() { "no address".to_owned() } else { check.addresses.join(", ") };
        facts.push(("Checked", format!("{at}: {addresses}; {reached}")));
    }
    if let Some(at) = &seen.next_attempt_at {
        facts.push(("Tried again", at.clone()));
    }
    output.facts(&facts);
    let now_ms = clock::unix_ms();
    for (number, one) in seen.certificates.iter().enumerate() {
        println!();
        let served = if number == 0 && one.status == "active" { ", served" } else { "" };
        let mut facts = vec![
            ("Certificate", format!("{} ({}{served})", one.source, one.status)),
            ("Names", one.names.join(", ")),
            ("Issuer", if one.self_signed { format!("{} (itself)", one.issuer) } else { one.issuer.clone() }),
            ("Key", one.key_type.clone()),
            ("SHA-256", one.sha256.clone()),
            ("Expires", one.expires_at.clone()),
        ];
        if let Some(picture) = lifetime(one, now_ms) {
            facts.push(("Life", picture));
        }
        output.facts(&facts);
        let left_ms = clock::parse_rfc3339(&one.expires_at).map_or(u64::MAX, |at| at.saturating_sub(now_ms));
        if one.source == "custom" && !served.is_empty() && u128::from(left_ms) < SOON.as_millis() {
            output.warn(format!("it ends in {}: nobody renews a certificate of your own but you", left(left_ms)));
        }
    }
    for error in &seen.validation_errors {
        output.warn(format!("{}\n  {}", error.message, error.remediation));
    }
    Ok(())
}

/// How much of a certificate's life is over, as a picture.
fn lifetime(one: &StoredCertificate, now_ms: u64) -> Option<String> {
    let (from, until) = (clock::parse_rfc3339(&one.valid_from)?, clock::parse_rfc3339(&one.expires_at)?);
    let whole = until.checked_sub(from).filter(|whole| *whole > 0)?;
    let over = now_ms.clamp(from, until) - from;
    let filled = over * BAR_WIDTH / whole;
    let bar: String = (0..BAR_WIDTH).map(|at| if at < filled { '#' } else { '-' }).collect();
    Some(format!("[{bar}] {} left of {}", left(whole - over), left(whole)))
}

fn left(ms: u64) -> String {
    match ms / DAY_MS {
        0 => format!("{} h", ms / 3_600_000),
        days => format!("{days} days"),
    }
}

async fn check(context: &Context, target: &Target) -> Result<()> {
    let app = context.app(&target.app)?;
    let path = [app.as_str(), target.hostname.as_str()];
    let called = context.client.call::<CertificatesCheck>(&path, &Empty {}, &Empty {}).await;
    let seen = called.map_err(|error| unknown(CliError::from(error), &app))?;
    show(context, &app, &seen)?;
    if !context.output.json && !seen.validation.http_configured && seen.validation.addresses.is_empty() {
        dns_hint(context, &seen);
    }
    Ok(())
}

async fn remove(context: &Context, target: &Target) -> Result<()> {
    let app = context.app(&target.app)?;
    let hostname = &target.hostname;
    context.confirm(&format!("Take {hostname} and its certificates from app {app}?"))?;
    let path = [app.as_str(), hostname.as_str()];
    let called = context.client.call::<CertificatesDelete>(&path, &Empty {}, &Empty {}).await;
    called.map_err(|error| unknown(CliError::from(error), &app))?;
    context.output.say(format!("{hostname} is served no more."));
    Ok(())
}

fn file(path: &PathBuf) -> Result<String> {
    let failed = |why: String| CliError::usage(format!("{}: {why}", path.display()));
    let size = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?.len();
    if size > FILE_MAX_BYTES {
        return Err(failed(format!("it has more than {FILE_MAX_BYTES} bytes")));
    }
    std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))
}
