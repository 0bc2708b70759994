//! Text that came from elsewhere (another party, a task, a file name) on its way to a terminal: it must not steer it.
//!
//! Used wherever a command prints what it was told. What steers: control characters, 8-bit ones too, of which escape sequences are made, and the marks
//! that turn the direction of writing. JSON keeps its meaning: what steers stands in it as an escape. In YAML its writer does that for control
//! characters; a document with marks of direction is written as JSON, which is YAML too.

/// True for what a terminal would obey, not show.
pub(super) fn steers(c: char) -> bool {
    let turns = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || turns
}

/// On one line, with a space for each of what steers.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if steers(c) { ' ' } else { c }).collect()
}

/// Lines and tabs stay; the rest of what steers is shown as `\u{1b}`.
pub(super) fn lines(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => shown.push(c),
            c if steers(c) => shown.extend(c.escape_unicode()),
            c => shown.push(c),
        }
    }
    shown
}

/// The same JSON: what steers is within its texts, and stands there as `\u001b`.
pub(super) fn json(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => shown.push(c),
            c if steers(c) => shown.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => shown.push(c),
        }
    }
    shown
}

/// [`lines`] or [`json`] of bytes that come in pieces, cut anywhere. What is no text is shown as U+FFFD.
pub(super) struct Pieces {
    shown: fn(&str) -> String,
    /// The begin of a character whose end is in the next piece, or the begin of a line break.
    rest: Vec<u8>,
}

impl Pieces {
    pub(super) fn new(shown: fn(&str) -> String) -> Self {
        Self { shown, rest: Vec::new() }
    }

    /// What can be shown by now.
    pub(super) fn take(&mut self, piece: &[u8]) -> String {
        self.rest.extend_from_slice(piece);
        let whole = whole(&self.rest);
        let rest = self.rest.split_off(whole);
        self.show(rest)
    }

    /// What is left at the end.
    pub(super) fn end(mut self) -> String {
        self.show(Vec::new())
    }

    fn show(&mut self, rest: Vec<u8>) -> String {
        let taken = std::mem::replace(&mut self.rest, rest);
        (self.shown)(&String::from_utf8_lossy(&taken).replace("\r\n", "\n"))
    }
}

/// How many bytes at the begin do not depend on what follows.
fn whole(bytes: &[u8]) -> usize {
    if bytes.ends_with(b"\r") {
        return bytes.len() - 1;
    }
    // A character has at most four bytes.
    let tail = bytes.len().saturating_sub(4);
    match bytes[tail..].utf8_chunks().last().map(|chunk| chunk.invalid()) {
        Some(invalid) if !invalid.is_empty() && is_begin(invalid) => bytes.len() - invalid.len(),
        _ => bytes.len(),
    }
}

/// True for bytes that more can make a character of.
fn is_begin(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json as value};

    /// Clears the screen, as a sequence and with an 8-bit character; sets the title; turns the direction.
    const HOSTILE: &str = "a\u{1b}[2J\u{9b}2Jb\u{1b}]0;x\u{7}\u{202e}c\u{7f}\r";

    #[test]
    fn nothing_steers_the_terminal() {
        assert_eq!(plain(&format!("{HOSTILE}\n\td")), "a [2J 2Jb ]0;x  c    d");
        assert_eq!(
            lines(&format!("{HOSTILE}\n\té")),
            "a\\u{1b}[2J\\u{9b}2Jb\\u{1b}]0;x\\u{7}\\u{202e}c\\u{7f}\\u{d}\n\té"
        );
    }

    #[test]
    fn json_is_the_same_json() {
        let given = value!({ HOSTILE: ["é🦀\n", HOSTILE] });
        for text in [given.to_string(), serde_json::to_string_pretty(&given).unwrap()] {
            let shown = json(&text);
            assert!(!shown.chars().any(|c| c != '\n' && steers(c)), "{shown}");
            assert_eq!(serde_json::from_str::<Value>(&shown).unwrap(), given);
        }
    }

    #[test]
    fn pieces_can_be_cut_anywhere() {
        let text = format!("é🦀\r\nb\t{HOSTILE}c\u{9b}").into_bytes();
        let text = [&text[..], b"\xff\xf0\x9f"].concat();
        let expected = lines(&String::from_utf8_lossy(&text).replace("\r\n", "\n"));
        for size in 1..=text.len() {
            let mut pieces = Pieces::new(lines);
            let mut shown: String = text.chunks(size).map(|piece| pieces.take(piece)).collect();
            shown += &pieces.end();
            assert_eq!(shown, expected, "in pieces of {size}");
        }
    }
}
