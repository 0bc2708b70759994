//! Neighbouring keys as the engine has them: in groups of one value each, since every value costs it time, memory and a part of each start.
//!
//! Called by `Disk` only; all others see keys and values. A group has the keys from its *fence* up to the next fence of their kind. It must
//! never lose a key that is in no journal any more, wherever the engine's log ends after a power cut: a group that gives keys away is
//! written after those that get them, and what it still has of them until then counts for nothing.
//!
//! ```text
//! key    fence
//! value  that of the fence itself, if the group has no other key: an envelope of `codec`, which begins with 1. Or
//!        1 byte   2
//!        and for each key, in order, integers little endian:
//!        2 bytes  how many bytes it has in common with the key before it
//!        2 bytes  length of the rest of it
//!        2 bytes  length of its value
//!        ..       the rest, the value
//! ```

use super::disk::Value;
use super::position::RECORD_PREFIX;
use crate::store::{KEY_MAX, VALUE_MAX, codec};
use std::borrow::Cow;
use std::ops::Range;

const FORM: u8 = 2;
const _: () = assert!(FORM != codec::ENVELOPE_FORMAT);
/// A group without a key.
pub(super) const EMPTY: &[u8] = &[FORM];
/// What a key takes beside its bytes and its value.
const FRAME: usize = 6;
/// A group that reaches this length is full; a longer value has one of its own.
const FULL: usize = 2 * 1024;
/// With the byte that says what it is a key of.
pub(super) const LONGEST_KEY: usize = 1 + KEY_MAX;
const _: () = assert!(VALUE_MAX + LONGEST_KEY < u16::MAX as usize && FULL <= VALUE_MAX);

/// A key with its value.
type Pair<'a> = (Cow<'a, [u8]>, Value);

/// What a key becomes: another value, or nothing.
pub(super) type Change<'a> = (&'a Vec<u8>, &'a Option<Value>);

/// What the engine is given: a fence, and the group under it or nothing.
pub(super) type Piece = (Vec<u8>, Option<Value>);

/// A key of a group, and where its value is.
type Place<'a> = (&'a [u8], Range<usize>);

/// Keys of one kind may be in one group: the head, events, live records, ended ones.
pub(super) fn kind(key: &[u8]) -> &[u8] {
    let len = if key.first() == Some(&RECORD_PREFIX) { 2 } else { 1 };
    &key[..key.len().min(len)]
}

/// The bytes are no group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// Goes through a group.
pub(super) struct Walk<'a> {
    fence: &'a [u8],
    group: &'a [u8],
    /// Where the next key begins; `None` before the first.
    at: Option<usize>,
    key: Vec<u8>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(fence: &'a [u8], group: &'a [u8]) -> Walk<'a> {
        let (at, key) = (None, Vec::new());
        Walk { fence, group, at, key }
    }

    /// The next key, and where its value is.
    pub(super) fn next(&mut self) -> Result<Option<Place<'_>>, Malformed> {
        let from = match (self.at, self.group.first()) {
            (Some(at), _) => at,
            (None, Some(&FORM)) => 1,
            (None, Some(&codec::ENVELOPE_FORMAT)) => {
                self.key.extend_from_slice(self.fence);
                self.at = Some(self.group.len());
                return Ok(Some((&self.key, 0..self.group.len())));
            }
            _ => return Err(Malformed),
        };
        let left = &self.group[from..];
        if left.is_empty() {
            return Ok(None);
        }
        let (frame, rest) = left.split_first_chunk::<FRAME>().ok_or(Malformed)?;
        let [common, more, value] = [0, 2, 4].map(|n| usize::from(u16::from_le_bytes([frame[n], frame[n + 1]])));
        let rest = rest.get(..more + value).ok_or(Malformed)?;
        // Also what is not in order, or not within the fence: a look would miss it.
        if common > self.key.len() || self.key[common..] >= rest[..more] {
            return Err(Malformed);
        }
        self.key.truncate(common);
        self.key.extend_from_slice(&rest[..more]);
        if self.key.as_slice() < self.fence || kind(&self.key) != kind(self.fence) || self.key.len() > LONGEST_KEY || value > VALUE_MAX {
            return Err(Malformed);
        }
        let end = from + FRAME + more + value;
        self.at = Some(end);
        Ok(Some((&self.key, end - value..end)))
    }
}

/// The value of a key, if the group has it.
pub(super) fn find(fence: &[u8], group: &Value, key: &[u8]) -> Result<Option<Value>, Malformed> {
    let mut walk = Walk::new(fence, group);
    while let Some((found, value)) = walk.next()? {
        if found >= key {
            return Ok((found == key).then(|| group.subslice(value.start, value.len())));
        }
    }
    Ok(None)
}

/// The last key of a group.
pub(super) fn last(fence: &[u8], group: &[u8]) -> Result<Option<Vec<u8>>, Malformed> {
    let mut walk = Walk::new(fence, group);
    let mut last = None;
    while let Some((key, _)) = walk.next()? {
        last = Some(key.to_vec());
    }
    Ok(last)
}

/// What the engine is to be given, in this order, so that a group has these changes as well, which are in the order of their keys, each once; `until` is the
/// next fence, and a group that is not there yet has no value.
pub(super) fn change<'a>(
    (fence, group): (&[u8], Option<&Value>),
    until: Option<&[u8]>,
    changes: &[Change<'a>],
) -> Result<Vec<Piece>, Malformed> {
    debug_assert!(changes.is_sorted_by(|(one, _), (other, _)| one < other), "a table is in order");
    let (mut pairs, mut grows_at_its_end) = (Vec::<Pair<'_>>::new(), true);
    let new = |(key, value): &Change<'a>| value.as_ref().map(|value| (Cow::Borrowed(key.as_slice()), value.clone()));
    let (first, mut left) = (changes.first(), changes.iter().peekable());
    let mut walk = group.map(|group| Walk::new(fence, group));
    while let (Some(walk), Some(group)) = (&mut walk, group)
        && let Some((key, value)) = walk.next()?
        && until.is_none_or(|until| key < until)
    {
        grows_at_its_end = first.is_none_or(|(first, _)| first.as_slice() >= key);
        while let Some(change) = left.next_if(|(new, _)| new.as_slice() < key) {
            pairs.extend(new(change));
        }
        match left.next_if(|(new, _)| new.as_slice() == key) {
            Some(change) => pairs.extend(new(change)),
            None => pairs.push((Cow::Owned(key.to_vec()), group.subslice(value.start, value.len()))),
        }
    }
    pairs.extend(left.filter_map(new));
    let mut pieces: Vec<_> = cut(&pairs, grows_at_its_end)
        .into_iter()
        .enumerate()
        .map(|(n, piece)| {
            let pairs = &pairs[piece];
            let fence = if n == 0 { fence } else { pairs[0].0.as_ref() };
            (fence.to_vec(), Some(pack(fence, pairs)))
        })
        .collect();
    if pieces.is_empty() && group.is_some() {
        pieces.push((fence.to_vec(), None));
    }
    pieces.reverse();
    Ok(pieces)
}

/// Which pairs share a group. One that grows at its end leaves full ones behind; in another each gets about as much, so that it has room.
fn cut(pairs: &[Pair<'_>], grows_at_its_end: bool) -> Vec<Range<usize>> {
    let costs: Vec<usize> = (0..pairs.len())
        .map(|n| FRAME + pairs[n].0.len() + pairs[n].1.len() - n.checked_sub(1).map_or(0, |before| common(&pairs[before].0, &pairs[n].0)))
        .collect();
    let total: usize = costs.iter().sum();
    let enough = if grows_at_its_end {
        FULL
    } else {
        total.div_ceil(total.div_ceil(FULL).max(1))
    };
    let (mut pieces, mut len) = (Vec::<Range<usize>>::new(), 0);
    for (n, cost) in costs.into_iter().enumerate() {
        match pieces.last_mut() {
            Some(piece) if len < enough && len + cost <= FULL => piece.end = n + 1,
            _ => {
                pieces.push(n..n + 1);
                len = 0;
            }
        }
        len += cost;
    }
    pieces
}

fn pack(fence: &[u8], pairs: &[Pair<'_>]) -> Value {
    if let [(key, value)] = pairs
        && key.as_ref() == fence
    {
        // A copy: the value may be a part of a larger group, which it would keep in memory.
        return value.as_ref().into();
    }
    let most: usize = pairs.iter().map(|(key, value)| FRAME + key.len() + value.len()).sum();
    let mut bytes = Vec::with_capacity(1 + most);
    bytes.push(FORM);
    let mut before: &[u8] = &[];
    for (key, value) in pairs {
        let common = common(before, key);
        for len in [common, key.len() - common, value.len()] {
            bytes.extend_from_slice(
                &u16::try_from(len)
                    .expect("a commit or a log with a longer one was refused")
                    .to_le_bytes(),
            );
        }
        bytes.extend_from_slice(&key[common..]);
        bytes.extend_from_slice(value);
        before = key;
    }
    bytes.into()
}

fn common(one: &[u8], other: &[u8]) -> usize {
    one.iter().zip(other).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn pair(key: &str, value: &str) -> Pair<'static> {
        (key.as_bytes().to_vec().into(), value.as_bytes().into())
    }

    fn unpack(fence: &[u8], group: &[u8]) -> Result<Vec<Pair<'static>>, Malformed> {
        let (mut walk, mut pairs) = (Walk::new(fence, group), Vec::new());
        while let Some((key, value)) = walk.next()? {
            pairs.push((key.to_vec().into(), group[value].into()));
        }
        Ok(pairs)
    }

    #[test]
    fn groups_have_the_golden_bytes() {
        let pairs = [pair("rda", "\u{1}ne"), pair("rdab", ""), pair("rdb", "3")];
        let group = pack(b"rd", &pairs);
        assert_eq!(&*group, b"\x02\0\0\x03\0\x03\0rda\x01ne\x03\0\x01\0\0\0b\x02\0\x01\0\x01\0b3");
        assert_eq!(unpack(b"rd", &group).unwrap(), pairs);
        assert_eq!(find(b"rd", &group, b"rdab"), Ok(Some(Value::default())));
        assert_eq!(find(b"rd", &group, b"rdaa"), Ok(None));
        assert_eq!(find(b"rd", &group, b"rdz"), Ok(None));
        assert_eq!(
            pack(b"rda", &pairs[..1]),
            b"\x01ne",
            "alone under its own key it is as it was before there were groups"
        );
        assert_eq!(pack(b"rd", &pairs[..1]), b"\x02\0\0\x03\0\x03\0rda\x01ne");
    }

    #[test]
    fn what_is_no_group_is_told() {
        for bytes in [
            &b"\x02\0"[..],
            b"\x02\0\0\x01\0\x01\0a",
            b"\x02\x01\0\x01\0\0\0a",
            b"\x02\0\0\x01\0\0\0b\0\0\x01\0\0\0a",
            b"\x02\0\0\x01\0\0\0b\x01\0\0\0\0\0",
            b"",
            b"\x03value",
            b"\x02\0\0\x02\0\0\0rc",
            b"\x02\0\0\x02\0\0\0rl",
        ] {
            assert_eq!(unpack(b"rd", bytes), Err(Malformed), "{bytes:?}");
        }
    }

    #[test]
    fn only_keys_of_a_kind_share_a_group() {
        for (key, of) in [
            ("h", "h"),
            ("e12345678", "e"),
            ("rdjob", "rd"),
            ("rljob", "rl"),
            ("r", "r"),
            ("", ""),
        ] {
            assert_eq!(kind(key.as_bytes()), of.as_bytes());
        }
    }

    #[test]
    fn a_group_that_grows_at_its_end_leaves_full_ones() {
        let value = "v".repeat(120);
        let pairs: Vec<Pair<'_>> = (0..20).map(|n| pair(&format!("rd{n:02}"), &value)).collect();
        let lens = |at_its_end| cut(&pairs, at_its_end).iter().map(Range::len).collect::<Vec<_>>();
        assert_eq!(lens(true), [16, 4]);
        assert_eq!(lens(false), [10, 10]);
        assert_eq!(cut(&pairs[..16], false).len(), 1);
        assert!(cut(&[], true).is_empty());
        let long = [pair("rda", &"v".repeat(VALUE_MAX)), pair("rdb", "v"), pair("rdc", &value)];
        assert_eq!(cut(&long, false), [0..1, 1..3]);
    }

    #[test]
    fn who_gives_keys_away_is_written_last() {
        let value = "v".repeat(500);
        let pairs: Vec<Pair<'_>> = (0..4).map(|n| pair(&format!("rd{n}"), &value)).collect();
        let group = pack(b"rd0", &pairs);
        let (key, new) = (b"rd11".to_vec(), Some(Value::from(value.as_bytes())));
        let pieces = change((b"rd0", Some(&group)), None, &[(&key, &new)]).unwrap();
        let fences: Vec<&[u8]> = pieces.iter().map(|(fence, _)| fence.as_slice()).collect();
        assert_eq!(fences, [&b"rd2"[..], b"rd0"]);
        let gone: Vec<Piece> = pairs.iter().map(|(key, _)| (key.to_vec(), None)).collect();
        let gone: Vec<Change<'_>> = gone.iter().map(|(key, value)| (key, value)).collect();
        assert_eq!(change((b"rd0", Some(&group)), None, &gone), Ok(vec![(b"rd0".to_vec(), None)]));
        assert_eq!(change((b"rd0", None), None, &gone), Ok(vec![]));
        // What the next group has already counts for nothing here.
        let left = change((b"rd0", Some(&group)), Some(b"rd2"), &[]).unwrap();
        assert_eq!(left, [(b"rd0".to_vec(), Some(pack(b"rd0", &pairs[..2])))]);
    }

    proptest! {
        #[test]
        fn a_group_has_its_keys_and_the_changes_to_them(
            before in prop::collection::btree_map(0..40u8, 2..200usize, 0..30),
            changes in prop::collection::btree_map(0..40u8, prop::option::of(2..200usize), 0..30),
            until in prop::option::of(0..40u8),
        ) {
            let name = |key: u8| format!("rd{key:02}").into_bytes();
            // A value alone in its group is stored as it is, and told by how an envelope begins.
            let value = |is_new: u8, len: usize| [vec![codec::ENVELOPE_FORMAT, is_new], vec![9; len - 2]].concat();
            let until = until.map(name);
            let within = |key: &u8| until.as_ref().is_none_or(|until| name(*key) < *until);
            let pairs: Vec<Pair<'_>> = before.iter().map(|(key, len)| (name(*key).into(), Value::from(value(0, *len)))).collect();
            let group = pack(b"rd", &pairs);
            let changes: BTreeMap<u8, Option<usize>> = changes.into_iter().filter(|(key, _)| within(key)).collect();
            let written: Vec<_> = changes.iter().map(|(key, len)| (name(*key), len.map(|len| Value::from(value(1, len))))).collect();
            let written: Vec<Change<'_>> = written.iter().map(|(key, value)| (key, value)).collect();
            let pieces = change((b"rd", Some(&group)), until.as_deref(), &written).unwrap();

            let mut wanted: BTreeMap<Vec<u8>, Vec<u8>> = before.iter().filter(|(key, _)| within(key)).map(|(key, len)| (name(*key), value(0, *len))).collect();
            for (key, len) in changes {
                match len {
                    Some(len) => drop(wanted.insert(name(key), value(1, len))),
                    None => drop(wanted.remove(&name(key))),
                }
            }
            prop_assert!(pieces.is_sorted_by(|(one, _), (other, _)| one > other), "who gives keys away is not last");
            prop_assert_eq!(pieces.last().map(|(fence, _)| fence.as_slice()), Some(&b"rd"[..]));
            let kept = pieces.iter().rev().filter_map(|(fence, group)| Some(unpack(fence, group.as_ref()?).unwrap()));
            let kept: Vec<_> = kept.flatten().map(|(key, value)| (key.into_owned(), value.to_vec())).collect();
            prop_assert_eq!(kept, wanted.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn hostile_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), lens in prop::collection::vec(0..6u8, 0..60)) {
            let _ = unpack(b"rd", &bytes);
            bytes.insert(0, FORM);
            let _ = unpack(b"rd", &bytes);
            let _ = unpack(b"rd", &[&[FORM][..], &lens].concat());
        }
    }
}
