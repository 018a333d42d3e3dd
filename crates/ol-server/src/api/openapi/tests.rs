//! Goal: the document says what the server does, and the committed one is that.

use super::*;

#[test]
fn the_committed_document_is_fresh() {
    let fresh = format!("{:#}\n", document());
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
    if std::env::var_os("OPENLEDGER_UPDATE_OPENAPI").is_some() {
        std::fs::write(path, &fresh).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == fresh,
        "docs/openapi.json is stale: run this test with OPENLEDGER_UPDATE_OPENAPI=1"
    );
}

/// Every default lies within its range, every field says what it is for, and
/// every required field is one.
#[test]
fn every_field_is_described() {
    for route in crate::api::routes() {
        let Some(body) = route.body else { continue };
        let body = body();
        let fields = body["properties"].as_object().unwrap();
        assert!(!fields.is_empty(), "{}", route.path);
        for (name, schema) in fields {
            assert!(schema["description"].is_string(), "{} {name}", route.path);
            let number = |key: &str| schema.get(key).and_then(Value::as_f64);
            if let (Some(min), Some(max)) = (number("minimum"), number("maximum")) {
                assert!(min < max, "{name}");
                let default = number("default");
                assert!(default.is_none_or(|d| (min..=max).contains(&d)), "{name}");
            }
        }
        for name in body["required"].as_array().unwrap() {
            assert!(fields.contains_key(name.as_str().unwrap()), "{name}");
        }
    }
}
