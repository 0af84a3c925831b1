//! The OpenAPI 3.1 document of the public API, made from the endpoints. `openapi/godwit.json` is this, kept fresh
//! by a test.

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::endpoint::Operation;
use crate::endpoints;
use crate::error::ApiError;
use crate::fleet::Image;
use crate::host::{LogLine, LogQuery};

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
    streams(&mut paths, &mut generator, &error);
    let schemas = generator.take_definitions(true);
    demand_bodies(&mut paths, &schemas);
    json!({
        "openapi": "3.1.0",
        "info": { "title": "Godwit Machines API", "version": env!("CARGO_PKG_VERSION"), "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" } },
        "servers": [{ "url": "/" }],
        "security": [{ "bearer": [] }],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": { "bearer": { "type": "http", "scheme": "bearer" } },
        },
    })
}

fn path_parameters(path: &str) -> Vec<Value> {
    let names = path.split('/').filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'));
    names.map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } })).collect()
}

fn query_parameters(query: &schemars::Schema) -> Vec<Value> {
    let properties = query.get("properties").and_then(Value::as_object).into_iter().flatten();
    let parameter = |(name, schema)| json!({ "name": name, "in": "query", "required": false, "schema": schema });
    properties.map(parameter).collect()
}

fn describe(operation: &Operation, generator: &mut SchemaGenerator, error: &schemars::Schema) -> Value {
    let mut parameters = path_parameters(operation.path);
    parameters.extend(query_parameters(&(operation.query)(generator)));
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

/// The two calls whose bodies are no JSON of one piece, and which stand in no table.
fn streams(paths: &mut Map<String, Value>, generator: &mut SchemaGenerator, error: &schemars::Schema) {
    let images = generator.subschema_for::<Vec<Image>>();
    let upload = json!({
        "operationId": "Images_upload",
        "summary": "Load an image from an archive (OCI or docker save).",
        "parameters": [{
            "name": "name", "in": "query", "required": false, "schema": { "type": "string" },
            "description": "`name[:tag]` to load it under, instead of the archive's own.",
        }],
        "requestBody": {
            "required": true,
            "content": { "application/x-tar": { "schema": { "type": "string", "format": "binary" } } },
        },
        "responses": answers("Loaded.", "application/json", &images, error),
    });
    let line = generator.subschema_for::<LogLine>();
    let mut logs = json!({
        "operationId": "Machines_logs",
        "summary": "What a Machine's process has written: one JSON object a line.",
        "responses": answers("Lines.", "application/x-ndjson", &line, error),
    });
    let mut parameters = path_parameters(endpoints::MACHINE_LOGS);
    parameters.extend(query_parameters(&<LogQuery as schemars::JsonSchema>::json_schema(generator)));
    logs["parameters"] = Value::Array(parameters);
    for (path, method, described) in [(endpoints::IMAGE_UPLOAD, "post", upload), (endpoints::MACHINE_LOGS, "get", logs)]
    {
        let item = paths.entry(path).or_insert_with(|| json!({}));
        if let Some(item) = item.as_object_mut() {
            item.insert(method.to_owned(), described);
        }
    }
}

fn answers(words: &str, kind: &str, schema: &schemars::Schema, error: &schemars::Schema) -> Value {
    json!({
        "200": { "description": words, "content": { kind: { "schema": schema } } },
        "default": { "description": "An error.", "content": { "application/json": { "schema": error } } },
    })
}

/// A body with a member that must be there must be there itself.
fn demand_bodies(paths: &mut Map<String, Value>, schemas: &Map<String, Value>) {
    let operations = paths.values_mut().filter_map(Value::as_object_mut).flat_map(|item| item.values_mut());
    for operation in operations {
        let schema = operation.pointer("/requestBody/content/application~1json/schema/$ref");
        let name = schema.and_then(Value::as_str).and_then(|reference| reference.rsplit('/').next());
        let Some(schema) = name.and_then(|name| schemas.get(name)) else { continue };
        if schema.get("required").is_some() || schema.get("anyOf").is_some() {
            operation["requestBody"]["required"] = Value::Bool(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    #[test]
    fn what_a_handler_demands_the_document_says() {
        let document = super::document();
        let schema = |name: &str| document["components"]["schemas"][name].clone();
        for (name, member) in [
            ("CreateMachine", "config"),
            ("MachineConfig", "image"),
            ("CreateVolume", "name"),
            ("SignalMachine", "signal"),
            ("MetadataValue", "value"),
            ("RequestCertificate", "hostname"),
        ] {
            let required = schema(name)["required"].clone();
            assert!(required.as_array().is_some_and(|all| all.contains(&json!(member))), "{name}.{member}: {required}");
        }
        assert_eq!(schema("CreateApp")["anyOf"][0]["required"], json!(["app_name"]));
        let demanded = |path: &str, method: &str| document["paths"][path][method]["requestBody"]["required"].clone();
        for path in ["/v1/apps", "/v1/apps/{app_name}/machines", "/v1/apps/{app_name}/volumes", "/v1/images"] {
            assert_eq!(demanded(path, "post"), true, "{path}");
        }
        assert_eq!(demanded("/v1/apps/{app_name}/machines/{machine_id}/stop", "post"), Value::Null);
        assert!(document["paths"]["/v1/apps/{app_name}/machines/{machine_id}/logs"]["get"].is_object());
        let timeout = schema("StopMachine")["properties"]["timeout"].to_string();
        assert!(timeout.contains("Span"), "{timeout}");
        let span = schema("Span");
        assert!(span["anyOf"][0]["pattern"].is_string() && span["anyOf"][1]["type"] == "integer", "{span}");
        assert!(schema("Port")["properties"]["handlers"]["items"]["enum"].is_array());
        assert!(schema("Guest")["properties"]["cpu_kind"]["enum"].is_array());
    }

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
        // Beside the table stand the upload of images and the logs.
        assert_eq!(described, operations.len() + 2);
    }
}
