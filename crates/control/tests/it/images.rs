//! Images: loaded, listed, pinned, pulled by hosts, collected only when nobody needs them.

use godwit_api::machine::MachineState;
use godwit_base::http::client::{Client, empty};
use http_body_util::BodyExt;
use serde_json::json;

use crate::api::PATIENCE;
use crate::bed::{Bed, IMAGE, config, until};
use crate::image;

#[tokio::test(flavor = "multi_thread")]
async fn hosts_pull_what_they_are_to_run_and_others_do_not() {
    let bed = Bed::with_hosts(2).await;
    let list = bed.api.get("/images").await.expect(200);
    assert_eq!((&list[0]["name"], &list[0]["layers"], &list[0]["in_use"]), (&json!(IMAGE), &json!(1), &json!(false)));
    let digest = list[0]["digest"].as_str().unwrap();
    let id = bed.api.app_with_machine("web", config()).await;
    let at = bed.api.until("web", &id, MachineState::Started).await.host_id;
    let other = bed.agents.iter().find(|agent| agent.id != at).unwrap();
    let path = format!("/v2/demo/manifests/{digest}");
    let keys = [
        (Some(bed.agent_of(&at).key.clone()), 200),
        (Some(other.key.clone()), 403),
        (None, 401),
        (Some(bed.join_token()), 403),
    ];
    for (key, code) in keys {
        let client = Client::tcp(&bed.url, key);
        let response = client.send_raw(&path, http::Request::new(empty()), PATIENCE).await.unwrap();
        assert_eq!(response.status().as_u16(), code);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(String::from_utf8_lossy(&body).contains("schemaVersion"), code == 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moves_on_leaves_running_machines_their_image() {
    let bed = Bed::with_hosts(1).await;
    let api = &bed.api;
    let id = api.app_with_machine("web", config()).await;
    let before = api.until("web", &id, MachineState::Started).await;
    let load = |contents: &'static str| async move {
        let images = api.call("POST", &format!("/images?name={IMAGE}"), Some(image::archive(contents)), &[]).await;
        images.expect(200)[0]["digest"].as_str().unwrap().to_owned()
    };
    let second = load("second").await;
    let third = load("third").await;
    assert_eq!(api.machine("web", &id).await.image_ref.digest, before.image_ref.digest);
    let made = api.post("/apps/web/machines", json!({ "config": config() })).await.expect(200);
    assert_eq!(made["image_ref"]["digest"], third.as_str());
    // The second lost its name before anybody ran it; the first runs, the third has the name.
    let blob = |digest: &str| bed.dir.path().join("images/blobs/sha256").join(&digest[7..]);
    until("the image that nobody needs is gone", || async { (!blob(&second).exists()).then_some(()) }).await;
    assert!(blob(&before.image_ref.digest).exists() && blob(&third).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_removed_leaves_running_machines_their_image() {
    let bed = Bed::with_hosts(1).await;
    let api = &bed.api;
    let id = api.app_with_machine("web", config()).await;
    let digest = api.until("web", &id, MachineState::Started).await.image_ref.digest;
    let blob = || bed.dir.path().join("images/blobs/sha256").join(&digest[7..]).exists();
    let path = format!("/images/{}", IMAGE.replace('/', "%2F"));
    let (name, _) = IMAGE.split_once(':').unwrap();

    api.delete("/images/demo%3Anever").await.refused(404, "there is no image demo:never");
    api.delete("/images/NO%20NAME").await.refused(422, "is not an image reference");
    let pinned = format!("/images/{name}@{digest}");
    api.delete(&pinned).await.refused(409, "has names");
    let gone = api.delete(&path).await.expect(200);
    assert_eq!((&gone["name"], &gone["in_use"]), (&json!(IMAGE), &json!(true)));
    // No more Machines are made of it by that name; the one that runs it keeps it, and may start again.
    api.delete(&path).await.refused(404, "there is no image");
    let refused = api.post("/apps/web/machines", json!({ "config": config() })).await;
    refused.refused(422, "there is no image");
    let list = api.get("/images").await.expect(200);
    assert_eq!((list.as_array().unwrap().len(), &list[0]["name"]), (1, &json!(format!("{name}@{digest}"))));
    api.delete(&pinned).await.refused(409, "Machines run");
    assert!(blob());
    api.delete(&format!("/apps/web/machines/{id}?force=true")).await.expect(200);
    // Nothing is left to name it by; its bytes go with a collection, a minute after it was last pinned.
    let none_listed = || async { (bed.api.get("/images").await.expect(200) == json!([])).then_some(()) };
    until("the image goes with its last Machine", none_listed).await;
}
