//! Goal: stores by URL ask what their protocols say, signed where they must be,
//! and fail with names.
//! Method: a local server that is given as the endpoint.

use object_store::{Error, ObjectStoreExt as _};
use ol_hub::{StoreError, open_store};
use ol_runtime::block_on;

use crate::server::{Reply, Request, Server};

fn variables(endpoint: &str) -> Vec<(String, String)> {
    [
        ("AWS_ENDPOINT_URL", endpoint),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_REGION", "eu-central-1"),
        ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", "a secret"),
        ("PATH", "is no setting"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

/// An answer with the headers that the protocols require.
fn object(content: &[u8]) -> Reply {
    Reply::ok(content)
        .with("ETag", "\"1\"")
        .with("Last-Modified", "Mon, 12 Oct 2009 17:50:00 GMT")
}

/// Reads as the store of adapters does: on a thread without a runtime.
fn read(url: &str, endpoint: &str, path: &str) -> Result<Vec<u8>, Error> {
    let store = open_store(url, variables(endpoint)).unwrap();
    block_on(async {
        let found = store.get(&path.into()).await?;
        Ok(found.bytes().await?.to_vec())
    })
}

#[test]
fn s3_is_asked_below_the_folder_and_with_a_signature() {
    // Several pieces, the last one not full.
    let content: Vec<u8> = (0..1_500_000_u32).map(|i| i.to_le_bytes()[1]).collect();
    let served = content.clone();
    let server = Server::start(move |_| object(&served));
    let found = read("s3://bucket/adapters", &server.url, "law/weights").unwrap();
    assert!(found == content);
    let requests = server.requests();
    let [request] = requests.as_slice() else {
        panic!("{requests:?}");
    };
    assert_eq!(request.target, "/bucket/adapters/law/weights");
    let signature = &request.headers["authorization"];
    let begin = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/";
    assert!(signature.starts_with(begin), "{signature}");
    assert!(
        signature.contains("/eu-central-1/s3/aws4_request"),
        "{signature}"
    );
    assert!(!format!("{request:?}").contains("a secret"));
}

#[test]
fn plain_http_follows_redirects_and_signed_requests_do_not() {
    let answer = |request: &Request| match request.target.as_str() {
        "/moved/weights" => object(b"found"),
        _ => Reply::new(302).with("Location", "/moved/weights"),
    };
    let server = Server::start(answer);
    let url = format!("{}/adapters", server.url);
    assert_eq!(read(&url, "", "weights").unwrap(), b"found");
    assert_eq!(server.targets(), ["/adapters/weights", "/moved/weights"]);

    let server = Server::start(answer);
    read("s3://bucket", &server.url, "weights").unwrap_err();
    assert_eq!(server.targets(), ["/bucket/weights"]);
}

#[test]
fn what_passes_is_asked_again_and_what_does_not_is_named() {
    let mut n = 0;
    let server = Server::start(move |_| {
        n += 1;
        match n {
            1 => Reply::new(503),
            _ => object(b"found"),
        }
    });
    assert_eq!(read("s3://bucket", &server.url, "x").unwrap(), b"found");
    assert_eq!(server.requests().len(), 2);

    let server = Server::start(|_| Reply::new(404));
    let error = read("s3://bucket", &server.url, "x").unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
    assert_eq!(server.requests().len(), 1);

    let server = Server::start(|_| Reply::new(403));
    let error = read("s3://bucket", &server.url, "x").unwrap_err();
    let named = matches!(error, Error::PermissionDenied { .. });
    assert!(
        named && !format!("{error:?}").contains("a secret"),
        "{error:?}"
    );

    // The end of the connection is not the end of the object.
    let server = Server::start(|_| Reply {
        cut: Some(300_000),
        ..object(&[7; 600_000])
    });
    read("s3://bucket", &server.url, "x").unwrap_err();
}

#[test]
fn urls_that_are_no_stores_are_refused_without_their_secrets() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("weights"), "local").unwrap();
    let url = format!("file://{}", dir.path().display());
    assert_eq!(read(&url, "", "weights").unwrap(), b"local");

    for url in [
        "adapters",
        "ftp://host/x?token=hidden",
        "redis://hidden@h/x",
    ] {
        let error = open_store(url, []).unwrap_err();
        assert!(matches!(error, StoreError::Url { .. }), "{error:?}");
        assert!(!error.to_string().contains("hidden"), "{error}");
    }
    // A container, but of whom?
    let error = open_store("az://container/x", []).unwrap_err();
    assert!(error.to_string().contains("AZURE_"), "{error}");
    // Without permission, keys do not go over an open line.
    let server = Server::start(|_| object(b"found"));
    let mut variables = variables(&server.url);
    variables.retain(|(name, _)| name != "AWS_ALLOW_HTTP");
    let store = open_store("s3://bucket", variables).unwrap();
    block_on(store.get(&"x".into())).unwrap_err();
    assert!(server.requests().is_empty());
}
