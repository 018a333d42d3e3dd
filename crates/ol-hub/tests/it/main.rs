//! Goal: what is fetched is what the hub announced, in the layout other tools
//! use; failures are named; nobody but the hub sees the token.
//! Method: a local server that speaks the hub's protocol and misbehaves on
//! purpose. Waits are recorded, not waited for.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, outside of test functions"
)]

mod server;
mod store;

use std::cell::RefCell;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use ol_hub::{Hub, HubError, HubOptions, Progress, Reference, Snapshot};
use server::{COMMIT, Reply, RepoFile, Server, find, listing, repository};

thread_local! {
    static WAITS: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

fn record_wait(wait: Duration) {
    WAITS.with_borrow_mut(|waits| waits.push(wait.as_secs()));
}

fn options(endpoint: &str, cache: &Path) -> HubOptions {
    let variable = |name: &str| match name {
        "HF_ENDPOINT" => Some(format!("{endpoint}/")),
        "HF_HOME" => cache.to_str().map(str::to_owned),
        "HF_TOKEN" => Some("hf_secret".to_owned()),
        _ => None,
    };
    HubOptions {
        wait: record_wait,
        uses_proxy: false,
        ..HubOptions::from_env(variable).unwrap()
    }
}

fn model() -> Reference {
    "org/model".parse().unwrap()
}

fn fetch(options: HubOptions) -> Result<Snapshot, HubError> {
    Hub::new(options)?.fetch(&model(), &mut |_| ControlFlow::Continue(()))
}

fn small_model() -> Vec<RepoFile> {
    vec![
        RepoFile::new("README.md", "not needed"),
        RepoFile::new("config.json", "{}"),
        RepoFile::new("tokenizer.json", "[]"),
        RepoFile::new("pytorch_model.bin", "not wanted"),
        RepoFile::new("model.safetensors", vec![7_u8; 700_000]),
    ]
}

fn read(snapshot: &Snapshot, file: &str) -> Vec<u8> {
    fs::read(snapshot.dir.join(file)).unwrap()
}

#[test]
fn a_model_is_fetched_into_the_shared_layout_once() {
    let cache = tempfile::tempdir().unwrap();
    let files = small_model();
    let server = Server::start(repository(files.clone()));
    let mut seen: Vec<Progress> = Vec::new();
    let hub = Hub::new(options(&server.url, cache.path())).unwrap();
    let snapshot = hub
        .fetch(&model(), &mut |progress| {
            seen.push(progress.clone());
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(
        snapshot.files,
        ["config.json", "model.safetensors", "tokenizer.json"]
    );
    assert_eq!(read(&snapshot, "model.safetensors"), files[4].content);
    assert!(!snapshot.is_from_cache && snapshot.gguf.is_none());
    let root = cache.path().join("hub/models--org--model");
    assert_eq!(snapshot.dir, root.join("snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
    for file in [&files[1], &files[4]] {
        let link = fs::read_link(snapshot.dir.join(&file.path)).unwrap();
        assert_eq!(link, Path::new("../../blobs").join(file.hash()));
    }
    let last = seen.last().unwrap();
    assert_eq!((last.n_files, last.total_bytes), (3, 700_004));
    assert_eq!(last.done_bytes, last.total_bytes);
    assert!(seen.is_sorted_by_key(|p| p.done_bytes));

    let again = fetch(options(&server.url, cache.path())).unwrap();
    assert_eq!(again, snapshot);
    let n_files = server
        .targets()
        .iter()
        .filter(|t| t.contains("resolve"))
        .count();
    assert_eq!(n_files, 3, "nothing is fetched twice");
}

#[test]
fn the_cache_alone_will_do() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(repository(small_model()));
    let mut options = options(&server.url, cache.path());
    let first = fetch(options.clone()).unwrap();
    options.is_offline = true;
    let offline = fetch(options.clone()).unwrap();
    assert!(offline.is_from_cache);
    assert_eq!((&offline.dir, &offline.files), (&first.dir, &first.files));
    // A hub that cannot be reached is as good as none.
    options.is_offline = false;
    options.endpoint = "http://127.0.0.1:1".to_owned();
    assert!(fetch(options.clone()).unwrap().is_from_cache);
    // A model of which a part is missing is not there.
    fs::remove_file(first.dir.join("model.safetensors")).unwrap();
    let error = fetch(options.clone()).unwrap_err();
    assert!(matches!(error, HubError::Network { .. }), "{error}");
    options.is_offline = true;
    let error = fetch(options).unwrap_err();
    assert!(matches!(error, HubError::NotCached { .. }), "{error}");
}

#[test]
fn a_damaged_cache_is_noticed_when_asked() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(repository(small_model()));
    let mut options = options(&server.url, cache.path());
    let snapshot = fetch(options.clone()).unwrap();
    let path = snapshot.dir.join("model.safetensors");
    fs::write(fs::canonicalize(&path).unwrap(), vec![8_u8; 700_000]).unwrap();
    options.rechecks_cache = true;
    options.is_offline = true;
    let error = fetch(options.clone()).unwrap_err();
    assert!(matches!(error, HubError::Hash { .. }), "{error}");
    // With the hub at hand it is fetched anew.
    options.is_offline = false;
    let snapshot = fetch(options).unwrap();
    assert_eq!(read(&snapshot, "model.safetensors"), vec![7_u8; 700_000]);
}

#[test]
fn shards_are_those_of_the_index() {
    let index = r#"{"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors",
        "b": "model-00002-of-00002.safetensors", "c": "model-00001-of-00002.safetensors"}}"#;
    let mut files = vec![
        RepoFile::new("config.json", "{}"),
        RepoFile::new("model.safetensors.index.json", index),
        RepoFile::new("model-00001-of-00002.safetensors", "one"),
        RepoFile::new("model-00002-of-00002.safetensors", "two"),
        RepoFile::new("model-00003-of-00003.safetensors", "of another time"),
    ];
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(repository(files.clone()));
    let mut options = options(&server.url, cache.path());
    let snapshot = fetch(options.clone()).unwrap();
    assert_eq!(snapshot.files.len(), 4);
    assert_eq!(read(&snapshot, "model-00002-of-00002.safetensors"), b"two");
    options.is_offline = true;
    assert_eq!(fetch(options).unwrap().files, snapshot.files);

    files.remove(3);
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(repository(files));
    let error = fetch(self::options(&server.url, cache.path())).unwrap_err();
    assert!(
        error.to_string().contains("not among the model's files"),
        "{error}"
    );
}

#[test]
fn weights_are_chosen_or_asked_for() {
    let fetch = |files: &[(&str, &str)], reference: &str| {
        let files = files.iter().map(|(p, c)| RepoFile::new(p, *c)).collect();
        let cache = tempfile::tempdir().unwrap();
        let server = Server::start(repository(files));
        let hub = Hub::new(options(&server.url, cache.path())).unwrap();
        let reference: Reference = reference.parse().unwrap();
        hub.fetch(&reference, &mut |_| ControlFlow::Continue(()))
            .map(|s| (s.files, s.gguf.is_some()))
    };
    let two = [("a.Q4_K.gguf", "a"), ("b/c.gguf", "b")];
    let error = fetch(&two, "org/model").unwrap_err().to_string();
    assert!(error.contains("several GGUF files") && error.contains("org/model:a.Q4_K.gguf"));
    let found = fetch(&two, "org/model:b/c.gguf").unwrap();
    assert_eq!(found, (vec!["b/c.gguf".to_owned()], true));
    assert!(fetch(&two[..1], "org/model").unwrap().1);
    let error = fetch(&two, "org/model:d.gguf").unwrap_err().to_string();
    assert!(error.contains("has no file d.gguf"), "{error}");
    let error = fetch(&[("pytorch_model.bin", "x")], "org/model").unwrap_err();
    assert!(error.to_string().contains("neither safetensors nor GGUF"));
    let error = fetch(&[("model.safetensors", "x")], "org/model").unwrap_err();
    assert!(error.to_string().contains("has no config.json"), "{error}");
    let adapter = [
        ("adapter_config.json", "{}"),
        ("adapter_model.safetensors", "x"),
    ];
    assert_eq!(fetch(&adapter, "org/model").unwrap().0.len(), 2);
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let files = small_model();
    let content = files[4].content.clone();
    let network = Server::start(move |request| Reply::file(request, &content));
    let location = format!("{}/signed?key=1", network.url);
    let hub = Server::start(move |request| {
        if request.target.starts_with("/api/") {
            // A model that was renamed.
            return if request.target.contains("/models/org/model/") {
                let to = request.target.replace("org/model", "new/model");
                Reply::new(307).with("Location", to)
            } else {
                listing(&files)
            };
        }
        match find(&files, request) {
            Some(file) if file.is_lfs => Reply::new(302).with("Location", location.clone()),
            Some(file) => Reply::file(request, &file.content),
            None => Reply::new(404),
        }
    });
    let cache = tempfile::tempdir().unwrap();
    let snapshot = fetch(options(&hub.url, cache.path())).unwrap();
    assert_eq!(read(&snapshot, "model.safetensors").len(), 700_000);
    let shown = |server: &Server| -> Vec<bool> {
        let has_token = |r: server::Request| {
            r.headers
                .get("authorization")
                .is_some_and(|a| a == "Bearer hf_secret")
        };
        server.requests().into_iter().map(has_token).collect()
    };
    assert!(shown(&hub).iter().all(|has| *has) && !shown(&hub).is_empty());
    assert_eq!(shown(&network), [false]);
    let debug = format!("{:?}", options(&hub.url, cache.path()));
    assert!(!debug.contains("secret"), "{debug}");
    let hub = Hub::new(options(&hub.url, cache.path())).unwrap();
    assert!(!format!("{hub:?}").contains("secret"));
}

#[test]
fn redirects_end_somewhere_and_stay_with_http() {
    for (location, expected) in [
        (
            "/api/models/org/model/revision/main?blobs=true",
            "more than 5 redirects",
        ),
        ("file:///etc/passwd", "redirects to nowhere"),
        ("http://user:password@127.0.0.1/", "redirects to nowhere"),
        ("//", "redirects to nowhere"),
    ] {
        let server = Server::start(move |_| Reply::new(302).with("Location", location));
        let cache = tempfile::tempdir().unwrap();
        let error = fetch(options(&server.url, cache.path())).unwrap_err();
        assert!(error.to_string().contains(expected), "{location}: {error}");
    }
}

#[test]
fn what_was_cut_off_goes_on_where_it_stopped() {
    let files = small_model();
    let repo = files.clone();
    let mut n_cuts = 0;
    let server = Server::start(move |request| {
        let mut reply = repository(repo.clone())(request);
        if request.target.ends_with("model.safetensors") && n_cuts < 3 {
            n_cuts += 1;
            reply.cut = Some(200_000);
        }
        reply
    });
    let cache = tempfile::tempdir().unwrap();
    let snapshot = fetch(options(&server.url, cache.path())).unwrap();
    assert_eq!(read(&snapshot, "model.safetensors"), files[4].content);
    let starts: Vec<_> = server
        .requests()
        .iter()
        .filter(|r| r.target.ends_with("model.safetensors"))
        .map(server::Request::range_start)
        .collect();
    assert_eq!(starts, [None, Some(200_000), Some(400_000), Some(600_000)]);
    let blobs = snapshot.dir.join("../../blobs");
    assert!(fs::read_dir(blobs).unwrap().all(|entry| {
        !entry
            .unwrap()
            .file_name()
            .to_string_lossy()
            .contains("incomplete")
    }));
}

#[test]
fn a_run_that_was_stopped_or_killed_is_resumed() {
    let files = small_model();
    let server = Server::start(repository(files.clone()));
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::new(options(&server.url, cache.path())).unwrap();
    let error = hub
        .fetch(&model(), &mut |p| {
            if p.file == "model.safetensors" && p.done_bytes > 1000 {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })
        .unwrap_err();
    assert!(matches!(error, HubError::Stopped), "{error}");
    let blobs = cache.path().join("hub/models--org--model/blobs");
    let partial = blobs.join(format!("{}.incomplete", files[4].hash()));
    let there = fs::metadata(&partial).unwrap().len();
    assert!(there > 1000 && there < 700_000);
    // A process that was killed leaves a file of any length.
    fs::write(&partial, vec![7_u8; 123_456]).unwrap();
    let snapshot = fetch(options(&server.url, cache.path())).unwrap();
    assert_eq!(read(&snapshot, "model.safetensors"), files[4].content);
    let last = server.requests().pop().unwrap();
    assert_eq!(last.range_start(), Some(123_456));
    // One that left other bytes: the hash tells, and it starts over.
    fs::remove_file(blobs.join(files[4].hash())).unwrap();
    fs::write(&partial, vec![9_u8; 5]).unwrap();
    let snapshot = fetch(options(&server.url, cache.path())).unwrap();
    assert_eq!(read(&snapshot, "model.safetensors"), files[4].content);
    // One that left too much.
    fs::remove_file(blobs.join(files[4].hash())).unwrap();
    fs::write(&partial, vec![7_u8; 800_000]).unwrap();
    let snapshot = fetch(options(&server.url, cache.path())).unwrap();
    assert_eq!(read(&snapshot, "model.safetensors"), files[4].content);
}

#[test]
fn a_server_without_ranges_starts_over() {
    let files = small_model();
    let repo = files.clone();
    let mut n = 0;
    let server = Server::start(move |request| {
        let mut request = request.clone();
        request.headers.remove("range");
        let mut reply = repository(repo.clone())(&request);
        if request.target.ends_with("model.safetensors") && n == 0 {
            n += 1;
            reply.cut = Some(1000);
        }
        reply
    });
    let cache = tempfile::tempdir().unwrap();
    let snapshot = fetch(options(&server.url, cache.path())).unwrap();
    assert_eq!(read(&snapshot, "model.safetensors"), files[4].content);
}

#[test]
fn content_that_is_not_what_was_announced_is_refused() {
    type Spoil = fn(&mut Reply);
    let cases: [(&str, Spoil, &str); 5] = [
        ("model.safetensors", |r| r.body[5] ^= 1, "SHA-256 is"),
        (
            "config.json",
            |r| r.body = b"[]".to_vec(),
            "git's blob hash is",
        ),
        (
            "config.json",
            |r| r.body.push(b' '),
            "longer than the 2 bytes",
        ),
        (
            "tokenizer.json",
            |r| {
                // The first answer is cut off, so that the next asks for a range.
                r.cut = Some(1);
                r.headers = vec![("Content-Range", "bytes 0-1/2".to_owned())];
            },
            "sends another range",
        ),
        ("config.json", |r| r.status = 204, "status 204"),
    ];
    for (file, spoil, expected) in cases {
        let mut answer = repository(small_model());
        let server = Server::start(move |request| {
            let mut reply = answer(request);
            if request.target.ends_with(file) {
                spoil(&mut reply);
            }
            reply
        });
        let cache = tempfile::tempdir().unwrap();
        let error = fetch(options(&server.url, cache.path()))
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{file}: {error}");
        let root = cache.path().join("hub/models--org--model");
        assert!(!root.join("refs/main").exists());
        for entry in fs::read_dir(root.join("blobs")).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            assert!(
                name.contains("incomplete") || small_model().iter().any(|f| f.hash() == name),
                "a file whose hash is not its name"
            );
        }
    }
}

#[test]
fn refusals_say_what_to_do() {
    type Case = (u16, &'static str, bool, &'static str);
    let cases: [Case; 8] = [
        (401, "RepoNotFound", false, "or it is private: set HF_TOKEN"),
        (401, "", true, "the token in HF_TOKEN is not accepted"),
        (
            403,
            "GatedRepo",
            true,
            "ask for access on the model's page (the hub says: noway)",
        ),
        (401, "GatedRepo", false, "and set HF_TOKEN"),
        (403, "", true, "HF_TOKEN gives no access"),
        (404, "RevisionNotFound", true, "no such revision"),
        (404, "RepoNotFound", true, "no such model"),
        (400, "", true, "status 400"),
    ];
    for (status, code, has_token, expected) in cases {
        let server = Server::start(move |_| {
            Reply::new(status)
                .with("X-Error-Code", code)
                .with("X-Error-Message", "no\tway")
        });
        let cache = tempfile::tempdir().unwrap();
        let mut options = options(&server.url, cache.path());
        if !has_token {
            options.token = None;
        }
        let error = fetch(options).unwrap_err().to_string();
        assert!(error.contains(expected), "{status} {code}: {error}");
        assert!(!error.contains("hf_secret"));
        assert_eq!(server.requests().len(), 1, "a refusal is final");
    }
}

#[test]
fn busy_servers_are_asked_again_when_they_say() {
    let mut answer = repository(small_model());
    let mut n = 0;
    let server = Server::start(move |request| {
        n += 1;
        match n {
            1 => Reply::new(429).with("Retry-After", "7"),
            2 => Reply::new(503),
            3 => Reply::new(500).with("Retry-After", "Wed, 21 Oct 2026 07:28:00 GMT"),
            4 => Reply::new(429).with("Retry-After", "86400"),
            _ => answer(request),
        }
    });
    let cache = tempfile::tempdir().unwrap();
    WAITS.with_borrow_mut(Vec::clear);
    fetch(options(&server.url, cache.path())).unwrap();
    WAITS.with_borrow(|waits| assert_eq!(*waits, [7, 2, 4, 300]));

    let server = Server::start(|_| Reply::new(429));
    let cache = tempfile::tempdir().unwrap();
    WAITS.with_borrow_mut(Vec::clear);
    let error = fetch(options(&server.url, cache.path())).unwrap_err();
    assert!(error.to_string().contains("answers 429"), "{error}");
    WAITS.with_borrow(|waits| assert_eq!(*waits, [1, 2, 4, 8, 16]));
}

#[test]
fn listings_that_cannot_be_are_refused() {
    let good = serde_json::json!({"rfilename": "config.json", "size": 2, "blobId": "0".repeat(40)});
    let with = |field: &str, value: serde_json::Value| {
        let mut file = good.clone();
        file[field] = value;
        serde_json::json!({"sha": COMMIT, "siblings": [file]}).to_string()
    };
    for (body, expected) in [
        ("{".to_owned(), "EOF"),
        (r#"{"sha": "x", "siblings": []}"#.to_owned(), "not a commit"),
        (with("rfilename", "../config.json".into()), "leads out"),
        (with("rfilename", "/etc/passwd".into()), "leads out"),
        (with("rfilename", "a//b".into()), "leads out"),
        (with("rfilename", "a\\..\\b".into()), "leads out"),
        (with("rfilename", "C:x".into()), "leads out"),
        (with("blobId", "../../x".into()), "hashes to"),
        (with("blobId", serde_json::Value::Null), "hashes to"),
        (with("size", serde_json::Value::Null), "how long"),
        (
            with("lfs", serde_json::json!({"sha256": "zz", "size": 1})),
            "hashes to",
        ),
    ] {
        let reply = body.clone();
        let server = Server::start(move |_| Reply::ok(reply.clone()));
        let cache = tempfile::tempdir().unwrap();
        let error = fetch(options(&server.url, cache.path())).unwrap_err();
        assert!(matches!(error, HubError::Protocol { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{body}: {error}");
    }
    let index = r#"{"weight_map": {"a": "../../x"}}"#;
    let files = vec![
        RepoFile::new("config.json", "{}"),
        RepoFile::new("model.safetensors.index.json", index),
    ];
    let server = Server::start(repository(files));
    let cache = tempfile::tempdir().unwrap();
    let error = fetch(options(&server.url, cache.path())).unwrap_err();
    assert!(error.to_string().contains("leads out"), "{error}");
}

#[test]
fn sizes_are_limited_before_a_byte_is_fetched() {
    let server = Server::start(repository(small_model()));
    let cache = tempfile::tempdir().unwrap();
    let base = options(&server.url, cache.path());
    for options in [
        HubOptions {
            max_file_size_bytes: 1000,
            ..base.clone()
        },
        HubOptions {
            max_model_size_bytes: 700_001,
            ..base.clone()
        },
    ] {
        let error = fetch(options).unwrap_err();
        assert!(matches!(error, HubError::TooLarge { .. }), "{error}");
    }
    let mut files = small_model();
    files[4].content = Vec::new();
    let huge = serde_json::json!({"sha": COMMIT, "siblings": [
        {"rfilename": "config.json", "size": 2, "blobId": "0".repeat(40)},
        {"rfilename": "model.safetensors", "size": 1, "blobId": "0".repeat(40),
         "lfs": {"sha256": "0".repeat(64), "size": 1_u64 << 60}},
    ]});
    let server = Server::start(move |_| Reply::ok(huge.to_string()));
    let error = fetch(HubOptions {
        endpoint: server.url.clone(),
        max_file_size_bytes: u64::MAX,
        max_model_size_bytes: u64::MAX,
        ..base
    })
    .unwrap_err();
    assert!(matches!(error, HubError::NoRoom { .. }), "{error}");
    assert!(server.targets().iter().all(|t| t.starts_with("/api/")));
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    for bad in [
        "",
        "a/b/c",
        "../x",
        "a/..",
        "/a",
        "a/",
        "a b/c",
        "a/b@",
        "a/b@../x",
        "a/b@x/../y",
        "a/b?c",
        "a/b:../x.gguf",
        "a/b:x.bin",
        "a/b:/x.gguf",
        ".a/b",
        "a/b%2F",
    ] {
        assert!(bad.parse::<Reference>().is_err(), "{bad}");
    }
    for good in [
        "gpt2",
        "org/Model-1.5_x",
        "a/b@refs/pr/7",
        "a/b@v1:Q4/x.GGUF",
    ] {
        let reference: Reference = good.parse().unwrap();
        assert!(
            reference
                .to_string()
                .starts_with(good.split('@').next().unwrap())
        );
    }
    for bad in [
        "ftp://x",
        "huggingface.co",
        "https://user@x",
        "https://x?y=1",
        "",
    ] {
        let cache = tempfile::tempdir().unwrap();
        let mut options = options("http://127.0.0.1:1", cache.path());
        options.endpoint = bad.to_owned();
        let error = Hub::new(options).unwrap_err();
        assert!(matches!(error, HubError::Endpoint(_)), "{bad}: {error}");
    }
}

#[test]
fn a_server_that_speaks_no_tls_is_not_trusted() {
    let server = Server::start(repository(small_model()));
    let cache = tempfile::tempdir().unwrap();
    let mut options = options(&server.url, cache.path());
    options.endpoint = server.url.replace("http://", "https://");
    options.max_retries = 0;
    let error = fetch(options).unwrap_err();
    assert!(
        matches!(error, HubError::Network { .. } | HubError::NoRoots),
        "{error}"
    );
}
