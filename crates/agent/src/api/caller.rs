//! Who calls this host, named from the head of a request alone: control by its key, the target of a move by the bearer
//! that came with its ticket, an edge and the host itself by theirs, so that each is refused by name. `may` decides.

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::Response;

use godwit_api::ApiError;
use godwit_api::ids::MigrationId;
use godwit_api::ticket::{SignedTicket, Ticket};
use godwit_base::http::{Failure, bearer};
use godwit_base::{Peer, Verb, may, secret, ticket};

use super::HostApi;

/// Kinds of what is refused here, as the metric names them.
const UNNAMED: &str = "unnamed_call";
const FORBIDDEN: &str = "forbidden_call";
const FORGED: &str = "forged_ticket";
const FOREIGN: &str = "foreign_ticket";

/// A caller with its name. `None`: one without a bearer; in a move its ticket may be older than such names.
#[derive(Clone)]
pub struct Caller {
    peer: Option<Peer>,
    /// The move in whose name it calls.
    migration: Option<MigrationId>,
}

impl HostApi {
    fn caller(&self, headers: &HeaderMap) -> Result<Caller, ApiError> {
        let key = bearer(headers).unwrap_or_default();
        if key.is_empty() {
            return Ok(Caller { peer: None, migration: None });
        }
        let named = |peer| Ok(Caller { peer: Some(peer), migration: None });
        let identity = &self.identity;
        if secret::equal(&secret::sha256_hex(key), &secret::sha256_hex(&identity.control_key)) {
            return named(Peer::Control);
        }
        if let Some((target, migration)) = ticket::named(&identity.control_key, key) {
            return Ok(Caller { peer: Some(Peer::Host(target)), migration: Some(migration) });
        }
        if secret::equal(&secret::sha256_hex(key), &secret::sha256_hex(&identity.key)) {
            return named(Peer::Host(identity.host.clone()));
        }
        match self.hub.edge(&secret::sha256_hex(key)) {
            Some(edge) => named(Peer::Edge(edge)),
            None => Err(self.unnamed("a bearer that this host does not know")),
        }
    }

    fn unnamed(&self, what: &str) -> ApiError {
        self.distrust.note(None, UNNAMED, what);
        ApiError::unauthenticated("this host does not know the key; only its control may command it")
    }

    fn allow(&self, peer: &Peer, verb: Verb, key: &str) -> Result<(), ApiError> {
        may(peer, verb, key).map_err(|forbidden| {
            self.distrust.note(Some(peer), FORBIDDEN, &forbidden.to_string());
            ApiError::forbidden(forbidden.to_string())
        })
    }

    /// A ticket that control signed for this host as the source, shown by one who may ask `verb` of it.
    pub(super) fn ticket(&self, caller: &Caller, verb: Verb, signed: &SignedTicket) -> Result<Ticket, ApiError> {
        let ticket = ticket::open_as_source(signed, &self.identity.host, &self.identity.control_key);
        let ticket = ticket.map_err(|fault| {
            self.distrust.note(caller.peer.as_ref(), FORGED, &fault.to_string());
            ApiError::forbidden(fault.to_string())
        })?;
        let peer = match &caller.peer {
            Some(peer) => peer.clone(),
            None if !ticket.names_caller => Peer::Host(ticket.target.clone()),
            None => return Err(self.unnamed("a ticket without the bearer that came with it")),
        };
        self.allow(&peer, verb, ticket.target.as_str())?;
        let is_own = peer == Peer::Control || caller.migration.as_ref().is_none_or(|id| *id == ticket.migration);
        if !is_own {
            let text = format!("{peer} does not call in the name of {}", ticket.migration);
            self.distrust.note(Some(&peer), FOREIGN, &text);
            return Err(ApiError::forbidden(text));
        }
        Ok(ticket)
    }
}

/// Lets only those through that may command this host.
pub async fn command(State(api): State<HostApi>, request: Request, next: Next) -> Result<Response, Failure> {
    let Some(peer) = api.caller(request.headers())?.peer else {
        return Err(api.unnamed(request.uri().path()).into());
    };
    api.allow(&peer, Verb::Command, request.uri().path())?;
    Ok(next.run(request).await)
}

/// Names who calls in a move; each of these calls asks `may` once the ticket says which move it is.
pub async fn name(State(api): State<HostApi>, mut request: Request, next: Next) -> Result<Response, Failure> {
    let caller = api.caller(request.headers())?;
    request.extensions_mut().insert(caller);
    Ok(next.run(request).await)
}
