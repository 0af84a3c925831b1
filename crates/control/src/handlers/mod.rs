//! One file a noun. A handler reads the picture, decides, commits, tells the host, answers; it holds no state.

mod apps;
mod certificates;
mod edges;
mod fleet;
mod images;
mod join;
mod lease;
mod logs;
mod machines;
mod metadata;
mod migrations;
mod run;
mod strays;
mod streams;
mod volumes;
mod wait;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use godwit_api::endpoints::*;
use godwit_base::Verb;

use crate::call::route;
use crate::control::Control;

/// Every endpoint of the public API.
pub(crate) fn routes() -> Router<Arc<Control>> {
    let mut router = Router::new();
    macro_rules! operate {
        ($($endpoint:ty => $handler:expr;)*) => { $(router = route::<$endpoint, _, _>(router, Verb::Operate, $handler);)* };
    }
    operate! {
        AppsList => apps::list;
        AppsCreate => apps::create;
        AppsShow => apps::show;
        AppsDelete => apps::delete;
        MachinesList => machines::list;
        MachinesCreate => machines::create;
        MachinesShow => machines::show;
        MachinesUpdate => machines::update;
        MachinesDelete => machines::delete;
        MachinesCordon => machines::cordon;
        MachinesUncordon => machines::uncordon;
        MachinesEvents => machines::events;
        MachinesVersions => machines::versions;
        MachinesStart => run::start;
        MachinesStop => run::stop;
        MachinesRestart => run::restart;
        MachinesSignal => run::signal;
        MachinesExec => run::exec;
        MachinesPs => run::ps;
        MachinesWait => wait::wait;
        LeaseShow => lease::show;
        LeaseCreate => lease::create;
        LeaseRelease => lease::release;
        MetadataShow => metadata::show;
        MetadataUpdate => metadata::update;
        MetadataDelete => metadata::delete;
        VolumesList => volumes::list;
        VolumesCreate => volumes::create;
        VolumesShow => volumes::show;
        VolumesDelete => volumes::delete;
        MachinesMigrate => migrations::machine;
        VolumesMigrate => migrations::volume;
        MigrationsList => migrations::list;
        MigrationsShow => migrations::show;
        MigrationsCancel => migrations::cancel;
        CertificatesList => certificates::list;
        CertificatesAcme => certificates::acme;
        CertificatesCustom => certificates::custom;
        CertificatesShow => certificates::show;
        CertificatesDelete => certificates::delete;
        CertificatesCheck => certificates::check;
        CertificatesDeleteAcme => certificates::delete_acme;
        CertificatesDeleteCustom => certificates::delete_custom;
        HostsList => fleet::list;
        HostsShow => fleet::show;
        HostsCordon => fleet::cordon;
        HostsUncordon => fleet::uncordon;
        HostsStrays => strays::list;
        HostsEndStray => strays::end;
        HostsAdoptStray => strays::adopt;
        ImagesList => images::list;
        ImagesDelete => images::delete;
    }
    router = route::<FleetJoin, _, _>(router, Verb::Join, join::join);
    router = route::<EdgesTellPorts, _, _>(router, Verb::Tell, edges::ports);
    router
        .route(IMAGE_UPLOAD, post(images::upload).layer(DefaultBodyLimit::disable()))
        .route(MACHINE_LOGS, get(logs::stream))
        .route(MACHINE_SESSION, get(streams::session))
        .route(MACHINE_CONNECT, get(streams::connect))
}
