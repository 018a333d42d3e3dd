//! Goal: a browser cannot be made to ask us for somebody else, and nobody else
//! notices. Method: tables of requests against each kind of rule.

use axum::http::{HeaderMap, HeaderValue, Uri};

use super::{Access, AccessError};

fn refusal(access: &Access, uri: &str, host: Option<&str>, origin: Option<&str>) -> bool {
    let mut headers = HeaderMap::new();
    for (name, value) in [("host", host), ("origin", origin)] {
        if let Some(value) = value {
            headers.insert(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
    }
    access
        .refusal(&uri.parse::<Uri>().unwrap(), &headers)
        .is_some()
}

fn access(hosts: &[&str], origins: &[&str]) -> Access {
    let owned = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    Access::new(&owned(hosts), &owned(origins)).unwrap()
}

#[test]
fn names_that_are_not_ours_are_refused() {
    let cases = [
        ("localhost", true),
        ("localhost:8545", true),
        ("LocalHost:1", true),
        ("localhost.", true),
        ("127.0.0.1:8545", true),
        ("192.168.1.7", true),
        ("[::1]:8545", true),
        ("rebinding.example", false),
        ("localhost.rebinding.example", false),
        ("127.0.0.1.rebinding.example:8545", false),
        ("user@rebinding.example", false),
        ("", false),
        ("a b", false),
        ("\u{e9}", false),
    ];
    for (host, is_allowed) in cases {
        let refused = refusal(&Access::default(), "/", Some(host), None);
        assert_eq!(!refused, is_allowed, "{host}");
    }
    assert!(refusal(&Access::default(), "/", None, None));
    assert!(!refusal(
        &Access::default(),
        "http://127.0.0.1:1/",
        None,
        None
    ));
    let named = access(&["Node.Example"], &[]);
    assert!(!refusal(&named, "/", Some("node.example:8545"), None));
    assert!(refusal(&named, "/", Some("other.example"), None));
    let any = access(&["*"], &[]);
    assert!(!refusal(&any, "/", Some("other.example"), None));
}

#[test]
fn pages_of_other_origins_are_refused() {
    let closed = Access::default();
    let local = Access::local();
    let exact = access(&[], &["https://App.Example", "http://other.example:3000/"]);
    let any = access(&[], &["*"]);
    let cases = [
        // origin, closed, local, exact, any
        ("https://evil.example", [false, false, false, true]),
        ("null", [false, false, false, true]),
        ("", [false, false, false, true]),
        ("http://localhost:3000", [false, true, false, true]),
        ("http://127.0.0.1:5173", [false, true, false, true]),
        ("http://[::1]:5173", [false, true, false, true]),
        ("http://localhost.evil.example", [false, false, false, true]),
        ("http://192.168.1.7", [false, false, false, true]),
        ("chrome-extension://abcdef", [false, true, false, true]),
        ("https://app.example", [false, false, true, true]),
        ("https://APP.example", [false, false, true, true]),
        ("http://app.example", [false, false, false, true]),
        ("https://app.example:8443", [false, false, false, true]),
        ("http://other.example:3000", [false, false, true, true]),
        // A page that this listener served.
        ("http://127.0.0.1:8545", [true, true, true, true]),
    ];
    for (origin, expected) in cases {
        for (rules, is_allowed) in [&closed, &local, &exact, &any].into_iter().zip(expected) {
            let refused = refusal(rules, "/", Some("127.0.0.1:8545"), Some(origin));
            assert_eq!(!refused, is_allowed, "{origin} under {rules:?}");
        }
    }
}

#[test]
fn rules_that_fit_no_request_are_errors() {
    for host in [
        "http://a.example",
        "a.example:80",
        "a b",
        "",
        "a/b",
        "u@a.example",
    ] {
        let error = Access::new(&[host.to_owned()], &[]).unwrap_err();
        assert!(matches!(error, AccessError::Host { .. }), "{host}");
    }
    for origin in [
        "a.example",
        "https://",
        "https://a.example/path",
        "https://u@a.example",
        "",
    ] {
        let error = Access::new(&[], &[origin.to_owned()]).unwrap_err();
        assert!(matches!(error, AccessError::Origin { .. }), "{origin}");
    }
    let many = vec!["a.example".to_owned(); 257];
    assert!(matches!(
        Access::new(&many, &[]),
        Err(AccessError::TooMany { n_given: 257 })
    ));
}
