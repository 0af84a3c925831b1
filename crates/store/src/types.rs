//! The nouns of the store: ranges, rows, transactions, events. The wire carries them as they stand here (values in
//! base64), so a field that is added must have a default. Pure: no IO, and no knowledge of what the keys mean.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Which keys. A prefix is empty (everything) or ends in `/`: whole segments only, so `hosts/w1/` is never `hosts/w10`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyRange {
    Exact(String),
    Prefix(String),
}

impl KeyRange {
    /// The key or the prefix, as authorisation sees it.
    pub fn as_str(&self) -> &str {
        match self {
            KeyRange::Exact(key) | KeyRange::Prefix(key) => key,
        }
    }
}

/// A read of rows at one revision, in key order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    pub key: KeyRange,
    /// Read the past; none is now. The store keeps the past until it is compacted.
    #[serde(default)]
    pub at_revision: Option<u64>,
    /// At most so many rows; 0 is [`crate::limits::MAX_RANGE_ROWS`].
    #[serde(default)]
    pub limit: u32,
    /// Only keys greater than this one: the last key of the page before.
    #[serde(default)]
    pub after: Option<String>,
}

impl Range {
    pub fn exact(key: impl Into<String>) -> Range {
        Range::of(KeyRange::Exact(key.into()))
    }

    pub fn prefix(prefix: impl Into<String>) -> Range {
        Range::of(KeyRange::Prefix(prefix.into()))
    }

    fn of(key: KeyRange) -> Range {
        Range { key, at_revision: None, limit: 0, after: None }
    }

    pub fn at_revision(mut self, revision: u64) -> Range {
        self.at_revision = Some(revision);
        self
    }

    pub fn limit(mut self, rows: u32) -> Range {
        self.limit = rows;
        self
    }

    pub fn after(mut self, key: impl Into<String>) -> Range {
        self.after = Some(key.into());
        self
    }
}

/// One key as it stands at a revision. `version` counts the puts since its creation, from 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    pub key: String,
    #[serde(with = "base64_bytes")]
    pub value: Bytes,
    pub create_revision: u64,
    pub mod_revision: u64,
    pub version: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeReply {
    /// The revision at which all `rows` stood together; a watch from `revision + 1` misses nothing.
    pub revision: u64,
    pub rows: Vec<Row>,
    /// There are more rows after the last one.
    pub more: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Relation {
    Equal,
    NotEqual,
    Less,
    Greater,
}

impl Relation {
    pub fn holds(self, left: u64, right: u64) -> bool {
        match self {
            Relation::Equal => left == right,
            Relation::NotEqual => left != right,
            Relation::Less => left < right,
            Relation::Greater => left > right,
        }
    }
}

/// A condition of a transaction. An absent key has mod_revision 0, version 0, and equals no value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Compare {
    Absent {
        key: String,
    },
    ModRevision {
        key: String,
        relation: Relation,
        revision: u64,
    },
    Version {
        key: String,
        equals: u64,
    },
    Value {
        key: String,
        #[serde(with = "base64_bytes")]
        equals: Bytes,
    },
}

impl Compare {
    pub fn absent(key: impl Into<String>) -> Compare {
        Compare::Absent { key: key.into() }
    }

    /// Nobody wrote `key` since it was read at `mod_revision` (0: it did not exist).
    pub fn unchanged(key: impl Into<String>, mod_revision: u64) -> Compare {
        Compare::mod_revision(key, Relation::Equal, mod_revision)
    }

    pub fn exists(key: impl Into<String>) -> Compare {
        Compare::mod_revision(key, Relation::Greater, 0)
    }

    pub fn mod_revision(key: impl Into<String>, relation: Relation, revision: u64) -> Compare {
        Compare::ModRevision { key: key.into(), relation, revision }
    }

    pub fn version(key: impl Into<String>, equals: u64) -> Compare {
        Compare::Version { key: key.into(), equals }
    }

    pub fn value(key: impl Into<String>, equals: impl Into<Bytes>) -> Compare {
        Compare::Value { key: key.into(), equals: equals.into() }
    }

    pub fn key(&self) -> &str {
        match self {
            Compare::Absent { key }
            | Compare::ModRevision { key, .. }
            | Compare::Version { key, .. }
            | Compare::Value { key, .. } => key,
        }
    }
}

/// One step of a branch, always on one exact key: nothing is ever matched by prefix to be changed or deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Op {
    Put {
        key: String,
        #[serde(with = "base64_bytes")]
        value: Bytes,
    },
    /// Deleting what is absent changes nothing and is no error.
    Delete {
        key: String,
    },
    Get {
        key: String,
    },
}

impl Op {
    pub fn put(key: impl Into<String>, value: impl Into<Bytes>) -> Op {
        Op::Put { key: key.into(), value: value.into() }
    }

    pub fn delete(key: impl Into<String>) -> Op {
        Op::Delete { key: key.into() }
    }

    pub fn get(key: impl Into<String>) -> Op {
        Op::Get { key: key.into() }
    }

    pub fn key(&self) -> &str {
        match self {
            Op::Put { key, .. } | Op::Delete { key } | Op::Get { key } => key,
        }
    }

    pub fn writes(&self) -> bool {
        !matches!(self, Op::Get { .. })
    }
}

/// If every compare holds, `then`, else `otherwise`; all of it or nothing. A branch names each key at most once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Txn {
    #[serde(default)]
    pub compares: Vec<Compare>,
    #[serde(default)]
    pub then: Vec<Op>,
    #[serde(default)]
    pub otherwise: Vec<Op>,
}

impl Txn {
    /// Without a condition.
    pub fn of(then: impl IntoIterator<Item = Op>) -> Txn {
        Txn { then: then.into_iter().collect(), ..Txn::default() }
    }

    pub fn when(mut self, compare: Compare) -> Txn {
        self.compares.push(compare);
        self
    }

    pub fn or_else(mut self, op: Op) -> Txn {
        self.otherwise.push(op);
        self
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TxnReply {
    /// Every compare held, and `then` ran.
    pub succeeded: bool,
    /// The transaction's own revision if it changed anything, else the store's.
    pub revision: u64,
    /// What the branch's `Get`s found, in their order.
    pub gets: Vec<Option<Row>>,
}

/// One key changed. No value: it was deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub key: String,
    #[serde(with = "base64_option")]
    pub value: Option<Bytes>,
    pub mod_revision: u64,
}

/// Whole transactions, in order. Everything under the prefix up to `revision` has now been told; without events it
/// says just that ("progress"), at least once a second.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchBatch {
    pub revision: u64,
    pub events: Vec<Event>,
}

/// Who a store is. The generation is drawn at creation and again for every restored copy, so that two histories are
/// never mistaken for one: revisions compare only within a generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub generation: String,
}

/// What a caller wants of a key or prefix: the authoriser's question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    Read,
    Write,
    Watch,
    /// To know the store's generation: whoever has a name may, and no key is meant.
    Identify,
}

/// Values in JSON: standard base64.
mod base64_bytes {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use bytes::Bytes;
    use serde::de::{Error, Visitor};
    use serde::{Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(value))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        deserializer.deserialize_str(Base64)
    }

    pub(super) struct Base64;

    impl Visitor<'_> for Base64 {
        type Value = Bytes;

        fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
            f.write_str("base64")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Bytes, E> {
            STANDARD.decode(text).map(Bytes::from).map_err(E::custom)
        }
    }
}

mod base64_option {
    use bytes::Bytes;
    use serde::de::{Error, Visitor};
    use serde::{Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &Option<Bytes>, to: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => super::base64_bytes::serialize(value, to),
            None => to.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Bytes>, D::Error> {
        from.deserialize_option(OptionalBase64)
    }

    struct OptionalBase64;

    impl<'de> Visitor<'de> for OptionalBase64 {
        type Value = Option<Bytes>;

        fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
            f.write_str("base64 or null")
        }

        fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
            from.deserialize_str(super::base64_bytes::Base64).map(Some)
        }
    }
}
