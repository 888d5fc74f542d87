//! Stages docker images in the root directory and says which commands bring them into the guest's
//! daemon.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use std::os::unix::fs::PermissionsExt as _;

use crate::error::{Error, IoContext as _};
use crate::recipe::{DockerImage, ImageSource, Recipe};
use crate::root_dir::RootDir;

/// Where the staged images are in the guest.
const STAGING: &str = "/usr/share/mayfly/images";
/// Modification time of every file in a root file system made here: image ids must not depend on
/// the clock.
const MTIME: u64 = 1_735_689_600;

/// Stages every image of the recipe; returns the guest commands, in order.
pub(crate) fn stage(recipe: &Recipe, root: &RootDir) -> Result<Vec<Vec<String>>, Error> {
    let mut commands = Vec::new();
    for (number, image) in recipe.docker.images.iter().enumerate() {
        commands.push(stage_one(image, &format!("{STAGING}/{number:02}"), root)?);
        // An archive's own tags may be others than the recipe says: fail while the golden is built.
        commands.push(words(["docker", "image", "inspect", "--format", "{{.Id}}", &image.tag]));
    }
    Ok(commands)
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).into()
}

fn stage_one(image: &DockerImage, staged: &str, root: &RootDir) -> Result<Vec<String>, Error> {
    let archive = format!("{staged}.tar");
    let import = || {
        let mut command = words(["docker", "import"]);
        command.extend(
            image.changes.iter().flat_map(|change| ["--change".to_owned(), change.clone()]),
        );
        command.extend([archive.clone(), image.tag.clone()]);
        command
    };
    match &image.source {
        ImageSource::Load(path) => {
            root.write(&archive, File::open(path).context("open", path)?, 0o644)?;
            Ok(words(["docker", "load", "--input", &archive]))
        }
        ImageSource::Import(path) => {
            root.write(&archive, File::open(path).context("open", path)?, 0o644)?;
            Ok(import())
        }
        ImageSource::Build(path) => {
            let context = format!("{staged}.context");
            copy_tree(path, &context, root)?;
            Ok(words(["docker", "build", "--quiet", "--tag", &image.tag, &context]))
        }
        ImageSource::Files { .. } => {
            let bytes = tar_of_files(image, root)?;
            root.write(&archive, &bytes[..], 0o644)?;
            Ok(import())
        }
    }
}

/// Copies a build context: directories, regular files with their modes, symbolic links. Other kinds
/// of file are refused.
fn copy_tree(from: &Path, to: &str, root: &RootDir) -> Result<(), Error> {
    root.mkdir(to)?;
    for entry in walkdir::WalkDir::new(from).min_depth(1).sort_by_file_name() {
        let entry = entry.map_err(std::io::Error::from).context("read", from)?;
        let path = entry.path();
        let refuse = |why: &'static str| std::io::Error::other(why);
        let Some(relative) = path.strip_prefix(from).ok().and_then(Path::to_str) else {
            return Err(refuse("its name is not UTF-8")).context("copy", path);
        };
        let inner = format!("{to}/{relative}");
        let meta = entry.metadata().map_err(std::io::Error::from).context("look at", path)?;
        if meta.is_dir() {
            root.mkdir(&inner)?;
        } else if meta.is_symlink() {
            root.symlink(&std::fs::read_link(path).context("read", path)?, &inner)?;
        } else if meta.is_file() {
            root.write(
                &inner,
                File::open(path).context("open", path)?,
                meta.permissions().mode() & 0o777,
            )?;
        } else {
            return Err(refuse("a build context has only files, directories and links"))
                .context("copy", path);
        }
    }
    Ok(())
}

/// A root file system as a tar archive, made of files of the golden image's own root.
fn tar_of_files(image: &DockerImage, root: &RootDir) -> Result<Vec<u8>, Error> {
    let ImageSource::Files { files, links, text } = &image.source else {
        return Ok(Vec::new());
    };
    let mut tar = Tar(tar::Builder::new(Vec::new()));
    let named =
        |paths: &mut dyn Iterator<Item = &String>| -> Vec<String> { paths.cloned().collect() };
    let mut parents = vec!["/tmp".to_owned(), "/root".to_owned()];
    for path in named(&mut files.keys().chain(text.keys())) {
        parents.extend(ancestors(&path));
    }
    let links: Vec<(String, String)> = links
        .iter()
        .flat_map(|(target, names)| names.iter().map(move |name| link(target, name)))
        .inspect(|(path, _)| parents.extend(ancestors(path)))
        .collect();
    parents.sort();
    parents.dedup();
    let context =
        |result: std::io::Result<()>| result.context("archive docker image", Path::new(&image.tag));
    for directory in &parents {
        let mode = if directory == "/tmp" { 0o1777 } else { 0o755 };
        context(tar.entry(directory, tar::EntryType::Directory, mode, None, &[]))?;
    }
    for (to, from) in files {
        let missing = || Error::ImageFileMissing { tag: image.tag.clone(), path: from.clone() };
        let mut file = root.read(from)?.ok_or_else(missing)?;
        let mode =
            file.metadata().context("look at", Path::new(from))?.permissions().mode() & 0o7777;
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut file, &mut bytes).context("read", Path::new(from))?;
        context(tar.entry(to, tar::EntryType::Regular, mode, None, &bytes))?;
    }
    for (to, content) in text {
        context(tar.entry(to, tar::EntryType::Regular, 0o644, None, content.as_bytes()))?;
    }
    for (path, target) in &links {
        if !files.contains_key(path) && !text.contains_key(path) {
            context(tar.entry(path, tar::EntryType::Symlink, 0o777, Some(target), &[]))?;
        }
    }
    tar.0.into_inner().context("archive docker image", Path::new(&image.tag))
}

/// The directories above an absolute path, the root left out.
fn ancestors(path: &str) -> Vec<String> {
    let parents = Path::new(path).ancestors().skip(1).filter_map(Path::to_str);
    parents.filter(|p| *p != "/").map(str::to_owned).collect()
}

/// Path and target of a link: a bare name is a sibling of its target and leads to it by name alone.
fn link(target: &str, name: &str) -> (String, String) {
    let (directory, base) = target.rsplit_once('/').unwrap_or(("", target));
    if name.starts_with('/') {
        (name.to_owned(), target.to_owned())
    } else {
        (format!("{directory}/{name}"), base.to_owned())
    }
}

/// A tar writer whose entries belong to root and have a fixed time.
struct Tar<W: Write>(tar::Builder<W>);

impl<W: Write> Tar<W> {
    fn entry(
        &mut self,
        path: &str,
        kind: tar::EntryType,
        mode: u32,
        target: Option<&str>,
        data: &[u8],
    ) -> std::io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(MTIME);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(data.len() as u64);
        let path = path.trim_start_matches('/');
        match target {
            Some(target) => self.0.append_link(&mut header, path, target),
            None => self.0.append_data(&mut header, path, data),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read as _;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn recipe(dir: &Path, image: &str) -> Recipe {
        let text = format!(
            "name = \"x\"\n[docker]\nenabled = true\n[[docker.image]]\ntag = \"a:1\"\n{image}\n"
        );
        Recipe::parse(&text, &dir.join("r.toml")).expect("valid")
    }

    #[test]
    fn files_become_a_root_file_system() {
        let dir = tempfile::tempdir().expect("temp dir");
        std::fs::create_dir_all(dir.path().join("usr/bin")).expect("made");
        std::fs::write(dir.path().join("usr/bin/tool"), "binary").expect("written");
        std::os::unix::fs::symlink("/usr/bin/tool", dir.path().join("usr/bin/alias"))
            .expect("linked");
        let root = RootDir::open(dir.path()).expect("opens");
        let recipe = recipe(
            dir.path(),
            "files = { \"/bin/tool\" = \"/usr/bin/alias\" }\nlinks = { \"/bin/tool\" = [\"ls\", \"/usr/x\"] }\n\
             text = { \"/etc/passwd\" = \"root\" }\nchanges = ['CMD [\"ls\"]']",
        );
        let commands = stage(&recipe, &root).expect("staged");
        assert_eq!(
            commands[0],
            [
                "docker",
                "import",
                "--change",
                "CMD [\"ls\"]",
                "/usr/share/mayfly/images/00.tar",
                "a:1"
            ]
        );
        assert_eq!(commands[1][..3], ["docker", "image", "inspect"]);
        let bytes =
            std::fs::read(dir.path().join("usr/share/mayfly/images/00.tar")).expect("staged");
        let mut found = BTreeMap::new();
        for entry in tar::Archive::new(&bytes[..]).entries().expect("tar") {
            let mut entry = entry.expect("entry");
            let path = entry.path().expect("path").display().to_string();
            let target = entry.link_name().expect("link").map(|t| t.display().to_string());
            let mut data = String::new();
            entry.read_to_string(&mut data).expect("data");
            assert!(found.insert(path, target.unwrap_or(data)).is_none(), "each path once");
        }
        assert_eq!(found["bin/tool"], "binary");
        assert_eq!(found["bin/ls"], "tool");
        assert_eq!(found["usr/x"], "/bin/tool");
        assert_eq!(found["etc/passwd"], "root");
        assert!(
            found.contains_key("tmp") && found.contains_key("bin") && found.contains_key("usr")
        );
    }

    #[test]
    fn a_missing_file_names_image_and_path() {
        let dir = tempfile::tempdir().expect("temp dir");
        let root = RootDir::open(dir.path()).expect("opens");
        let error = stage(&recipe(dir.path(), "files = { \"/bin/x\" = \"/usr/bin/x\" }"), &root)
            .expect_err("absent");
        assert!(
            error.to_string().contains("\"a:1\"") && error.to_string().contains("/usr/bin/x"),
            "{error}"
        );
    }

    #[test]
    fn archives_and_contexts_are_copied() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (root_path, context) = (dir.path().join("root"), dir.path().join("context"));
        std::fs::create_dir_all(context.join("sub")).expect("made");
        std::fs::create_dir(&root_path).expect("made");
        std::fs::write(context.join("Dockerfile"), "FROM scratch\n").expect("written");
        std::fs::write(context.join("sub/run"), "#!").expect("written");
        std::fs::set_permissions(context.join("sub/run"), PermissionsExt::from_mode(0o755))
            .expect("set");
        std::fs::write(dir.path().join("i.tar"), "tar").expect("written");
        let root = RootDir::open(&root_path).expect("opens");
        let commands = stage(&recipe(dir.path(), "build = \"context\""), &root).expect("staged");
        assert_eq!(
            commands[0].last().map(String::as_str),
            Some("/usr/share/mayfly/images/00.context")
        );
        let run = root_path.join("usr/share/mayfly/images/00.context/sub/run");
        assert_eq!(std::fs::metadata(run).expect("copied").permissions().mode() & 0o777, 0o755);
        let commands = stage(&recipe(dir.path(), "load = \"i.tar\""), &root).expect("staged");
        assert_eq!(commands[0], ["docker", "load", "--input", "/usr/share/mayfly/images/00.tar"]);
    }
}
