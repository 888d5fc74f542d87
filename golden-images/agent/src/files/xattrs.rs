//! Extended attributes of users, see xattr(7).

use crate::wire::invalid;
use mayfly_protocol::{
    ByteString, GuestError, MAX_XATTR_BYTES, MAX_XATTRS, Reply, Xattr, XattrSet, Xattrs,
};
use rustix::fs::{self, XattrFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::path::Path;

/// Attributes that belong to users; the others are the kernel's and root's.
const OF_USERS: &[u8] = b"user.";

/// Longest list of names, `XATTR_LIST_MAX` of linux/limits.h.
const LIST: usize = 64 * 1024;

/// Reads the `user.` attributes of a path, not following a last symbolic link.
pub fn read(path: &Path) -> Reply<Xattrs> {
    let mut list = vec![0; LIST];
    let listed = fs::llistxattr(path, &mut list[..]);
    let names = of_users(&list, listed).map_err(|error| failed("list", path, error))?;
    let mut found = Xattrs::default();
    let (mut left, mut value) = (MAX_XATTR_BYTES, vec![0; MAX_XATTR_BYTES]);
    for name in names {
        if found.attributes.len() == MAX_XATTRS {
            found.more = true;
            break;
        }
        match fs::lgetxattr(path, name.as_path(), &mut value[..]) {
            Ok(length) if name.as_bytes().len() + length <= left => {
                left -= name.as_bytes().len() + length;
                found.attributes.push(Xattr { name, value: value[..length].into() });
            }
            Ok(_) | Err(Errno::RANGE) => found.more = true,
            // It went meanwhile, or is not for this user.
            Err(Errno::NODATA | Errno::ACCESS | Errno::PERM | Errno::NOENT) => {}
            Err(error) => return Err(failed("read", path, error)),
        }
    }
    Ok(found)
}

/// Checks a set before anything is written.
pub fn check(set: &XattrSet) -> Reply<()> {
    let bytes: usize = set
        .attributes
        .iter()
        .map(|attribute| attribute.name.as_bytes().len() + attribute.value.as_bytes().len())
        .sum();
    if set.attributes.len() > MAX_XATTRS || bytes > MAX_XATTR_BYTES {
        return Err(invalid(format!(
            "a file gets at most {MAX_XATTRS} extended attributes of {MAX_XATTR_BYTES} bytes"
        )));
    }
    let prefix = set.prefix.as_bytes();
    if !prefix.starts_with(OF_USERS) {
        return Err(invalid(format!(
            "the prefix {} of extended attributes does not begin with user.",
            set.prefix
        )));
    }
    match set.attributes.iter().find(|attribute| !attribute.name.as_bytes().starts_with(prefix)) {
        Some(other) => Err(invalid(format!(
            "the extended attribute {} does not begin with {}",
            other.name, set.prefix
        ))),
        None => Ok(()),
    }
}

/// Makes the attributes of a prefix those of a set. What is as it should be is left alone, so that
/// nobody who watches is told of it.
pub fn replace(file: &File, set: &XattrSet) -> io::Result<()> {
    let mut list = vec![0; LIST];
    let listed = fs::flistxattr(file, &mut list[..]);
    let names = of_users(&list, listed)?;
    let wanted = |name: &ByteString| set.attributes.iter().any(|wanted| wanted.name == *name);
    for name in names {
        if name.as_bytes().starts_with(set.prefix.as_bytes()) && !wanted(&name) {
            fs::fremovexattr(file, name.as_path())?;
        }
    }
    let mut value = vec![0; MAX_XATTR_BYTES];
    for attribute in &set.attributes {
        let (name, wanted) = (attribute.name.as_path(), attribute.value.as_bytes());
        let now = fs::fgetxattr(file, name, &mut value[..]).map(|length| &value[..length]);
        if now != Ok(wanted) {
            fs::fsetxattr(file, name, wanted, XattrFlags::empty())?;
        }
    }
    Ok(())
}

/// The names that belong to users, in order, of a list of names that each end in NUL.
fn of_users(list: &[u8], length: Result<usize, Errno>) -> Result<Vec<ByteString>, Errno> {
    let length = match length {
        // The path is on a file system without attributes.
        Err(Errno::OPNOTSUPP) => 0,
        length => length?,
    };
    let names = list[..length].split(|byte| *byte == 0);
    let mut names: Vec<ByteString> =
        names.filter(|name| name.starts_with(OF_USERS)).map(ByteString::from).collect();
    names.sort_unstable();
    Ok(names)
}

fn failed(what: &str, path: &Path, error: Errno) -> GuestError {
    GuestError::io(format_args!("{what} extended attributes of {}", path.display()), &error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(prefix: &str, attributes: &[(&str, &str)]) -> XattrSet {
        let attributes = attributes
            .iter()
            .map(|(name, value)| Xattr { name: (*name).into(), value: (*value).into() })
            .collect();
        XattrSet { prefix: prefix.into(), attributes }
    }

    #[test]
    fn a_set_that_is_not_its_prefix_is_refused() {
        check(&set("user.a.", &[("user.a.x", "1")])).unwrap();
        check(&set("user.", &[])).unwrap();
        for (prefix, attributes) in [
            ("trusted.", &[][..]),
            ("", &[]),
            ("user.a.", &[("user.b", "1")]),
            ("user.a.", &[("security.x", "1")]),
        ] {
            assert_eq!(check(&set(prefix, attributes)).unwrap_err().errno, libc::EINVAL);
        }
        let long = "x".repeat(MAX_XATTR_BYTES);
        check(&set("user.", &[("user.a", &long)])).unwrap_err();
        check(&set("user.", &vec![("user.a", ""); MAX_XATTRS + 1])).unwrap_err();
    }

    #[test]
    fn attributes_of_a_prefix_are_replaced_as_a_whole() {
        let file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let all = |file: &tempfile::NamedTempFile| {
            let found = read(file.path()).unwrap();
            assert!(!found.more);
            let pair = |xattr: Xattr| (xattr.name.to_string(), xattr.value.to_string());
            found.attributes.into_iter().map(pair).collect::<Vec<_>>()
        };
        replace(file.as_file(), &set("user.", &[("user.other", "o")])).unwrap();
        let first = set("user.m.", &[("user.m.b", "2"), ("user.m.a", "1")]);
        replace(file.as_file(), &first).unwrap();
        replace(file.as_file(), &set("user.m.", &[("user.m.b", "3"), ("user.m.c", "")])).unwrap();
        let pairs = [("user.m.b", "3"), ("user.m.c", ""), ("user.other", "o")];
        assert_eq!(all(&file), pairs.map(|(name, value)| (name.to_owned(), value.to_owned())));
        replace(file.as_file(), &set("user.m.", &[])).unwrap();
        assert_eq!(all(&file).len(), 1);
    }
}
