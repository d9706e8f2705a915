// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used)]
use super::*;
use std::sync::Mutex;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

const MANIFEST: &str = r#"{"schemaVersion":2}"#;

/// A small registry on loopback: answers by path, and remembers what was asked.
struct Registry {
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Registry {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (own, log) = (address.clone(), Arc::clone(&asked));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut lines = BufReader::new(&mut stream).lines();
                let (mut path, mut token) = (String::new(), String::new());
                while let Some(line) = lines.next_line().await.unwrap().filter(|l| !l.is_empty()) {
                    if let Some(rest) = line.strip_prefix("GET ") {
                        path = rest.trim_end_matches(" HTTP/1.1").to_owned();
                    }
                    if let Some(rest) = line.strip_prefix("authorization: ") {
                        token = rest.to_owned();
                    }
                }
                log.lock().unwrap().push(path.clone());
                stream.write_all(reply(&path, &token, &own).as_bytes()).await.unwrap();
            }
        });
        Self { address, asked }
    }

    fn registries(&self) -> Registries {
        Registries { insecure: vec![self.address.clone()], mirrors: Vec::new() }
    }

    async fn digest(&self, image: &str) -> Result<String, String> {
        let reference = Reference::parse(&format!("{}/{image}", self.address)).unwrap();
        self.registries().digest(&reference).await
    }
}

fn reply(path: &str, token: &str, own: &str) -> String {
    let (status, extra, body) = match path {
        "/v2/open/manifests/1" | "/v2/library/nginx/manifests/latest" => ("200 OK", String::new(), MANIFEST),
        "/v2/me/closed/manifests/1" if token == "Bearer t0ken" => ("200 OK", String::new(), MANIFEST),
        "/v2/me/closed/manifests/1" | "/v2/me/never/manifests/1" => {
            let challenge = format!(
                "www-authenticate: Bearer realm=\"http://{own}/token\",service=\"a b\",scope=\"x\"\r\n"
            );
            ("401 Unauthorized", challenge, "")
        }
        "/v2/basic/manifests/1" => {
            ("401 Unauthorized", "www-authenticate: Basic realm=\"x\"\r\n".to_owned(), "")
        }
        _ if path.starts_with("/token?service=a%20b&scope=repository:me/") => {
            ("200 OK", String::new(), r#"{"token":"t0ken"}"#)
        }
        "/v2/busy/manifests/1" => ("429 Too Many Requests", String::new(), ""),
        "/v2/moved/manifests/1" => {
            ("307 Temporary Redirect", "location: http://elsewhere.test/\r\n".to_owned(), "")
        }
        _ => ("404 Not Found", String::new(), ""),
    };
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n{extra}\r\n{body}", body.len())
}

#[tokio::test]
async fn t05_the_digest_is_that_of_the_manifest() {
    let registry = Registry::start().await;
    let digest = format!("sha256:{}", hex::encode(Sha256::digest(MANIFEST)));
    assert_eq!(registry.digest("open:1").await.unwrap(), digest);
    assert_eq!(registry.digest("me/closed:1").await.unwrap(), digest);
    let asked = registry.asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 4, "{asked:?}");
}

#[tokio::test]
async fn refusals_are_told_apart() {
    let registry = Registry::start().await;
    for (image, part) in [
        ("none:1", "no such image"),
        ("basic:1", "needs a login"),
        ("me/never:1", "needs a login"),
        ("busy:1", "too many"),
        ("moved:1", "307"),
    ] {
        let error = registry.digest(image).await.unwrap_err();
        assert!(error.contains(part) && error.contains(&registry.address), "{image}: {error}");
    }
    let away = Registries { insecure: vec!["127.0.0.1:1".to_owned()], mirrors: Vec::new() };
    let error = away.digest(&Reference::parse("127.0.0.1:1/a").unwrap()).await.unwrap_err();
    assert!(error.contains("cannot be reached"), "{error}");
}

#[tokio::test]
async fn mirrors_of_docker_hub_are_asked_first() {
    let registry = Registry::start().await;
    let mirrors = vec![format!("http://{}/", registry.address)];
    let registries = Registries { insecure: Vec::new(), mirrors };
    let nginx = Reference::parse("nginx").unwrap();
    assert!(registries.digest(&nginx).await.unwrap().starts_with("sha256:"));
    assert_eq!(registries.bases(&nginx).len(), 2);
    let other = Reference::parse(&format!("{}/open:1", registry.address)).unwrap();
    assert_eq!(registries.bases(&other), [format!("https://{}", registry.address)], "never HTTP unasked");
}

#[test]
fn challenges() {
    let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/nginx:pull""#;
    let challenge = Challenge::parse(hub).unwrap();
    let nginx = Reference::parse("nginx").unwrap();
    let url = "https://auth.docker.io/token?service=registry.docker.io&scope=repository:library/nginx:pull";
    assert_eq!(challenge.url(&nginx), url);
    for bad in [
        "",
        "Bearer",
        "Basic realm=\"https://a\"",
        "Bearer service=\"x\"",
        "Bearer realm=\"file:///etc\"",
        "Bearer realm=\"x",
    ] {
        assert_eq!(Challenge::parse(bad), None, "{bad}");
    }
}

proptest::proptest! {
    #[test]
    fn whatever_a_registry_answers_leads_to_a_url(text in "(Bearer )?.{0,200}") {
        if let Some(challenge) = Challenge::parse(&text) {
            let url = challenge.url(&Reference::parse("nginx").unwrap());
            proptest::prop_assert!(url.starts_with("http"), "{url}");
            proptest::prop_assert!(url.ends_with("&scope=repository:library/nginx:pull"), "{url}");
        }
    }

    #[test]
    fn an_image_never_leaves_its_place_in_the_url(text in ".{0,80}") {
        if let Ok(image) = Reference::parse(&text) {
            let whole = format!("{}/{}:{}", image.registry, image.repository, image.tag);
            let path = format!("{}/{}", image.registry, image.repository);
            proptest::prop_assert!(!path.contains("..") && !path.contains("//"), "{path}");
            proptest::prop_assert!(!whole.contains(['?', '#', '%', '@', ' ', '\\', '\n']), "{whole}");
        }
    }
}

#[tokio::test]
async fn a_registry_without_tls_is_told_from_others() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut hello = [0; 1024];
        let _ = stream.read(&mut hello).await;
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
        let _ = stream.read(&mut hello).await;
    });
    let image = Reference::parse(&format!("{address}/web:1")).unwrap();
    let registries = Registries { insecure: Vec::new(), mirrors: Vec::new() };
    let error = registries.digest(&image).await.unwrap_err();
    assert!(error.contains("--registry-insecure"), "{error}");
}
