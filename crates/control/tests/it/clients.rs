//! What flyctl and the public client libraries send by default, word for word: each works, or is told by name.

use godwit_api::machine::MachineState;
use godwit_api::unbuilt::UNBUILT;
use serde_json::{Value, json};

use crate::bed::{Bed, IMAGE, config};
use crate::image;

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_of_nothing_is_none() {
    let bed = Bed::with_hosts(1).await;
    let api = &bed.api;
    let id = api.app_with_machine("web", config()).await;
    let path = format!("/apps/web/machines/{id}");
    for (sent, told) in [
        (json!({ "id": id, "timeout": "0s" }), "stop None None"),
        (json!({ "id": id, "timeout": 0 }), "stop None None"),
        (json!({ "signal": "", "timeout": "" }), "stop None None"),
        // Nanoseconds: nobody means to kill at once by them.
        (json!({ "timeout": 10 }), "stop None None"),
        (json!({ "timeout": "10" }), "stop None Some(10000)"),
        (json!({ "timeout": "10s", "signal": 15 }), "stop Some(\"SIGTERM\") Some(10000)"),
    ] {
        api.until("web", &id, MachineState::Started).await;
        let answer = api.post(&format!("{path}/stop"), sent.clone()).await;
        assert!(!answer.headers.contains_key("godwit-ignored-fields"), "{sent}");
        answer.expect(200);
        assert_eq!(bed.agents[0].journal().calls.last().unwrap(), told, "{sent}");
        api.post(&format!("{path}/start"), json!({})).await.expect(200);
    }
    for query in ["timeout=0s", "timeout=0", "timeout=", "timeout=5s&signal=9", "timeout=5&signal=SIGTERM"] {
        api.call("POST", &format!("{path}/restart?force_stop=false&{query}"), None, &[]).await.expect(200);
    }
    let nothing = json!({ "image": IMAGE, "stop_config": { "timeout": "0s", "signal": "" } });
    let made = api.post("/apps/web/machines", json!({ "config": nothing })).await.expect(200);
    assert_eq!(made["config"].get("stop_config"), None, "as if it had been left out");
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_are_numbers_or_names() {
    let bed = Bed::with_hosts(1).await;
    let api = &bed.api;
    let id = api.app_with_machine("web", config()).await;
    let path = format!("/apps/web/machines/{id}");
    for (sent, meant) in [
        (json!(9), "SIGKILL"),
        (json!("9"), "SIGKILL"),
        (json!("hup"), "SIGHUP"),
        (json!("SIGRTMIN+3"), "SIGRTMIN+3"),
        (json!(37), "SIGRTMIN+3"),
    ] {
        api.post(&format!("{path}/signal"), json!({ "signal": sent })).await.expect(200);
        assert_eq!(bed.agents[0].journal().calls.last().unwrap(), &format!("signal {meant}"), "{sent}");
    }
    api.post(&format!("{path}/signal"), json!({ "signal": 99 })).await.refused(422, "99");
    api.post(&format!("{path}/signal"), json!({ "signal": true })).await.refused(400, "signal");
    let stop = json!({ "image": IMAGE, "stop_config": { "signal": 3 } });
    let made = api.post("/apps/web/machines", json!({ "config": stop })).await.expect(200);
    assert_eq!(made["config"]["stop_config"]["signal"], "SIGQUIT");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_is_destroyed_by_force_only() {
    let bed = Bed::with_hosts(1).await;
    let api = &bed.api;
    let id = api.app_with_machine("web", config()).await;
    let path = format!("/apps/web/machines/{id}");
    api.until("web", &id, MachineState::Started).await;
    for query in ["", "?force=false", "?kill=false"] {
        let refused = api.delete(&format!("{path}{query}")).await.refused(412, "stop it first");
        assert_eq!(refused["status"], "conflict");
    }
    assert_eq!(api.machine("web", &id).await.state, MachineState::Started);
    api.post(&format!("{path}/stop"), json!({})).await.expect(200);
    api.until("web", &id, MachineState::Stopped).await;
    api.delete(&path).await.expect(200);
    api.get(&format!("{path}/wait?state=destroyed&timeout=30")).await.expect(200);
    for query in ["force=true", "kill=true"] {
        let id = api.new_machine("web", config()).await;
        api.until("web", &id, MachineState::Started).await;
        api.delete(&format!("/apps/web/machines/{id}?{query}")).await.expect(200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_known_by_each_spelling_of_its_image_ref() {
    let bed = Bed::with_hosts(1).await;
    let api = &bed.api;
    api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    let stored = "ghcr.io/owner/tool:v2";
    let upload = api.call("POST", &format!("/images?name={stored}"), Some(image::archive("tool")), &[]).await;
    upload.expect(200);
    for (image, registry, repository) in [(IMAGE, "registry.godwit", "demo"), (stored, "ghcr.io", "owner/tool")] {
        let sent = json!({ "skip_launch": true, "config": { "image": image } });
        let first = api.post("/apps/web/machines", sent).await.expect(200)["image_ref"].clone();
        assert_eq!((&first["registry"], &first["repository"]), (&json!(registry), &json!(repository)));
        let (tag, digest) = (first["tag"].as_str().unwrap(), first["digest"].as_str().unwrap());
        for spelled in [
            format!("{registry}/{repository}:{tag}@{digest}"),
            format!("{registry}/{repository}@{digest}"),
            format!("{registry}/{repository}:{tag}"),
            format!("{repository}@{digest}"),
            format!("registry.godwit/{image}"),
        ] {
            let sent = json!({ "skip_launch": true, "config": { "image": spelled } });
            let again = api.post("/apps/web/machines", sent).await.expect(200)["image_ref"].clone();
            assert_eq!(again["digest"], digest, "{spelled}");
            assert_eq!((&again["registry"], &again["repository"]), (&json!(registry), &json!(repository)), "{spelled}");
        }
    }
    let foreign = json!({ "config": { "image": "registry.godwit/other:v1" } });
    api.post("/apps/web/machines", foreign).await.refused(422, "registry.godwit/other:v1");
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_made_as_flyctl_asks_for_them() {
    let bed = Bed::with_hosts(2).await;
    let api = &bed.api;
    api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    let wish = json!({
        "name": "data", "region": "fra", "size_gb": null, "encrypted": true, "require_unique_zone": true,
        "snapshot_id": null, "compute": { "cpu_kind": "shared", "cpus": 1, "memory_mb": 256 }, "snapshot_retention": 5,
        "auto_backup_enabled": true,
    });
    let mut zones = std::collections::BTreeSet::new();
    for number in 1..=3 {
        let answer = api.post("/apps/web/volumes", wish.clone()).await;
        let ignored = answer.headers["godwit-ignored-fields"].to_str().unwrap();
        let ignored: std::collections::BTreeSet<&str> = ignored.split(", ").collect();
        // Clients send them unasked; what is not so is told, and never silently taken for granted.
        let mut named = vec!["auto_backup_enabled", "encrypted", "snapshot_retention"];
        if number == 3 {
            named.push("require_unique_zone");
        }
        assert_eq!(ignored, named.into_iter().collect());
        let volume = answer.expect(200);
        assert_eq!(
            (&volume["size_gb"], &volume["encrypted"], &volume["snapshot_retention"]),
            (&json!(3), &json!(false), &json!(0))
        );
        for (member, value) in [
            ("attached_machine_id", Value::Null),
            ("attached_alloc_id", Value::Null),
            ("host_dedication_key", Value::Null),
            ("auto_backup_enabled", json!(false)),
        ] {
            assert_eq!(volume.get(member), Some(&value), "{member} is there, and says nothing");
        }
        zones.insert(volume["zone"].as_str().unwrap().to_owned());
    }
    assert_eq!(zones.len(), 2, "each on a host of its own while there is one");
    let zeros =
        json!({ "name": "z", "compute": { "cpu_kind": "", "cpus": 0, "memory_mb": 0, "gpus": 0, "gpu_kind": "" } });
    api.post("/apps/web/volumes", zeros).await.expect(200);
    api.post("/apps/web/volumes", json!({ "name": "s", "snapshot_id": "vs_1" })).await.refused(422, "snapshot_id");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_goes_where_its_machine_will_fit() {
    let mut bed = Bed::alone().await;
    bed.load_image().await;
    bed.add_host("small", "fra", 512).await;
    let large = bed.add_host("large", "fra", 8192).await;
    let api = &bed.api;
    api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    let compute = |memory_mb: u64| json!({ "cpu_kind": "shared", "cpus": 1, "memory_mb": memory_mb });
    for number in 0..4 {
        let wish = json!({ "name": format!("d{number}"), "size_gb": 1, "compute": compute(4096) });
        let volume = api.post("/apps/web/volumes", wish).await.expect(200);
        assert_eq!(volume["zone"], bed.agents[large].id.as_str());
    }
    // No host has room for such a Machine: the volume is made all the same, and that is told.
    let answer = api.post("/apps/web/volumes", json!({ "name": "e", "size_gb": 1, "compute": compute(100_000) })).await;
    assert_eq!(answer.headers["godwit-ignored-fields"], "compute");
    answer.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_says_whether_volumes_are_encrypted() {
    use godwit_control::VolumeEncryption;
    let mut bed = Bed::with_hosts(1).await;
    bed.api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    let wish = json!({ "name": "d", "size_gb": 1, "encrypted": true });
    bed.restart(|raw| raw.volume_encryption = VolumeEncryption::Refuse);
    crate::bed::until("control refuses", || async {
        let answer = bed.api.post("/apps/web/volumes", wish.clone()).await;
        (answer.code == 422).then(|| answer.refused(422, "encrypted"))
    })
    .await;
    assert_eq!(bed.api.get("/apps/web/volumes").await.expect(200), json!([]));
    bed.restart(|raw| raw.volume_encryption = VolumeEncryption::Hosts);
    let volume = crate::bed::until("control is back", || async {
        let answer = bed.api.post("/apps/web/volumes", wish.clone()).await;
        assert!(!answer.headers.contains_key("godwit-ignored-fields"));
        (answer.code == 200).then_some(answer.body)
    })
    .await;
    assert_eq!(volume["encrypted"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_and_not_built_is_told_by_name_and_never_as_gone() {
    let bed = Bed::alone().await;
    let api = &bed.api;
    for call in UNBUILT {
        let path = call.path.split('/').map(|part| match part {
            "{app_name}" => "web",
            "{machine_id}" => "0123456789abcd",
            "{volume_id}" => "vol_0123456789abcd",
            part if part.starts_with('{') => "x",
            part => part,
        });
        let path = path.collect::<Vec<_>>().join("/");
        let answer = api.call(call.method, &path, None, &[]).await;
        assert_eq!(answer.refused(501, call.what)["status"], "not_implemented", "{} {path}", call.method);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_path_of_the_reference_is_built_or_told_by_name() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../openapi/reference/machines-2024-01.yaml");
    let document: Value = serde_yaml_ng::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let built: Vec<(String, &str)> =
        godwit_api::endpoints::all().iter().map(|of| (shape(of.path), of.method.as_str())).collect();
    let mut calls = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys().map(|method| method.to_ascii_uppercase()) {
            calls += 1;
            let is_built = built.iter().any(|(known, of)| *known == shape(path) && **of == method);
            let is_told = UNBUILT.iter().any(|of| shape(of.path) == shape(path) && of.method == method);
            assert!(is_built ^ is_told, "{method} {path}: built {is_built}, told {is_told}");
        }
    }
    assert!(calls > 30, "{calls}");
}

/// A path without the names of its parameters.
fn shape(path: &str) -> String {
    path.split('/').map(|part| if part.starts_with('{') { "{}" } else { part }).collect::<Vec<_>>().join("/")
}

#[tokio::test(flavor = "multi_thread")]
async fn states_that_nothing_is_in_may_be_asked_for() {
    let bed = Bed::with_hosts(1).await;
    let api = &bed.api;
    let id = api.app_with_machine("web", config()).await;
    api.until("web", &id, MachineState::Started).await;
    let path = format!("/apps/web/machines/{id}");
    api.get(&format!("{path}/wait?state=suspended&state=stopped&state=started&timeout=5")).await.expect(200);
    api.get(&format!("{path}/wait?state=suspended&timeout=1")).await.refused(408, "not suspended");
    for state in ["suspended", "suspending", "launch_failed", "updating", "migrated", "replaced"] {
        assert_eq!(api.get(&format!("/apps/web/machines?state={state}")).await.expect(200), json!([]), "{state}");
    }
    assert_eq!(api.get("/apps/web/machines?state=suspended,started").await.expect(200).as_array().unwrap().len(), 1);
    api.get("/apps/web/machines?state=sleeping").await.refused(400, "sleeping");
    // The newest events, as many as are asked for.
    assert_eq!(api.get(&format!("{path}/events?limit=0")).await.expect(200), json!([]));
    assert_eq!(api.get(&format!("{path}/events?limit=1")).await.expect(200).as_array().unwrap().len(), 1);
}

/// As the platform's documentation shows a Machine's configuration in an answer.
fn documented() -> Value {
    json!({
        "env": null, "init": { "exec": null, "entrypoint": null, "cmd": null, "tty": false }, "image": IMAGE, "metadata": null,
        "restart": { "policy": "" }, "guest": { "cpu_kind": "", "cpus": 1, "memory_mb": 256, "gpu_kind": "" }, "schedule": null,
        "services": [{
            "protocol": "tcp", "internal_port": 8080, "autostop": null, "min_machines_running": null, "checks": null,
            "ports": [{ "port": 443, "handlers": ["tls", "http"], "tls_options": null }, { "port": 80, "handlers": ["http"] }],
            "concurrency": { "type": "", "soft_limit": 20 },
        }],
        "checks": null, "mounts": null, "metrics": null, "files": null, "auto_destroy": null, "processes": null,
        "size": null, "standbys": null, "statics": null, "stop_config": { "timeout": "0s", "signal": null }, "dns": null,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_of_the_documentation_is_taken_and_so_is_each_that_was_answered() {
    let bed = Bed::with_hosts(1).await;
    let api = &bed.api;
    api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    let made = api.post("/apps/web/machines", json!({ "config": documented(), "skip_secrets": false })).await;
    assert!(!made.headers.contains_key("godwit-ignored-fields"));
    let made = made.expect(200);
    assert_eq!(made["config"]["restart"]["policy"], "on-failure");
    let path = format!("/apps/web/machines/{}", made["id"].as_str().unwrap());
    let again = api.post(&path, json!({ "config": made["config"] })).await;
    assert!(!again.headers.contains_key("godwit-ignored-fields"));
    assert_eq!(again.expect(200)["config"], made["config"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn regions_are_one_or_several_or_any() {
    let mut bed = Bed::with_hosts(1).await;
    bed.add_host("far", "syd", 4096).await;
    let api = &bed.api;
    api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    let create =
        async |region: &str| api.post("/apps/web/machines", json!({ "region": region, "config": config() })).await;
    assert!(["fra", "syd"].contains(&create("any").await.expect(200)["region"].as_str().unwrap()));
    assert_eq!(create("syd,fra").await.expect(200)["region"], "syd");
    assert_eq!(create("nowhere, fra").await.expect(200)["region"], "fra");
    create("nowhere,noplace").await.refused(422, "nowhere");
    create("FRA").await.refused(422, "FRA");
    bed.api.post(&format!("/hosts/{}/cordon", bed.agents[1].id), json!({})).await.expect(200);
    assert_eq!(create("syd,fra").await.expect(200)["region"], "fra");
    for region in ["any", "nowhere,fra"] {
        let volume =
            api.post("/apps/web/volumes", json!({ "name": "d", "size_gb": 1, "region": region })).await.expect(200);
        assert_eq!(volume["region"], "fra");
    }
    let listed = api.get("/apps/web/machines?region=any").await.expect(200).as_array().unwrap().len();
    assert_eq!(listed, 4);
    assert_eq!(api.get("/apps/web/machines?region=fra,syd").await.expect(200).as_array().unwrap().len(), 4);
}
