//! Every caller has a name, and each may do its own part only.

use godwit_api::fleet::{Join, JoinRole};
use godwit_api::keys;
use godwit_api::row::TokenRow;
use godwit_base::secret;
use godwit_store::{Error, Range, Store, StoreExt, Txn, put_json};
use serde_json::{Value, json};

use crate::api::Api;
use crate::bed::{Bed, config};

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_is_401_and_anothers_is_403() {
    let bed = Bed::with_hosts(1).await;
    let id = bed.api.app_with_machine("web", config()).await;
    let as_peer = |token: Option<&str>| Api::new(&bed.url, token);
    for path in ["/apps".to_owned(), "/hosts".into(), "/images".into(), format!("/apps/web/machines/{id}/logs")] {
        as_peer(None).get(&path).await.refused(401, "no token");
        as_peer(Some("gwo_wrong")).get(&path).await.refused(401, "not known");
        as_peer(Some(&bed.agents[0].key)).get(&path).await.refused(403, "not an operator's token");
        as_peer(Some(&bed.join_token())).get(&path).await.refused(403, "joiner");
    }
    let host = as_peer(Some(&bed.agents[0].key));
    host.post("/apps", json!({ "app_name": "mine" })).await.refused(403, "may not use the API");
    host.call("POST", "/images?name=x:y", Some(vec![1]), &[]).await.refused(403, "may not");
    host.delete(&format!("/apps/web/machines/{id}")).await.refused(403, "may not");
    let join = json!({ "role": "host", "name": "w", "region": "fra", "incarnation": "i" });
    bed.api.post("/join", join.clone()).await.refused(403, "may not join");
    host.post("/join", join).await.refused(403, "may not join");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_ends_with_its_time() {
    let bed = Bed::alone().await;
    let store = bed.running.control.as_ref().unwrap().store().clone();
    for (name, expires_at_ms, works) in [("old", Some(1), false), ("new", Some(u64::MAX), true), ("ever", None, true)] {
        let token = format!("gwo_{name}");
        let row = TokenRow { name: name.into(), sha256: secret::sha256_hex(&token), created_at_ms: 0, expires_at_ms };
        store.txn(Txn::of([put_json(keys::token(name), &row).unwrap()])).await.unwrap();
        let api = Api::new(&bed.url, Some(&token));
        let known = crate::bed::until("the token is known", || async {
            let answer = api.get("/apps").await;
            (!answer.body.to_string().contains("not known")).then_some(answer)
        });
        match works {
            true => drop(known.await.expect(200)),
            false => drop(known.await.refused(401, "expired")),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_reads_its_placements_and_writes_its_facts_only() {
    let bed = Bed::with_hosts(2).await;
    let (mine, other) = (&bed.agents[0].id, &bed.agents[1].id);
    let store = bed.store_as(&bed.agents[0].key);
    assert!(store.list(&format!("placements/{mine}/")).await.is_ok());
    for prefix in
        [format!("placements/{other}/"), "placements/".into(), "tokens/".into(), "hosts/".into(), String::new()]
    {
        assert!(matches!(store.range(Range::prefix(&prefix)).await, Err(Error::Forbidden { .. })), "{prefix}");
    }
    for key in [format!("facts/{other}/host"), format!("placements/{mine}/x"), "tokens/admin".into()] {
        assert!(matches!(store.put(&key, "{}").await, Err(Error::Forbidden { .. })), "{key}");
    }
    let operator = bed.store_as(std::fs::read_to_string(bed.dir.path().join("admin-token")).unwrap().trim());
    assert!(matches!(operator.range(Range::exact("apps/web")).await, Err(Error::Forbidden { .. })));
    let nobody = bed.store_as("gwh_nobody");
    assert!(matches!(nobody.list(&format!("placements/{mine}/")).await, Err(Error::Unauthenticated)));
}

#[tokio::test(flavor = "multi_thread")]
async fn joining_again_keeps_the_id_and_changes_the_key() {
    let bed = Bed::with_hosts(1).await;
    let agent = &bed.agents[0];
    let joiner = Api::new(&bed.url, Some(&bed.join_token()));
    let again = Join {
        role: JoinRole::Host,
        name: "another-name".into(),
        region: "fra".into(),
        incarnation: agent.incarnation.clone(),
        agent_url: agent.agent_url.clone(),
        door_addr: agent.door_addr.clone(),
    };
    let joined = joiner.post("/join", serde_json::to_value(&again).unwrap()).await.expect(200);
    assert_eq!(joined["id"], agent.id.as_str());
    assert_ne!(joined["key"], agent.key.as_str());
    let old = bed.store_as(&agent.key);
    assert!(matches!(old.list(&format!("placements/{}/", agent.id)).await, Err(Error::Unauthenticated)));
    assert!(bed.store_as(joined["key"].as_str().unwrap()).list(&format!("placements/{}/", agent.id)).await.is_ok());
    // A wiped data folder is another incarnation: a new host under a new id.
    let wiped = Join { incarnation: "fresh".into(), name: "w1".into(), ..again };
    let joined = joiner.post("/join", serde_json::to_value(&wiped).unwrap()).await.expect(200);
    let id = joined["id"].as_str().unwrap();
    assert!(id.starts_with("w1-") && id != agent.id, "{id}");
    for (field, value) in
        [("name", "A"), ("region", "F R A"), ("incarnation", ""), ("agent_url", "ftp://x"), ("door_addr", "x")]
    {
        let mut wrong = serde_json::to_value(&wiped).unwrap();
        wrong[field] = Value::from(value);
        joiner.post("/join", wrong).await.refused(422, field);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_watches_routes_and_nothing_else() {
    let bed = Bed::alone().await;
    let joiner = Api::new(&bed.url, Some(&bed.join_token()));
    let join = json!({ "role": "edge", "name": "edge", "region": "fra", "incarnation": "e1" });
    let first = joiner.post("/join", join.clone()).await.expect(200);
    let second = joiner.post("/join", join).await.expect(200);
    assert_eq!(first["id"], second["id"]);
    let edge = bed.store_as(second["key"].as_str().unwrap());
    assert!(edge.list("routes/").await.is_ok() && edge.list("app-regions/").await.is_ok());
    assert!(matches!(edge.list("machines/").await, Err(Error::Forbidden { .. })));
    assert!(matches!(edge.put("routes/fra/web/machines", "{}").await, Err(Error::Forbidden { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_tokens_are_files_for_their_owner_only_and_stay() {
    use std::os::unix::fs::PermissionsExt;
    let mut bed = Bed::alone().await;
    let read = |name: &str| std::fs::read_to_string(bed.dir.path().join(name)).unwrap();
    let before = (read("admin-token"), read("join-token"));
    for name in ["admin-token", "join-token"] {
        let mode = std::fs::metadata(bed.dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    bed.restart(|_| {});
    let read = |name: &str| std::fs::read_to_string(bed.dir.path().join(name)).unwrap();
    assert_eq!((read("admin-token"), read("join-token")), before);
    bed.api.get("/apps").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_metrics_are_served_without_a_token() {
    let bed = Bed::alone().await;
    let client = godwit_base::http::client::Client::tcp(&bed.url, None);
    for (path, words) in [("/healthz", "ok"), ("/metrics", "godwit_api_answers_total")] {
        bed.api.get("/apps").await.expect(200);
        let request = http::Request::new(godwit_base::http::client::empty());
        let response = client.send(path, request, crate::api::PATIENCE).await.unwrap();
        let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
        assert!(String::from_utf8_lossy(&body).contains(words), "{path}");
    }
}
