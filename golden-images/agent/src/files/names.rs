//! Names of owners and groups.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;

/// Bytes of /etc/passwd or /etc/group that are read.
const MOST: u64 = 4 << 20;

/// The names in /etc/passwd and /etc/group by their number.
#[derive(Debug, Default)]
pub struct Names {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Names {
    /// Reads both files; what cannot be read has no names.
    pub fn read() -> Self {
        let of = |path| read_database(path).map(|text| parse(&text)).unwrap_or_default();
        Self { users: of("/etc/passwd"), groups: of("/etc/group") }
    }

    /// Returns the login name of a user.
    pub fn user(&self, uid: u32) -> Option<String> {
        self.users.get(&uid).cloned()
    }

    /// Returns the name of a group.
    pub fn group(&self, gid: u32) -> Option<String> {
        self.groups.get(&gid).cloned()
    }
}

/// Reads passwd(5) or group(5), whose text need not be UTF-8.
pub fn read_database(path: &str) -> io::Result<String> {
    let mut bytes = Vec::new();
    // O_NONBLOCK: a guest may have put a named pipe there.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    file.take(MOST).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Name and number are the first and third field of both. Of several lines for a number the first
/// counts, as for getpwuid(3).
fn parse(text: &str) -> HashMap<u32, String> {
    let mut names = HashMap::new();
    for line in text.lines() {
        let mut fields = line.split(':');
        if let (Some(name), Some(id)) = (fields.next(), fields.nth(1))
            && let Ok(id) = id.parse()
        {
            names.entry(id).or_insert_with(|| name.to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_name_of_a_number_counts() {
        let names = parse("root:x:0:0::/root:/bin/sh\ntoor:x:0:0\nbroken\nann:x:1000\n:x:y\n");
        assert_eq!(names.get(&0).map(String::as_str), Some("root"));
        assert_eq!(names.get(&1000).map(String::as_str), Some("ann"));
        assert_eq!(names.len(), 2);
    }
}
