//! Signals on the wire: clients send a name or a number, and both are kept as text. What a text means is
//! `godwit_machine::signal`'s; nothing here knows any signal.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer};

#[derive(Deserialize)]
#[serde(untagged, expecting = "a signal by its name or number")]
enum Written {
    Name(String),
    Number(i64),
}

impl From<Written> for String {
    fn from(written: Written) -> Self {
        match written {
            Written::Name(name) => name,
            Written::Number(number) => number.to_string(),
        }
    }
}

pub fn required<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Written::deserialize(deserializer)?.into())
}

pub fn optional<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<Written>::deserialize(deserializer)?.map(String::from))
}

pub fn schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "anyOf": [
            { "type": "string", "pattern": "^([A-Za-z]+[0-9]?([+-][0-9]+)?|[0-9]{1,2})$" },
            { "type": "integer", "minimum": 1, "maximum": 64 },
            { "type": "null" },
        ],
    })
}
