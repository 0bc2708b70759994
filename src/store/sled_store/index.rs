//! The index of the storage engine, `snap.<lsn>`, kept under a second name while the engine replaces it.
//!
//! Called by `open` before and after the engine is opened. The engine gives a new index its name and removes the old one at once, and syncs
//! the directory never: a power cut can keep the removal and lose the name. Without an index the log cannot be read, so a durable one
//! must be there under some name at every moment.
//!
//! ```text
//! snap.<lsn>               the index; the engine takes the highest
//! snap.<lsn>.generating    half written when an earlier open ended
//! kept.<lsn>               second name of `snap.<lsn>`, from before an open until the new index is durable
//! ```

use crate::store::Error;
use crate::store::directory::{exists, list, sync_dir};
use std::fs;
use std::path::{Path, PathBuf};

const INDEX: &str = "snap.";
const GENERATING: &str = ".generating";
const KEPT: &str = "kept.";

/// Before the engine is opened in `dir`: put the kept index back if the engine's own is lost, and keep the one that is there. Gives it.
///
/// [`Error::Damaged`] if there is neither.
pub(super) fn keep(dir: &Path) -> Result<PathBuf, Error> {
    for path in named(dir, INDEX)?
        .into_iter()
        .filter(|path| path.to_string_lossy().ends_with(GENERATING))
    {
        // The engine takes the newest name, so every open would fail.
        fs::remove_file(&path).map_err(Error::at("remove", &path))?;
    }
    let index = match (named(dir, INDEX)?.pop(), named(dir, KEPT)?.pop()) {
        (Some(index), _) => index,
        (None, Some(kept)) => {
            let index = renamed(&kept, KEPT, INDEX);
            tracing::warn!(file = %index.display(), "the index of the log was lost in a power cut and is put back");
            fs::hard_link(&kept, &index).map_err(Error::at("link to", &index))?;
            index
        }
        (None, None) => {
            return Err(Error::Damaged {
                file: dir.to_owned(),
                what: "its index file, snap.*, is missing, and without it the log cannot be read".to_owned(),
            });
        }
    };
    let kept = renamed(&index, INDEX, KEPT);
    if !exists(&kept)?
        && let Err(error) = fs::hard_link(&index, &kept)
    {
        tracing::debug!(file = %kept.display(), %error, "the file system has no second names");
    }
    sync_dir(dir)?;
    Ok(index)
}

/// The index the engine has now is durable. The removal need not be: a kept one is taken only where there is no other.
pub(super) fn release(dir: &Path) -> Result<(), Error> {
    for path in named(dir, KEPT)? {
        fs::remove_file(&path).map_err(Error::at("remove", &path))?;
    }
    Ok(())
}

/// Files whose names begin so, the highest last: log positions have a fixed number of digits.
fn named(dir: &Path, prefix: &str) -> Result<Vec<PathBuf>, Error> {
    let mut paths = list(dir)?;
    paths.retain(|path| {
        path.file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(prefix.as_bytes()))
    });
    paths.sort();
    Ok(paths)
}

fn renamed(path: &Path, from: &str, to: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(name.replacen(from, to, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let name = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        named(dir, "").unwrap().into_iter().map(name).collect()
    }

    #[test]
    fn one_index_is_there_at_every_moment() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        assert!(matches!(keep(dir.path()), Err(Error::Damaged { .. })));
        fs::write(path("snap.0A"), "a").unwrap();
        fs::write(path("snap.0B.generating"), "half").unwrap();
        assert_eq!(keep(dir.path()).unwrap(), path("snap.0A"));
        assert_eq!(names(dir.path()), ["kept.0A", "snap.0A"]);
        // What a power cut in the engine's open may leave.
        fs::remove_file(path("snap.0A")).unwrap();
        assert_eq!(keep(dir.path()).unwrap(), path("snap.0A"));
        assert_eq!(fs::read(path("snap.0A")).unwrap(), b"a");
        // What the engine leaves when it comes through.
        fs::write(path("snap.0B"), "b").unwrap();
        fs::remove_file(path("snap.0A")).unwrap();
        release(dir.path()).unwrap();
        assert_eq!(names(dir.path()), ["snap.0B"]);
        // A removal that was lost.
        fs::write(path("kept.0A"), "a").unwrap();
        assert_eq!(keep(dir.path()).unwrap(), path("snap.0B"));
    }
}
