//! The OpenAPI 3.1 document of the public API, made from the endpoints. `openapi/godwit.json` is this, kept fresh
//! by a test.

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::endpoint::Operation;
use crate::error::ApiError;

/// The whole document.
pub fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = SchemaGenerator::new(settings);
    let error = generator.subschema_for::<ApiError>();
    let mut paths = Map::new();
    for operation in crate::endpoints::all() {
        let item = paths.entry(format!("/v1{}", operation.path)).or_insert_with(|| json!({}));
        if let Some(item) = item.as_object_mut() {
            let method = operation.method.as_str().to_ascii_lowercase();
            item.insert(method, describe(&operation, &mut generator, &error));
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": { "title": "Godwit Machines API", "version": env!("CARGO_PKG_VERSION"), "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" } },
        "servers": [{ "url": "/" }],
        "security": [{ "bearer": [] }],
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "securitySchemes": { "bearer": { "type": "http", "scheme": "bearer" } },
        },
    })
}

fn describe(operation: &Operation, generator: &mut SchemaGenerator, error: &schemars::Schema) -> Value {
    let mut parameters: Vec<Value> = operation
        .path
        .split('/')
        .filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
        .collect();
    let query = (operation.query)(generator);
    if let Some(properties) = query.get("properties").and_then(Value::as_object) {
        for (name, schema) in properties {
            parameters.push(json!({ "name": name, "in": "query", "required": false, "schema": schema }));
        }
    }
    let mut answer = json!({ "description": "Done." });
    if let Some(response) = operation.response {
        answer["content"] = json!({ "application/json": { "schema": response(generator) } });
    }
    let mut described = json!({
        "operationId": operation.id,
        "summary": operation.summary,
        "parameters": parameters,
        "responses": {
            operation.success.to_string(): answer,
            "default": { "description": "An error.", "content": { "application/json": { "schema": error } } },
        },
    });
    if let Some(request) = operation.request {
        described["requestBody"] = json!({ "content": { "application/json": { "schema": request(generator) } } });
    }
    described
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_endpoint_has_its_own_operation_id_and_method_on_a_path() {
        let operations = crate::endpoints::all();
        let mut ids = std::collections::BTreeSet::new();
        let mut routes = std::collections::BTreeSet::new();
        for operation in &operations {
            assert!(ids.insert(operation.id), "{} twice", operation.id);
            assert!(routes.insert((operation.path, operation.method.as_str())), "{} twice", operation.path);
        }
        let document = super::document();
        let described: usize =
            document["paths"].as_object().unwrap().values().map(|item| item.as_object().unwrap().len()).sum();
        assert_eq!(described, operations.len());
    }
}
