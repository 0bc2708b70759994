//! Records and events as JSON that a person can read and `jq` can take: ids as they are, bytes as text or hexadecimal, payload files by
//! their name. Texts stay as they are: an id may look like anything.

use serde::Serialize;
use serde_json::{Map, Value, json};

/// A record or event: the name of its kind and what is in it.
pub(super) fn plain(value: &impl Serialize) -> (String, Value) {
    let value = serde_json::to_value(value).unwrap_or(Value::Null);
    match value {
        Value::String(name) => (snake(&name), Value::Null),
        Value::Object(object) if object.len() == 1 => {
            let (name, inner) = object.into_iter().next().expect("it has one");
            (snake(&name), simple(inner))
        }
        other => (String::new(), simple(other)),
    }
}

/// The state in a record, by its name.
pub(super) fn state(record: &Value) -> Option<String> {
    match record.get("state")? {
        Value::String(name) => Some(name.clone()),
        Value::Object(object) => object.keys().next().cloned(),
        _ => None,
    }
}

fn simple(value: Value) -> Value {
    match value {
        Value::Object(object) => content(&object).unwrap_or_else(|| {
            let named = object.into_iter().map(|(name, inner)| (name, simple(inner)));
            Value::Object(named.collect())
        }),
        Value::Array(items) => bytes(&items, 32..=32)
            .map(|bytes| json!(hex(&bytes)))
            .unwrap_or_else(|| Value::Array(items.into_iter().map(simple).collect())),
        other => other,
    }
}

/// Bytes of any size, as a record holds them.
fn content(object: &Map<String, Value>) -> Option<Value> {
    if object.len() != 1 {
        return None;
    }
    if let Some(Value::Array(items)) = object.get("Inline") {
        let bytes = bytes(items, 0..=usize::MAX)?;
        return Some(match String::from_utf8(bytes) {
            Ok(text) if !text.chars().any(|c| c.is_control() && !c.is_whitespace()) => json!({ "text": text }),
            Ok(text) => json!({ "hex": hex(text.as_bytes()) }),
            Err(error) => json!({ "hex": hex(error.as_bytes()) }),
        });
    }
    let stored = object.get("Stored")?;
    let hash = bytes(stored.get("hash")?.as_array()?, 32..=32)?;
    Some(json!({ "payload": hex(&hash), "len": stored.get("len")? }))
}

fn bytes(items: &[Value], lengths: std::ops::RangeInclusive<usize>) -> Option<Vec<u8>> {
    if !lengths.contains(&items.len()) {
        return None;
    }
    items
        .iter()
        .map(|item| item.as_u64().and_then(|number| u8::try_from(number).ok()))
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The kind's name like the name of a field.
fn snake(name: &str) -> String {
    let mut text = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(c.to_ascii_lowercase());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::content::{Content, PayloadRef};
    use crate::machine::ids::{ProposalId, Timestamp, TypeName};
    use crate::machine::master::Record;
    use crate::machine::master::records::{Participation, ParticipationState};

    #[test]
    fn records_are_readable_and_ids_are_left_alone() {
        let record = Record::Participation(Participation {
            proposal: ProposalId::parse("Alice").unwrap(),
            job_type: TypeName::parse("dummy").unwrap(),
            offered_at: Timestamp(1),
            changed_at: Timestamp(2),
            state: ParticipationState::Offered,
            last_event: 3,
        });
        let (kind, value) = plain(&record);
        assert_eq!(kind, "participation");
        assert_eq!(state(&value).unwrap(), "Offered");
        assert_eq!(value["proposal"], "Alice");
    }

    #[test]
    fn contents_are_text_or_hexadecimal_or_a_file() {
        let simple = |content: Content| simple(serde_json::to_value(content).unwrap());
        assert_eq!(simple(Content::Inline(b"{\n}".to_vec())), json!({ "text": "{\n}" }));
        assert_eq!(simple(Content::Inline(vec![0xff, 0])), json!({ "hex": "ff00" }));
        let payload = PayloadRef { hash: [0xab; 32], len: 9 };
        assert_eq!(simple(Content::Stored(payload)), json!({ "payload": "ab".repeat(32), "len": 9 }));
    }
}
