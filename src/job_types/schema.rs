//! Checks a `job_config` against its type's JSON schema (draft-07) and words what is wrong as FedVision 0.1's users know it
//! (Python's jsonschema), with the place in front.

use jsonschema::error::ValidationErrorKind;
use serde_json::Value;

/// How much of a wrong value an error text shows, characters.
const SHOWN_MAX: usize = 100;

/// A job that cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadJob {
    /// No such job type here, or it is not enabled.
    #[error("job type {0} not supported")]
    UnknownType(String),
    /// The config is not as the type's schema wants it.
    #[error("{}{message}", prefix(path))]
    Config {
        /// Where, e.g. `job_config.worker_num`; empty when the message says it.
        path: String,
        /// The same as a JSON pointer into the submission, e.g. `/job_config/worker_num`; of a field that is missing or not known, that field.
        pointer: String,
        /// What, e.g. `0 is less than the minimum of 1`.
        message: String,
    },
}

fn prefix(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!("{path}: ") }
}

impl BadJob {
    /// The name comes from outside: shown, but not at any length.
    pub(super) fn unknown_type(name: &str) -> Self {
        BadJob::UnknownType(clip(name.to_owned()))
    }

    pub(super) fn field(name: &str, message: impl Into<String>) -> Self {
        BadJob::Config {
            path: format!("job_config.{name}"),
            pointer: format!("/job_config/{name}"),
            message: message.into(),
        }
    }
}

/// A compiled schema and its source.
#[derive(Debug)]
pub(super) struct Schema {
    source: Value,
    validator: jsonschema::Validator,
}

impl Schema {
    pub(super) fn new(source: Value) -> Result<Self, String> {
        let validator = jsonschema::draft7::new(&source).map_err(|e| e.to_string())?;
        Ok(Self { source, validator })
    }

    pub(super) fn source(&self) -> &Value {
        &self.source
    }

    /// The first thing that is wrong.
    pub(super) fn check(&self, config: &Value) -> Result<(), BadJob> {
        let Some(error) = self.validator.iter_errors(config).next() else {
            return Ok(());
        };
        let pointer = error.instance_path().to_string();
        let place = pointer.replace('/', ".");
        let field = match error.kind() {
            ValidationErrorKind::Required { property } => property.as_str(),
            ValidationErrorKind::AdditionalProperties { unexpected } => unexpected.first().map(String::as_str),
            _ => None,
        };
        let below = field.map(|name| format!("/{}", clip(name.replace('~', "~0").replace('/', "~1"))));
        Err(BadJob::Config {
            path: match field {
                // These texts name the field themselves.
                Some(_) if place.is_empty() => String::new(),
                _ => format!("job_config{place}"),
            },
            pointer: format!("/job_config{pointer}{}", below.unwrap_or_default()),
            message: message(error.kind(), error.instance()).unwrap_or_else(|| clip(error.to_string())),
        })
    }
}

/// The texts of Python's jsonschema for the cases its users meet.
fn message(kind: &ValidationErrorKind, value: &Value) -> Option<String> {
    Some(match kind {
        ValidationErrorKind::Required { property } => format!("{} is a required property", python(property)),
        ValidationErrorKind::AdditionalProperties { unexpected } => {
            let names: Vec<_> = unexpected.iter().map(|n| clip(format!("'{n}'"))).collect();
            let verb = if names.len() == 1 { "was" } else { "were" };
            format!("Additional properties are not allowed ({} {verb} unexpected)", names.join(", "))
        }
        ValidationErrorKind::Minimum { limit } => format!("{} is less than the minimum of {limit}", python(value)),
        ValidationErrorKind::Maximum { limit } => format!("{} is greater than the maximum of {limit}", python(value)),
        ValidationErrorKind::Type { kind } => {
            let jsonschema::error::TypeKind::Single(wanted) = kind else {
                return None;
            };
            format!("{} is not of type '{wanted}'", python(value))
        }
        _ => return None,
    })
}

/// A JSON value as Python writes it.
fn python(value: &Value) -> String {
    clip(match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::String(text) => format!("'{text}'"),
        other => other.to_string(),
    })
}

fn clip(text: String) -> String {
    let mut chars = text.chars();
    let short: String = chars
        .by_ref()
        .take(SHOWN_MAX)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if chars.next().is_some() { format!("{short}...") } else { short }
}

/// A non-negative integer of a checked config; `2.0` is one in JSON schema. `default` when it is not there.
pub(super) fn integer(config: &Value, name: &str, default: u64) -> u64 {
    let value = &config[name];
    // The schema has bounded it to far less than 2^53 and refused fractions.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked by the schema")]
    value.as_u64().or_else(|| value.as_f64().map(|f| f as u64)).unwrap_or(default)
}

/// As [`integer`], for values that the schema keeps within 32 bits.
pub(super) fn small(config: &Value, name: &str, default: u32) -> u32 {
    u32::try_from(integer(config, name, default.into())).unwrap_or(u32::MAX)
}
