//! The OpenAPI document, made of the routes and of the list of fields that the
//! readers use.

use serde_json::{Map, Value, json};

/// Describes every endpoint and its parameters (OpenAPI 3.1).
#[must_use]
pub fn document() -> Value {
    let mut paths = Map::new();
    for route in super::routes() {
        let mut responses = json!({
            "200": {"description": "Done."},
            "default": {
                "description": "An error in OpenAI's form.",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        });
        if route.tag == "infer" {
            responses["429"] = json!({
                "description": "A limit is reached: come back after Retry-After seconds.",
                "headers": {"Retry-After": {"schema": {"type": "integer"}}},
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            });
        }
        let mut operation =
            json!({"summary": route.summary, "tags": [route.tag], "responses": responses});
        if let Some(body) = route.body {
            operation["requestBody"] =
                json!({"required": true, "content": {"application/json": {"schema": body()}}});
        }
        if route.tag != "public" {
            operation["security"] = json!([{"key": []}]);
        }
        let parameters: Vec<Value> = route
            .path
            .split('/')
            .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
            .map(|name| {
                json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}})
            })
            .collect();
        if !parameters.is_empty() {
            operation["parameters"] = Value::Array(parameters);
        }
        let item = paths
            .entry(route.path.to_owned())
            .or_insert_with(|| json!({}));
        item[route.method] = operation;
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "OpenLedger",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "OpenAI's API with vLLM's additions. Fields that are not listed are ignored, unless they ask for something that would change the answer: those are refused by name.",
        },
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": {
                "type": "object", "required": ["error"], "properties": {"error": {
                    "type": "object", "required": ["message", "type", "code", "param"], "properties": {
                        "message": {"type": "string"}, "type": {"type": "string"},
                        "code": {"type": "string"}, "param": {"type": ["string", "null"]},
                    },
                }},
            }},
        },
    })
}

#[cfg(test)]
mod tests;
