//! Directories of steps and the files that go from the compile step to the tasks, with limits on both sides of the wire.

use crate::wire::fedbroker::v1::InputFile;
use std::collections::BTreeSet;
use std::io;
use std::path::Path;

/// The most bytes a compile step may hand to the tasks: every task carries all of them.
pub(super) const BYTES_MAX: u64 = 64 * 1024 * 1024;
/// The most files.
pub(super) const FILES_MAX: usize = 1000;
/// The longest file name, bytes: the limit of common file systems.
const NAME_MAX: usize = 255;

/// Make an empty directory, whatever was there.
pub(super) async fn clean(dir: &Path) -> io::Result<()> {
    match tokio::fs::remove_dir_all(dir).await {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    tokio::fs::create_dir_all(dir).await
}

/// True for a name that is one plain component of a path.
fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_MAX
        && name != "."
        && name != ".."
        && !name.contains(['/', '\\'])
        && !name.chars().any(char::is_control)
}

/// Check files that came over the wire.
pub(super) fn check(files: &[InputFile]) -> Result<(), String> {
    if files.len() > FILES_MAX {
        return Err(format!("the payload has {} files, at most {FILES_MAX} are taken", files.len()));
    }
    let bytes: u64 = files.iter().map(|f| f.content.len() as u64).sum();
    if bytes > BYTES_MAX {
        return Err(format!("the payload has {bytes} bytes of files, at most {BYTES_MAX} are taken"));
    }
    let mut seen = BTreeSet::new();
    for file in files {
        if !is_plain(&file.name) {
            let shown: String = file.name.chars().take(100).collect();
            return Err(format!("the payload has a file named {shown:?}, not a plain file name"));
        }
        if !seen.insert(&file.name) {
            return Err(format!("the payload has two files named {:?}", file.name));
        }
    }
    Ok(())
}

/// Write checked files into a directory, letting go of each as it is written.
pub(super) async fn write(dir: &Path, files: Vec<InputFile>) -> io::Result<()> {
    for file in files {
        tokio::fs::write(dir.join(&file.name), file.content).await?;
    }
    Ok(())
}

/// Read what a compile step wrote: plain files in the directory itself, in order of name.
pub(super) async fn collect(dir: &Path) -> Result<Vec<InputFile>, String> {
    let unreadable = |e: io::Error| format!("cannot read the compile step's output: {e}");
    let mut names = BTreeSet::new();
    let mut entries = tokio::fs::read_dir(dir).await.map_err(unreadable)?;
    let mut bytes = 0;
    while let Some(entry) = entries.next_entry().await.map_err(unreadable)? {
        let name = entry.file_name().into_string().ok().filter(|n| is_plain(n));
        let name = name.ok_or_else(|| format!("the compile step wrote a file with the name {:?}", entry.file_name()))?;
        // Not followed: a symbolic link could bring any file of this machine into the tasks.
        let meta = entry.metadata().await.map_err(unreadable)?;
        if !meta.is_file() {
            return Err(format!("the compile step wrote {name:?}, which is not a plain file"));
        }
        bytes += meta.len();
        names.insert(name);
        if names.len() > FILES_MAX {
            return Err(format!("the compile step wrote more than {FILES_MAX} files"));
        }
        if bytes > BYTES_MAX {
            return Err(format!("the compile step wrote more than {BYTES_MAX} bytes"));
        }
    }
    let mut files = Vec::with_capacity(names.len());
    for name in names {
        let content = tokio::fs::read(dir.join(&name)).await.map_err(unreadable)?;
        files.push(InputFile { name, content });
    }
    check(&files).map_err(|why| format!("the compile step's output: {why}"))?;
    Ok(files)
}
