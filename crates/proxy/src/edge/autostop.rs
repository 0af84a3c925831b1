//! Puts Machines to sleep: one pass over this region's apps at each interval. `excess` says how many an app can do
//! without; the door has the last word on who is idle.
//!
//! Rows are read in one listing, not watched, so that also an app that nobody ever asked for through this edge sleeps.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use godwit_api::door::StopIfIdle;
use godwit_api::ids::AppName;
use godwit_api::route::{Readiness, RouteRow};
use godwit_store::StoreExt;

use super::Edge;
use super::app::App;
use super::call;
use super::view::{Lessons, Target, View, Word, build};
use crate::excess::{Running, excess};

/// Apps that are looked at side by side.
const SIDE_BY_SIDE: usize = 16;
/// A listing that takes longer is left; what is watched is looked at all the same.
const LIST_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) async fn run(edge: Arc<Edge>, interval: Duration, idle: Duration) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        pass(&edge, idle).await;
        edge.metrics.autostop_passes.inc();
    }
}

/// One app in one pass.
struct Sleeper {
    name: AppName,
    view: Arc<View>,
    /// If it is watched here.
    app: Option<Arc<App>>,
}

async fn pass(edge: &Arc<Edge>, idle: Duration) {
    let sleepers = futures_util::stream::iter(sleepers(edge).await);
    sleepers.for_each_concurrent(SIDE_BY_SIDE, |sleeper| rest(edge, sleeper, idle)).await;
}

async fn sleepers(edge: &Arc<Edge>) -> Vec<Sleeper> {
    let mut by_name: BTreeMap<AppName, Sleeper> = BTreeMap::new();
    let prefix = godwit_api::keys::routes_in(edge.routes.region());
    if let Ok(Ok(listing)) = tokio::time::timeout(LIST_TIMEOUT, edge.routes.store().list(&prefix)).await {
        for row in listing.rows.iter().filter_map(|row| row.json::<RouteRow>().ok()) {
            let row = row.value;
            let rows = BTreeMap::from([(row.region.clone(), row.clone())]);
            let doors = |_: &_| None;
            let view =
                build(&rows, edge.routes.region(), &mut Lessons::new(), doors, &View::default(), edge.routes.now_ms());
            by_name.insert(row.app.clone(), Sleeper { name: row.app, view: Arc::new(view), app: None });
        }
    }
    for app in edge.routes.all() {
        by_name.insert(app.name.clone(), Sleeper { name: app.name.clone(), view: app.view(), app: Some(app) });
    }
    by_name.into_values().collect()
}

async fn rest(edge: &Arc<Edge>, sleeper: Sleeper, idle: Duration) {
    let awake = |target: &&Target| target.local && !target.cordoned && target.readiness == Readiness::Running;
    let (mut may_sleep, must_stay): (Vec<&Target>, Vec<&Target>) =
        sleeper.view.targets.iter().filter(awake).partition(|target| target.autostops());
    // Those that turn out to be on their way to another host count nowhere: without them it is another question.
    while let Some(moving) = stop_some(edge, &sleeper, &may_sleep, must_stay.len(), idle).await {
        may_sleep.remove(moving);
    }
}

/// Asks those that the app can do without. Answers the place of one that is moving, if nothing was stopped before.
async fn stop_some(
    edge: &Arc<Edge>,
    sleeper: &Sleeper,
    may_sleep: &[&Target],
    must_stay: usize,
    idle: Duration,
) -> Option<usize> {
    let now_ms = edge.routes.now_ms();
    let load = |target: &Target| target.services.iter().map(|one| one.tally.load(now_ms)).sum();
    let soft = |target: &Target| target.services.iter().map(|one| one.soft).min().unwrap_or(1);
    let running: Vec<Running> =
        may_sleep.iter().map(|target| Running { load: load(target), soft: soft(target) }).collect();
    let services = may_sleep.iter().flat_map(|target| target.services.iter());
    let min = services.map(|one| one.service.min_machines_running()).max().unwrap_or(0);
    let min = usize::try_from(min).unwrap_or(usize::MAX).saturating_sub(must_stay);
    let mut stopped = false;
    for index in excess(&running, min) {
        let target = may_sleep[index];
        let call = StopIfIdle { epoch: target.epoch, idle_ms: u64::try_from(idle.as_millis()).unwrap_or(u64::MAX) };
        let link = edge.hosts.link(&target.door_addr);
        match call::stop_if_idle(&link, &target.machine, &call).await {
            Ok(reply) if reply.stopped => {
                stopped = true;
                edge.metrics.idle_stops.inc();
                tracing::info!(app = %sleeper.name, machine = %target.machine, "stopped an idle Machine");
                if let Some(app) = &sleeper.app {
                    app.learn(&target.machine, Word::Stopped, target.epoch, edge.routes.now_ms());
                }
            }
            Ok(reply) if reply.moving && !stopped => return Some(index),
            Ok(_) => {}
            Err(error) => tracing::debug!(app = %sleeper.name, %error, "a door could not be asked for a stop"),
        }
    }
    None
}
