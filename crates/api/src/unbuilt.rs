//! What the Machines API has and this version does not: the paths of its reference and of its clients that lead to
//! nothing here. A client that is answered 404 takes its Machine or volume for gone, so each of these is answered 501 by
//! name. An endpoint that gets built leaves this table. Pure.

use crate::error::{ApiError, Status};

/// One call: its method, its path below `/v1` (parameters in braces), and what it would do.
#[derive(Debug, Clone, Copy)]
pub struct Unbuilt {
    pub method: &'static str,
    pub path: &'static str,
    pub what: &'static str,
}

const fn call(method: &'static str, path: &'static str, what: &'static str) -> Unbuilt {
    Unbuilt { method, path, what }
}

/// Sources: `openapi/reference`, and the calls of the platform's own clients.
pub const UNBUILT: &[Unbuilt] = &[
    call("POST", "/apps/{app_name}/machines/{machine_id}/suspend", "suspending a Machine"),
    call("POST", "/apps/{app_name}/machines/{machine_id}/reclaim_memory", "reclaiming a Machine's memory"),
    call("GET", "/apps/{app_name}/machines/{machine_id}/memory", "a Machine's memory limit"),
    call("PUT", "/apps/{app_name}/machines/{machine_id}/memory", "a Machine's memory limit"),
    call("POST", "/apps/{app_name}/machines/{machine_id}/memory/reclaim", "reclaiming a Machine's memory"),
    call("POST", "/apps/{app_name}/machines/{machine_id}/releases", "releases of a Machine"),
    call("PUT", "/apps/{app_name}/machines/{machine_id}/metadata", "replacing all metadata at once"),
    call("PATCH", "/apps/{app_name}/machines/{machine_id}/metadata", "changing several keys of metadata at once"),
    call("GET", "/apps/{app_name}/machines/{machine_id}/metadata/{key}", "one key of a Machine's metadata"),
    call("PUT", "/apps/{app_name}/volumes/{volume_id}", "changing a volume"),
    call("POST", "/apps/{app_name}/volumes/{volume_id}", "changing a volume"),
    call("PUT", "/apps/{app_name}/volumes/{volume_id}/extend", "making a volume larger"),
    call("GET", "/apps/{app_name}/volumes/{volume_id}/snapshots", "snapshots of volumes"),
    call("POST", "/apps/{app_name}/volumes/{volume_id}/snapshots", "snapshots of volumes"),
    call("GET", "/apps/{app_name}/secrets", "secrets"),
    call("POST", "/apps/{app_name}/secrets", "secrets"),
    call("GET", "/apps/{app_name}/secrets/{name}", "secrets"),
    call("POST", "/apps/{app_name}/secrets/{name}", "secrets"),
    call("DELETE", "/apps/{app_name}/secrets/{name}", "secrets"),
    call("POST", "/apps/{app_name}/secrets/{name}/type/{type}", "secrets"),
    call("POST", "/apps/{app_name}/secrets/{name}/type/{type}/generate", "secrets"),
    call("GET", "/apps/{app_name}/secretkeys", "secret keys"),
    call("GET", "/apps/{app_name}/secretkeys/{name}", "secret keys"),
    call("POST", "/apps/{app_name}/secretkeys/{name}", "secret keys"),
    call("DELETE", "/apps/{app_name}/secretkeys/{name}", "secret keys"),
    call("POST", "/apps/{app_name}/secretkeys/{name}/generate", "secret keys"),
    call("POST", "/apps/{app_name}/secretkeys/{name}/encrypt", "secret keys"),
    call("POST", "/apps/{app_name}/secretkeys/{name}/decrypt", "secret keys"),
    call("POST", "/apps/{app_name}/secretkeys/{name}/sign", "secret keys"),
    call("POST", "/apps/{app_name}/secretkeys/{name}/verify", "secret keys"),
    call("GET", "/apps/{app_name}/ip_assignments", "addresses of an app's own"),
    call("POST", "/apps/{app_name}/ip_assignments", "addresses of an app's own"),
    call("DELETE", "/apps/{app_name}/ip_assignments/{ip}", "addresses of an app's own"),
    call("POST", "/apps/{app_name}/deploy_token", "tokens for one app"),
    call("POST", "/apps/{app_name}/certificates", "certificates by this call; use …/certificates/acme or …/custom"),
    call("GET", "/platform/regions", "the list of regions; `GET /v1/hosts` shows those of the hosts"),
    call("POST", "/platform/placements", "placements that are only asked about"),
    call("GET", "/orgs/{org_slug}/machines", "Machines of all apps by organization"),
    call("GET", "/orgs/{org_slug}/volumes", "volumes of all apps by organization"),
    call("POST", "/tokens/kms", "tokens of a key service"),
    call("POST", "/tokens/oidc", "OpenID Connect tokens"),
    call("POST", "/tokens/request", "tokens by request"),
    call("GET", "/tokens/current", "what a token may do"),
    call("POST", "/tokens/authenticate", "tokens that are checked for others"),
    call("POST", "/tokens/authorize", "tokens that are checked for others"),
];

/// The call that a request means, if it is one of these. `path` is as requested, with `/v1`.
pub fn find(method: &str, path: &str) -> Option<&'static Unbuilt> {
    let path = path.strip_prefix("/v1")?.trim_end_matches('/');
    UNBUILT.iter().find(|call| call.method == method && fits(call.path, path))
}

fn fits(template: &str, path: &str) -> bool {
    let (mut wanted, mut given) = (template.split('/'), path.split('/'));
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return true,
            (Some(part), Some(segment)) if part == segment || (part.starts_with('{') && !segment.is_empty()) => {}
            _ => return false,
        }
    }
}

impl Unbuilt {
    pub fn error(&self) -> ApiError {
        let text = format!(
            "{} /v1{} is not supported by this version of Godwit ({}); nothing was changed",
            self.method, self.path, self.what
        );
        ApiError::new(501, Status::NotImplemented, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_known_by_its_method_and_path() {
        let suspend = find("POST", "/v1/apps/web/machines/0123/suspend").unwrap();
        assert_eq!((suspend.error().code, suspend.error().status), (501, Status::NotImplemented));
        assert!(find("GET", "/v1/apps/web/machines/0123/suspend").is_none());
        assert!(find("POST", "/apps/web/machines/0123/suspend").is_none());
        assert!(find("POST", "/v1/apps/web/machines//suspend").is_none());
        assert!(find("GET", "/v1/nothing").is_none());
    }

    #[test]
    fn nothing_of_it_is_built() {
        for operation in crate::endpoints::all() {
            let same =
                UNBUILT.iter().find(|call| call.method == operation.method.as_str() && call.path == operation.path);
            assert!(same.is_none(), "{} is built", operation.path);
        }
    }
}
