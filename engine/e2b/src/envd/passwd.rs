//! Users of a guest, by its passwd(5).

/// Returns the home of a user, by name or number, of the lines of `/etc/passwd`. The last line may
/// be cut.
pub fn home_of(passwd: &[u8], user: &str) -> Option<String> {
    if user.is_empty() {
        return None;
    }
    let fields = |line: &'_ [u8]| -> Option<(Vec<u8>, Vec<u8>, Vec<u8>)> {
        let mut fields = line.split(|byte| *byte == b':');
        let (name, number) = (fields.next()?, fields.nth(1)?);
        let home = fields.nth(2)?;
        // A shell follows; without it the line was cut, maybe in the home.
        fields.next()?;
        Some((name.to_vec(), number.to_vec(), home.to_vec()))
    };
    let users = || passwd.split(|byte| *byte == b'\n').filter_map(fields);
    let by_name = users().find(|(name, ..)| name == user.as_bytes());
    let found = by_name.or_else(|| users().find(|(_, number, _)| number == user.as_bytes()));
    found.and_then(|(_, _, home)| String::from_utf8(home).ok())
}

/// Returns a path with the user's home in its place: for a relative one, for `~` and `~/x`.
pub fn absolute(path: &str, home: &str) -> String {
    let home = home.trim_end_matches('/');
    match path {
        "" | "~" if home.is_empty() => "/".to_owned(),
        "" | "~" => home.to_owned(),
        _ if path.starts_with('/') => path.to_owned(),
        _ => format!("{home}/{}", path.strip_prefix("~/").unwrap_or(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] =
        b"root:x:0:0:root:/root:/bin/bash\nbad line\n1000:x:7:7::/seven:/bin/sh\n\
        user:x:1000:1000:,,,:/home/user:/bin/bash\ncut:x:9:9::/ho";

    #[test]
    fn a_user_is_found_by_name_and_then_by_number() {
        let home = |user| home_of(PASSWD, user);
        assert_eq!(home("user").as_deref(), Some("/home/user"));
        assert_eq!(home("0").as_deref(), Some("/root"));
        assert_eq!(home("1000").as_deref(), Some("/seven"));
        for nobody in ["cut", "bad line", "", "us"] {
            assert_eq!(home(nobody), None, "{nobody}");
        }
    }

    #[test]
    fn a_path_starts_from_the_home() {
        for (path, wanted) in [
            ("", "/home/user"),
            ("~", "/home/user"),
            ("~/a", "/home/user/a"),
            ("a/b", "/home/user/a/b"),
            ("/etc", "/etc"),
            ("~x", "/home/user/~x"),
        ] {
            assert_eq!(absolute(path, "/home/user"), wanted, "{path}");
        }
        assert_eq!((absolute("", "/"), absolute("a", "/")), ("/".into(), "/a".into()));
    }
}
