//! Bounds and formats of a recipe's values.

use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};

use toml::Spanned;

use super::RecipeError;
use super::parse::{RawDebian, RawDocker, RawImage, RawRecipe, RawUser, RawVm};
use super::types::{Debian, Docker, DockerImage, Hooks, ImageSource, Recipe, User, Vm};

const DEFAULT_SUITE: &str = "trixie";
const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";
const DEFAULT_SECURITY_MIRROR: &str = "http://deb.debian.org/debian-security";
const DEFAULT_KERNEL: &str = "linux-image-cloud-amd64";

const VCPUS: RangeInclusive<i64> = 1..=64;
const MEMORY_MIB: RangeInclusive<i64> = 256..=262_144;
const DISK_MIB: RangeInclusive<i64> = 512..=1_048_576;
/// Debian policy 9.2.2: 0 is root, those above are reserved. Packages take theirs below 1000.
const USER_IDS: RangeInclusive<i64> = 1..=59_999;
const NAME_RULE: &str = "1 to 32 characters a-z 0-9 _ -, the first a letter or _, and not root";
const PATH_RULE: &str = "an absolute path of A-Z a-z 0-9 . _ - without . and ..";
const DEFAULT_VM: (i64, i64, i64) = (1, 1024, 2048);

/// Places errors in the recipe file.
struct Source<'a> {
    file: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn error(&self, span: Range<usize>, message: impl Into<String>) -> RecipeError {
        RecipeError::at(self.file, self.text, span, message)
    }

    /// Resolves a path of the recipe against its directory and checks what is there.
    fn path(&self, path: &Spanned<PathBuf>, key: &str, want: Want) -> Result<PathBuf, RecipeError> {
        let base =
            self.file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let resolved = base.join(path.get_ref());
        let refuse = |why: &str| {
            Err(self.error(path.span(), format!("{key} = \"{}\": {why}", resolved.display())))
        };
        match (std::fs::metadata(&resolved), want) {
            (Err(error), _) => refuse(&error.to_string()),
            (Ok(meta), Want::File) if !meta.is_file() => refuse("not a regular file"),
            (Ok(_), Want::BuildContext) if !resolved.join("Dockerfile").is_file() => {
                refuse("not a directory with a Dockerfile")
            }
            _ => Ok(resolved),
        }
    }

    /// Checks each string with `valid`; `what` and `rule` make up the message.
    fn strings(
        &self,
        values: Vec<Spanned<String>>,
        what: &str,
        rule: &str,
        valid: fn(&str) -> bool,
    ) -> Result<Vec<String>, RecipeError> {
        values.into_iter().map(|value| self.string(value, what, rule, valid)).collect()
    }

    fn string(
        &self,
        value: Spanned<String>,
        what: &str,
        rule: &str,
        valid: fn(&str) -> bool,
    ) -> Result<String, RecipeError> {
        if valid(value.get_ref()) {
            return Ok(value.into_inner());
        }
        Err(self.error(value.span(), format!("{what} {:?} is not valid: {rule}", value.get_ref())))
    }

    fn number(
        &self,
        value: Option<Spanned<i64>>,
        key: &str,
        bounds: RangeInclusive<i64>,
        default: i64,
    ) -> Result<u64, RecipeError> {
        let Some(value) = value else {
            return Ok(default.unsigned_abs());
        };
        if bounds.contains(value.get_ref()) {
            return Ok(value.get_ref().unsigned_abs());
        }
        let message = format!(
            "{key} = {} is out of bounds: {} to {}",
            value.get_ref(),
            bounds.start(),
            bounds.end()
        );
        Err(self.error(value.span(), message))
    }
}

enum Want {
    File,
    BuildContext,
}

/// Checks every value of `raw`.
pub(super) fn recipe(raw: RawRecipe, file: &Path, text: &str) -> Result<Recipe, RecipeError> {
    let source = Source { file, text };
    let command = |s: &str| !s.trim().is_empty() && !s.contains('\0');
    let command_rule = "a shell command must not be empty or contain a NUL";
    Ok(Recipe {
        name: source.string(
            raw.name,
            "name",
            "1 to 63 characters a-z 0-9 . _ -, the first a letter or digit",
            |s| {
                s.len() <= 63
                    && s.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
                    && s.bytes().all(|b| {
                        b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b)
                    })
            },
        )?,
        debian: debian(raw.debian, &source)?,
        vm: vm(raw.vm, &source)?,
        docker: docker(raw.docker, &source)?,
        setup: source.strings(raw.setup, "setup command", command_rule, command)?,
        warm_up: source.strings(raw.warm_up, "warm_up command", command_rule, command)?,
        hooks: Hooks {
            after_restore: raw
                .hooks
                .after_restore
                .iter()
                .map(|path| source.path(path, "after_restore", Want::File))
                .collect::<Result<_, _>>()?,
        },
        users: users(raw.user, &source)?,
        default_user: raw
            .default_user
            .map(|name| source.string(name, "default_user", NAME_RULE, is_user_name))
            .transpose()?,
    })
}

fn users(raw: Vec<Spanned<RawUser>>, source: &Source<'_>) -> Result<Vec<User>, RecipeError> {
    let mut users: Vec<User> = Vec::new();
    for entry in raw {
        let raw = entry.into_inner();
        let at = raw.name.span();
        let is_new = |s: &str| is_user_name(s) && s != "root";
        let name = source.string(raw.name, "user name", NAME_RULE, is_new)?;
        if users.iter().any(|user| user.name == name) {
            return Err(source.error(at, format!("there are two users {name:?}")));
        }
        let path = |value: Option<Spanned<String>>, key: &str, default: String| match value {
            None => Ok(default),
            Some(value) => source.string(value, key, PATH_RULE, is_plain_path),
        };
        users.push(User {
            uid: match raw.uid {
                None => None,
                Some(uid) => u32::try_from(source.number(Some(uid), "uid", USER_IDS, 0)?).ok(),
            },
            home: path(raw.home, "home", format!("/home/{name}"))?,
            shell: path(raw.shell, "shell", "/bin/bash".to_owned())?,
            groups: source.strings(raw.groups, "group", NAME_RULE, is_user_name)?,
            sudo: raw.sudo,
            name,
        });
    }
    Ok(users)
}

/// As adduser(8) of Debian takes names, without its less usual characters.
fn is_user_name(s: &str) -> bool {
    (1..=32).contains(&s.len())
        && s.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b))
}

/// passwd(5) has no quoting.
fn is_plain_path(s: &str) -> bool {
    is_normal_absolute(s) && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b))
}

/// Debian policy 5.6.7: lower case letters, digits, + - . and at least two characters, the first
/// alphanumeric.
fn is_package_name(s: &str) -> bool {
    s.len() >= 2
        && s.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b))
}

fn debian(raw: RawDebian, source: &Source<'_>) -> Result<Debian, RecipeError> {
    let mirror = |value: Option<Spanned<String>>,
                  key: &str,
                  default: &str,
                  valid: fn(&str) -> bool| match value {
        None => Ok(default.to_owned()),
        Some(value) => source.string(
            value,
            key,
            "it must be an http:// or https:// address without blanks",
            valid,
        ),
    };
    let is_url = |s: &str| {
        (s.starts_with("http://") || s.starts_with("https://"))
            && s.bytes().all(|b| b.is_ascii_graphic() && b != b'\'')
    };
    let package_rule = "a Debian package name has a-z 0-9 + - . and starts with a letter or digit";
    Ok(Debian {
        suite: match raw.suite {
            None => DEFAULT_SUITE.to_owned(),
            Some(suite) => {
                source.string(suite, "suite", "it has a-z 0-9 and -, e.g. \"trixie\"", |s| {
                    s.starts_with(|c: char| c.is_ascii_lowercase())
                        && s.bytes()
                            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                })?
            }
        },
        mirror: mirror(raw.mirror, "mirror", DEFAULT_MIRROR, is_url)?,
        security_mirror: mirror(
            raw.security_mirror,
            "security_mirror",
            DEFAULT_SECURITY_MIRROR,
            |s| {
                s.is_empty()
                    || (s.starts_with("http://") || s.starts_with("https://"))
                        && s.bytes().all(|b| b.is_ascii_graphic() && b != b'\'')
            },
        )?,
        packages: source.strings(raw.packages, "package name", package_rule, is_package_name)?,
        kernel: match raw.kernel {
            None => DEFAULT_KERNEL.to_owned(),
            Some(kernel) => source.string(kernel, "kernel", package_rule, is_package_name)?,
        },
    })
}

fn vm(raw: RawVm, source: &Source<'_>) -> Result<Vm, RecipeError> {
    let (vcpus, memory, disk) = DEFAULT_VM;
    Ok(Vm {
        vcpus: u32::try_from(source.number(raw.vcpus, "vcpus", VCPUS, vcpus)?).unwrap_or(u32::MAX),
        memory_mib: u32::try_from(source.number(
            raw.memory_mib,
            "memory_mib",
            MEMORY_MIB,
            memory,
        )?)
        .unwrap_or(u32::MAX),
        disk_mib: source.number(raw.disk_mib, "disk_mib", DISK_MIB, disk)?,
    })
}

fn docker(raw: RawDocker, source: &Source<'_>) -> Result<Docker, RecipeError> {
    let enabled = raw.enabled.unwrap_or(!raw.image.is_empty());
    if let (false, Some(first)) = (enabled, raw.image.first()) {
        return Err(source.error(first.span(), "[[docker.image]] needs [docker] enabled = true"));
    }
    let images =
        raw.image.into_iter().map(|entry| image(entry, source)).collect::<Result<_, _>>()?;
    Ok(Docker { enabled, images })
}

fn image(raw: Spanned<RawImage>, source: &Source<'_>) -> Result<DockerImage, RecipeError> {
    let span = raw.span();
    let raw = raw.into_inner();
    let sources =
        [raw.load.is_some(), raw.import.is_some(), raw.build.is_some(), raw.files.is_some()];
    if sources.iter().filter(|given| **given).count() != 1 {
        return Err(
            source.error(span, "[[docker.image]] needs exactly one of load, import, build, files")
        );
    }
    let only_files = raw.files.is_some();
    let has_extras = !raw.links.is_empty() || !raw.text.is_empty();
    if !only_files && has_extras {
        return Err(source.error(
            span,
            "[[docker.image]] links and text belong to files, not to load, import or build",
        ));
    }
    if !raw.changes.is_empty() && (raw.load.is_some() || raw.build.is_some()) {
        return Err(source.error(
            span,
            "[[docker.image]] changes belong to import or files, not to load or build",
        ));
    }
    let image_source = if let Some(path) = &raw.load {
        ImageSource::Load(source.path(path, "load", Want::File)?)
    } else if let Some(path) = &raw.import {
        ImageSource::Import(source.path(path, "import", Want::File)?)
    } else if let Some(path) = &raw.build {
        ImageSource::Build(source.path(path, "build", Want::BuildContext)?)
    } else {
        let files = raw.files.map(Spanned::into_inner).unwrap_or_default();
        check_paths(&files, &raw.links, &raw.text)
            .map_err(|message| source.error(span, message))?;
        ImageSource::Files { files, links: raw.links, text: raw.text }
    };
    Ok(DockerImage {
        // The grammar of github.com/distribution/reference, as far as a local tag goes; docker has
        // the last word.
        tag: source.string(
            raw.tag,
            "tag",
            "it has the form name:tag in lower case, e.g. \"busybox:latest\"",
            |s| {
                let (name, tag) = s
                    .rsplit_once(':')
                    .filter(|(_, tag)| !tag.contains('/'))
                    .unwrap_or((s, "latest"));
                let name_ok = !name.is_empty()
                    && name.len() <= 255
                    && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
                    && name.bytes().all(|b| {
                        b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-/:".contains(&b)
                    });
                let tag_ok = !tag.is_empty()
                    && tag.len() <= 128
                    && !tag.starts_with(['.', '-'])
                    && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
                name_ok && tag_ok
            },
        )?,
        source: image_source,
        changes: source.strings(
            raw.changes,
            "change",
            "a Dockerfile instruction is one line",
            |s| !s.trim().is_empty() && !s.contains(['\n', '\0']),
        )?,
    })
}

/// Checks the paths of a `files` image: absolute, normal, at least one file.
fn check_paths(
    files: &BTreeMap<String, String>,
    links: &BTreeMap<String, Vec<String>>,
    text: &BTreeMap<String, String>,
) -> Result<(), String> {
    if files.is_empty() {
        return Err("[[docker.image]] files is empty".into());
    }
    let absolute =
        files.iter().flat_map(|(to, from)| [to, from]).chain(links.keys()).chain(text.keys());
    if let Some(path) = absolute.into_iter().find(|p| !is_normal_absolute(p)) {
        return Err(format!("[[docker.image]] path {path:?} must be absolute, without . and .."));
    }
    for (target, names) in links {
        if !files.contains_key(target) && !text.contains_key(target) {
            return Err(format!(
                "[[docker.image]] links lead to {target:?}, which is not in files"
            ));
        }
        let bad = |name: &&String| {
            !is_normal_absolute(name)
                && (name.is_empty() || name.contains('/') || *name == "." || *name == "..")
        };
        if let Some(name) = names.iter().find(bad) {
            return Err(format!(
                "[[docker.image]] link {name:?} must be a name or an absolute path"
            ));
        }
    }
    Ok(())
}

fn is_normal_absolute(path: &str) -> bool {
    path.len() > 1
        && path.len() < 4096
        && !path.contains('\0')
        && path
            .strip_prefix('/')
            .is_some_and(|rest| rest.split('/').all(|part| !matches!(part, "" | "." | "..")))
}
