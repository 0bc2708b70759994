//! Which jobs have a thing in common: sets of job numbers, small where there are few and a bitmap where there are many.
//!
//! Used by `index::columns`. A label may be on one job or on all of them, and there may be as many labels as jobs: a set of one costs 16 bytes.

use roaring::RoaringTreemap;
use std::io::{self, Read, Write};

/// A set of job numbers.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Postings {
    /// Just this one.
    One(u64),
    /// Any number.
    Many(Box<RoaringTreemap>),
}

impl Postings {
    /// Add a number.
    pub(super) fn insert(&mut self, number: u64) {
        match self {
            Postings::One(one) if *one == number => {}
            Postings::One(one) => *self = Postings::Many(Box::new([*one, number].into_iter().collect())),
            Postings::Many(many) => drop(many.insert(number)),
        }
    }

    /// What is in both.
    pub(super) fn common(&self, with: &RoaringTreemap) -> RoaringTreemap {
        match self {
            Postings::One(one) => with.contains(*one).then_some(*one).into_iter().collect(),
            Postings::Many(many) => &**many & with,
        }
    }

    /// Drop what is not in `all`; false when nothing is left.
    pub(super) fn sweep(&mut self, all: &RoaringTreemap) -> bool {
        match self {
            Postings::One(one) => all.contains(*one),
            Postings::Many(many) => {
                **many &= all;
                match (many.len(), many.min()) {
                    (0, _) => return false,
                    (1, Some(one)) => *self = Postings::One(one),
                    _ => {}
                }
                true
            }
        }
    }

    /// For the checkpoint: a byte that tells which, then the number or the bitmap.
    pub(super) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        match self {
            Postings::One(one) => {
                out.write_all(&[1])?;
                out.write_all(&one.to_le_bytes())
            }
            Postings::Many(many) => {
                out.write_all(&[2])?;
                many.serialize_into(out)
            }
        }
    }

    /// The inverse of [`Postings::write`].
    pub(super) fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut kind = [0];
        from.read_exact(&mut kind)?;
        match kind[0] {
            1 => {
                let mut number = [0; 8];
                from.read_exact(&mut number)?;
                Ok(Postings::One(u64::from_le_bytes(number)))
            }
            2 => Ok(Postings::Many(Box::new(RoaringTreemap::deserialize_from(from)?))),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_grows_shrinks_and_comes_back_from_its_bytes() {
        let mut set = Postings::One(5);
        set.insert(5);
        assert_eq!(set, Postings::One(5));
        set.insert(1 << 40);
        for set in [&set, &Postings::One(7)] {
            let mut bytes = Vec::new();
            set.write(&mut bytes).unwrap();
            assert_eq!(Postings::read(&mut bytes.as_slice()).unwrap(), *set);
            bytes[0] = 9;
            assert!(Postings::read(&mut bytes.as_slice()).is_err());
        }
        let mut found = set.common(&[5, 6].into_iter().collect());
        assert_eq!(found.iter().collect::<Vec<_>>(), [5]);
        assert!(set.sweep(&found));
        assert_eq!(set, Postings::One(5));
        found.clear();
        assert!(!set.sweep(&found));
    }
}
