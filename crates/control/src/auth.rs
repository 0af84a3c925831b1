//! Who calls: from a bearer to a `Peer`, by hashes that stand in the store.

use std::time::Duration;

use axum::http::HeaderMap;
use godwit_api::{ApiError, keys};
use godwit_base::http::bearer;
use godwit_base::{Peer, Verb, clock, may, secret};
use godwit_oci::Digest;
use godwit_store::Refused;

use crate::control::Control;
use crate::world::{KeyOwner, World};

/// Kinds of what is refused here, as the metric names them.
const UNNAMED: &str = "unnamed_call";
const FORBIDDEN: &str = "forbidden_call";
/// A host pulls what was placed moments ago: the picture holds it by then.
const PICTURE_WAIT: Duration = Duration::from_secs(1);

impl Control {
    /// Names the caller, or says 401 and why.
    pub(crate) fn peer(&self, headers: &HeaderMap) -> Result<Peer, ApiError> {
        let Some(token) = bearer(headers) else {
            return Err(ApiError::unauthenticated("no token: send `Authorization: Bearer TOKEN`"));
        };
        let sha256 = secret::sha256_hex(token);
        if secret::equal(&sha256, &self.join_token_sha256) {
            return Ok(Peer::Joiner);
        }
        let world = self.world();
        match world.keys.get(&sha256) {
            Some(KeyOwner::Host(id)) => Ok(Peer::Host(id.clone())),
            Some(KeyOwner::Edge(id)) => Ok(Peer::Edge(id.clone())),
            Some(KeyOwner::Token(name)) => {
                let expires = world.tokens.get(name).and_then(|row| row.expires_at_ms);
                if expires.is_some_and(|at_ms| at_ms <= clock::unix_ms()) {
                    return Err(ApiError::unauthenticated("the token has expired"));
                }
                Ok(Peer::Operator(name.clone()))
            }
            None => Err(ApiError::unauthenticated("the token is not known here")),
        }
    }

    /// What a pull asks for, as `may` knows it: below the folder of a host whose placements name an image that has it,
    /// else below none. A picture that is a moment behind the host's placements is waited for.
    pub(crate) async fn image_key(&self, headers: &HeaderMap, path: &str) -> String {
        let (Ok(Peer::Host(host)), Some(digest)) = (self.peer(headers), godwit_oci::asked_for(path)) else {
            return path.to_owned();
        };
        let has = |manifest: &str| {
            manifest.parse().is_ok_and(|manifest: Digest| self.images.image_has_blob(&manifest, &digest))
        };
        let is_needed = |world: &World| world.images_of(&host).any(has);
        match self.sees(PICTURE_WAIT, is_needed).await {
            true => format!("{}{digest}", keys::images_of(&host)),
            false => path.to_owned(),
        }
    }

    /// Names the caller and asks whether it may: 401 or 403 if not.
    pub(crate) fn allow(&self, headers: &HeaderMap, verb: Verb, key: &str) -> Result<Peer, ApiError> {
        let peer = self.peer(headers).inspect_err(|_| self.distrust.note(None, UNNAMED, verb.as_str()))?;
        may(&peer, verb, key).map_err(|forbidden| {
            self.distrust.note(Some(&peer), FORBIDDEN, &forbidden.to_string());
            let what = match verb {
                Verb::Operate => "use the API",
                Verb::Join => "join the fleet",
                Verb::Pull => "pull images",
                other => other.as_str(),
            };
            let hint = match peer {
                Peer::Host(_) | Peer::Edge(_) if verb == Verb::Operate => ": its key is not an operator's token",
                _ => "",
            };
            ApiError::forbidden(format!("{peer} may not {what}{hint}"))
        })?;
        Ok(peer)
    }

    /// The store's authoriser. A host that speaks is a host that is there.
    pub(crate) fn allow_store(&self, headers: &HeaderMap, verb: godwit_store::Verb, key: &str) -> Result<(), Refused> {
        let peer = self.peer(headers).map_err(|_| {
            self.distrust.note(None, UNNAMED, key);
            Refused::Unauthenticated
        })?;
        if let Peer::Host(id) = &peer {
            self.liveness.agent(id);
        }
        let verb = match verb {
            godwit_store::Verb::Read => Verb::Read,
            godwit_store::Verb::Write => Verb::Write,
            godwit_store::Verb::Watch => Verb::Watch,
            godwit_store::Verb::Identify => return Ok(()),
        };
        may(&peer, verb, key).map_err(|refused| {
            self.distrust.note(Some(&peer), FORBIDDEN, &refused.to_string());
            Refused::Forbidden { reason: refused.to_string() }
        })
    }
}
