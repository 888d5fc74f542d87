//! The table `[e2b]` of the daemon's configuration.
//!
//! ```toml
//! [e2b]
//! domain = "sandbox.example.com"
//!
//! [e2b.templates]
//! base = "e2b-base"
//! "vf-*" = "e2b-base"
//! ```

use std::collections::BTreeMap;

use mayfly_snapshotter::GoldenName;
use serde::Deserialize;

/// Name of the template of whoever names none.
pub const DEFAULT_TEMPLATE: &str = "base";
/// Goldens that stand for [`DEFAULT_TEMPLATE`] where the table does not name one: the first that is
/// there.
const DEFAULT_GOLDENS: [&str; 3] = [DEFAULT_TEMPLATE, "e2b-base", "default"];
/// Longest name of a template, in bytes.
pub const LONGEST_NAME: usize = 256;
/// Most entries of the table.
const MOST_TEMPLATES: usize = 1024;

/// Settings of the front end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Domain below which each sandbox has its names, `PORT-ID.DOMAIN`; clients are told of it.
    pub domain: Option<String>,
    /// Golden image of each template. A name may have one `*`, which stands for any text.
    pub templates: BTreeMap<String, String>,
}

/// What is wrong with the table.
#[derive(Debug, thiserror::Error)]
pub enum InvalidSettings {
    /// It has something else than it may have.
    #[error("[e2b] in the configuration: {0}")]
    Parse(#[from] toml::de::Error),
    /// A value cannot be used.
    #[error("[e2b] in the configuration: {0}")]
    Value(String),
}

impl Settings {
    /// Reads the table.
    ///
    /// # Errors
    /// [`InvalidSettings`].
    pub fn parse(table: &toml::Table) -> Result<Self, InvalidSettings> {
        let settings: Self = table.clone().try_into()?;
        let refuse = |what: String| Err(InvalidSettings::Value(what));
        if settings.templates.len() > MOST_TEMPLATES {
            return refuse(format!("templates has more than {MOST_TEMPLATES} entries"));
        }
        for (name, golden) in &settings.templates {
            let stars = name.matches('*').count();
            if name.is_empty() || name.len() > LONGEST_NAME || name.contains(':') || stars > 1 {
                return refuse(format!(
                    "templates: `{}` is no name of a template: it has 1 to {LONGEST_NAME} bytes, no `:` (tags are left \
                     out when names are compared) and at most one `*`",
                    name.escape_debug()
                ));
            }
            if let Err(error) = GoldenName::new(golden.as_str()) {
                return refuse(format!("templates.{name}: {error}"));
            }
        }
        if let Some(domain) = &settings.domain
            && domain.parse::<mayfly_daemon::service::Host>().is_err()
        {
            return refuse(format!(
                "domain: `{}` is no name of a host; write it as sandbox.example.com",
                domain.escape_debug()
            ));
        }
        Ok(settings)
    }

    /// Returns the golden image for a template, with or without a tag: that of the table, or the one
    /// of the same name. `None` when there is no such golden; `exists` tells which there are.
    pub fn golden_of(&self, template: &str, exists: impl Fn(&str) -> bool) -> Option<String> {
        let name = template.split(':').next().unwrap_or_default();
        if let Some(golden) = self.of_table(name) {
            return exists(golden).then(|| golden.to_owned());
        }
        let candidates: &[&str] = if name == DEFAULT_TEMPLATE { &DEFAULT_GOLDENS } else { &[name] };
        candidates.iter().find(|golden| exists(golden)).map(|&golden| golden.to_owned())
    }

    /// The entry that says most of a name: the name itself, or else the longest pattern.
    fn of_table(&self, name: &str) -> Option<&str> {
        if let Some(golden) = self.templates.get(name) {
            return Some(golden);
        }
        let fitting = self.templates.iter().filter(|(pattern, _)| matches(pattern, name));
        fitting.max_by_key(|(pattern, _)| pattern.len()).map(|(_, golden)| golden.as_str())
    }
}

fn matches(pattern: &str, name: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return pattern == name };
    name.strip_prefix(before).is_some_and(|rest| rest.ends_with(after))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Result<Settings, InvalidSettings> {
        Settings::parse(&text.parse().unwrap())
    }

    #[test]
    fn a_template_is_the_golden_that_the_table_says_or_the_one_of_its_name() {
        let table = settings(
            "templates = { \"vf-*\" = 'short', \"vf-a*z\" = 'long', vf-ab = 'exact', gone = 'missing' }",
        )
        .unwrap();
        let there = ["short", "long", "exact", "e2b-base", "default", "other"];
        let of = |name: &str| table.golden_of(name, |golden| there.contains(&golden));
        for (template, golden) in [
            ("vf-1:default", Some("short")),
            ("vf-az", Some("long")),
            ("vf-ab", Some("exact")),
            ("vf-", Some("short")),
            ("base", Some("e2b-base")),
            ("other:v2", Some("other")),
            ("gone", None),
            ("nothing", None),
            ("", None),
        ] {
            assert_eq!(of(template).as_deref(), golden, "{template}");
        }
        let only = Settings::default().golden_of("base", |golden| golden == "default");
        assert_eq!(only.as_deref(), Some("default"));
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (text, word) in [
            ("templates = { \"a*b*\" = 'x' }", "a*b*"),
            ("templates = { \"a:b\" = 'x' }", "a:b"),
            ("templates = { a = '../x' }", "templates.a"),
            ("domain = 'a b'", "domain"),
            ("unknown = 1", "unknown"),
        ] {
            let error = settings(text).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
