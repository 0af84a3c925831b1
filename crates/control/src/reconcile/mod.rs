//! Reconcilers: each looks at the picture, does what is missing, and is woken by changes and by a timer. None takes
//! an input: a hint would be a second way to the same end. None brings run state back: that is the host's own.

mod collect;
mod hostnames;
mod migrations;
mod outrank;
mod probe;
mod publish;
mod settle;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use godwit_base::TaskGroup;

use crate::control::Control;

/// Every reconciler looks at least this often.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// After a look, changes gather for so long before the next.
const GATHER: Duration = Duration::from_millis(10);
/// After a failed look (the store is away).
const FAILED_PAUSE: Duration = Duration::from_millis(500);

/// Starts them all; they end with the group.
pub fn start(control: &Arc<Control>, group: &TaskGroup) {
    looking(control, group, "routes", LOOK_INTERVAL, publish::routes);
    looking(control, group, "settle", LOOK_INTERVAL, settle::settle);
    looking(control, group, "migrations", LOOK_INTERVAL, migrations::moves);
    looking(control, group, "hostnames", LOOK_INTERVAL, hostnames::tidy);
    group.spawn_cancellable(crate::acme::run(control.clone()));
    group.spawn_cancellable(probe::probe(control.clone()));
    group.spawn_cancellable(collect::images(control.clone()));
}

fn looking<F, A>(control: &Arc<Control>, group: &TaskGroup, name: &'static str, interval: Duration, look: F)
where
    F: Fn(Arc<Control>) -> A + Send + 'static,
    A: Future<Output = Result<(), godwit_api::ApiError>> + Send,
{
    let control = control.clone();
    group.spawn_cancellable(async move {
        let mut changes = control.changes();
        loop {
            changes.borrow_and_update();
            if let Err(error) = look(control.clone()).await {
                tracing::warn!(reconciler = name, %error, "a look failed and will be repeated");
                tokio::time::sleep(FAILED_PAUSE).await;
            }
            tokio::time::sleep(GATHER).await;
            // Elapsed is as good a reason to look as a change; the end of the changes ends with the group.
            let _ = tokio::time::timeout(interval, changes.changed()).await;
        }
    });
}
