//! Whose rights a helper process has.

use crate::files::Place;
use mayfly_protocol::ByteString;
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use std::io;

/// A user in numbers, as the argument of a helper; root's rights when `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who(Option<(Uid, Gid, Vec<Gid>)>);

/// The argument for root.
const ROOT: &str = "root";

impl Who {
    /// Whose rights count at a place.
    pub fn of(place: &Place) -> Self {
        Self(place.rights().map(|user| (user.uid, user.gid, user.groups.clone())))
    }

    /// Returns whether nothing changes.
    pub fn is_root(&self) -> bool {
        self.0.is_none()
    }

    /// Writes it as `UID:GID:GROUP,GROUP...`.
    pub fn to_argument(&self) -> ByteString {
        let Some((uid, gid, groups)) = &self.0 else { return ROOT.into() };
        let groups: Vec<_> = groups.iter().map(ToString::to_string).collect();
        format!("{uid}:{gid}:{}", groups.join(",")).into()
    }

    /// Reads what [`Who::to_argument`] has written.
    pub fn parse(text: &str) -> io::Result<Self> {
        if text == ROOT {
            return Ok(Self(None));
        }
        let number = |text: &str| text.parse::<u32>().ok();
        let parsed = || {
            let mut parts = text.split(':');
            let (uid, gid) = (number(parts.next()?)?, number(parts.next()?)?);
            let groups = parts.next()?.split(',').filter(|group| !group.is_empty());
            let groups =
                groups.map(|group| number(group).map(Gid::from_raw)).collect::<Option<_>>();
            Some((Uid::from_raw(uid), Gid::from_raw(gid), groups?))
        };
        let bad = || io::Error::new(io::ErrorKind::InvalidInput, format!("{text} is no user"));
        parsed().map(|who| Self(Some(who))).ok_or_else(bad)
    }

    /// Gives up root's rights. The process has one thread.
    pub fn become_for_good(&self) -> io::Result<()> {
        let Some((uid, gid, groups)) = &self.0 else { return Ok(()) };
        setgroups(groups)?;
        setgid(*gid)?;
        Ok(setuid(*uid)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_passes_through_an_argument() {
        for groups in [vec![], vec![Gid::from_raw(7)], vec![Gid::from_raw(7), Gid::from_raw(8)]] {
            let who = Who(Some((Uid::from_raw(1000), Gid::from_raw(1001), groups)));
            assert_eq!(Who::parse(&who.to_argument().to_string()).unwrap(), who);
        }
        assert!(Who::parse(&Who(None).to_argument().to_string()).unwrap().is_root());
        for bad in ["", "1", "1:2", "a:2:", "1:2:x", "-1:2:"] {
            assert!(Who::parse(bad).is_err(), "{bad}");
        }
    }
}
