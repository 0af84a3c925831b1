//! Moves that must not begin, and tickets that must not count.

use anyhow::{Context, Result, ensure};
use godwit_api::endpoint::Empty;
use godwit_api::endpoints::{HostsCordon, HostsUncordon};
use godwit_api::ticket::{HandoffAnswer, HandoffAsk, SignedTicket};
use godwit_base::http::client::{CallError, Client};
use serde_json::json;

use super::bed::{Bed, End};
use super::table::{Row, conclude};
use super::traces::ticket_of;
use crate::support::run;

#[test]
fn what_must_not_move_is_refused_with_a_reason_and_changes_nothing() {
    run(async {
        let mut bed = Bed::new(&[]).await.expect("a bed");
        let mut rows = Vec::new();
        let second = bed.row("a second move", End::Moved, async |bed, ends| {
            let (id, _slow) = bed.begin_draining(json!({})).await?;
            refused(bed, json!({ "host": ends.target.id }), 409, &id).await?;
            refused(bed, json!({}), 409, &id).await?;
            Ok(id)
        });
        rows.push(second.await);
        let odd =
            bed.row("to the same, an unknown, a cordoned host; then to a good one", End::Moved, async |bed, ends| {
                refused(bed, json!({ "host": ends.source.id }), 409, "already").await?;
                refused(bed, json!({ "host": "w1-none" }), 422, "w1-none").await?;
                let api = bed.fleet.api()?;
                api.call::<HostsCordon>(&[&ends.target.id], &Empty {}, &Empty {}).await?;
                refused(bed, json!({ "host": ends.target.id }), 422, "cordon").await?;
                refused(bed, json!({}), 503, "cordoned").await?;
                api.call::<HostsUncordon>(&[&ends.target.id], &Empty {}, &Empty {}).await?;
                bed.begin(json!({})).await
            });
        rows.push(odd.await);
        // The Machine is back where it was at first. The ticket of the first move is as good as new, but for its epoch.
        let mut stale = Row::named("a replayed ticket, a forged one, one for another host");
        let done: Result<()> = async {
            let ends = bed.ends().await?;
            let first = ticket_of(&bed.fleet, &ends.source.id)?;
            let epoch = bed.fleet.machine(super::bed::APP, &bed.machine).await?.instance_id;
            let answer = handoff(&first).await?;
            ensure!(matches!(&answer, HandoffAnswer::Refused { reason } if !reason.is_empty()), "{answer:?}");
            let forged = SignedTicket { body: first.body.replacen("\"n\":", "\"n\":9", 1), ..first.clone() };
            ensure!(forged.body != first.body, "nothing to forge in {}", first.body);
            for bad in [forged, SignedTicket { for_source: first.for_target.clone(), ..first.clone() }] {
                match handoff(&bad).await {
                    Err(CallError::Answered(error)) if error.code == 403 => {}
                    other => anyhow::bail!("a forged ticket was answered {other:?}"),
                }
            }
            match handoff(&first.shown()).await {
                Err(CallError::Answered(error)) if error.code == 401 => {}
                other => anyhow::bail!("a ticket without its bearer was answered {other:?}"),
            }
            stale.end = "refused".into();
            bed.runs_at(&ends.source.id).await?;
            let now = bed.fleet.machine(super::bed::APP, &bed.machine).await?.instance_id;
            ensure!(now == epoch, "{epoch} became {now}");
            bed.lost_nothing(&mut stale).await?;
            bed.left_nothing(&ends.source.id, &ends.target.id).await
        }
        .await;
        stale.judged(done, &bed);
        rows.push(stale);
        let after = bed.row("a move after all that", End::Moved, async |bed, _| bed.begin(json!({})).await);
        rows.push(after.await);
        conclude(&rows);
    });
}

async fn refused(bed: &Bed, wish: serde_json::Value, code: u16, says: &str) -> Result<()> {
    match bed.ask(wish.clone()).await {
        Err(CallError::Answered(error)) => {
            ensure!(error.code == code && error.to_string().contains(says), "{wish}: {} {error}", error.code);
            Ok(())
        }
        Err(error) => Err(error).context(wish.to_string()),
        Ok(moving) => anyhow::bail!("{wish} was accepted: {}", moving.id),
    }
}

/// As a target would ask.
async fn handoff(signed: &SignedTicket) -> Result<HandoffAnswer, CallError> {
    let url = signed.read().expect("a ticket").source_url;
    let ask = HandoffAsk { ticket: signed.shown(), client_certificate: String::new() };
    let timeout = crate::support::PATIENCE;
    let bearer = Some(signed.caller.clone()).filter(|caller| !caller.is_empty());
    Client::tcp(&url, bearer).json(godwit_api::Method::Post, "/host/v1/moves/handoff", Some(&ask), timeout).await
}
