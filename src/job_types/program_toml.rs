//! `program.toml`, and where it is: how a party says what a program it has installed is run like.
//!
//! Read by `program` before each run, so that an edited file counts from the next task on. A program is named by others but
//! installed by the party itself: nothing outside the programs directory is ever run or read by name.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The longest program name, bytes.
const NAME_MAX: usize = 128;
/// The largest `program.toml`, bytes: it is a page of text.
const FILE_MAX: u64 = 1024 * 1024;
/// The limit of a task that names none: a day.
const TIMEOUT_DEFAULT_S: u64 = 24 * 3600;
/// The longest limit that can be set: a year.
const TIMEOUT_MAX_S: u64 = 366 * 24 * 3600;
/// How many parts the name of an endpoint placeholder can number.
pub const ENDPOINTS_MAX: u64 = 64;

/// What `program.toml` says.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// For people.
    #[serde(default)]
    pub description: String,
    /// Wall-clock limit of one task, and of the compile step, seconds.
    #[serde(default = "timeout_default")]
    pub timeout_seconds: u64,
    /// Added to the environment of every step; placeholders are replaced in the values.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Runs once at the initiator, before the proposal.
    pub compile: Option<Step>,
    /// Runs once at the initiator.
    pub aggregator: Step,
    /// Runs at every party that takes part.
    pub trainer: Step,
}

/// One command.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Program and arguments, with placeholders.
    pub argv: Vec<String>,
}

fn timeout_default() -> u64 {
    TIMEOUT_DEFAULT_S
}

/// A program that can be run.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its directory, with no symbolic links in it.
    pub dir: PathBuf,
    /// What its `program.toml` says.
    pub manifest: Manifest,
}

/// Why a program cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name could mean something outside the programs directory, or is no name at all.
    #[error(
        "program name {0:?} is not allowed: at most {NAME_MAX} letters, digits, '_', '-' and '.', the first a letter, digit or '_', no '..'"
    )]
    Name(String),
    /// There is no such program.
    #[error("program {0} is not installed")]
    NotInstalled(String),
    /// A symbolic link leads out of the programs directory.
    #[error("program {0} leads out of the programs directory through a symbolic link")]
    Outside(String),
    /// The file is there but not right.
    #[error("program {name}: program.toml: {why}")]
    Manifest {
        /// The program.
        name: String,
        /// What is wrong.
        why: String,
    },
}

/// True when the text can name a program: `[A-Za-z0-9_][A-Za-z0-9_.-]*` without `..`.
pub fn is_name(name: &str) -> bool {
    let plain = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
    name.len() <= NAME_MAX
        && name.bytes().next().is_some_and(plain)
        && name.bytes().all(|c| plain(c) || c == b'.' || c == b'-')
        && !name.contains("..")
}

impl Program {
    /// Find a program in a programs directory and read its `program.toml`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn find(programs: &Path, name: &str) -> Result<Self, Error> {
        if !is_name(name) {
            return Err(Error::Name(name.chars().take(NAME_MAX).collect()));
        }
        let missing = |_| Error::NotInstalled(name.to_owned());
        let manifest = |why: String| Error::Manifest {
            name: name.to_owned(),
            why,
        };
        let root = tokio::fs::canonicalize(programs).await.map_err(missing)?;
        let dir = tokio::fs::canonicalize(root.join(name)).await.map_err(missing)?;
        if !dir.starts_with(&root) || dir == root {
            return Err(Error::Outside(name.to_owned()));
        }
        let file = tokio::fs::canonicalize(dir.join("program.toml")).await.map_err(missing)?;
        if !file.starts_with(&root) {
            return Err(Error::Outside(name.to_owned()));
        }
        let meta = tokio::fs::metadata(&file).await.map_err(|e| manifest(e.to_string()))?;
        if !meta.is_file() || meta.len() > FILE_MAX {
            return Err(manifest(format!("is not a file of at most {FILE_MAX} bytes")));
        }
        let text = tokio::fs::read_to_string(&file).await.map_err(|e| manifest(e.to_string()))?;
        let manifest = Manifest::parse(&text).map_err(manifest)?;
        Ok(Self { dir, manifest })
    }
}

impl Manifest {
    /// Read and check the text of a `program.toml`.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn parse(text: &str) -> Result<Self, String> {
        let manifest: Self = toml::from_str(text).map_err(|e| e.to_string().trim_end().to_owned())?;
        if !(1..=TIMEOUT_MAX_S).contains(&manifest.timeout_seconds) {
            return Err(format!("timeout_seconds: must be 1 to {TIMEOUT_MAX_S}"));
        }
        let steps = [
            ("compile", manifest.compile.as_ref()),
            ("aggregator", Some(&manifest.aggregator)),
            ("trainer", Some(&manifest.trainer)),
        ];
        for (name, step) in steps.into_iter().filter_map(|(n, s)| Some((n, s?))) {
            if step.argv.first().is_none_or(String::is_empty) {
                return Err(format!("[{name}] argv: must name a program"));
            }
            for argument in &step.argv {
                expand(argument, &|known| match known {
                    "output_dir" if name != "compile" => Err("{output_dir} is for [compile]; write to {work_dir}".to_owned()),
                    known => is_placeholder(known).then(String::new).ok_or_else(|| unknown(known)),
                })
                .map_err(|why| format!("[{name}] argv: {why}"))?;
            }
        }
        for (name, value) in &manifest.env {
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(format!("[env]: {name:?} is not a name"));
            }
            expand(value, &|known| {
                is_placeholder(known).then(String::new).ok_or_else(|| unknown(known))
            })
            .map_err(|why| format!("[env] {name}: {why}"))?;
        }
        Ok(manifest)
    }
}

/// Every placeholder but `{endpoint_<i>}`.
const PLACEHOLDERS: [&str; 12] = [
    "program_dir",
    "work_dir",
    "data_dir",
    "input_dir",
    "output_dir",
    "params_file",
    "endpoints",
    "index",
    "count",
    "job_id",
    "task_id",
    "attempt",
];

fn is_placeholder(name: &str) -> bool {
    PLACEHOLDERS.contains(&name) || endpoint_number(name).is_some()
}

/// The number in `endpoint_<i>`.
pub fn endpoint_number(name: &str) -> Option<usize> {
    let digits = name.strip_prefix("endpoint_")?;
    let plain = !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    let number: u64 = if plain { digits.parse().ok()? } else { return None };
    usize::try_from(number).ok().filter(|_| number < ENDPOINTS_MAX)
}

fn unknown(name: &str) -> String {
    format!(
        "unknown placeholder {{{name}}}; known are {{{}}} and {{endpoint_0}} to {{endpoint_{}}}; write {{{{ for a brace",
        PLACEHOLDERS.join("} {"),
        ENDPOINTS_MAX - 1
    )
}

/// Replace the placeholders of one argument: `{name}` by its value, `{{` and `}}` by one brace.
///
/// # Errors
/// A brace without its end, or what `value` says of a name.
pub fn expand(template: &str, value: &dyn Fn(&str) -> Result<String, String>) -> Result<String, String> {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        out.push_str(&rest[..at]);
        let brace = &rest[at..=at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(brace) {
            out.push_str(brace);
            rest = after;
        } else if brace == "}" {
            out.push('}');
        } else {
            let end = rest
                .find('}')
                .ok_or_else(|| format!("{template:?}: a {{ without its }}; write {{{{ for a brace"))?;
            out.push_str(&value(&rest[..end])?);
            rest = &rest[end + 1..];
        }
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_the_directory() {
        for good in ["a", "_x", "digits_fedavg", "v1.2-b", "0"] {
            assert!(is_name(good), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "a..b",
            ".a",
            "-a",
            "a/b",
            "/a",
            "a\\b",
            "a b",
            "a;b",
            "a\0",
            "é",
            &"a".repeat(129),
        ] {
            assert!(!is_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn placeholders_are_replaced_and_braces_escaped() {
        let value = |name: &str| {
            if name == "x" {
                Ok("{y}".to_owned())
            } else {
                Err(format!("no {name}"))
            }
        };
        assert_eq!(expand("a{x}b{x}", &value).unwrap(), "a{y}b{y}");
        assert_eq!(expand("{{x}} {{\"a\": 1}}", &value).unwrap(), "{x} {\"a\": 1}");
        assert_eq!(expand("}", &value).unwrap(), "}");
        assert_eq!(expand("{z}", &value).unwrap_err(), "no z");
        assert!(expand("{x", &value).unwrap_err().contains("without its"));
        assert_eq!(endpoint_number("endpoint_0"), Some(0));
        assert_eq!(endpoint_number("endpoint_63"), Some(63));
        for bad in ["endpoint_64", "endpoint_", "endpoint_00", "endpoint_-1", "endpoints"] {
            assert_eq!(endpoint_number(bad), None, "{bad}");
        }
    }

    #[test]
    fn manifests_are_checked_before_anything_runs() {
        let steps = "[aggregator]\nargv = [\"a\"]\n[trainer]\nargv = [\"{index}\"]\n";
        assert_eq!(Manifest::parse(steps).unwrap().timeout_seconds, TIMEOUT_DEFAULT_S);
        for (text, part) in [
            (format!("timeout = 3\n{steps}"), "unknown field `timeout`"),
            (format!("timeout_seconds = 0\n{steps}"), "timeout_seconds: must be"),
            ("[trainer]\nargv = [\"a\"]".to_owned(), "missing field `aggregator`"),
            (steps.replace("\"a\"", ""), "[aggregator] argv: must name a program"),
            (steps.replace("index", "indx"), "[trainer] argv: unknown placeholder {indx}"),
            (
                steps.replace("index", "output_dir"),
                "[trainer] argv: {output_dir} is for [compile]; write to {work_dir}",
            ),
            (format!("{steps}[env]\nX = \"{{y}}\""), "[env] X: unknown placeholder {y}"),
        ] {
            let error = Manifest::parse(&text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[tokio::test]
    async fn symbolic_links_out_are_refused() {
        let outside = tempfile::tempdir().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let text = "[aggregator]\nargv = [\"a\"]\n[trainer]\nargv = [\"a\"]\n";
        std::fs::write(outside.path().join("program.toml"), text).unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("out")).unwrap();
        std::fs::create_dir(dir.path().join("in")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("program.toml"), dir.path().join("in/program.toml")).unwrap();
        std::fs::create_dir(dir.path().join("real")).unwrap();
        std::fs::write(dir.path().join("real/program.toml"), text).unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("alias")).unwrap();
        assert!(matches!(Program::find(dir.path(), "out").await, Err(Error::Outside(_))));
        assert!(matches!(Program::find(dir.path(), "in").await, Err(Error::Outside(_))));
        assert!(matches!(Program::find(dir.path(), "none").await, Err(Error::NotInstalled(_))));
        assert!(matches!(Program::find(dir.path(), "../x").await, Err(Error::Name(_))));
        assert!(Program::find(dir.path(), "alias").await.is_ok());
    }
}
