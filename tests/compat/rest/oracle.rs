//! Our JSON reader against Python's own: thousands of texts that are JSON, nearly JSON or nothing, and every answer the same.

use super::{Wire, master};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::io::Write;
use std::process::{Command, Stdio};

/// How many texts.
const TEXTS: usize = 6000;

/// What texts are made of, beside the characters of JSON.
const PIECES: &[&str] = &[
    "null",
    "true",
    "false",
    "NaN",
    "Infinity",
    "-Infinity",
    "nul",
    "-",
    "0",
    "-0",
    "01",
    "7",
    "-12",
    "1.5",
    "1.",
    ".5",
    "1e5",
    "1E-7",
    "2e+",
    "1e999",
    "12345678901234567890",
    "\"",
    "\"a\"",
    "\"job_id\"",
    "\"é\"",
    "\"🦀\"",
    "\\",
    "\\n",
    "\\q",
    "\\u00e9",
    "\\ud83e\\udd80",
    "\\ud83e",
    "\\udd80",
    "\\u12",
    "\\uD83G",
    "\u{feff}",
    "\u{a0}",
    "\u{85}",
    "\u{2028}",
    "\t",
    "\n",
    "\r\n",
    "\r",
    " ",
    "\u{b}",
    "\u{0}",
    "\u{7f}",
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "{}",
    "[]",
    "{\"a\":",
    "/",
    "é",
    "🦀",
];

fn space(random: &mut StdRng) -> &'static str {
    ["", "", "", " ", "\n", "\t ", "\r\n"][random.random_range(0..7)]
}

fn string(random: &mut StdRng) -> String {
    let parts = [
        "a",
        "é",
        "🦀",
        "\\n",
        "\\/",
        "\\u00e9",
        "\\ud83e\\udd80",
        "\\ud800",
        "\\udfff",
        "\\\"",
        "\\\\",
        "\u{7f}",
        " ",
    ];
    let text: String = (0..random.random_range(0..6))
        .map(|_| parts[random.random_range(0..parts.len())])
        .collect();
    format!("\"{text}\"")
}

fn number(random: &mut StdRng) -> String {
    match random.random_range(0..5) {
        0 => random.random_range(-100..100).to_string(),
        // Halfway between two texts of the same length.
        4 => format!("{}.{}", random.random_range(1_u64 << 49..1 << 52), random.random_range(0..1000)),
        1 => f64::from_bits(random.random())
            .to_string()
            .replace("inf", "1e999")
            .replace("NaN", "-0.0"),
        2 => format!("{:e}", f64::from_bits(random.random())).replace("inf", "Infinity"),
        _ => format!(
            "{}{:e}",
            ["", "-"][random.random_range(0..2)],
            random.random_range(0.0..1.0) * 1e20_f64.powf(random.random_range(-1.0..1.0))
        ),
    }
}

/// A good text, with Python's liberties.
fn good(random: &mut StdRng, depth: usize) -> String {
    let (before, after) = (space(random), space(random));
    let text = match random.random_range(0..if depth == 0 { 5 } else { 7 }) {
        0 | 1 => string(random),
        2 | 3 => number(random),
        4 => PIECES[random.random_range(0..6)].to_owned(),
        5 => {
            let values: Vec<_> = (0..random.random_range(0..4)).map(|_| good(random, depth - 1)).collect();
            format!("[{}{}]", space(random), values.join(","))
        }
        _ => object(random, depth),
    };
    format!("{before}{text}{after}")
}

fn object(random: &mut StdRng, depth: usize) -> String {
    let field = |random: &mut StdRng| {
        let name = if random.random_bool(0.5) {
            "\"job_id\"".to_owned()
        } else {
            string(random)
        };
        format!("{}{name}{}:{}", space(random), space(random), good(random, depth - 1))
    };
    let fields: Vec<_> = (0..random.random_range(0..4)).map(|_| field(random)).collect();
    format!("{{{}{}}}", space(random), fields.join(","))
}

/// One character or piece more, less or elsewhere.
fn spoil(random: &mut StdRng, text: &str) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    let at = random.random_range(0..=chars.len());
    match random.random_range(0..4) {
        0 => chars.truncate(at),
        1 if at < chars.len() => drop(chars.remove(at)),
        2 if at < chars.len() => {
            let other = random.random_range(0..chars.len());
            chars.swap(at, other);
        }
        _ => drop(chars.splice(at..at, PIECES[random.random_range(0..PIECES.len())].chars())),
    }
    chars.into_iter().collect()
}

fn text(random: &mut StdRng) -> String {
    let mut text = match random.random_range(0..10) {
        0 => (0..random.random_range(0..12))
            .map(|_| PIECES[random.random_range(0..PIECES.len())])
            .collect(),
        1..5 => format!("{{\"job_id\":{}}}", good(random, 1)),
        5..8 => object(random, 3),
        _ => good(random, 3),
    };
    for _ in 0..[0, 1, 1, 2][random.random_range(0..4)] {
        text = spoil(random, &text);
    }
    if random.random_bool(0.01) {
        text.insert(0, '\u{feff}');
    }
    text
}

/// Status and body for each text, from Python; no body where 0.1 has nothing good to say.
fn python(texts: &[String]) -> Vec<(String, Option<String>)> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/compat/rest/oracle.py");
    let mut asked = tempfile::tempfile().unwrap();
    for text in texts {
        let hexadecimal: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
        writeln!(asked, "{hexadecimal}").unwrap();
    }
    std::io::Seek::rewind(&mut asked).unwrap();
    let output = Command::new("python3").arg(script).stdin(asked).stderr(Stdio::inherit()).output();
    let output = output.expect("python3 is there");
    assert!(output.status.success());
    let lines = std::str::from_utf8(&output.stdout).unwrap().lines();
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_are_read_and_echoed_as_by_python() {
    let seed: u64 = std::env::var("FEDBROKER_REST_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("FEDBROKER_REST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let texts: Vec<String> = (0..TEXTS).map(|_| text(&mut random)).collect();
    let wanted = python(&texts);
    assert_eq!(wanted.len(), TEXTS);
    // Enough of each kind, or the texts test nothing.
    for kind in [
        "404 ",
        "400 Exp",
        "400 Inv",
        "400 Unt",
        "400 Ext",
        "400 Unexpected UTF-8 BOM",
        "400 req",
        "400 the",
        "400 job_id",
    ] {
        let count = wanted.iter().filter(|(status, _)| status.starts_with(kind)).count();
        assert!(count > 5, "{kind}: {count}");
    }
    let dir = tempfile::tempdir().unwrap();
    let master = master(dir.path()).await;
    let mut wire = Wire::to(&master.address).await;
    for (text, (status, body)) in texts.iter().zip(wanted) {
        let answer = wire.post("/query", &[], text.as_bytes()).await;
        assert_eq!(answer.status(), status, "{text:?}");
        if let Some(body) = body {
            assert_eq!(answer.body, body, "{text:?}");
        }
    }
}
