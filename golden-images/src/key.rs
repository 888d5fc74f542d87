//! The identity of a build: a digest of everything that goes into it.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::error::{Error, IoContext as _};
use crate::recipe::{ImageSource, Recipe};
use crate::{bootstrap, cmdline, disk, rootfs};

/// Changes when the builder makes something else from the same inputs in a way that no other part
/// of the key shows.
const BUILDER_VERSION: &str = "mayfly boot artifacts 2";

/// Digest (blake3) over a recipe, the content of the files it names, the guest agent and the
/// builder's own templates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BuildKey(blake3::Hash);

impl fmt::Display for BuildKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_hex())
    }
}

impl BuildKey {
    /// Returns the digest's bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// Parses the 64 hex digits that `to_string` writes; `None` when `text` is anything else.
    pub fn from_hex(text: &str) -> Option<Self> {
        blake3::Hash::from_hex(text).ok().map(Self)
    }

    /// The key of `recipe` with the agent whose bytes are `agent`.
    pub(crate) fn of(recipe: &Recipe, agent: &[u8]) -> Result<Self, Error> {
        let mut digest = Digest(blake3::Hasher::new());
        digest.part(BUILDER_VERSION.as_bytes());
        digest.part(cmdline::BASE.as_bytes());
        for template in bootstrap::HOOKS.iter().chain(rootfs::TEMPLATES) {
            digest.part(template.as_bytes());
        }
        digest.part(disk::FEATURES.as_bytes());
        let json = serde_json::to_vec(recipe)
            .map_err(std::io::Error::other)
            .context("digest", Path::new("the recipe"))?;
        digest.part(&json);
        digest.part(agent);
        for image in &recipe.docker.images {
            match &image.source {
                ImageSource::Load(path) | ImageSource::Import(path) => digest.file(path)?,
                ImageSource::Build(path) => digest.tree(path)?,
                ImageSource::Files { .. } => {}
            }
        }
        for path in &recipe.hooks.after_restore {
            digest.file(path)?;
        }
        Ok(Self(digest.0.finalize()))
    }
}

/// A digest over parts, each with its length, so that no two lists of parts look the same.
struct Digest(blake3::Hasher);

impl Digest {
    fn part(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn file(&mut self, path: &Path) -> Result<(), Error> {
        let mut inner = blake3::Hasher::new();
        inner.update_reader(File::open(path).context("open", path)?).context("read", path)?;
        self.part(inner.finalize().as_bytes());
        Ok(())
    }

    /// Names, types, modes, link targets and contents of a directory tree, in name order.
    fn tree(&mut self, root: &Path) -> Result<(), Error> {
        for entry in walkdir::WalkDir::new(root).min_depth(1).sort_by_file_name() {
            let entry = entry.map_err(std::io::Error::from).context("read", root)?;
            let name = entry.path().strip_prefix(root).unwrap_or(entry.path());
            self.part(name.as_os_str().as_encoded_bytes());
            let meta =
                entry.metadata().map_err(std::io::Error::from).context("look at", entry.path())?;
            self.part(&meta.permissions().mode().to_le_bytes());
            if meta.is_symlink() {
                let target = std::fs::read_link(entry.path()).context("read", entry.path())?;
                self.part(target.as_os_str().as_encoded_bytes());
            } else if meta.is_file() {
                self.file(entry.path())?;
            }
        }
        // Marks the end, so that a tree followed by a file differs from a larger tree.
        self.part(b"end of tree");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str, dir: &Path, agent: &[u8]) -> BuildKey {
        BuildKey::of(&Recipe::parse(text, &dir.join("r.toml")).expect("valid"), agent)
            .expect("readable")
    }

    #[test]
    fn every_input_changes_the_key_and_nothing_else_does() {
        let dir = tempfile::tempdir().expect("temp dir");
        std::fs::create_dir(dir.path().join("context")).expect("made");
        std::fs::write(dir.path().join("context/Dockerfile"), "FROM scratch").expect("written");
        std::fs::write(dir.path().join("image.tar"), "one").expect("written");
        let text = "name = \"x\"\n[docker]\nenabled = true\n[[docker.image]]\ntag = \"a\"\nload = \"image.tar\"\n\
            [[docker.image]]\ntag = \"b\"\nbuild = \"context\"\n";
        let first = key(text, dir.path(), b"agent");
        assert_eq!(first, key(&format!("# a comment\n{text}"), dir.path(), b"agent"));
        assert_eq!(BuildKey::from_hex(&first.to_string()), Some(first));
        assert_ne!(first, key(text, dir.path(), b"other agent"));
        assert_ne!(first, key(&text.replace("\"x\"", "\"y\""), dir.path(), b"agent"));
        assert_ne!(first, key(&text.replace("load", "import"), dir.path(), b"agent"));
        std::fs::write(dir.path().join("image.tar"), "two").expect("written");
        let second = key(text, dir.path(), b"agent");
        assert_ne!(first, second);
        std::fs::write(dir.path().join("context/extra"), "").expect("written");
        assert_ne!(second, key(text, dir.path(), b"agent"));
    }
}
