//! How the commands show what the master answered: the data on stdout, in the form that was asked for; talk goes to stderr elsewhere.

use super::terminal;
pub(super) use super::terminal::plain;
use crate::engine::clock::{Clock, SystemClock};
use crate::telemetry::say;
use clap::ValueEnum;
use serde_json::Value;

/// `-o`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// A line each, the columns one looks at first
    #[default]
    Table,
    /// A line each, all columns
    Wide,
    /// One JSON document
    Json,
    /// One JSON document a line
    Jsonl,
    /// One YAML document
    Yaml,
    /// The names only, for the next command
    Name,
}

/// A column: its head, whether it is only for `wide`, and what stands in it.
pub(super) struct Column {
    /// In capitals.
    pub head: &'static str,
    /// Left out of `table`.
    pub wide: bool,
    /// The cell of an item.
    pub cell: fn(&Value) -> String,
}

/// Show a list of items; `name` is the field that `-o name` prints.
pub(super) fn list(format: Format, columns: &[Column], name: &str, items: &[Value]) {
    match format {
        Format::Table | Format::Wide => table(columns, items, format == Format::Wide).iter().for_each(|line| say(line)),
        Format::Json => say(&pretty(&Value::Array(items.to_vec()))),
        Format::Yaml => yaml(&Value::Array(items.to_vec())),
        Format::Jsonl => items.iter().for_each(|item| say(&line(item))),
        Format::Name => items.iter().for_each(|item| say(&plain(item[name].as_str().unwrap_or_default()))),
    }
}

/// Show one item.
pub(super) fn one(format: Format, columns: &[Column], name: &str, item: &Value) {
    match format {
        Format::Json => say(&pretty(item)),
        Format::Yaml => yaml(item),
        _ => list(format, columns, name, std::slice::from_ref(item)),
    }
}

fn pretty(value: &Value) -> String {
    terminal::json(&serde_json::to_string_pretty(value).unwrap_or_default())
}

/// JSON on one line.
pub(super) fn line(value: &Value) -> String {
    terminal::json(&value.to_string())
}

fn yaml(value: &Value) {
    match as_yaml(value) {
        Ok(text) => say(text.trim_end()),
        Err(error) => eprintln!("fedbroker: cannot be written as YAML: {error}"),
    }
}

fn as_yaml(value: &Value) -> Result<String, serde_saphyr::ser::Error> {
    let text = serde_saphyr::to_string(value)?;
    // JSON is YAML too, and has an escape for each of them.
    let steers = text.chars().any(|c| c != '\n' && terminal::steers(c));
    Ok(if steers { line(value) } else { text })
}

fn table(columns: &[Column], items: &[Value], wide: bool) -> Vec<String> {
    let columns: Vec<&Column> = columns.iter().filter(|column| wide || !column.wide).collect();
    let mut rows = vec![columns.iter().map(|column| column.head.to_owned()).collect::<Vec<_>>()];
    rows.extend(
        items
            .iter()
            .map(|item| columns.iter().map(|column| plain(&(column.cell)(item))).collect()),
    );
    let widths: Vec<usize> = (0..columns.len())
        .map(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0))
        .collect();
    let line = |row: Vec<String>| {
        let padded = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("   ").trim_end().to_owned()
    };
    rows.into_iter().map(line).collect()
}

/// Text of a field; `-` for what is not there.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(","),
        Value::Object(entries) if entries.is_empty() => "-".to_owned(),
        Value::Object(entries) => {
            let pairs = entries.iter().map(|(key, value)| format!("{key}={}", text(value)));
            pairs.collect::<Vec<_>>().join(",")
        }
        other => other.to_string(),
    }
}

/// The time it is.
pub(super) fn now() -> jiff::Timestamp {
    let micros = i64::try_from(SystemClock.now().0).unwrap_or(i64::MAX);
    jiff::Timestamp::from_microsecond(micros).unwrap_or(jiff::Timestamp::MAX)
}

/// How long ago an RFC 3339 time is: `12s`, `5m`, `3h`, `9d`.
pub(super) fn age(value: &Value) -> String {
    let at = value.as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
    let Some(at) = at else { return "-".to_owned() };
    let seconds = (now().as_second() - at.as_second()).max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const COLUMNS: &[Column] = &[
        Column {
            head: "NAME",
            wide: false,
            cell: |item| text(&item["name"]),
        },
        Column {
            head: "WHY",
            wide: false,
            cell: |item| text(&item["why"]),
        },
        Column {
            head: "ALL",
            wide: true,
            cell: |item| text(&item["labels"]),
        },
    ];

    #[test]
    fn columns_stand_below_each_other() {
        let items = [
            json!({ "name": "a-long-one", "why": null }),
            json!({ "name": "b", "why": "\u{1b}[31m no\nroom", "labels": {"k": "v"} }),
        ];
        assert_eq!(
            table(COLUMNS, &items, false),
            ["NAME         WHY", "a-long-one   -", "b             [31m no room"]
        );
        assert_eq!(table(COLUMNS, &items[1..], true)[1], "b       [31m no room   k=v");
    }

    #[test]
    fn yaml_has_no_control_characters() {
        for text in ["a\u{1b}[2J", "one\ntwo\u{9b}2J", "one\n\ttwo\u{7f}", "a\rb"] {
            let yaml = serde_saphyr::to_string(&json!({ text: [text] })).unwrap();
            assert!(!yaml.chars().any(|c| c != '\n' && c.is_control()), "{yaml:?}");
        }
        let marked = json!({ "a": "b\u{202e}c" });
        assert_eq!(line(&marked), r#"{"a":"b\u202ec"}"#);
        assert_eq!(as_yaml(&marked).unwrap(), line(&marked));
    }

    #[test]
    fn an_age_is_short() {
        let ago = |seconds: i64| age(&json!((now() - jiff::SignedDuration::from_secs(seconds)).to_string()));
        assert_eq!([ago(600), ago(7200), ago(864_000)], ["10m", "2h", "10d"]);
        assert_eq!(age(&json!("nonsense")), "-");
    }
}
