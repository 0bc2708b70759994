//! The text of `FORMAT`: whose directory this is, of which stored-format version, and which of its logs counts.
//!
//! Called by `Directory` only. Exchanging this file is the one atomic switch of a directory: from no log to the first, from an old
//! version to the next, from a damaged log to a restored one.
//!
//! ```text
//! fedbroker data directory
//! format 3
//! needs fedbroker 0.2.0
//! role master
//! owner party1                    absent until a role that has an id comes; escaped like a Rust string
//! instance 00112233445566778899aabbccddeeff
//! log 1                           0: there is none yet
//! check 01234567                  CRC-32 of the lines above, hexadecimal
//! ```
//!
//! In every version the first line stays and the second says `format N`, so that an old release can tell; the third one, since
//! version 2, names the oldest release that can read the directory.

use crate::migrations;

const TITLE: &str = "fedbroker data directory";
/// The oldest release that reads what this one writes.
const NEEDS: &str = "fedbroker 0.2.0";

/// What `FORMAT` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Format {
    /// Stored-format version.
    pub(super) version: u32,
    /// One lower-case word.
    pub(super) role: String,
    /// Escaped id of the party, where the role has one.
    pub(super) owner: Option<String>,
    pub(super) instance: [u8; 16],
    /// Number of the log that counts; 0 for none.
    pub(super) log: u64,
}

/// Why a text is not a usable `FORMAT`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BadFormat {
    /// Not what was written.
    Damaged(&'static str),
    /// Of a version this release does not know, with the release that does, if it says so.
    Newer { version: u32, needs: Option<String> },
}

impl Format {
    /// Of a new directory.
    pub(super) fn new(role: &str, instance: [u8; 16]) -> Format {
        Format {
            version: migrations::CURRENT,
            role: role.to_owned(),
            owner: None,
            instance,
            log: 0,
        }
    }

    /// The text, always of the current version.
    pub(super) fn text(&self) -> String {
        let Format { role, log, .. } = self;
        let instance = u128::from_be_bytes(self.instance);
        let owner = self.owner.as_ref().map(|owner| format!("owner {owner}\n")).unwrap_or_default();
        let version = migrations::CURRENT;
        let text = format!("{TITLE}\nformat {version}\nneeds {NEEDS}\nrole {role}\n{owner}instance {instance:032x}\nlog {log}\n");
        let checksum = crc32fast::hash(text.as_bytes());
        format!("{text}check {checksum:08x}\n")
    }

    /// Read a text of this version or an older one.
    pub(super) fn parse(bytes: &[u8]) -> Result<Format, BadFormat> {
        let damaged = BadFormat::Damaged;
        let text = std::str::from_utf8(bytes).map_err(|_| damaged("it is not text"))?;
        let mut lines = text.lines();
        if lines.next() != Some(TITLE) {
            return Err(damaged("the first line is not that of a data directory"));
        }
        let fields: Vec<(&str, &str)> = lines.filter_map(|line| line.split_once(' ')).collect();
        let field = |name: &str| fields.iter().find(|(found, _)| *found == name).map(|(_, value)| *value);
        let version = field("format").ok_or(damaged("the line with the format is missing"))?;
        let version: u32 = version.parse().map_err(|_| damaged("the format is not a number"))?;
        if version > migrations::CURRENT {
            let needs = field("needs").map(str::to_owned);
            return Err(BadFormat::Newer { version, needs });
        }
        let check = field("check").ok_or(damaged("the line with the check is missing"))?;
        let (covered, _) = text.rsplit_once("check ").ok_or(damaged("the line with the check is missing"))?;
        if version == 0 || check != format!("{:08x}", crc32fast::hash(covered.as_bytes())) {
            return Err(damaged("the checksum does not fit"));
        }
        let role = field("role").ok_or(damaged("the line with the role is missing"))?;
        let instance = field("instance").ok_or(damaged("the line with the instance is missing"))?;
        let instance = u128::from_str_radix(instance, 16).map_err(|_| damaged("the instance is not a hexadecimal number"))?;
        let log = match field("log") {
            None if version == 1 => 0,
            None => return Err(damaged("the line with the log is missing")),
            Some(log) => log.parse().map_err(|_| damaged("the log is not a number"))?,
        };
        Ok(Format {
            version,
            role: role.to_owned(),
            owner: field("owner").map(str::to_owned),
            instance: instance.to_be_bytes(),
            log,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Format {
        Format {
            owner: Some("a\\u{20ac} b".to_owned()),
            log: 3,
            ..Format::new("master", *b"0123456789abcdef")
        }
    }

    #[test]
    fn what_was_written_is_read() {
        let bare = Format { owner: None, ..sample() };
        for format in [sample(), bare] {
            assert_eq!(Format::parse(format.text().as_bytes()), Ok(format));
        }
    }

    #[test]
    fn version_1_is_still_read() {
        let text = "fedbroker data directory\nformat 1\nrole master\ninstance abababababababababababababababab\ncheck 6c7f31e8\n";
        let format = Format::parse(text.as_bytes()).unwrap();
        assert_eq!((format.version, format.log, format.owner), (1, 0, None));
        assert_eq!((format.role.as_str(), format.instance), ("master", [0xab; 16]));
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let text = sample().text();
        for bit in 0..text.len() * 8 {
            let mut bytes = text.clone().into_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Format::parse(&bytes).map_or(true, |found| found == sample()), "bit {bit}");
        }
        for len in 0..text.len() - 1 {
            assert!(Format::parse(&text.as_bytes()[..len]).is_err(), "the first {len} bytes");
        }
    }

    #[test]
    fn a_newer_version_names_the_release_it_needs() {
        let newer = |text: &str| match Format::parse(text.as_bytes()) {
            Err(BadFormat::Newer { version, needs }) => (version, needs),
            other => panic!("{other:?}"),
        };
        let text = "fedbroker data directory\nformat 9\nneeds fedbroker 4.1.0\nanything else\n";
        assert_eq!(newer(text), (9, Some("fedbroker 4.1.0".to_owned())));
        assert_eq!(newer("fedbroker data directory\nformat 8\n"), (8, None));
    }
}
