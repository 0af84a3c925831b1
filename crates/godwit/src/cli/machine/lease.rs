//! `machine lease`: taking, showing, renewing and releasing the right to change a Machine.

use std::time::Duration;

use clap::Subcommand;
use godwit_api::endpoint::Empty;
use godwit_api::endpoints::{LeaseCreate, LeaseQuery, LeaseRelease, LeaseShow};
use godwit_api::lease::{CreateLease, Lease};
use godwit_base::http::client::HEAD_TIMEOUT;

use super::{LeaseOption, Target, nonce_header};
use crate::cli::context::Context;
use crate::error::Result;

#[derive(Subcommand)]
pub enum Command {
    /// Show who holds a lease
    #[command(visible_alias = "view")]
    Show(Target),
    /// Take a lease, or renew it with --lease-nonce; prints the nonce
    #[command(visible_aliases = ["take", "acquire"])]
    Create {
        #[command(flatten)]
        target: Target,
        /// How long the lease lasts
        #[arg(long, default_value = "60s", value_parser = super::duration, value_name = "DURATION")]
        ttl: Duration,
        /// What the lease is for
        #[arg(long)]
        description: Option<String>,
        #[command(flatten)]
        lease: LeaseOption,
    },
    /// Release a lease
    #[command(visible_alias = "clear")]
    Release {
        #[command(flatten)]
        target: Target,
        /// The nonce that `create` printed
        #[arg(long, env = "GODWIT_LEASE_NONCE", hide_env_values = true, value_name = "NONCE")]
        lease_nonce: String,
    },
}

pub async fn run(command: Command, context: &Context) -> Result<()> {
    let (client, output) = (&context.client, context.output);
    match command {
        Command::Show(target) => {
            let (app, machine) = context.machine(&target.app, &target.machine).await?;
            let path = [app.as_str(), machine.id.as_str()];
            let answer = client.call::<LeaseShow>(&path, &Empty {}, &Empty {}).await?;
            print(context, &answer.data)
        }
        Command::Create { target, ttl, description, lease } => {
            let (app, machine) = context.machine(&target.app, &target.machine).await?;
            let path = [app.as_str(), machine.id.as_str()];
            let request = CreateLease { ttl: Some(ttl.as_secs()), description };
            let (query, headers) = (LeaseQuery::default(), lease.headers()?);
            let answer = client.call_with::<LeaseCreate>(&path, &query, &request, &headers, HEAD_TIMEOUT).await?;
            if output.quiet && !output.json {
                println!("{}", answer.data.nonce);
                return Ok(());
            }
            print(context, &answer.data)
        }
        Command::Release { target, lease_nonce } => {
            let (app, machine) = context.machine(&target.app, &target.machine).await?;
            let path = [app.as_str(), machine.id.as_str()];
            let headers = nonce_header(Some(&lease_nonce))?;
            let answer = client.call_with::<LeaseRelease>(&path, &Empty {}, &Empty {}, &headers, HEAD_TIMEOUT).await?;
            if output.json {
                return output.json(&answer);
            }
            output.say(format!("The lease on Machine {} is given back.", machine.id));
            Ok(())
        }
    }
}

fn print(context: &Context, lease: &Lease) -> Result<()> {
    if context.output.json {
        return context.output.json(lease);
    }
    context.output.facts(&[
        ("Nonce", lease.nonce.clone()),
        ("Owner", lease.owner.clone()),
        ("Description", lease.description.clone()),
        ("Expires", godwit_base::clock::rfc3339(lease.expires_at.saturating_mul(1000))),
        ("Version", lease.version.clone()),
    ]);
    Ok(())
}
