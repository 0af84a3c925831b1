//! The reference schema, and our own: what an answer must look like.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{LazyLock, Mutex};

use serde_json::{Value, json};

pub static REFERENCE: LazyLock<Schema> = LazyLock::new(|| {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../openapi/reference/machines-2024-01.yaml");
    let mut document: Value = serde_yaml_ng::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    // The set of reasons has grown since; see openapi/reference/README.md.
    document["components"]["schemas"]["main.statusCode"] = json!({ "type": "string" });
    // What the schema calls an object is a text, in the platform's own examples and clients.
    document["components"]["schemas"]["ListApp"]["properties"]["network"] = json!({ "type": "string" });
    // OpenAPI 3.0 has no word for null but `nullable`, which the schema never says.
    for member in ["attached_alloc_id", "attached_machine_id"] {
        document["components"]["schemas"]["Volume"]["properties"][member] = json!({ "type": ["string", "null"] });
    }
    Schema::new(document, "")
});

pub static OURS: LazyLock<Schema> = LazyLock::new(|| Schema::new(godwit_api::openapi::document(), "/v1"));

pub struct Schema {
    document: Value,
    /// What stands before the paths of the document in a request.
    prefix: &'static str,
    validators: Mutex<HashMap<String, jsonschema::Validator>>,
}

impl Schema {
    fn new(document: Value, prefix: &'static str) -> Self {
        Self { document, prefix, validators: Mutex::default() }
    }

    /// The operation for a method and a path as requested (without `/v1` and query).
    fn operation(&self, method: &str, path: &str) -> Option<&Value> {
        let wanted: Vec<&str> = path.split('/').collect();
        self.document["paths"].as_object().unwrap().iter().find_map(|(template, item)| {
            let template: Vec<&str> = template.strip_prefix(self.prefix)?.split('/').collect();
            let fits = template.len() == wanted.len()
                && template.iter().zip(&wanted).all(|(part, given)| part.starts_with('{') || part == given);
            fits.then(|| item.get(method.to_ascii_lowercase())).flatten()
        })
    }

    /// Checks an answer; `None` when the document says nothing of it.
    #[track_caller]
    pub fn check(&self, method: &str, path: &str, code: u16, body: &Value) -> Option<()> {
        let operation = self.operation(method, path)?;
        let responses = &operation["responses"];
        let error = json!({
            "content": { "application/json": { "schema": { "$ref": "#/components/schemas/ErrorResponse" } } }
        });
        let response = match responses.get(code.to_string()) {
            Some(response) => response,
            None if code >= 400 => responses.get("default").unwrap_or(&error),
            // A lease that was taken is answered 201 today, where the reference of 2024 says 200.
            None if code == 201 && path.ends_with("/lease") => &responses["200"],
            None => panic!("{method} {path} answered {code}, which the schema does not know"),
        };
        let schema = response.pointer("/content/application~1json/schema")?;
        if path.ends_with("/exec") && schema == &json!({ "type": "string" }) {
            // The reference of 2024 says text where the platform has always answered an object.
            return Some(());
        }
        self.validate(schema, body, &format!("{method} {path} → {code}"));
        Some(())
    }

    #[track_caller]
    pub fn validate(&self, schema: &Value, body: &Value, what: &str) {
        let mut validators = self.validators.lock().unwrap();
        let validator = validators.entry(schema.to_string()).or_insert_with(|| {
            let mut whole = schema.clone();
            whole["components"] = self.document["components"].clone();
            jsonschema::validator_for(&whole).unwrap()
        });
        let errors: Vec<String> =
            validator.iter_errors(body).map(|error| format!("{} at {}", error, error.instance_path())).collect();
        assert!(errors.is_empty(), "{what}: {body}\n{}", errors.join("\n"));
    }
}
