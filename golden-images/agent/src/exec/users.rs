//! Users and groups from /etc/passwd and /etc/group. A static binary cannot load the C library's
//! name services.

use nix::unistd::{Gid, Uid};
use std::path::PathBuf;

/// Whom a command runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// User id.
    pub uid: Uid,
    /// Group id.
    pub gid: Gid,
    /// Supplementary groups.
    pub groups: Vec<Gid>,
    /// Home directory, `/` when the user has no entry.
    pub home: PathBuf,
    /// Login name, or the number.
    pub name: String,
}

/// Looks up `user`, `uid`, `user:group` or `uid:gid` as of passwd(5) and group(5). A number without
/// an entry is taken as it is, with group 0 unless one is given.
pub fn lookup(spec: &str, passwd: &str, group: &str) -> Result<Credentials, String> {
    let (user, wanted_group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (spec, None),
    };
    // The highest is no id: system calls take it for "as it is" (setresuid(2), chown(2)).
    let number = |text: &str| text.parse::<u32>().ok().filter(|id| *id != u32::MAX);
    let entry = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| {
        fields.len() >= 7
            && (fields[0] == user || (number(user).is_some() && number(fields[2]) == number(user)))
    });
    let mut found = match (&entry, number(user)) {
        (Some(fields), _) => Credentials {
            uid: Uid::from_raw(
                number(fields[2]).ok_or_else(|| format!("bad entry of {user} in /etc/passwd"))?,
            ),
            gid: Gid::from_raw(
                number(fields[3]).ok_or_else(|| format!("bad entry of {user} in /etc/passwd"))?,
            ),
            groups: Vec::new(),
            home: fields[5].into(),
            name: fields[0].into(),
        },
        (None, Some(uid)) => Credentials {
            uid: Uid::from_raw(uid),
            gid: Gid::from_raw(0),
            groups: Vec::new(),
            home: "/".into(),
            name: user.into(),
        },
        (None, None) => return Err(format!("no user {user:?} in the guest's /etc/passwd")),
    };
    let groups = group
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .filter(|fields| fields.len() >= 4);
    let groups: Vec<_> =
        groups.filter_map(|fields| Some((fields[0], number(fields[2])?, fields[3]))).collect();
    if let Some(wanted) = wanted_group {
        let gid = groups
            .iter()
            .find(|(name, ..)| *name == wanted)
            .map(|(_, gid, _)| *gid)
            .or_else(|| number(wanted));
        found.gid = Gid::from_raw(
            gid.ok_or_else(|| format!("no group {wanted:?} in the guest's /etc/group"))?,
        );
        return Ok(found);
    }
    found.groups = groups
        .iter()
        .filter(|(_, _, members)| members.split(',').any(|member| member == found.name))
        .map(|(_, gid, _)| Gid::from_raw(*gid))
        .collect();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/bash\nann:x:1000:1000::/home/ann:/bin/sh\nbroken\n";
    const GROUP: &str = "root:x:0:\ndocker:x:105:ann,bob\nann:x:1000:\nbroken:\n";

    #[test]
    fn names_numbers_and_groups() {
        let ann = lookup("ann", PASSWD, GROUP).unwrap();
        assert_eq!((ann.uid.as_raw(), ann.gid.as_raw()), (1000, 1000));
        assert_eq!(ann.groups, [Gid::from_raw(105)]);
        assert_eq!(lookup("1000", PASSWD, GROUP).unwrap(), ann);
        assert_eq!(lookup("ann:docker", PASSWD, GROUP).unwrap().gid.as_raw(), 105);
        assert_eq!(lookup("77", PASSWD, GROUP).unwrap().gid.as_raw(), 0);
        assert_eq!(lookup("77:88", PASSWD, GROUP).unwrap().gid.as_raw(), 88);
        lookup("nobody-here", PASSWD, GROUP).unwrap_err();
        lookup("ann:nothing", PASSWD, GROUP).unwrap_err();
        lookup("", PASSWD, GROUP).unwrap_err();
    }
}
