//! The pull routes, asked over a real socket.

use godwit_oci::{Digest, no_progress};

use crate::pull::Server;
use crate::support::*;

fn sample() -> Image {
    Image::new([Layer::new().file("a", &[b'x'; 10_000]).done()]).packed(Packing::Plain)
}

/// One request by hand: (status, headers in lower case, body).
async fn ask(server: &Server, method: &str, path: &str, headers: &[(&str, &str)]) -> (u16, String, Vec<u8>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let extra: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{extra}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    let split = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(bytes[..split].to_vec()).unwrap().to_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head, bytes[split + 4..].to_vec())
}

#[tokio::test]
async fn an_image_is_served_as_the_specification_says() {
    let test = TestStore::new();
    let loaded = test.store.load_stream(&sample().archive()[..], Some("apps/deep/hello:v1"), &no_progress()).unwrap();
    let digest = loaded[0].digest;
    let layer = test.store.manifest(&digest).unwrap().layers[0].digest;
    let server = Server::start(test.store.clone()).await;
    let name = "/v2/apps/deep/hello";

    let (status, head, _) = ask(&server, "GET", "/v2/", &[]).await;
    assert_eq!(status, 200);
    assert!(head.contains("docker-distribution-api-version: registry/2.0"), "{head}");

    for reference in ["v1".to_owned(), digest.to_string()] {
        let (status, head, body) = ask(&server, "GET", &format!("{name}/manifests/{reference}"), &[]).await;
        assert_eq!((status, Digest::of(&body)), (200, digest));
        assert!(head.contains("content-type: application/vnd.oci.image.manifest.v1+json"), "{head}");
        assert!(head.contains(&format!("docker-content-digest: {digest}")), "{head}");
        let (status, head, none) = ask(&server, "HEAD", &format!("{name}/manifests/{reference}"), &[]).await;
        assert!(status == 200 && none.is_empty());
        assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
    }

    let path = format!("{name}/blobs/{layer}");
    let (status, head, whole) = ask(&server, "GET", &path, &[]).await;
    assert_eq!((status, Digest::of(&whole)), (200, layer));
    assert!(head.contains("accept-ranges: bytes") && head.contains(&format!("etag: \"{layer}\"")), "{head}");
    let size = whole.len();
    let (status, head, body) = ask(&server, "HEAD", &path, &[("range", "bytes=5-6")]).await;
    assert!(status == 200 && body.is_empty() && head.contains(&format!("content-length: {size}")), "{head}");
    for (range, start, end) in [("bytes=100-", 100, size), ("bytes=100-199", 100, 200), ("bytes=-7", size - 7, size)] {
        let (status, head, body) = ask(&server, "GET", &path, &[("range", range)]).await;
        assert_eq!(status, 206, "{range}");
        assert_eq!(body, whole[start..end], "{range}");
        assert!(head.contains(&format!("content-range: bytes {start}-{}/{size}", end - 1)), "{head}");
    }
    let (status, head, _) = ask(&server, "GET", &path, &[("range", &format!("bytes={size}-"))]).await;
    assert!(status == 416 && head.contains(&format!("content-range: bytes */{size}")), "{head}");
    let (status, _, body) = ask(&server, "GET", &path, &[("range", "bytes=1-2"), ("if-range", "\"other\"")]).await;
    assert_eq!((status, body.len()), (200, size));
    let (status, _, body) = ask(&server, "GET", &path, &[("if-none-match", &format!("\"{layer}\""))]).await;
    assert!(status == 304 && body.is_empty());
}

#[tokio::test]
async fn refusals_carry_the_code_of_the_specification() {
    let test = TestStore::new();
    let digest = test.store.load_stream(&sample().archive()[..], Some("a/b:v1"), &no_progress()).unwrap()[0].digest;
    let other = Image::new([Layer::new().file("secret", b"x").done()]);
    let other = test.store.load_stream(&other.archive()[..], Some("other"), &no_progress()).unwrap()[0].digest;
    let server = Server::start(test.store.clone()).await;
    let unknown = Digest::of(b"unknown");
    for (method, path, status, code) in [
        ("GET", "/v2/a/b/manifests/v2".to_owned(), 404, "MANIFEST_UNKNOWN"),
        ("GET", "/v2/a/manifests/v1".to_owned(), 404, "MANIFEST_UNKNOWN"),
        ("GET", format!("/v2/a/b/manifests/{unknown}"), 404, "MANIFEST_UNKNOWN"),
        ("GET", "/v2/a/b/manifests/sha256:12".to_owned(), 400, "DIGEST_INVALID"),
        ("GET", "/v2/A/manifests/v1".to_owned(), 400, "NAME_INVALID"),
        ("GET", format!("/v2/a/b/blobs/{unknown}"), 404, "BLOB_UNKNOWN"),
        // It is in the store, but not under this name.
        ("GET", format!("/v2/a/b/blobs/{other}"), 404, "BLOB_UNKNOWN"),
        ("GET", format!("/v2/a/blobs/{digest}"), 404, "BLOB_UNKNOWN"),
        ("GET", "/v2/a/b/blobs/..%2f..%2flock".to_owned(), 400, "DIGEST_INVALID"),
        ("GET", "/v2/none/tags/list".to_owned(), 404, "NAME_UNKNOWN"),
        ("GET", "/v2/a/b/other/x".to_owned(), 404, "NAME_UNKNOWN"),
        ("PUT", "/v2/a/b/manifests/v1".to_owned(), 405, "UNSUPPORTED"),
        ("DELETE", format!("/v2/a/b/blobs/{digest}"), 405, "UNSUPPORTED"),
    ] {
        let (found, _, body) = ask(&server, method, &path, &[]).await;
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_else(|e| panic!("{path}: {e}"));
        assert_eq!((found, body["errors"][0]["code"].as_str()), (status, Some(code)), "{method} {path}");
    }
}

#[tokio::test]
async fn tags_come_in_pages() {
    let test = TestStore::new();
    let image = test.store.load_stream(&sample().archive()[..], Some("a"), &no_progress()).unwrap().remove(0);
    for tag in ["v1", "v2", "v3"] {
        test.store.tag(&image, tag).unwrap();
    }
    let server = Server::start(test.store.clone()).await;
    let tags = |body: &[u8]| serde_json::from_slice::<serde_json::Value>(body).unwrap()["tags"].clone();
    let (_, head, body) = ask(&server, "GET", "/v2/a/tags/list", &[]).await;
    assert_eq!(tags(&body), serde_json::json!(["latest", "v1", "v2", "v3"]));
    assert!(!head.contains("link:"), "{head}");
    let (_, head, body) = ask(&server, "GET", "/v2/a/tags/list?n=2", &[]).await;
    assert_eq!(tags(&body), serde_json::json!(["latest", "v1"]));
    assert!(head.contains("</v2/a/tags/list?n=2&last=v1>; rel=\"next\""), "{head}");
    let (_, head, body) = ask(&server, "GET", "/v2/a/tags/list?n=2&last=v1", &[]).await;
    assert_eq!(tags(&body), serde_json::json!(["v2", "v3"]));
    assert!(!head.contains("link:"), "{head}");
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_pulls_from_it() {
    let test = TestStore::new();
    test.store.load_stream(&sample().archive()[..], Some("apps/hello:v1"), &no_progress()).unwrap();
    let server = Server::start(test.store.clone()).await;
    let dir = tempfile::tempdir().unwrap();
    let from = format!("docker://{}/apps/hello:v1", server.address);
    let to = format!("oci:{}:got", text(&dir.path().join("got")));
    let pulled = tokio::task::spawn_blocking(move || {
        run("skopeo", &["copy", "-q", "--src-tls-verify=false", &from, &to]);
        run("skopeo", &["inspect", "--tls-verify=false", &from])
    });
    assert!(pulled.await.unwrap().contains("\"RepoTags\""));
    let again = TestStore::new();
    let loaded = again.store.load_path(&dir.path().join("got"), Some("x"), &no_progress()).unwrap();
    let unpacked = again.store.unpack_blocking(&loaded[0].digest, &no_progress()).unwrap();
    assert!(find(&unpacked, "a").is_some());
}
