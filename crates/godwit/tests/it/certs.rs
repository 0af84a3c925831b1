//! Host names and certificates by the command line: added with a pair or by an authority, listed, shown, removed.

use serde_json::{Value, json};

use crate::api::Api;
use crate::cli::{godwit_with, home, stderr, stdout};
use crate::volumes::lay_over;

fn detail(changes: Value) -> Value {
    let mut detail = json!({
        "hostname": "www.example.com", "status": "pending_validation", "configured": false, "acme_requested": true,
        "certificates": [], "validation_errors": [],
        "validation": { "dns_configured": false, "alpn_configured": false, "http_configured": false, "ownership_txt_configured": false },
        "dns_requirements": { "a": ["203.0.113.1"], "aaaa": [], "cname": "" },
        "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z",
    });
    lay_over(&mut detail, changes);
    detail
}

fn issued(changes: Value) -> Value {
    let mut certificate = json!({
        "source": "custom", "status": "active", "names": ["www.example.com"], "issuer": "An authority", "serial": "01",
        "key_type": "ecdsa", "sha256": "ab", "self_signed": false, "valid_from": "2020-01-01T00:00:00Z",
        "expires_at": "2999-01-01T00:00:00Z", "created_at": "2026-01-01T00:00:00Z",
    });
    lay_over(&mut certificate, changes);
    detail(json!({ "status": "active", "configured": true, "certificates": [certificate] }))
}

fn run(api: &Api, arguments: &[&str]) -> std::process::Output {
    godwit_with(home().path(), arguments, &[("GODWIT_API_URL", &api.url), ("GODWIT_APP", "shop")])
}

const SHOW: &str = "GET /v1/apps/shop/certificates/www.example.com";

#[test]
fn a_name_is_added_and_its_certificate_waited_for() {
    let api = Api::start();
    api.on("POST /v1/apps/shop/certificates/acme", [(201, detail(json!({})))])
        .on(SHOW, [(200, detail(json!({}))), (200, issued(json!({ "source": "acme" })))]);
    let added = run(&api, &["certs", "add", "WWW.Example.com"]);
    assert!(added.status.success(), "{}", stderr(&added));
    assert_eq!(stdout(&added), "www.example.com\n", "a script gets the name alone");
    assert_eq!(api.sent("POST /v1/apps/shop/certificates/acme"), [json!({ "hostname": "www.example.com" })]);
    let said = stderr(&added);
    assert!(said.contains("A  203.0.113.1") && said.contains("valid until 2999"), "{said}");

    let error = json!({ "code": "acme", "message": "no such host", "remediation": "mend it", "timestamp": "x" });
    let refused =
        detail(json!({ "status": "failed", "validation_errors": [error], "next_attempt_at": "2026-01-01T00:01:00Z" }));
    api.on(SHOW, [(200, refused)]);
    let failed = run(&api, &["certs", "add", "www.example.com"]);
    assert_eq!(failed.status.code(), Some(1));
    let said = stderr(&failed);
    assert!(said.contains("no such host") && said.contains("tried again at 2026-01-01T00:01:00Z"), "{said}");
    assert!(run(&api, &["certs", "add", "www.example.com", "--detach"]).status.success());

    let none = json!({ "error": "this fleet has no certificate authority", "status": "invalid_argument" });
    api.on("POST /v1/apps/shop/certificates/acme", [(422, none)]);
    let refused = run(&api, &["certs", "add", "www.example.com"]);
    assert!(stderr(&refused).contains("--fullchain FILE"), "{}", stderr(&refused));
    for (arguments, words) in [(["certs", "add", "localhost"], "host name"), (["certs", "add", "a..b"], "host name")] {
        let wrong = run(&api, &arguments);
        assert_eq!(wrong.status.code(), Some(2));
        assert!(stderr(&wrong).contains(words), "{}", stderr(&wrong));
    }
}

#[test]
fn a_pair_of_ones_own_is_sent_as_it_stands_in_its_files() {
    let api = Api::start();
    api.on("POST /v1/apps/shop/certificates/custom", [(201, issued(json!({})))]);
    let folder = home();
    let (chain, key) = (folder.path().join("chain.pem"), folder.path().join("key.pem"));
    std::fs::write(&chain, "CHAIN\n").expect("written");
    std::fs::write(&key, "KEY\n").expect("written");
    let (chain, key) = (chain.to_str().expect("UTF-8"), key.to_str().expect("UTF-8"));
    let added = run(&api, &["certs", "import", "www.example.com", "--fullchain", chain, "--private-key", key]);
    assert!(added.status.success(), "{}", stderr(&added));
    let sent = json!({ "hostname": "www.example.com", "fullchain": "CHAIN\n", "private_key": "KEY\n" });
    assert_eq!(api.sent("POST /v1/apps/shop/certificates/custom"), [sent]);
    let half = run(&api, &["certs", "add", "www.example.com", "--fullchain", chain]);
    assert_eq!(half.status.code(), Some(2), "a chain without its key");
    let missing = run(&api, &["certs", "add", "www.example.com", "--fullchain", "/nowhere", "--private-key", key]);
    assert!(missing.status.code() == Some(2) && stderr(&missing).contains("/nowhere"), "{}", stderr(&missing));
}

#[test]
fn names_are_listed_shown_checked_and_removed() {
    let api = Api::start();
    let line = |hostname: &str, status: &str, expires: Value| {
        json!({
            "hostname": hostname, "status": status, "configured": true, "acme_requested": true,
            "has_custom_certificate": false, "has_fly_certificate": true, "acme_dns_configured": false,
            "acme_alpn_configured": false, "acme_http_configured": true, "ownership_txt_configured": false,
            "expires_at": expires, "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z",
        })
    };
    let first = json!({ "certificates": [line("a.example.com", "active", json!("2999-01-01T00:00:00Z"))], "next_cursor": "a.example.com", "total_count": 2 });
    let second = json!({ "certificates": [line("b.example.com", "failed", Value::Null)], "total_count": 2 });
    api.on("GET /v1/apps/shop/certificates", [(200, first)])
        .on("GET /v1/apps/shop/certificates?cursor=a.example.com", [(200, second)]);
    let listed = run(&api, &["certs", "list"]);
    let text = stdout(&listed);
    assert!(text.contains("a.example.com  active  acme") && text.contains(" days"), "{text}");
    assert!(stderr(&listed).contains("certs show"), "{}", stderr(&listed));
    assert_eq!(stdout(&run(&api, &["certificates", "ls", "-q"])), "a.example.com\nb.example.com\n");

    api.on(SHOW, [(200, issued(json!({ "expires_at": "2020-01-02T00:00:00Z" })))]);
    let shown = stdout(&run(&api, &["certs", "show", "www.example.com"]));
    assert!(
        shown.contains("An authority") && shown.contains("[##############################] 0 h left of 1 days"),
        "{shown}"
    );
    let json: Value =
        serde_json::from_str(&stdout(&run(&api, &["certs", "show", "www.example.com", "-j"]))).expect("JSON");
    assert_eq!(json["certificates"][0]["key_type"], "ecdsa");
    let error =
        json!({ "code": "dns", "message": "it has no address", "remediation": "let it lead here", "timestamp": "x" });
    api.on(
        "POST /v1/apps/shop/certificates/www.example.com/check",
        [(200, detail(json!({ "validation_errors": [error] })))],
    );
    let checked = run(&api, &["certs", "check", "www.example.com"]);
    assert!(
        stderr(&checked).contains("no address") && stderr(&checked).contains("203.0.113.1"),
        "{}",
        stderr(&checked)
    );

    api.on("DELETE /v1/apps/shop/certificates/www.example.com", [(204, Value::Null)]);
    assert_eq!(run(&api, &["certs", "remove", "www.example.com"]).status.code(), Some(2), "nobody can be asked");
    assert!(run(&api, &["certs", "remove", "www.example.com", "--yes"]).status.success());
    let unknown = run(&api, &["certs", "show", "www.example.org"]);
    assert_eq!(unknown.status.code(), Some(3));
    assert!(stderr(&unknown).contains("certs list -a shop"), "{}", stderr(&unknown));
}
