//! The cache of built things: `.cache` in the tree, or where `HALLMARK_CACHE` says.
//!
//! An entry is a directory made under another name and renamed when complete, so that one that is
//! there is whole. Its name holds the version, or a digest of what it was made from.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// The root of the cache.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Opens the cache, making its directory if there is none.
    pub(crate) fn open() -> Result<Self> {
        let root = match std::env::var_os("HALLMARK_CACHE") {
            Some(path) => std::path::absolute(path)?,
            None => source_root().join(".cache"),
        };
        fs::create_dir_all(root.join("log")).with_context(|| format!("make {}", root.display()))?;
        Ok(Self { root })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where the output of a build step goes.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.root.join("log").join(format!("{name}.log"))
    }

    /// The entry `name`, built now if it is missing. Two processes never build at once.
    pub(crate) fn once(
        &self,
        name: &str,
        build: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let entry = self.root.join(name);
        if is_there(&entry) {
            return Ok(entry);
        }
        let _lock = self.lock()?;
        if is_there(&entry) {
            return Ok(entry);
        }
        let started = std::time::Instant::now();
        crate::say(&format!("building {name} (once)"));
        let unfinished = self.root.join(format!("{name}.unfinished"));
        remove_tree(&unfinished)?;
        fs::create_dir_all(&unfinished)?;
        build(&unfinished).with_context(|| format!("build {name}"))?;
        fs::rename(&unfinished, &entry).with_context(|| format!("finish {}", entry.display()))?;
        crate::say(&format!("built {name} in {} s", started.elapsed().as_secs()));
        Ok(entry)
    }

    fn lock(&self) -> Result<File> {
        let file = File::create(self.root.join("lock"))?;
        file.lock().context("lock the cache")?;
        Ok(file)
    }
}

/// The root of the source tree this program was built from.
pub(crate) fn source_root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Whether something is at `path`, followed or not.
pub(crate) fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Removes a tree if it is there.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Hex SHA-256 of some bytes.
pub(crate) fn sha256(bytes: impl AsRef<[u8]>) -> String {
    hex::encode(Sha256::digest(bytes.as_ref()))
}

/// A short name for what an entry is made from.
pub(crate) fn fingerprint(parts: &[&str]) -> String {
    sha256(parts.join("\0"))[..12].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_build_leaves_no_entry_and_the_next_one_works() {
        let root = std::env::temp_dir().join(format!("hallmark-cache-{}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        let cache = Cache { root: root.clone() };
        let failed = cache.once("x-1", |dir| {
            fs::write(dir.join("half"), "")?;
            anyhow::bail!("broken")
        });
        assert!(failed.is_err() && !is_there(&root.join("x-1")));
        let entry = cache.once("x-1", |dir| Ok(fs::write(dir.join("whole"), "")?)).unwrap();
        assert!(is_there(&entry.join("whole")) && !is_there(&entry.join("half")));
        cache.once("x-1", |_| panic!("built twice")).unwrap();
        remove_tree(&root).unwrap();
    }
}
