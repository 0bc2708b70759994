//! The states a power cut may leave: for each change that is not durable, whether and how much of it is there.
//!
//! Called by `power` at each sampled point, and again for a crash during recovery.

use super::model::{Body, Change, Disk, Pending, ROOT, Tree, tree};
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use std::sync::Arc;

const SECTOR: u64 = 512;
const PAGE: u64 = 4096;

/// The ways to choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing that is not durable.
    Dropped,
    /// Everything: what a killed process leaves.
    Kept,
    /// Any calls.
    Calls,
    /// Any pages, some of them torn; lengths and names by chance.
    Pages,
    /// Everything, the last write torn.
    LastTorn,
    /// The last one to three changes, none before them.
    LastOnly,
    /// The first changes, none after them.
    Prefix,
    /// Everything but one change, often a new name.
    OneLost,
    /// Lengths and names, no bytes.
    MetadataOnly,
    /// Bytes as far as the durable lengths go, no names.
    DataOnly,
    /// All bytes, or none; any names.
    Names,
}

/// The kinds that are drawn from at random; `Kept` and `Dropped` are taken apart.
pub const DRAWN: [Kind; 9] = [
    Kind::Calls,
    Kind::Pages,
    Kind::LastTorn,
    Kind::LastOnly,
    Kind::Prefix,
    Kind::OneLost,
    Kind::MetadataOnly,
    Kind::DataOnly,
    Kind::Names,
];

/// Where names have just changed; few moments, each worth a closer look.
pub const DRAWN_AT_NAMES: [Kind; 4] = [Kind::Calls, Kind::LastOnly, Kind::OneLost, Kind::Names];

/// What is left of one change.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fate {
    data: Data,
    /// The name, or the length; for a write, whether it may make the file longer.
    meta: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Data {
    Lost,
    Whole,
    /// By sectors of the file, from the one in which the write begins.
    Sectors(Vec<bool>),
}

const LOST: Fate = Fate {
    data: Data::Lost,
    meta: false,
};
const WHOLE: Fate = Fate {
    data: Data::Whole,
    meta: true,
};

fn whole_if(kept: bool) -> Fate {
    if kept { WHOLE } else { LOST }
}

/// One state of this kind.
pub fn state(disk: &Disk, kind: Kind, random: &mut StdRng) -> Tree {
    let fates = fates(&disk.pending, kind, random);
    let mut bodies = disk.durable.clone();
    for (pending, fate) in disk.pending.iter().zip(&fates) {
        leave(&mut bodies[pending.inode], &pending.change, fate);
    }
    tree(&bodies, ROOT)
}

fn fates(pending: &[Pending], kind: Kind, random: &mut StdRng) -> Vec<Fate> {
    let count = pending.len();
    let is_write = |change: &Change| matches!(change, Change::Write { .. });
    let is_name = |change: &Change| matches!(change, Change::Link { .. } | Change::Unlink { .. });
    let chance = [0.1, 0.5, 0.9][random.random_range(0..3)];
    let all_data = random.random_bool(0.7);
    let some = random.random_range(0..=count);
    let links = pending
        .iter()
        .enumerate()
        .filter(|(_, pending)| matches!(pending.change, Change::Link { .. }));
    let links: Vec<usize> = links.map(|(index, _)| index).collect();
    let one = match links.choose(random) {
        Some(link) if random.random_bool(0.5) => *link,
        _ => random.random_range(0..count.max(1)),
    };
    let last_write = pending.iter().rposition(|pending| is_write(&pending.change));
    let last = count.saturating_sub(random.random_range(1..=3));
    let fate = |(index, Pending { change, .. }): (usize, &Pending)| match kind {
        Kind::Dropped => LOST,
        Kind::Kept => WHOLE,
        Kind::Calls => whole_if(random.random_bool(chance)),
        Kind::Pages if is_write(change) => Fate {
            data: pages(change, chance, random),
            meta: random.random_bool(0.8),
        },
        Kind::Pages => whole_if(random.random_bool(0.5)),
        Kind::LastTorn if Some(index) == last_write => Fate {
            data: torn(change, random),
            meta: random.random_bool(0.5),
        },
        Kind::LastTorn => WHOLE,
        Kind::LastOnly => whole_if(index >= last),
        Kind::Prefix => whole_if(index < some),
        Kind::OneLost => whole_if(index != one),
        Kind::MetadataOnly => Fate {
            data: Data::Lost,
            meta: true,
        },
        Kind::DataOnly => Fate {
            data: Data::Whole,
            meta: false,
        },
        Kind::Names if is_name(change) => whole_if(random.random_bool(0.5)),
        Kind::Names => whole_if(all_data),
    };
    pending.iter().enumerate().map(fate).collect()
}

/// The sectors a write touches, counted from the first; the offset of that one.
fn sectors(change: &Change) -> (u64, usize) {
    let Change::Write { offset, bytes } = change else { return (0, 0) };
    let first = offset / SECTOR * SECTOR;
    (first, (offset + bytes.len() as u64 - first).div_ceil(SECTOR) as usize)
}

fn pages(change: &Change, chance: f64, random: &mut StdRng) -> Data {
    let (first, count) = sectors(change);
    let (mut page, mut kept, mut torn) = (u64::MAX, false, false);
    let sector = |index| {
        let at = (first + index as u64 * SECTOR) / PAGE;
        if at != page {
            (page, kept, torn) = (at, random.random_bool(chance), random.random_ratio(1, 8));
        }
        if torn { random.random_bool(0.5) } else { kept }
    };
    Data::Sectors((0..count).map(sector).collect())
}

/// Torn once somewhere, with either part left, or full of holes.
fn torn(change: &Change, random: &mut StdRng) -> Data {
    let (_, count) = sectors(change);
    let (at, way) = (random.random_range(0..=count), random.random_range(0..3));
    let sector = |index| match way {
        0 => index < at,
        1 => index >= at,
        _ => random.random_bool(0.5),
    };
    Data::Sectors((0..count).map(sector).collect())
}

fn leave(body: &mut Body, change: &Change, fate: &Fate) {
    let Change::Write { offset, bytes } = change else {
        if fate.meta {
            body.apply(change);
        }
        return;
    };
    let Body::File(file) = body else {
        panic!("bytes are written to files")
    };
    if *fate == LOST {
        return;
    }
    let file = Arc::make_mut(file);
    let (start, end) = (*offset as usize, *offset as usize + bytes.len());
    if fate.meta {
        file.resize(file.len().max(end), 0);
    }
    let end = end.min(file.len());
    let mut put = |from: usize, to: usize| {
        let (from, to) = (from.max(start), to.min(end));
        if from < to {
            file[from..to].copy_from_slice(&bytes[from - start..to - start]);
        }
    };
    match &fate.data {
        Data::Lost => {}
        Data::Whole => put(start, end),
        Data::Sectors(kept) => {
            let (first, _) = sectors(change);
            for (index, _) in kept.iter().enumerate().filter(|(_, kept)| **kept) {
                let from = first as usize + index * SECTOR as usize;
                put(from, from + SECTOR as usize);
            }
        }
    }
}

#[test]
fn a_torn_write_is_old_or_new_by_sectors() {
    use super::model::Disk;
    use rand::SeedableRng;
    use std::collections::{BTreeMap, HashSet};
    let old = Arc::new(vec![b'o'; 2000]);
    let mut disk = Disk::holding(&Tree::Dir(BTreeMap::from([("f".to_owned(), Tree::File(old))])));
    let write = Change::Write {
        offset: 600,
        bytes: Arc::new(vec![b'n'; 3000]),
    };
    disk.change(1, write);
    let mut random = StdRng::seed_from_u64(1);
    let mut seen = HashSet::new();
    for kind in [Kind::LastTorn, Kind::Pages, Kind::MetadataOnly, Kind::DataOnly].repeat(200) {
        let Tree::Dir(entries) = state(&disk, kind, &mut random) else {
            panic!("the root is a directory")
        };
        let Tree::File(file) = &entries["f"] else { panic!("f is a file") };
        assert!([2000, 3600].contains(&file.len()), "{} bytes", file.len());
        assert!(file[..600].iter().all(|byte| *byte == b'o'));
        // Within a sector all is of one kind; behind the old end there are zeros instead of old bytes.
        for (at, pair) in (600..).zip(file[600..].windows(2)) {
            let border = (at + 1) % 512 == 0 || at + 1 == 2000;
            assert!(pair[0] == pair[1] || border, "torn at {at}");
        }
        seen.insert(file.as_ref().clone());
    }
    let whole = [vec![b'o'; 600], vec![b'n'; 3000]].concat();
    let length_only = [vec![b'o'; 2000], vec![0; 1600]].concat();
    let short = [vec![b'o'; 600], vec![b'n'; 1400]].concat();
    assert!(seen.contains(&length_only) && seen.contains(&short) && seen.len() > 20);
    let mut one = |kind| match state(&disk, kind, &mut random) {
        Tree::Dir(entries) => entries["f"].clone(),
        Tree::File(_) => panic!("the root is a directory"),
    };
    assert_eq!(one(Kind::Kept), Tree::File(Arc::new(whole)));
    assert_eq!(one(Kind::Dropped), Tree::File(Arc::new(vec![b'o'; 2000])));
}
