//! Names of the API in the words of the command line.

/// Fields of a request for a session, and the options that set them. A longer name comes before one
/// that it begins with.
const OPTIONS: [(&str, &str); 9] = [
    ("idle_timeout_seconds", "--idle"),
    ("ttl_seconds", "--ttl"),
    ("limits.memory_mib", "--memory"),
    ("limits.cpus", "--cpus"),
    ("limits.disk_mib", "--disk"),
    ("limits.io_mib_per_second", "--io"),
    ("egress.allow", "--egress"),
    ("metadata", "--metadata"),
    ("env", "--env"),
];

/// Puts the option in the place of the field with which a message about a request begins.
///
/// `--ttl` and `--idle` are durations, and what may be given is said in seconds.
pub fn named(message: &str) -> String {
    for (field, option) in OPTIONS {
        if let Some(rest) = message.strip_prefix(field)
            && rest.starts_with([' ', ':'])
        {
            let unit = if field.ends_with("_seconds") { " (in seconds)" } else { "" };
            return format!("{option}{unit}{rest}");
        }
    }
    message.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_at_the_beginning_becomes_its_option_and_nothing_else_does() {
        for (said, told) in [
            (
                "ttl_seconds must be 1 to 86400, not 0",
                "--ttl (in seconds) must be 1 to 86400, not 0",
            ),
            ("limits.memory_mib must be 64 to 9", "--memory must be 64 to 9"),
            ("env: `A=` cannot be set", "--env: `A=` cannot be set"),
            ("environment", "environment"),
            ("no ttl_seconds", "no ttl_seconds"),
        ] {
            assert_eq!(named(said), told);
        }
    }
}
