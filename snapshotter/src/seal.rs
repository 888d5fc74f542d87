//! The seal of a golden image: a keyed hash with a key that is kept outside of the store.
//!
//! Checksums find damage; whoever alters a file on purpose computes them again. The seal is the
//! blake3 MAC of a manifest and its working set. A manifest pins chunk tables, base disk and disk
//! delta by hash, so the seal covers all of a golden image.

use crate::db::seal_key;
use crate::schema::Table;
use crate::transaction::Transaction;
use crate::{Digest, Error, GoldenName, Manifest, Result, Store};
use rand::TryRng;
use rand::rngs::SysRng;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Bytes of a key file: 64 hexadecimal digits and an end of line.
const FILE_LEN: u64 = 65;
/// Separates the uses of one key, see `blake3::derive_key`.
const MANIFEST_CONTEXT: &str = "mayfly 2026 seal of a golden image";
const NOTE_CONTEXT: &str = "mayfly 2026 seal of a note";

/// The secret key of a host. Never printed.
#[derive(Clone)]
pub struct SealKey {
    key: [u8; 32],
    path: PathBuf,
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealKey").field("path", &self.path).finish_non_exhaustive()
    }
}

impl SealKey {
    /// Reads the key file at `path`.
    ///
    /// # Errors
    /// [`Error::NoSealKey`] when there is none, [`Error::BadSealKey`] when it is no key, or
    /// somebody else than its owner, who must be root or this user, may read or write it.
    pub fn load(path: &Path) -> Result<Self> {
        // A pipe in its place must not make anyone wait.
        let file =
            match OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(Error::NoSealKey { path: path.to_owned() });
                }
                Err(error) => return Err(bad(path, error)),
            };
        let metadata = file.metadata().map_err(|e| bad(path, e))?;
        if !metadata.is_file() {
            return Err(bad(path, "it is no regular file"));
        }
        if metadata.mode() & 0o077 != 0 {
            return Err(bad(
                path,
                format!("others than its owner may use it (chmod 600 {})", path.display()),
            ));
        }
        if metadata.uid() != 0 && metadata.uid() != nix::unistd::geteuid().as_raw() {
            return Err(bad(path, "it belongs to another user"));
        }
        let mut text = String::new();
        file.take(FILE_LEN + 1).read_to_string(&mut text).map_err(|e| bad(path, e))?;
        let key: Digest =
            text.trim_end().parse().map_err(|_| bad(path, "it is not 64 hexadecimal digits"))?;
        Ok(Self { key: *key.as_bytes(), path: path.to_owned() })
    }

    /// Reads the key file at `path`, and makes one of 32 random bytes, with mode 0600, when there
    /// is none.
    ///
    /// # Errors
    /// As for [`SealKey::load`], and [`Error::BadSealKey`] when it cannot be made.
    pub fn load_or_create(path: &Path) -> Result<Self> {
        match Self::load(path) {
            Err(Error::NoSealKey { .. }) => {}
            other => return other,
        }
        let mut key = [0; 32];
        SysRng.try_fill_bytes(&mut key).map_err(|e| bad(path, format!("no random bytes: {e}")))?;
        create(path, &Digest::from_bytes(key)).map_err(|e| bad(path, e))?;
        // Another process may have been first.
        Self::load(path)
    }

    /// Returns the path of the file it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The seal of a golden image: of its encoded manifest, and its encoded working set, empty when
    /// there is none.
    pub(crate) fn seal(&self, manifest: &[u8], working_set: &[u8]) -> Digest {
        let mut hasher = self.hasher(MANIFEST_CONTEXT);
        hasher.update(&(manifest.len() as u64).to_le_bytes()).update(manifest).update(working_set);
        hasher.finalize().into()
    }

    /// Whether `found` is [`SealKey::seal`] of these; takes the same time for each wrong one.
    pub(crate) fn is_seal(&self, found: &[u8], manifest: &[u8], working_set: &[u8]) -> bool {
        // blake3's own comparison takes constant time.
        let own = blake3::Hash::from_bytes(*self.seal(manifest, working_set).as_bytes());
        <[u8; 32]>::try_from(found).is_ok_and(|found| own == found)
    }

    /// Computes a hash of `text` that nobody makes without the key, for notes kept where others
    /// might write.
    pub fn note(&self, text: &str) -> Digest {
        self.hasher(NOTE_CONTEXT).update(text.as_bytes()).finalize().into()
    }

    fn hasher(&self, context: &str) -> blake3::Hasher {
        blake3::Hasher::new_keyed(&blake3::derive_key(context, &self.key))
    }
}

impl Store {
    /// Gives the store a key: what it writes from now on is sealed, and [`Store::sealed`] can check
    /// seals.
    pub fn with_seal_key(mut self, key: SealKey) -> Self {
        self.seal_key = Some(key);
        self
    }

    /// Returns the manifest and the working set of golden image `name`, when its seal says that
    /// nobody without the key has altered them.
    ///
    /// # Errors
    /// As [`Store::manifest`]; [`Error::Unsealed`] and [`Error::WrongSeal`]; [`Error::NoSealKey`]
    /// when the store was given no key.
    pub fn sealed(&self, name: &str) -> Result<(Manifest, Vec<u32>)> {
        let _view = self.view_shared();
        let name = GoldenName::new(name)?;
        let key =
            self.seal_key.as_ref().ok_or_else(|| Error::NoSealKey { path: PathBuf::new() })?;
        // Damage is told as damage; what decodes is believed only when the seal fits.
        let golden = self.db.golden(&name)?;
        let seal = golden.seal.ok_or_else(|| Error::Unsealed { golden: name.to_string() })?;
        if key.is_seal(&seal, &golden.encoded_manifest, &golden.encoded_working_set) {
            Ok((golden.manifest, golden.working_set.0))
        } else {
            Err(Error::WrongSeal { golden: name.to_string(), key: key.path.clone() })
        }
    }

    /// Puts the seal of these into `transaction`, or removes an earlier one when the store has no
    /// key.
    pub(crate) fn put_seal(
        &self,
        transaction: &mut Transaction<'_>,
        name: &str,
        manifest: &[u8],
        working_set: &[u8],
    ) {
        match &self.seal_key {
            Some(key) => transaction.put(
                Table::Meta,
                seal_key(name),
                key.seal(manifest, working_set).as_bytes(),
            ),
            None => transaction.delete(Table::Meta, seal_key(name)),
        }
    }
}

/// Writes the key under a passing name and links it, so that no reader finds a part and nobody's
/// key is replaced.
fn create(path: &Path, key: &Digest) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    // Its files have mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    writeln!(file, "{key}")?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Ok(_) => File::open(dir)?.sync_all(),
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error.error),
    }
}

fn bad(path: &Path, reason: impl fmt::Display) -> Error {
    Error::BadSealKey { path: path.to_owned(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_made_once_and_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etc/seal.key");
        assert!(matches!(SealKey::load(&path), Err(Error::NoSealKey { .. })));
        let keys: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..8).map(|_| scope.spawn(|| SealKey::load_or_create(&path).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap().key).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0] && *key != [0; 32]));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o7777, 0o700);
        assert_eq!(
            fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "a passing file is left"
        );
        let shown = format!("{:?}", SealKey::load(&path).unwrap());
        assert!(!shown.contains(&Digest::from_bytes(keys[0]).to_string()), "{shown}");
    }

    #[test]
    fn a_key_that_others_may_read_and_what_is_no_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seal.key");
        SealKey::load_or_create(&path).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o666] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = SealKey::load(&path).unwrap_err().to_string();
            assert!(error.contains("chmod 600"), "{error}");
            SealKey::load_or_create(&path).unwrap_err();
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for text in ["", "00", &"g".repeat(64), &"0".repeat(66)] {
            fs::write(&path, text).unwrap();
            assert!(matches!(SealKey::load(&path), Err(Error::BadSealKey { .. })), "{text:?}");
        }
        assert!(matches!(SealKey::load(dir.path()), Err(Error::BadSealKey { .. })));
    }

    #[test]
    fn a_seal_is_of_one_key_one_manifest_and_one_working_set() {
        let of = |byte| SealKey { key: [byte; 32], path: PathBuf::new() };
        let seal = of(1).seal(b"manifest", b"set");
        assert!(of(1).is_seal(seal.as_bytes(), b"manifest", b"set"));
        assert!(!of(2).is_seal(seal.as_bytes(), b"manifest", b"set"));
        for (manifest, set) in
            [("manifest", ""), ("manifests", "et"), ("manifes", "tset"), ("", "manifestset")]
        {
            assert!(
                !of(1).is_seal(seal.as_bytes(), manifest.as_bytes(), set.as_bytes()),
                "{manifest} {set}"
            );
        }
        assert!(!of(1).is_seal(&seal.as_bytes()[..31], b"manifest", b"set"));
        assert!(!of(1).is_seal(&[], b"manifest", b"set"));
        assert_ne!(of(1).note("a"), of(2).note("a"));
        assert_ne!(of(1).note("a"), of(1).note("b"));
    }
}
