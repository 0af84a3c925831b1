//! Host names of apps and their certificates: given, shown, taken away; a private key never comes out of the API.

use godwit_api::hostname::{CertificateRow, HostnameRow};
use godwit_store::{Store, StoreExt};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};

use crate::bed::{Bed, until};

/// A chain and its key for names.
pub fn pair(names: &[&str]) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn custom(hostname: &str, names: &[&str]) -> Value {
    let (fullchain, private_key) = pair(names);
    json!({ "hostname": hostname, "fullchain": fullchain, "private_key": private_key })
}

fn store(bed: &Bed) -> std::sync::Arc<dyn Store> {
    bed.running.control.as_ref().unwrap().store().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_name_comes_with_its_certificate_and_goes_with_it() {
    let bed = Bed::alone().await;
    let api = &bed.api;
    api.get("/apps/web/certificates").await.refused(404, "no app web");
    for app in ["web", "shop"] {
        api.post("/apps", json!({ "app_name": app })).await.expect(201);
    }
    let made = api.post("/apps/web/certificates/custom", custom("WWW.Example.com.", &["*.example.com"])).await;
    let made = made.expect(201);
    assert_eq!(
        (&made["hostname"], &made["status"], &made["configured"]),
        (&json!("www.example.com"), &json!("active"), &json!(true))
    );
    let stored = &made["certificates"][0];
    assert_eq!(
        (&stored["source"], &stored["names"], &stored["self_signed"]),
        (&json!("custom"), &json!(["*.example.com"]), &json!(true))
    );
    assert!(!made.to_string().contains("PRIVATE"));
    // Members that clients read: nothing was issued, nothing is limited, and nobody asked who serves the zone.
    assert_eq!(stored["issued"], json!([]));
    for member in ["dns_provider", "rate_limited_until"] {
        assert_eq!(made.get(member), Some(&Value::Null), "{member}");
    }
    // The row that says whose it is holds no key; the one that does is another.
    let key = "hostnames/www.example.com";
    let row = store(&bed).get_json::<HostnameRow>(key).await.unwrap().unwrap().value;
    assert_eq!(row.app.as_str(), "web");
    let pem = "certificates/www.example.com/custom";
    let row = store(&bed).get_json::<CertificateRow>(pem).await.unwrap().unwrap().value;
    assert!(row.key_pem.0.contains("PRIVATE KEY"));

    // A name has one app.
    let again = custom("www.example.com", &["www.example.com"]);
    let taken = api.post("/apps/shop/certificates/custom", again.clone()).await.refused(409, "belongs to another app");
    assert_eq!(taken["status"], "name_taken");
    api.get("/apps/shop/certificates/www.example.com").await.refused(404, "no host name");
    api.delete("/apps/shop/certificates/www.example.com").await.refused(404, "no host name");
    // A newer pair takes the place of the older.
    let renewed = api.post("/apps/web/certificates/custom", again).await.expect(201);
    assert_eq!(renewed["certificates"].as_array().unwrap().len(), 1);
    assert_ne!(renewed["certificates"][0]["sha256"], stored["sha256"]);

    for name in ["a.example.com", "b.example.com"] {
        api.post("/apps/web/certificates/custom", custom(name, &[name])).await.expect(201);
    }
    let page = api.get("/apps/web/certificates?limit=2").await.expect(200);
    assert_eq!((&page["total_count"], &page["next_cursor"]), (&json!(3), &json!("b.example.com")));
    assert_eq!(page["certificates"][0]["hostname"], "a.example.com");
    let rest = api.get("/apps/web/certificates?limit=2&cursor=b.example.com").await.expect(200);
    assert_eq!((rest["certificates"].as_array().unwrap().len(), &rest["next_cursor"]), (1, &Value::Null));
    assert_eq!(api.get("/apps/web/certificates?filter=WWW").await.expect(200)["total_count"], 1);

    let bare = api.delete("/apps/web/certificates/a.example.com/custom").await.expect(200);
    assert_eq!((&bare["configured"], &bare["certificates"]), (&json!(false), &json!([])));
    // A name that has none has none that expired.
    assert_eq!(bare["status"], "no_certificate");
    api.delete("/apps/web/certificates/a.example.com/custom").await.refused(404, "no custom certificate");
    api.delete("/apps/web/certificates/b.example.com/acme").await.refused(404, "no acme certificate");
    api.delete("/apps/web/certificates/www.example.com").await.expect(204);
    assert!(store(&bed).get_json::<CertificateRow>(pem).await.unwrap().is_none());

    // What an app had goes with it, and its namesake gets none of it.
    api.delete("/apps/web").await.expect(202);
    api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    assert_eq!(api.get("/apps/web/certificates").await.expect(200)["total_count"], 0);
    until("its host names are gone", || async {
        let left = store(&bed).list("hostnames/").await.unwrap().rows.len()
            + store(&bed).list("certificates/").await.unwrap().rows.len();
        (left == 0).then_some(())
    })
    .await;
    api.post("/apps/shop/certificates/custom", custom("b.example.com", &["b.example.com"])).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_cannot_be_served_is_refused_by_its_field() {
    let bed = Bed::alone().await;
    let api = &bed.api;
    api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    let good = custom("a.example", &["a.example"]);
    let with = |field: &str, value: &str| {
        let mut wish = good.clone();
        wish[field] = json!(value);
        wish
    };
    for (wish, words) in [
        (json!({}), "hostname is missing"),
        (with("hostname", "a"), "hostname: "),
        (with("hostname", "10.0.0.1"), "hostname: "),
        (with("hostname", "b.example"), "is for a.example, and not for b.example"),
        (with("fullchain", ""), "fullchain: it is missing"),
        (with("private_key", ""), "private_key: "),
        (with("private_key", &pair(&["a.example"]).1), "private_key: it is not the key"),
    ] {
        let refused = api.post("/apps/web/certificates/custom", wish).await.refused(422, words);
        assert!(!refused.to_string().contains("PRIVATE"), "{refused}");
    }
    assert_eq!(api.get("/apps/web/certificates").await.expect(200)["total_count"], 0);
    api.post("/apps/web/certificates/acme", json!({ "hostname": "a.example" }))
        .await
        .refused(422, "no certificate authority");
    api.post("/apps/web/certificates/acme", json!({ "hostname": "*.a.example" })).await.refused(422, "by DNS alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_tells_that_a_name_leads_nowhere() {
    let bed = Bed::alone().await;
    let api = &bed.api;
    api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    api.post("/apps/web/certificates/custom", custom("nobody.invalid", &["nobody.invalid"])).await.expect(201);
    let checked = api.post("/apps/web/certificates/nobody.invalid/check", json!({})).await.expect(200);
    assert_eq!(
        (&checked["validation"]["dns_configured"], &checked["validation"]["http_configured"]),
        (&json!(false), &json!(false))
    );
    assert_eq!((&checked["validation_errors"][0]["code"], &checked["status"]), (&json!("dns"), &json!("active")));
    assert!(store(&bed).list("challenges/").await.unwrap().rows.is_empty());
}
