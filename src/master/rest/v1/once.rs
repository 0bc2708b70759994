//! Objects of a body in which each name is there once: of two values with one name, neither can be told to be the one that was meant.
//!
//! For `serde`: used by the shapes of `/api/v1` where it would keep the last one silently (free values, maps). A shape with fields of its own
//! refuses a second one by itself, in the same words, which `body` turns into a problem.

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

fn duplicate<E: Error>(name: &str) -> E {
    E::custom(format_args!("duplicate field `{name}`"))
}

/// Read any value.
///
/// # Errors
/// An object in it has a name twice.
pub(in crate::master::rest) fn value<'de, D: Deserializer<'de>>(from: D) -> Result<Value, D::Error> {
    from.deserialize_any(AnyValue)
}

/// Read an object as a map.
///
/// # Errors
/// A name is there twice, or a value is none of these.
pub(in crate::master::rest) fn map<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<BTreeMap<String, T>, D::Error> {
    from.deserialize_map(AnyMap(PhantomData))
}

/// An object of any shape.
#[derive(Debug)]
pub(in crate::master::rest) struct Object(pub Map<String, Value>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match value(from)? {
            Value::Object(fields) => Ok(Self(fields)),
            _ => Err(D::Error::custom("a JSON object is wanted")),
        }
    }
}

#[derive(Clone, Copy)]
struct AnyValue;

impl<'de> DeserializeSeed<'de> for AnyValue {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        value(from)
    }
}

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = items.next_element_seed(self)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            if object.contains_key(&name) {
                return Err(duplicate(&name));
            }
            let value = fields.next_value_seed(self)?;
            object.insert(name, value);
        }
        Ok(Value::Object(object))
    }
}

struct AnyMap<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for AnyMap<T> {
    type Value = BTreeMap<String, T>;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self::Value, A::Error> {
        let mut map = BTreeMap::new();
        while let Some(name) = fields.next_key::<String>()? {
            if map.contains_key(&name) {
                return Err(duplicate(&name));
            }
            let value = fields.next_value()?;
            map.insert(name, value);
        }
        Ok(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Free(#[serde(deserialize_with = "value")] Value);

    #[test]
    fn a_value_is_as_it_would_be_read_without() {
        let text = r#"{"z": [1, -2, 1.5e3, 18446744073709551615], "a": {"é\n": null, "b": [true, {}, []]}}"#;
        let read: Free = serde_json::from_str(text).unwrap();
        let plain: Value = serde_json::from_str(text).unwrap();
        assert_eq!(read.0, plain);
        assert_eq!(read.0.to_string(), plain.to_string(), "in the same order");
    }

    #[test]
    fn no_name_is_there_twice_at_any_depth() {
        for text in [r#"{"a": 1, "a": 1}"#, r#"[{"b": [{"a": 1, "\u0061": 2}]}]"#] {
            let error = serde_json::from_str::<Free>(text).unwrap_err().to_string();
            assert!(error.contains("duplicate field `a`"), "{text}: {error}");
        }
        assert!(serde_json::from_str::<Object>("[]").is_err());
    }
}
