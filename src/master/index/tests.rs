//! The index against a plain list of jobs.

use super::checkpoint::{decode, piece, write};
use super::columns::{CHUNK, Columns, Entry, Wanted};
use super::label_hashes;
use crate::machine::ids::Timestamp;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// The bytes of a checkpoint of an index that nobody changes.
fn encode(columns: &Columns) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut bytes, "instance", 7, |place, out| piece(columns, place, out)).unwrap();
    bytes
}

#[derive(Clone, Debug)]
enum Act {
    Put(Entry),
    Move(prop::sample::Index, u8),
    Remove(prop::sample::Index),
}

impl Act {
    /// Do it to an index and to a plain list; gives the number of the job it is about. No number is `given` twice.
    fn apply(self, columns: &mut Columns, plain: &mut BTreeMap<u64, Entry>, given: &mut BTreeSet<u64>) -> Option<u64> {
        let number = match self {
            // What a job is does not change, and a number is not given again.
            Act::Put(entry) if !given.insert(entry.number) => return None,
            Act::Put(entry) => {
                columns.put(&entry);
                let number = entry.number;
                plain.insert(number, entry);
                number
            }
            Act::Move(which, state) if !plain.is_empty() => {
                let number = *plain.keys().nth(which.index(plain.len())).unwrap();
                let entry = plain.get_mut(&number).unwrap();
                entry.state = state;
                columns.put(entry);
                number
            }
            Act::Remove(which) if !plain.is_empty() => {
                let number = *plain.keys().nth(which.index(plain.len())).unwrap();
                plain.remove(&number);
                columns.remove(number);
                columns.remove(number);
                number
            }
            _ => return None,
        };
        Some(number)
    }
}

fn labels() -> impl Strategy<Value = Vec<u64>> {
    let label = (0..3u8, 0..4u8).prop_map(|(key, value)| label_hashes(&key.to_string(), &value.to_string()));
    prop::collection::vec(label, 0..4).prop_map(|pairs| pairs.into_iter().flatten().collect())
}

fn act() -> impl Strategy<Value = Act> {
    // Some close together, some in other pieces, some in other bitmaps.
    let number = prop_oneof![1..200u64, 1..3 * CHUNK, (0..5u64).prop_map(|n| (n << 32) + 7)];
    let entry = (number, 0..1000u64, 0..9u8, 0..3u8, labels()).prop_map(|(number, at, state, kind, labels)| Entry {
        number,
        // A clock that goes backwards.
        stamp: 20_260_101_000_000 + (at * 7) % 50,
        created_at: Timestamp(at),
        state,
        job_type: format!("type{kind}"),
        labels,
    });
    prop_oneof![
        6 => entry.prop_map(Act::Put),
        2 => (any::<prop::sample::Index>(), 0..9u8).prop_map(|(which, state)| Act::Move(which, state)),
        1 => any::<prop::sample::Index>().prop_map(Act::Remove),
    ]
}

fn wanted() -> impl Strategy<Value = Wanted> {
    let range = || prop::option::of((0..1000u64, 0..600u64).prop_map(|(from, long)| from..from + long));
    let stamps =
        prop::option::of((0..50u64, 0..30u64).prop_map(|(from, long)| 20_260_101_000_000 + from..20_260_101_000_000 + from + long));
    let digits = prop::option::weighted(0.2, (1..300u64).prop_map(|n| n.to_string()));
    let states = prop::collection::btree_set(0..9u8, 0..4).prop_map(|set| set.into_iter().collect());
    let job_type = prop::option::of((0..4u8).prop_map(|kind| format!("type{kind}")));
    (states, job_type, prop::option::of(labels()), range(), stamps, digits).prop_map(
        |(states, job_type, labels, created, stamps, digits)| Wanted {
            states,
            job_type,
            labels: labels.unwrap_or_default(),
            created,
            stamps,
            digits,
        },
    )
}

fn fits(entry: &Entry, wanted: &Wanted) -> bool {
    (wanted.states.is_empty() || wanted.states.contains(&entry.state))
        && wanted.job_type.as_ref().is_none_or(|name| *name == entry.job_type)
        && wanted.labels.iter().all(|label| entry.labels.contains(label))
        && wanted.created.as_ref().is_none_or(|range| range.contains(&entry.created_at.0))
        && wanted.stamps.as_ref().is_none_or(|range| range.contains(&entry.stamp))
        && wanted
            .digits
            .as_ref()
            .is_none_or(|digits| entry.number.to_string().starts_with(digits))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever happens to jobs, each filter finds exactly those that fit, in order, from any place on; and so does what comes back from a file.
    #[test]
    fn the_index_finds_what_a_plain_list_finds(
        acts in prop::collection::vec(act(), 1..120),
        wanted in wanted(),
        after in prop::option::of(0..300u64),
        descending in any::<bool>(),
        limit in 1..40usize,
    ) {
        let (mut columns, mut plain) = (Columns::default(), BTreeMap::<u64, Entry>::new());
        let mut given = BTreeSet::new();
        for act in acts {
            act.apply(&mut columns, &mut plain, &mut given);
        }
        let mut found: Vec<u64> = plain.values().filter(|entry| fits(entry, &wanted)).map(|entry| entry.number).collect();
        if descending {
            found.reverse();
            found.retain(|number| after.is_none_or(|after| *number < after));
        } else {
            found.retain(|number| after.is_none_or(|after| *number > after));
        }
        found.truncate(limit);
        prop_assert_eq!(columns.find(&wanted, descending, after, limit), found.clone());
        prop_assert_eq!(columns.len(), plain.len() as u64);
        let bytes = encode(&columns);
        let (mut back, seq) = decode(&bytes, "instance").unwrap();
        prop_assert_eq!(seq, 7);
        prop_assert_eq!(back.find(&wanted, descending, after, limit), found.clone());
        back.sweep();
        prop_assert_eq!(back.find(&wanted, descending, after, limit), found);
        prop_assert!(decode(&bytes, "other").is_none());
    }

    /// A checkpoint that was written while jobs came, moved and went, with each of those jobs looked at again, is the index as it is.
    #[test]
    fn a_checkpoint_written_meanwhile_is_caught_up_with(
        before in prop::collection::vec(act(), 0..60),
        meanwhile in prop::collection::vec(act(), 0..60),
        pace in 1..8usize,
        wanted in prop::collection::vec(wanted(), 8),
    ) {
        let (mut columns, mut plain, mut given) = (Columns::default(), BTreeMap::new(), BTreeSet::new());
        for act in before {
            act.apply(&mut columns, &mut plain, &mut given);
        }
        let (mut touched, mut acts) = (BTreeSet::new(), meanwhile.into_iter());
        let mut bytes = Vec::new();
        write(&mut bytes, "instance", 7, |place, out| {
            let next = piece(&columns, place, out);
            for act in acts.by_ref().take(pace) {
                touched.extend(act.apply(&mut columns, &mut plain, &mut given));
            }
            next
        }).unwrap();
        let (mut back, _) = decode(&bytes, "instance").unwrap();
        for number in touched {
            match plain.get(&number) {
                Some(entry) => back.put(entry),
                None => back.remove(number),
            }
        }
        for wanted in wanted {
            prop_assert_eq!(back.find(&wanted, true, None, 1000), columns.find(&wanted, true, None, 1000));
        }
    }

    /// A file with any byte changed, or cut anywhere, is no index.
    #[test]
    fn a_damaged_file_is_none(at in any::<prop::sample::Index>(), change in 1..=255u8) {
        let mut columns = Columns::default();
        for number in [1, 2, 5000] {
            let labels = label_hashes("a", "b").to_vec();
            let (stamp, created_at, job_type) = (20_260_101_000_000, Timestamp(number), "x".to_owned());
            columns.put(&Entry { number, stamp, created_at, state: 6, job_type, labels });
        }
        let mut bytes = encode(&columns);
        let at = at.index(bytes.len());
        prop_assert!(decode(&bytes[..at], "instance").is_none());
        bytes[at] ^= change;
        prop_assert!(decode(&bytes, "instance").is_none());
    }
}

/// Removed jobs leave the labels too, once there are enough of them.
#[test]
fn labels_of_removed_jobs_are_swept() {
    let mut columns = Columns::default();
    for number in 1..=20_000 {
        let labels = label_hashes("run", &number.to_string()).to_vec();
        let (stamp, created_at, job_type) = (20_260_101_000_000, Timestamp(number), "x".to_owned());
        columns.put(&Entry {
            number,
            stamp,
            created_at,
            state: 6,
            job_type,
            labels,
        });
    }
    assert_eq!(columns.labels.len(), 20_001);
    (1..=20_000).for_each(|number| columns.remove(number));
    columns.sweep();
    assert!(columns.labels.is_empty() && columns.chunks.is_empty() && columns.types.is_empty());
}
