//! The TOML form of a recipe and its loading.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::types::Recipe;
use super::{RecipeError, validate};

/// The recipes that need no file: name on the command line, text. The first is the default.
const BUILT_IN: [(&str, &str); 3] = [
    ("default", include_str!("../../recipes/default.toml")),
    ("docker", include_str!("../../recipes/docker.toml")),
    ("e2b-base", include_str!("../../recipes/e2b-base.toml")),
];
/// Largest recipe file that is read.
const MAX_RECIPE_BYTES: u64 = 1 << 20;

/// The file as written; checked and resolved by [`validate`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRecipe {
    pub name: Spanned<String>,
    #[serde(default)]
    pub debian: RawDebian,
    #[serde(default)]
    pub vm: RawVm,
    #[serde(default)]
    pub docker: RawDocker,
    #[serde(default)]
    pub setup: Vec<Spanned<String>>,
    #[serde(default)]
    pub warm_up: Vec<Spanned<String>>,
    #[serde(default)]
    pub hooks: RawHooks,
    #[serde(default)]
    pub user: Vec<Spanned<RawUser>>,
    pub default_user: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawUser {
    pub name: Spanned<String>,
    pub uid: Option<Spanned<i64>>,
    pub home: Option<Spanned<String>>,
    pub shell: Option<Spanned<String>>,
    #[serde(default)]
    pub groups: Vec<Spanned<String>>,
    #[serde(default)]
    pub sudo: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDebian {
    pub suite: Option<Spanned<String>>,
    pub mirror: Option<Spanned<String>>,
    pub security_mirror: Option<Spanned<String>>,
    #[serde(default)]
    pub packages: Vec<Spanned<String>>,
    pub kernel: Option<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawVm {
    pub vcpus: Option<Spanned<i64>>,
    pub memory_mib: Option<Spanned<i64>>,
    pub disk_mib: Option<Spanned<i64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDocker {
    pub enabled: Option<bool>,
    #[serde(default)]
    pub image: Vec<Spanned<RawImage>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawImage {
    pub tag: Spanned<String>,
    pub load: Option<Spanned<PathBuf>>,
    pub import: Option<Spanned<PathBuf>>,
    pub build: Option<Spanned<PathBuf>>,
    pub files: Option<Spanned<BTreeMap<String, String>>>,
    #[serde(default)]
    pub links: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    pub text: BTreeMap<String, String>,
    #[serde(default)]
    pub changes: Vec<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHooks {
    #[serde(default)]
    pub after_restore: Vec<Spanned<PathBuf>>,
}

impl Recipe {
    /// Loads the recipe in the TOML file at `path`; the names of [`Recipe::built_in_names`] stand
    /// for the built-in ones.
    ///
    /// # Errors
    /// [`RecipeError`] with file, line, column and key.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, RecipeError> {
        let path = path.as_ref();
        if let Some((name, text)) = BUILT_IN.iter().find(|(name, _)| path == Path::new(name)) {
            return Self::parse(text, Path::new(&format!("{name}.toml")));
        }
        let unreadable =
            |e: std::io::Error| RecipeError::whole(path, format!("cannot read the recipe: {e}"));
        let meta = std::fs::metadata(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                let names = Self::built_in_names().collect::<Vec<_>>().join(", ");
                RecipeError::whole(path, format!("no such recipe file (built-in recipes: {names})"))
            }
            _ => unreadable(error),
        })?;
        if !meta.is_file() || meta.len() > MAX_RECIPE_BYTES {
            let message = format!("a recipe is a regular file of at most {MAX_RECIPE_BYTES} bytes");
            return Err(RecipeError::whole(path, message));
        }
        let bytes = std::fs::read(path).map_err(unreadable)?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let line = error.as_bytes()[..error.utf8_error().valid_up_to()]
                .iter()
                .filter(|b| **b == b'\n')
                .count()
                + 1;
            RecipeError {
                file: path.to_owned(),
                line,
                column: 1,
                message: "the file is not UTF-8 text".into(),
            }
        })?;
        Self::parse(&text, path)
    }

    /// Parses the text of a recipe. `file` names it in errors and its parent directory resolves
    /// relative paths.
    ///
    /// # Errors
    /// [`RecipeError`] with file, line, column and key.
    pub fn parse(text: &str, file: &Path) -> Result<Self, RecipeError> {
        let raw: RawRecipe =
            toml::from_str(text).map_err(|e| RecipeError::from_toml(file, text, &e))?;
        validate::recipe(raw, file, text)
    }

    /// Returns the default recipe, which is built in: Debian with docker and a small preloaded
    /// image.
    ///
    /// # Panics
    /// Never in a tested build: the text is part of the program and a unit test parses it.
    pub fn builtin_default() -> Self {
        Self::parse(BUILT_IN[0].1, Path::new("default.toml")).expect("the built-in recipe is valid")
    }

    /// Returns the names of the recipes that are built in, the default one first.
    pub fn built_in_names() -> impl Iterator<Item = &'static str> {
        BUILT_IN.iter().map(|(name, _)| *name)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn error(text: &str) -> String {
        Recipe::parse(text, Path::new("recipe.toml")).expect_err("must be refused").to_string()
    }

    #[test]
    fn the_built_in_recipe_is_valid() {
        let recipe = Recipe::builtin_default();
        assert_eq!(recipe.name, "default");
        assert!(recipe.docker.enabled && !recipe.warm_up.is_empty());
    }

    #[test]
    fn every_built_in_recipe_is_valid_and_called_as_its_golden() {
        for name in Recipe::built_in_names() {
            assert_eq!(Recipe::load(name).expect("valid").name, name);
        }
        let base = Recipe::load("e2b-base").expect("valid");
        assert_eq!(base.default_user.as_deref(), Some("user"));
        assert!(base.users[0].sudo && base.users[0].uid == Some(1000));
    }

    #[test]
    fn users_have_the_usual_home_and_shell() {
        let text = "name = \"x\"\ndefault_user = \"ann\"\n[[user]]\nname = \"ann\"\n";
        let recipe = Recipe::parse(text, Path::new("r.toml")).expect("valid");
        let [ann] = recipe.users.as_slice() else { panic!("one user") };
        assert_eq!((ann.home.as_str(), ann.shell.as_str()), ("/home/ann", "/bin/bash"));
        assert!(!ann.sudo && ann.uid.is_none() && ann.groups.is_empty());
        for (wrong, want) in [
            ("[[user]]\nname = \"root\"\n", "r.toml:3:8: user"),
            ("[[user]]\nname = \"Ann\"\n", "r.toml:3:8: user"),
            ("[[user]]\nname = \"a\"\nuid = 0\n", "r.toml:4:7: uid"),
            ("[[user]]\nname = \"a\"\nuid = 70000\n", "r.toml:4:7: uid"),
            ("[[user]]\nname = \"a\"\nhome = \"a\"\n", "r.toml:4:8: home"),
            ("[[user]]\nname = \"a\"\nhome = \"/a/../b\"\n", "r.toml:4:8: home"),
            ("[[user]]\nname = \"a\"\nshell = \"/bin/sh -c\"\n", "r.toml:4:9: shell"),
            ("[[user]]\nname = \"a\"\ngroups = [\"a b\"]\n", "r.toml:4:11: group"),
            ("[[user]]\nname = \"a\"\n[[user]]\nname = \"a\"\n", "r.toml:5:8: there are two"),
            ("default_user = \"no one\"\n", "r.toml:2:16: default_user"),
        ] {
            let text = format!("name = \"x\"\n{wrong}");
            let message =
                Recipe::parse(&text, Path::new("r.toml")).expect_err("refused").to_string();
            assert!(message.starts_with(want), "{message}\n  wanted {want}");
        }
    }

    #[test]
    fn a_small_recipe_gets_the_defaults() {
        let recipe = Recipe::parse("name = \"small\"\n", Path::new("r.toml")).expect("valid");
        assert_eq!(
            (recipe.vm.vcpus, recipe.vm.memory_mib, recipe.debian.suite.as_str()),
            (1, 1024, "trixie")
        );
        assert!(!recipe.docker.enabled, "docker is enabled by a [docker] table that says so");
    }

    #[test]
    fn a_typo_names_line_table_and_the_nearest_key() {
        let text = "name = \"x\"\n\n[debian]\nsuite = \"trixie\"\npakages = [\"curl\"]\n";
        assert_eq!(
            error(text),
            "recipe.toml:5:1: unknown key \"pakages\" in [debian] (did you mean \"packages\"?)"
        );
        assert_eq!(
            error("name = \"x\"\n[debain]\n"),
            "recipe.toml:2:2: unknown key \"debain\" at the top level (did you mean \"debian\"?)"
        );
        let text = "name = \"x\"\n[docker]\nenabled = true\n[[docker.image]]\ntag = \"a\"\nlaod = \"x.tar\"\n";
        let message = error(text);
        assert!(
            message.starts_with("recipe.toml:6:1: unknown key \"laod\" in [[docker.image]]"),
            "{message}"
        );
    }

    #[test]
    fn a_syntax_error_and_a_wrong_type_name_their_line() {
        let message = error("name = \"x\"\n[vm\n");
        assert!(message.starts_with("recipe.toml:2:"), "{message}");
        let message = error("name = \"x\"\n[vm]\nmemory_mib = \"1 GiB\"\n");
        assert!(
            message.starts_with("recipe.toml:3:14: ") && message.contains("in [vm]"),
            "{message}"
        );
        let message = error("[vm]\nvcpus = 1\n");
        assert!(message.contains("name"), "{message}");
    }

    #[test]
    fn values_out_of_bounds_name_key_and_bounds() {
        for (text, want) in [
            ("name = \"Bad Name\"\n", "recipe.toml:1:8: name"),
            ("name = \"x\"\n[vm]\nvcpus = 0\n", "recipe.toml:3:9: vcpus"),
            ("name = \"x\"\n[vm]\nmemory_mib = 64\n", "recipe.toml:3:14: memory_mib"),
            ("name = \"x\"\n[vm]\ndisk_mib = -1\n", "recipe.toml:3:12: disk_mib"),
            ("name = \"x\"\n[debian]\npackages = [\"aa\", \"-b\"]\n", "recipe.toml:3:19: package"),
            ("name = \"x\"\n[debian]\nmirror = \"ftp://x\"\n", "recipe.toml:3:10: mirror"),
            ("name = \"x\"\nsetup = [\"\"]\n", "recipe.toml:2:10: setup"),
            (
                "name = \"x\"\n[docker]\n[[docker.image]]\ntag=\"a\"\nload=\"l\"\nimport=\"i\"\n",
                "recipe.toml:",
            ),
            (
                "name = \"x\"\n[docker]\nenabled = true\n[[docker.image]]\ntag=\"a\"\nload=\"absent.tar\"\n",
                "recipe.toml:6:6",
            ),
        ] {
            let message = error(text);
            assert!(message.starts_with(want), "{message}\n  wanted {want}");
        }
    }

    #[test]
    fn an_unreadable_recipe_is_one_clear_line() {
        let message = Recipe::load("/nonexistent/r.toml").expect_err("absent").to_string();
        assert!(message.contains("/nonexistent/r.toml: no such recipe file"), "{message}");
        let file = tempfile::NamedTempFile::new().expect("temp file");
        std::fs::write(file.path(), b"name = \"x\"\n# \xff\n").expect("writes");
        let message = Recipe::load(file.path()).expect_err("not utf-8").to_string();
        assert!(message.contains(":2:1: the file is not UTF-8"), "{message}");
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "\\PC{0,200}") {
            let _ = Recipe::parse(&text, Path::new("r.toml"));
        }

        #[test]
        fn a_damaged_default_recipe_never_panics(at in 0usize..4000, with in "\\PC{0,3}", remove in 0usize..4) {
            let mut text = BUILT_IN[0].1.to_owned();
            let at = (at % text.len()..=text.len()).find(|n| text.is_char_boundary(*n)).unwrap_or(0);
            let end = (at..=(at + remove).min(text.len())).rev().find(|n| text.is_char_boundary(*n)).unwrap_or(at);
            text.replace_range(at..end, &with);
            if let Err(error) = Recipe::parse(&text, Path::new("r.toml")) {
                prop_assert!(!error.to_string().contains('\n'));
            }
        }
    }
}
