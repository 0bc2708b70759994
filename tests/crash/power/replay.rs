//! Plays a recording into the model, call by call.
//!
//! Called by `power`. It must never pass over a call that changes a file it follows: one that it does not model is a panic.

use super::model::{Body, Change, Disk, Inode, ROOT, Sync, Tree};
use super::strace::{Arg, Call, Moment, Recording};
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

/// What the process has said so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The last batch that was confirmed, or shown by a store that was opened.
    pub confirmed: u64,
    /// The last batch that was begun.
    pub begun: u64,
    /// A store was opened, ever; and in this session.
    pub ever_open: bool,
    pub open: bool,
}

/// What a moment is in the life of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// A change before the directory was ever served from.
    Creating,
    /// A change while a store that was there is opened.
    Opening,
    /// A change while batches are committed or the store is closed.
    Writing,
    /// A sync is about to return.
    Syncing,
    /// A batch has just been confirmed.
    Confirmed,
}

/// What a process has under a descriptor; copies of the descriptor share it.
struct Open {
    inode: Inode,
    offset: Cell<u64>,
    append: bool,
}

/// A call that has begun.
#[derive(Default)]
struct Flight {
    changes: Vec<u64>,
    sync: Option<Sync>,
    opens: Option<Rc<Open>>,
}

pub struct Replay {
    root: PathBuf,
    pub disk: Disk,
    pub progress: Progress,
    descriptors: HashMap<i64, Rc<Open>>,
    flights: HashMap<usize, Flight>,
    /// Whether the file system does what a process asks of it with DIRSYNC.
    heeds_dirsync: bool,
    /// Directories whose names are durable as soon as they have changed.
    at_once: HashSet<Inode>,
}

impl Replay {
    /// Of processes that begin with `tree` at `root`; `progress` is what earlier ones said.
    pub fn new(root: &Path, tree: &Tree, progress: Progress, heeds_dirsync: bool) -> Replay {
        Replay {
            heeds_dirsync,
            at_once: HashSet::new(),
            root: root.to_owned(),
            disk: Disk::holding(tree),
            progress,
            descriptors: HashMap::new(),
            flights: HashMap::new(),
        }
    }

    /// The next process begins; the one before has ended.
    pub fn next_session(&mut self) {
        self.descriptors.clear();
        self.flights.clear();
        self.progress.open = false;
    }

    /// What a crash right before this moment would interrupt; `None` for moments that change nothing.
    pub fn phase(&self, recording: &Recording, moment: &Moment) -> Option<Phase> {
        let Moment::End(index) = moment else { return None };
        if announced(&recording.calls[*index]).is_some_and(|(word, _)| word == "confirmed") {
            return Some(Phase::Confirmed);
        }
        let flight = self
            .flights
            .get(index)
            .filter(|flight| !flight.changes.is_empty() || flight.sync.is_some())?;
        Some(match (self.progress, flight) {
            (Progress { ever_open: false, .. }, _) => Phase::Creating,
            (Progress { open: false, .. }, _) => Phase::Opening,
            (_, Flight { sync: Some(_), .. }) => Phase::Syncing,
            _ => Phase::Writing,
        })
    }

    /// Whether the call that ends now has changed a name or synced names.
    pub fn is_of_names(&self, moment: &Moment) -> bool {
        let Moment::End(index) = moment else { return false };
        let Some(flight) = self.flights.get(index) else { return false };
        let is_dir = |inode: Inode| matches!(self.disk.seen[inode], Body::Dir(_));
        let pending = self.disk.pending.iter().filter(|pending| flight.changes.contains(&pending.number));
        pending
            .map(|pending| pending.inode)
            .chain(flight.sync.iter().map(Sync::inode))
            .any(is_dir)
    }

    pub fn pass(&mut self, recording: &Recording, moment: &Moment) {
        match moment {
            Moment::Begin(index) => {
                let flight = self.begin(&recording.calls[*index]);
                self.flights.insert(*index, flight);
            }
            Moment::End(index) => {
                let flight = self.flights.remove(index).expect("a call begins before it ends");
                self.end(&recording.calls[*index], &flight);
            }
        }
    }

    fn end(&mut self, call: &Call, flight: &Flight) {
        self.disk.completed(&flight.changes);
        let of_this = self.disk.pending.iter().filter(|pending| flight.changes.contains(&pending.number));
        let at_once: Vec<_> = of_this
            .map(|pending| pending.inode)
            .filter(|dir| self.at_once.contains(dir))
            .collect();
        for dir in at_once {
            self.disk.sync_returned(&self.disk.sync_begins(dir));
        }
        if let (Some(sync), Some(0)) = (&flight.sync, call.result) {
            self.disk.sync_returned(sync);
        }
        if let (Some(open), Some(descriptor @ 0..)) = (&flight.opens, call.result) {
            self.descriptors.insert(descriptor, Rc::clone(open));
        }
    }

    fn begin(&mut self, call: &Call) -> Flight {
        let mut flight = Flight::default();
        if let Some((word, batch)) = announced(call) {
            self.hear(word, batch);
            return flight;
        }
        // A call that failed has changed nothing.
        if call.result.is_some_and(|result| result < 0) {
            return flight;
        }
        let args = &call.args;
        match call.name.as_str() {
            "open" | "creat" | "openat" | "openat2" => flight = self.open(call),
            "write" | "writev" | "pwrite64" | "pwritev" | "pwritev2" => flight.changes.extend(self.write(call)),
            "ftruncate" => flight
                .changes
                .extend(self.set_length(call, self.inode_at(&args[0]), number(&args[1]))),
            "truncate" => flight
                .changes
                .extend(self.set_length(call, self.found(&at(None, &args[0])), number(&args[1]))),
            "fallocate" => flight.changes.extend(self.allocate(call)),
            "fsync" | "fdatasync" => flight.sync = self.inode_at(&args[0]).map(|inode| self.disk.sync_begins(inode)),
            "rename" => flight.changes = self.rename(call, at(None, &args[0]), at(None, &args[1])),
            "renameat" | "renameat2" => {
                let (from, to) = (at(Some(&args[0]), &args[1]), at(Some(&args[2]), &args[3]));
                assert!(
                    !args.get(4).is_some_and(|flags| flags.text.contains("EXCHANGE")),
                    "not modelled: {call:?}"
                );
                flight.changes = self.rename(call, from, to);
            }
            "unlink" | "rmdir" => flight.changes.extend(self.unlink(call, at(None, &args[0]))),
            "unlinkat" => flight.changes.extend(self.unlink(call, at(Some(&args[0]), &args[1]))),
            "link" => flight.changes.extend(self.link(call, at(None, &args[0]), at(None, &args[1]))),
            "linkat" => flight
                .changes
                .extend(self.link(call, at(Some(&args[0]), &args[1]), at(Some(&args[2]), &args[3]))),
            "mkdir" => flight.changes.extend(self.mkdir(call, at(None, &args[0]))),
            "mkdirat" => flight.changes.extend(self.mkdir(call, at(Some(&args[0]), &args[1]))),
            "close" => drop(self.descriptors.remove(&signed(&args[0]))),
            "dup" => flight.opens = self.descriptors.get(&signed(&args[0])).cloned(),
            "dup2" | "dup3" => {
                self.descriptors.remove(&signed(&args[1]));
                flight.opens = self.descriptors.get(&signed(&args[0])).cloned();
            }
            "fcntl" if args[1].text.starts_with("F_DUPFD") => flight.opens = self.descriptors.get(&signed(&args[0])).cloned(),
            "lseek" | "read" | "readv" => self.seek(call),
            "ioctl" if self.heeds_dirsync && args[1].text == "FS_IOC_SETFLAGS" && args[2].text.contains("FS_DIRSYNC_FL") => {
                self.at_once.extend(self.inode_at(&args[0]));
            }
            _ => self.refuse_change(call),
        }
        flight
    }

    fn hear(&mut self, word: &str, batch: u64) {
        let progress = &mut self.progress;
        match word {
            "begun" => progress.begun = progress.begun.max(batch),
            "confirmed" => progress.confirmed = progress.confirmed.max(batch),
            "opened" => {
                // What has been shown to anyone must stay, confirmed by the process before or not.
                progress.confirmed = progress.confirmed.max(batch);
                (progress.open, progress.ever_open) = (true, true);
            }
            other => panic!("the process says {other}"),
        }
    }

    fn open(&mut self, call: &Call) -> Flight {
        let args = &call.args;
        let (path, flags) = match call.name.as_str() {
            "open" => (at(None, &args[0]), args[1].text.clone()),
            "creat" => (at(None, &args[0]), "O_WRONLY|O_CREAT|O_TRUNC".to_owned()),
            _ => (at(Some(&args[0]), &args[1]), args[2].text.clone()),
        };
        let mut flight = Flight::default();
        if self.place(&path).is_none() {
            return flight;
        }
        assert!(!flags.contains("O_TMPFILE") && call.result.is_some(), "not modelled: {call:?}");
        let inode = self.found(&path).unwrap_or_else(|| {
            assert!(flags.contains("O_CREAT"), "opened, but not there: {call:?}");
            let target = self.disk.make(Body::File(Arc::default()));
            flight.changes.push(self.name(&path, target));
            target
        });
        if flags.contains("O_TRUNC") && self.disk.length(inode) > 0 {
            flight.changes.push(self.disk.change(inode, Change::Length(0)));
        }
        let open = Open {
            inode,
            offset: Cell::new(0),
            append: flags.contains("O_APPEND"),
        };
        flight.opens = Some(Rc::new(open));
        flight
    }

    fn write(&mut self, call: &Call) -> Option<u64> {
        let open = Rc::clone(self.descriptors.get(&signed(&call.args[0]))?);
        let Some(length) = call.result else {
            panic!("cut off: {} of inode {}", call.name, open.inode)
        };
        let mut bytes = call.args[1].strings.concat();
        bytes.truncate(length as usize);
        assert_eq!(
            bytes.len(),
            length as usize,
            "bytes are missing: {} of inode {}",
            call.name,
            open.inode
        );
        let offset = match call.name.as_str() {
            "write" | "writev" => {
                let offset = if open.append {
                    self.disk.length(open.inode)
                } else {
                    open.offset.get()
                };
                open.offset.set(offset + bytes.len() as u64);
                offset
            }
            _ => number(&call.args[3]),
        };
        let change = Change::Write {
            offset,
            bytes: Arc::new(bytes),
        };
        Some(self.disk.change(open.inode, change))
    }

    fn set_length(&mut self, call: &Call, inode: Option<Inode>, length: u64) -> Option<u64> {
        let inode = inode?;
        assert!(call.result.is_some(), "cut off: {call:?}");
        Some(self.disk.change(inode, Change::Length(length)))
    }

    fn allocate(&mut self, call: &Call) -> Option<u64> {
        let inode = self.inode_at(&call.args[0])?;
        if call.args[1].text == "FALLOC_FL_KEEP_SIZE" {
            // Space behind the end, or none where the disk is full: neither content nor length.
            return None;
        }
        assert_eq!(call.args[1].text, "0", "not modelled: {call:?}");
        let end = number(&call.args[2]) + number(&call.args[3]);
        let length = self.disk.length(inode).max(end);
        self.set_length(call, Some(inode), length)
    }

    /// Two changes that a power cut can part.
    fn rename(&mut self, call: &Call, from: PathBuf, to: PathBuf) -> Vec<u64> {
        if self.place(&from).is_none() && self.place(&to).is_none() {
            return Vec::new();
        }
        assert!(call.result.is_some(), "cut off: {call:?}");
        let target = self.found(&from).unwrap_or_else(|| panic!("not there: {call:?}"));
        vec![self.name(&to, target), self.unname(&from)]
    }

    fn link(&mut self, call: &Call, from: PathBuf, to: PathBuf) -> Option<u64> {
        self.place(&to)?;
        assert!(call.result.is_some(), "cut off: {call:?}");
        let target = self.found(&from).unwrap_or_else(|| panic!("not there: {call:?}"));
        Some(self.name(&to, target))
    }

    fn unlink(&mut self, call: &Call, path: PathBuf) -> Option<u64> {
        self.place(&path)?;
        assert!(call.result.is_some(), "cut off: {call:?}");
        Some(self.unname(&path))
    }

    fn mkdir(&mut self, call: &Call, path: PathBuf) -> Option<u64> {
        self.place(&path)?;
        assert!(call.result.is_some(), "cut off: {call:?}");
        let target = self.disk.make(Body::Dir(BTreeMap::new()));
        Some(self.name(&path, target))
    }

    fn seek(&mut self, call: &Call) {
        if let (Some(open), Some(result)) = (self.descriptors.get(&signed(&call.args[0])), call.result) {
            let before = if call.name == "lseek" { 0 } else { open.offset.get() };
            open.offset.set(before + result.cast_unsigned());
        }
    }

    /// The calls that are left change nothing, or not the files that are followed.
    fn refuse_change(&self, call: &Call) {
        let follows = |index: usize| self.descriptors.contains_key(&signed(&call.args[index]));
        let says = |index: usize, words: &[&str]| words.iter().any(|word| call.args[index].text.contains(word));
        let harmless = match call.name.as_str() {
            "sync_file_range" | "fcntl" | "execve" | "mremap" => true,
            // What strace says of a thread that was killed before it could look what it began.
            "???" => call.result.is_none(),
            "mmap" => signed(&call.args[4]) < 0 || !follows(4) || !says(2, &["PROT_WRITE"]) || !says(3, &["MAP_SHARED"]),
            "ioctl" => !follows(0) || says(1, &["FS_IOC_GETFLAGS", "FS_IOC_SETFLAGS", "FIOCLEX", "TCGETS"]),
            "sendfile" => !follows(0),
            "copy_file_range" | "splice" => !follows(2),
            "symlink" | "mknod" => self.place(&at(None, call.args.last().expect("it has a path"))).is_none(),
            _ => false,
        };
        assert!(harmless, "not modelled: {call:?}");
    }

    fn inode_at(&self, descriptor: &Arg) -> Option<Inode> {
        self.descriptors.get(&signed(descriptor)).map(|open| open.inode)
    }

    fn name(&mut self, path: &Path, target: Inode) -> u64 {
        let (dir, name) = self.entry(path);
        self.disk.change(dir, Change::Link { name, target })
    }

    fn unname(&mut self, path: &Path) -> u64 {
        let (dir, name) = self.entry(path);
        self.disk.change(dir, Change::Unlink { name })
    }

    /// The directory that holds the last name of a path, and that name.
    fn entry(&self, path: &Path) -> (Inode, String) {
        let parent = path.parent().and_then(|parent| self.found(parent));
        let name = path.file_name().expect("changed paths end with a name");
        let name = name.to_str().expect("names are text").to_owned();
        (
            parent.unwrap_or_else(|| panic!("the directory of {} is not there", path.display())),
            name,
        )
    }

    fn found(&self, path: &Path) -> Option<Inode> {
        let (start, rest) = self.place(path)?;
        rest.components().try_fold(start, |dir, component| match component {
            Component::Normal(name) => self.disk.entries(dir).get(name.to_str()?).copied(),
            Component::CurDir => Some(dir),
            other => panic!("not modelled: {other:?} in {}", path.display()),
        })
    }

    /// From which followed directory a path leads on, and how; `None` for paths that lead elsewhere.
    fn place<'a>(&self, path: &'a Path) -> Option<(Inode, &'a Path)> {
        if let Ok(rest) = path.strip_prefix(&self.root) {
            return Some((ROOT, rest));
        }
        let mut components = path.components();
        let descriptor = components.next()?.as_os_str().to_str()?.strip_prefix("fd:")?.parse().ok()?;
        Some((self.descriptors.get(&descriptor)?.inode, components.as_path()))
    }
}

/// A path as a call names it; one below an open directory begins with `fd:` and its descriptor.
fn at(dir: Option<&Arg>, path: &Arg) -> PathBuf {
    let path = Path::new(std::str::from_utf8(&path.strings[0]).expect("paths are text"));
    match dir {
        Some(dir) if dir.text != "AT_FDCWD" => Path::new(&format!("fd:{}", dir.text)).join(path),
        _ => path.to_owned(),
    }
}

fn signed(arg: &Arg) -> i64 {
    arg.text.parse().unwrap_or_else(|_| panic!("{arg:?} is no number"))
}

fn number(arg: &Arg) -> u64 {
    signed(arg).cast_unsigned()
}

/// `word batch` on standard output.
fn announced(call: &Call) -> Option<(&str, u64)> {
    if call.name != "write" || call.args[0].text != "1" {
        return None;
    }
    let line = std::str::from_utf8(call.args[1].strings.first()?).ok()?;
    let (word, batch) = line.strip_suffix('\n')?.split_once(' ')?;
    Some((word, batch.parse().ok()?)).filter(|(word, _)| ["begun", "confirmed", "opened"].contains(word))
}

#[cfg(test)]
mod tests {
    use super::super::states::{Kind, state};
    use super::super::strace;
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    /// The trees that may be left after these calls, as `path=content` lists; directories end with a slash.
    fn left(calls: &str, kind: Kind) -> HashSet<String> {
        left_on(calls, kind, false)
    }

    fn left_on(calls: &str, kind: Kind, heeds_dirsync: bool) -> HashSet<String> {
        let recording = strace::read(calls.as_bytes());
        let mut replay = Replay::new(Path::new("/r"), &Tree::empty(), Progress::default(), heeds_dirsync);
        for moment in &recording.moments {
            replay.pass(&recording, moment);
        }
        let mut random = StdRng::seed_from_u64(7);
        (0..100).map(|_| shown("", &state(&replay.disk, kind, &mut random))).collect()
    }

    fn shown(path: &str, tree: &Tree) -> String {
        match tree {
            Tree::File(bytes) => format!("{path}={} ", String::from_utf8_lossy(bytes)),
            Tree::Dir(entries) => {
                let inner: String = entries.iter().map(|(name, tree)| shown(&format!("{path}/{name}"), tree)).collect();
                format!("{path}/ {inner}")
            }
        }
    }

    fn one(tree: &str) -> HashSet<String> {
        HashSet::from([tree.to_owned()])
    }

    #[test]
    fn names_of_a_directory_are_durable_at_once_where_the_file_system_can() {
        let calls = "1 openat(AT_FDCWD, \"/r\", O_RDONLY|O_DIRECTORY) = 4\n\
                     1 openat(AT_FDCWD, \"/r/a\", O_WRONLY|O_CREAT, 0666) = 3\n\
                     1 ioctl(4, FS_IOC_SETFLAGS, [FS_DIRSYNC_FL|FS_EXTENT_FL]) = 0\n\
                     1 openat(AT_FDCWD, \"/r/b\", O_WRONLY|O_CREAT, 0666) = 5\n\
                     1 write(5, \"one\", 3) = 3\n\
                     1 rename(\"/r/b\", \"/r/c\") = 0\n";
        assert_eq!(left_on(calls, Kind::Dropped, true), one("/ /a= /c= "));
        assert_eq!(left_on(calls, Kind::Dropped, false), one("/ "));
        let refused = calls.replace("FS_EXTENT_FL]) = 0", "FS_EXTENT_FL]) = -1 ENOTTY (not here)");
        assert_eq!(left_on(&refused, Kind::Dropped, true), one("/ "));
    }

    #[test]
    fn only_a_sync_of_the_right_inode_makes_durable() {
        let mut calls = String::from(
            "1 mkdir(\"/r/d\", 0777) = 0\n\
             1 openat(AT_FDCWD, \"/r/d/a\", O_WRONLY|O_CREAT|O_CLOEXEC, 0666) = 3\n\
             1 write(3, \"one\", 3) = 3\n\
             1 sync_file_range(3, 0, 3, SYNC_FILE_RANGE_WRITE) = 0\n\
             1 fsync(3) = 0\n",
        );
        assert_eq!(left(&calls, Kind::Dropped), one("/ "));
        assert_eq!(left(&calls, Kind::Kept), one("/ /d/ /d/a=one "));
        calls += "1 openat(AT_FDCWD, \"/r\", O_RDONLY|O_DIRECTORY) = 4\n1 fsync(4) = 0\n";
        assert_eq!(left(&calls, Kind::Dropped), one("/ /d/ "));
        calls += "1 close(4) = 0\n1 openat(AT_FDCWD, \"/r/d\", O_RDONLY|O_DIRECTORY) = 4\n1 fsync(4) = 0\n";
        assert_eq!(left(&calls, Kind::Dropped), one("/ /d/ /d/a=one "));
        calls += "1 write(3, \"two\", 3) = 3\n1 fdatasync(4) = 0\n1 fdatasync(3) = -1 EIO (Input/output error)\n";
        assert_eq!(left(&calls, Kind::Dropped), one("/ /d/ /d/a=one "));
        assert_eq!(left(&calls, Kind::MetadataOnly), one("/ /d/ /d/a=one\0\0\0 "));
        assert_eq!(left(&calls, Kind::Kept), one("/ /d/ /d/a=onetwo "));
        calls += "1 fdatasync(3) = 0\n1 renameat(4, \"a\", AT_FDCWD, \"/r/d/b\") = 0\n";
        let parted = [
            "/ /d/ ",
            "/ /d/ /d/a=onetwo ",
            "/ /d/ /d/b=onetwo ",
            "/ /d/ /d/a=onetwo /d/b=onetwo ",
        ];
        assert_eq!(left(&calls, Kind::Names), parted.map(str::to_owned).into());
        assert_eq!(left(&calls, Kind::Kept), one("/ /d/ /d/b=onetwo "));
        calls += "1 fsync(4) = 0\n1 ftruncate(3, 1) = 0\n1 unlinkat(4, \"b\", 0) = 0\n";
        assert_eq!(left(&calls, Kind::Dropped), one("/ /d/ /d/b=onetwo "));
        assert_eq!(left(&calls, Kind::Kept), one("/ /d/ "));
    }

    #[test]
    fn a_write_that_returns_after_the_sync_began_is_not_covered() {
        let calls = "1 openat(AT_FDCWD, \"/r/a\", O_RDWR|O_CREAT, 0666) = 3\n\
                     1 openat(AT_FDCWD, \"/r\", O_RDONLY) = 4\n\
                     1 fsync(4) = 0\n\
                     1 pwrite64(3, \"x\", 1, 0) = 1\n\
                     2 pwrite64(3, \"y\", 1, 1 <unfinished ...>\n\
                     1 fdatasync(3 <unfinished ...>\n\
                     2 <... pwrite64 resumed>) = 1\n\
                     1 <... fdatasync resumed>) = 0\n";
        assert_eq!(left(calls, Kind::Dropped), one("/ /a=x "));
        assert_eq!(left(calls, Kind::Kept), one("/ /a=xy "));
    }

    #[test]
    fn what_is_not_modelled_is_refused() {
        let open = "1 openat(AT_FDCWD, \"/r/a\", O_RDWR|O_CREAT, 0666) = 3\n";
        for call in [
            "mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_SHARED, 3, 0) = 0x7f0000000000",
            "copy_file_range(5, NULL, 3, NULL, 10, 0) = 10",
            "ioctl(3, FICLONE, 5) = 0",
            "io_uring_setup(8, {flags=0}) = 6",
            "symlinkat(\"x\", AT_FDCWD, \"/r/b\") = 0",
            "pwrite64(3, \"x\", 1, 0) = ?",
        ] {
            let calls = format!("{open}1 {call}\n");
            assert!(std::panic::catch_unwind(|| left(&calls, Kind::Kept)).is_err(), "{call}");
        }
        let elsewhere = format!("{open}1 mmap(NULL, 4096, PROT_READ, MAP_SHARED, 3, 0) = 0x7f0000000000\n1 ioctl(5, FICLONE, 6) = 0\n");
        assert_eq!(left(&elsewhere, Kind::Kept), one("/ /a= "));
    }
}
