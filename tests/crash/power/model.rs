//! What a disk may hold after a power cut, strictly: the least that POSIX promises.
//!
//! Called by `replay` (each call of the recording) and `states` (what may be left). A change of a file's bytes or length is durable when a
//! sync of that file that began after it has returned; a change of a name when one of its directory has. Nothing else makes anything
//! durable, and what is not may be there or not, in any order.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;

/// Number of a file or directory; it keeps it whatever names it has.
pub type Inode = usize;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    File(Arc<Vec<u8>>),
    Dir(BTreeMap<String, Inode>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Write { offset: u64, bytes: Arc<Vec<u8>> },
    Length(u64),
    Link { name: String, target: Inode },
    Unlink { name: String },
}

/// A change that no sync has made durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    pub number: u64,
    pub inode: Inode,
    pub change: Change,
}

/// What a sync covers: all changes of one inode that were complete when it began.
#[derive(Clone, Debug)]
pub struct Sync {
    inode: Inode,
    before: u64,
    without: HashSet<u64>,
}

impl Sync {
    pub fn inode(&self) -> Inode {
        self.inode
    }
}

pub const ROOT: Inode = 0;

/// A file system: as processes see it, as it is durably, and the changes between the two.
#[derive(Clone, Debug)]
pub struct Disk {
    pub seen: Vec<Body>,
    pub durable: Vec<Body>,
    pub pending: Vec<Pending>,
    /// A length was set while a write to the same file was under way: a recording does not tell which came first.
    pub order_unknown: bool,
    incomplete: HashSet<u64>,
    numbers: u64,
}

/// A directory and all in it, by names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tree {
    File(Arc<Vec<u8>>),
    Dir(BTreeMap<String, Tree>),
}

impl Disk {
    /// Everything in `tree` is durable.
    pub fn holding(tree: &Tree) -> Disk {
        let mut bodies = Vec::new();
        add(&mut bodies, tree);
        Disk {
            seen: bodies.clone(),
            durable: bodies,
            pending: Vec::new(),
            order_unknown: false,
            incomplete: HashSet::new(),
            numbers: 0,
        }
    }

    pub fn entries(&self, dir: Inode) -> &BTreeMap<String, Inode> {
        match &self.seen[dir] {
            Body::Dir(entries) => entries,
            Body::File(_) => panic!("inode {dir} is a file"),
        }
    }

    pub fn length(&self, file: Inode) -> u64 {
        match &self.seen[file] {
            Body::File(bytes) => bytes.len() as u64,
            Body::Dir(_) => panic!("inode {file} is a directory"),
        }
    }

    /// A new, empty inode without a name.
    pub fn make(&mut self, body: Body) -> Inode {
        self.seen.push(body.clone());
        self.durable.push(body);
        self.seen.len() - 1
    }

    /// Gives the number of the change, for [`Disk::completed`].
    pub fn change(&mut self, inode: Inode, change: Change) -> u64 {
        let is_length = |change: &Change| matches!(change, Change::Length(_));
        self.order_unknown |= self.pending.iter().any(|other| {
            let meets = other.inode == inode && self.incomplete.contains(&other.number);
            meets && (is_length(&change) || is_length(&other.change))
        });
        self.seen[inode].apply(&change);
        let number = self.numbers;
        self.numbers += 1;
        self.incomplete.insert(number);
        self.pending.push(Pending { number, inode, change });
        number
    }

    /// The call that made these changes has returned.
    pub fn completed(&mut self, numbers: &[u64]) {
        for number in numbers {
            self.incomplete.remove(number);
        }
    }

    pub fn sync_begins(&self, inode: Inode) -> Sync {
        Sync {
            inode,
            before: self.numbers,
            without: self.incomplete.clone(),
        }
    }

    pub fn sync_returned(&mut self, sync: &Sync) {
        let durable = &mut self.durable;
        self.pending.retain(|Pending { number, inode, change }| {
            let covered = *inode == sync.inode && *number < sync.before && !sync.without.contains(number);
            if covered {
                durable[*inode].apply(change);
            }
            !covered
        });
    }

    /// The tree that processes see.
    pub fn seen_tree(&self) -> Tree {
        tree(&self.seen, ROOT)
    }
}

impl Body {
    pub fn apply(&mut self, change: &Change) {
        match (self, change) {
            (Body::File(file), Change::Write { offset, bytes }) => {
                let file = Arc::make_mut(file);
                let (start, end) = (*offset as usize, *offset as usize + bytes.len());
                file.resize(file.len().max(end), 0);
                file[start..end].copy_from_slice(bytes);
            }
            (Body::File(file), Change::Length(length)) => Arc::make_mut(file).resize(*length as usize, 0),
            (Body::Dir(entries), Change::Link { name, target }) => drop(entries.insert(name.clone(), *target)),
            (Body::Dir(entries), Change::Unlink { name }) => drop(entries.remove(name)),
            (body, change) => panic!("{change:?} does not fit {body:?}"),
        }
    }
}

pub fn tree(bodies: &[Body], inode: Inode) -> Tree {
    match &bodies[inode] {
        Body::File(bytes) => Tree::File(Arc::clone(bytes)),
        Body::Dir(entries) => {
            let entries = entries.iter().map(|(name, inode)| (name.clone(), tree(bodies, *inode)));
            Tree::Dir(entries.collect())
        }
    }
}

fn add(bodies: &mut Vec<Body>, tree: &Tree) -> Inode {
    let inode = bodies.len();
    match tree {
        Tree::File(bytes) => bodies.push(Body::File(Arc::clone(bytes))),
        Tree::Dir(entries) => {
            bodies.push(Body::Dir(BTreeMap::new()));
            let entries = entries.iter().map(|(name, tree)| (name.clone(), add(bodies, tree)));
            let entries = entries.collect::<Vec<_>>();
            bodies[inode] = Body::Dir(entries.into_iter().collect());
        }
    }
    inode
}

impl Tree {
    pub fn empty() -> Tree {
        Tree::Dir(BTreeMap::new())
    }

    pub fn read(path: &Path) -> Tree {
        if !path.is_dir() {
            return Tree::File(Arc::new(fs::read(path).unwrap()));
        }
        let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
        let read = |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), Tree::read(&entry.path()));
        Tree::Dir(entries.map(read).collect())
    }

    /// Put it at `path`, which must not be there. Zeros become holes.
    pub fn write(&self, path: &Path) {
        const PAGE: usize = 4096;
        match self {
            Tree::File(bytes) => {
                use std::os::unix::fs::FileExt;
                let file = fs::File::create_new(path).unwrap();
                file.set_len(bytes.len() as u64).unwrap();
                for (number, page) in bytes.chunks(PAGE).enumerate() {
                    if page != &[0; PAGE][..page.len()] {
                        file.write_all_at(page, (number * PAGE) as u64).unwrap();
                    }
                }
            }
            Tree::Dir(entries) => {
                fs::create_dir(path).unwrap();
                for (name, tree) in entries {
                    tree.write(&path.join(name));
                }
            }
        }
    }

    /// Where two trees differ first.
    pub fn difference(&self, other: &Tree) -> Option<String> {
        match (self, other) {
            (Tree::Dir(left), Tree::Dir(right)) => {
                let names = left.keys().chain(right.keys());
                names.into_iter().find_map(|name| match (left.get(name), right.get(name)) {
                    (Some(left), Some(right)) => left.difference(right).map(|what| format!("{name}/{what}")),
                    (left, _) => Some(format!("{name} is {} there", if left.is_some() { "only here" } else { "only" })),
                })
            }
            (Tree::File(left), Tree::File(right)) if left == right => None,
            (Tree::File(left), Tree::File(right)) => {
                let at = left.iter().zip(right.iter()).position(|(left, right)| left != right);
                Some(format!(": {} and {} bytes, first difference at {at:?}", left.len(), right.len()))
            }
            _ => Some(": a file and a directory".to_owned()),
        }
    }
}
