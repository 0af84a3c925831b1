//! The public API, endpoint by endpoint. Streams (`logs`, image upload) stand beside the table as plain paths.

use std::collections::BTreeMap;

use crate::app::{App, AppList, CreateApp, CreatedApp};
use crate::certificate::{CertificateDetail, CertificateList, ImportCertificate, ListCertificates, RequestCertificate};
use crate::endpoint::{Empty, Endpoint, Method, Operation};
use crate::event::MachineEvent;
use crate::fleet::{AdoptStray, Adopted, EdgePorts, Host, Image, Join, Joined, Stray};
use crate::lease::{CreateLease, LeaseAnswer, LeaseReleased};
use crate::machine::*;
use crate::migration::{ListMigrations, Migrate, Migration};
use crate::volume::{CreateVolume, Volume};

macro_rules! endpoints {
    ($($name:ident = $id:literal $method:ident $path:literal $success:literal
        ($query:ty, $request:ty) -> $response:ty, $summary:literal;)*) => {
        $(
            #[doc = $summary]
            pub struct $name;
            impl Endpoint for $name {
                const ID: &'static str = $id;
                const METHOD: Method = Method::$method;
                const PATH: &'static str = $path;
                const SUCCESS: u16 = $success;
                const SUMMARY: &'static str = $summary;
                type Query = $query;
                type Request = $request;
                type Response = $response;
            }
        )*
        /// Every endpoint of the public API, in the order of this file.
        pub fn all() -> Vec<Operation> {
            vec![$(Operation::of::<$name>()),*]
        }
    };
}

endpoints! {
    AppsList = "Apps_list" Get "/apps" 200 (OrgQuery, Empty) -> AppList, "List apps.";
    AppsCreate = "Apps_create" Post "/apps" 201 (Empty, CreateApp) -> CreatedApp, "Create an app.";
    AppsShow = "Apps_show" Get "/apps/{app_name}" 200 (Empty, Empty) -> App, "Show an app.";
    AppsDelete = "Apps_delete" Delete "/apps/{app_name}" 202 (DeleteQuery, Empty) -> Empty,
        "Delete an app; with force, its Machines too.";
    MachinesList = "Machines_list" Get "/apps/{app_name}/machines" 200 (ListMachines, Empty) -> Vec<Machine>,
        "List the Machines of an app.";
    MachinesCreate = "Machines_create" Post "/apps/{app_name}/machines" 200 (Empty, CreateMachine) -> Machine,
        "Create a Machine and, unless told otherwise, start it.";
    MachinesShow = "Machines_show" Get "/apps/{app_name}/machines/{machine_id}" 200 (Empty, Empty) -> Machine,
        "Show a Machine.";
    MachinesUpdate = "Machines_update" Post "/apps/{app_name}/machines/{machine_id}" 200
        (Empty, CreateMachine) -> Machine, "Give a Machine a new configuration.";
    MachinesDelete = "Machines_delete" Delete "/apps/{app_name}/machines/{machine_id}" 200
        (DeleteQuery, Empty) -> Acknowledged, "Destroy a Machine.";
    MachinesStart = "Machines_start" Post "/apps/{app_name}/machines/{machine_id}/start" 200
        (Empty, Empty) -> StartAnswer, "Start a Machine.";
    MachinesStop = "Machines_stop" Post "/apps/{app_name}/machines/{machine_id}/stop" 200
        (Empty, StopMachine) -> Acknowledged, "Stop a Machine.";
    MachinesRestart = "Machines_restart" Post "/apps/{app_name}/machines/{machine_id}/restart" 200
        (RestartQuery, Empty) -> Acknowledged, "Restart a Machine.";
    MachinesSignal = "Machines_signal" Post "/apps/{app_name}/machines/{machine_id}/signal" 200
        (Empty, SignalMachine) -> Acknowledged, "Send a signal to a Machine's process.";
    MachinesWait = "Machines_wait" Get "/apps/{app_name}/machines/{machine_id}/wait" 200
        (WaitQuery, Empty) -> Acknowledged, "Wait until a Machine is in a state.";
    MachinesExec = "Machines_exec" Post "/apps/{app_name}/machines/{machine_id}/exec" 200
        (Empty, ExecMachine) -> ExecAnswer, "Run a command in a Machine.";
    MachinesPs = "Machines_list_processes" Get "/apps/{app_name}/machines/{machine_id}/ps" 200
        (SortQuery, Empty) -> Vec<ProcessStat>, "List a Machine's processes.";
    MachinesEvents = "Machines_list_events" Get "/apps/{app_name}/machines/{machine_id}/events" 200
        (EventsQuery, Empty) -> Vec<MachineEvent>, "List a Machine's events, newest first.";
    MachinesVersions = "Machines_list_versions" Get "/apps/{app_name}/machines/{machine_id}/versions" 200
        (Empty, Empty) -> Vec<MachineVersion>, "List a Machine's configurations, newest first.";
    MachinesCordon = "Machines_cordon" Post "/apps/{app_name}/machines/{machine_id}/cordon" 200
        (Empty, Empty) -> Acknowledged, "Take a Machine out of its app's routes.";
    MachinesUncordon = "Machines_uncordon" Post "/apps/{app_name}/machines/{machine_id}/uncordon" 200
        (Empty, Empty) -> Acknowledged, "Put a Machine back into its app's routes.";
    LeaseShow = "Machines_show_lease" Get "/apps/{app_name}/machines/{machine_id}/lease" 200
        (Empty, Empty) -> LeaseAnswer, "Show a Machine's lease.";
    LeaseCreate = "Machines_create_lease" Post "/apps/{app_name}/machines/{machine_id}/lease" 201
        (LeaseQuery, CreateLease) -> LeaseAnswer, "Take a lease on a Machine, or renew it with its nonce.";
    LeaseRelease = "Machines_release_lease" Delete "/apps/{app_name}/machines/{machine_id}/lease" 200
        (Empty, Empty) -> LeaseReleased, "Release a Machine's lease.";
    MetadataShow = "Machines_show_metadata" Get "/apps/{app_name}/machines/{machine_id}/metadata" 200
        (Empty, Empty) -> BTreeMap<String, String>, "Show a Machine's metadata.";
    MetadataUpdate = "Machines_update_metadata" Post "/apps/{app_name}/machines/{machine_id}/metadata/{key}" 204
        (Empty, MetadataValue) -> Empty, "Set one key of a Machine's metadata.";
    MetadataDelete = "Machines_delete_metadata" Delete "/apps/{app_name}/machines/{machine_id}/metadata/{key}" 204
        (Empty, Empty) -> Empty, "Delete one key of a Machine's metadata.";
    VolumesList = "Volumes_list" Get "/apps/{app_name}/volumes" 200 (Empty, Empty) -> Vec<Volume>,
        "List the volumes of an app.";
    VolumesCreate = "Volumes_create" Post "/apps/{app_name}/volumes" 200 (Empty, CreateVolume) -> Volume,
        "Create a volume.";
    VolumesShow = "Volumes_get_by_id" Get "/apps/{app_name}/volumes/{volume_id}" 200 (Empty, Empty) -> Volume,
        "Show a volume.";
    VolumesDelete = "Volume_delete" Delete "/apps/{app_name}/volumes/{volume_id}" 200 (Empty, Empty) -> Volume,
        "Delete a volume that no Machine holds.";
    MachinesMigrate = "Machines_migrate" Post "/apps/{app_name}/machines/{machine_id}/migrate" 202
        (Empty, Migrate) -> Migration, "Move a Machine with its volumes to another host.";
    VolumesMigrate = "Volumes_migrate" Post "/apps/{app_name}/volumes/{volume_id}/migrate" 202
        (Empty, Migrate) -> Migration, "Move a volume that no Machine holds to another host.";
    MigrationsList = "Migrations_list" Get "/migrations" 200 (ListMigrations, Empty) -> Vec<Migration>,
        "List moves, newest first.";
    MigrationsShow = "Migrations_show" Get "/migrations/{migration_id}" 200 (Empty, Empty) -> Migration,
        "Show a move and its events.";
    MigrationsCancel = "Migrations_cancel" Post "/migrations/{migration_id}/cancel" 202 (Empty, Empty) -> Migration,
        "Call a move off, if its source has not handed off yet.";
    CertificatesList = "Certificates_list" Get "/apps/{app_name}/certificates" 200
        (ListCertificates, Empty) -> CertificateList, "List the host names of an app and their certificates.";
    CertificatesAcme = "Certificates_create_acme" Post "/apps/{app_name}/certificates/acme" 201
        (Empty, RequestCertificate) -> CertificateDetail, "Give an app a host name and request its certificate.";
    CertificatesCustom = "Certificates_create_custom" Post "/apps/{app_name}/certificates/custom" 201
        (Empty, ImportCertificate) -> CertificateDetail, "Give an app a host name with a certificate of its owner's.";
    CertificatesShow = "Certificates_show" Get "/apps/{app_name}/certificates/{hostname}" 200
        (Empty, Empty) -> CertificateDetail, "Show a host name and its certificates.";
    CertificatesDelete = "Certificates_delete" Delete "/apps/{app_name}/certificates/{hostname}" 204
        (Empty, Empty) -> Empty, "Take a host name and all its certificates from an app.";
    CertificatesCheck = "Certificates_check" Post "/apps/{app_name}/certificates/{hostname}/check" 200
        (Empty, Empty) -> CertificateDetail, "Look whether a host name leads here, and try a pending certificate now.";
    CertificatesDeleteAcme = "Certificates_delete_acme" Delete "/apps/{app_name}/certificates/{hostname}/acme" 200
        (Empty, Empty) -> CertificateDetail, "Give up a certificate that was issued, and request no more.";
    CertificatesDeleteCustom = "Certificates_delete_custom" Delete "/apps/{app_name}/certificates/{hostname}/custom"
        200 (Empty, Empty) -> CertificateDetail, "Delete a certificate of the owner's.";
    HostsList = "Hosts_list" Get "/hosts" 200 (Empty, Empty) -> Vec<Host>, "List hosts.";
    HostsShow = "Hosts_show" Get "/hosts/{host_id}" 200 (Empty, Empty) -> Host, "Show a host.";
    HostsCordon = "Hosts_cordon" Post "/hosts/{host_id}/cordon" 200 (Empty, Empty) -> Acknowledged,
        "Place nothing new on a host.";
    HostsUncordon = "Hosts_uncordon" Post "/hosts/{host_id}/uncordon" 200 (Empty, Empty) -> Acknowledged,
        "Place on a host again.";
    HostsStrays = "Hosts_list_strays" Get "/hosts/{host_id}/strays" 200 (Empty, Empty) -> Vec<Stray>,
        "List what a host holds and no row names.";
    HostsEndStray = "Hosts_end_stray" Delete "/hosts/{host_id}/strays/{stray_id}" 200 (Empty, Empty) -> Acknowledged,
        "End what a host holds and no row names, with its data.";
    HostsAdoptStray = "Hosts_adopt_stray" Post "/hosts/{host_id}/strays/{stray_id}/adopt" 200 (Empty, AdoptStray) -> Adopted,
        "Put on record again what a host holds and no row names.";
    EdgesTellPorts = "Edges_tell_ports" Post "/edges/ports" 200 (Empty, EdgePorts) -> Acknowledged,
        "For edges: tell which public ports could not be opened.";
    ImagesList = "Images_list" Get "/images" 200 (Empty, Empty) -> Vec<Image>, "List the images that control holds.";
    ImagesDelete = "Images_delete" Delete "/images/{image_name}" 200 (Empty, Empty) -> Image,
        "Take a name from an image; its data go once no Machine runs it.";
    FleetJoin = "Fleet_join" Post "/join" 200 (Empty, Join) -> Joined, "Admit a host or an edge.";
}

/// `POST /v1/images?name=NAME`: the body is an OCI or `docker save` archive; answered with `Vec<Image>`.
pub const IMAGE_UPLOAD: &str = "/v1/images";
/// `GET`: a stream of `host::LogLine`, one JSON object a line; query `host::LogQuery`.
pub const MACHINE_LOGS: &str = "/v1/apps/{app_name}/machines/{machine_id}/logs";
/// `GET` with `Upgrade: godwit-session/1`: a command, or a copy of files, as frames (see `session`).
pub const MACHINE_SESSION: &str = "/v1/apps/{app_name}/machines/{machine_id}/session";
/// `GET` with `Upgrade: tcp` and the query `port`: the bytes of one connection to that port of the Machine.
pub const MACHINE_CONNECT: &str = "/v1/apps/{app_name}/machines/{machine_id}/connect";

#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct OrgQuery {
    pub org_slug: Option<String>,
}

#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct SortQuery {
    pub sort_by: Option<String>,
    pub order: Option<String>,
}

#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct EventsQuery {
    /// So many of the newest at most.
    pub limit: Option<u64>,
}

#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct LeaseQuery {
    pub ttl: Option<u64>,
}
