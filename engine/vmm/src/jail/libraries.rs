//! Files that a dynamically linked program is loaded from, as the dynamic loader itself answers
//! (ld.so(8), `--list`).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::JailError;

/// Where the loader of x86-64 programs is, by the ABI (System V ABI, AMD64 supplement).
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";
/// Folders in which Debian's loader looks without being told.
const DEFAULT_FOLDERS: [&str; 4] =
    ["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib", "/usr/lib"];

/// Returns the loader and every library that `objects`, programs and libraries, are linked with, by
/// the paths under which the loader opens them. None of them is run.
pub fn loaded_by(objects: &[&Path]) -> Result<Vec<PathBuf>, JailError> {
    let mut files = BTreeSet::from([PathBuf::from(LOADER)]);
    for &object in objects {
        let failed = |reason: String| JailError::Libraries { program: object.to_owned(), reason };
        let output = Command::new(LOADER).arg("--list").arg(object).env_clear().output();
        let output = output.map_err(|e| failed(format!("cannot run {LOADER}: {e}")))?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            // The loader's words for a program without dynamic section, which needs nothing.
            if words.contains("not a dynamic executable") || text.contains("statically linked") {
                continue;
            }
            return Err(failed(
                words.lines().next().unwrap_or("the loader gives no reason").to_owned(),
            ));
        }
        files.extend(parse(&text).map_err(failed)?);
    }
    Ok(files.into_iter().collect())
}

/// Returns the folders of `files` that the loader must be told of, as the value of
/// `LD_LIBRARY_PATH`; `None` when there is none.
pub fn search_path(files: &[PathBuf]) -> Option<String> {
    let folders: BTreeSet<_> = files
        .iter()
        .filter_map(|file| file.parent())
        .filter(|f| *f != Path::new("/lib64"))
        .collect();
    let unusual = folders
        .into_iter()
        .filter(|folder| !DEFAULT_FOLDERS.iter().any(|known| Path::new(known) == *folder));
    let unusual: Vec<_> = unusual.map(|folder| folder.to_string_lossy().into_owned()).collect();
    (!unusual.is_empty()).then(|| unusual.join(":"))
}

/// Lines are `NAME => PATH (ADDRESS)`, `PATH (ADDRESS)`, or a NAME without a file for what the
/// kernel provides.
fn parse(list: &str) -> Result<Vec<PathBuf>, String> {
    let mut files = Vec::new();
    for line in list.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let file = line.rsplit_once(" (0x").map_or(line, |(file, _)| file);
        let file = match file.split_once(" => ") {
            Some((name, "not found")) => {
                return Err(format!("it needs {name}, which is not installed"));
            }
            Some((_, path)) => path,
            None => file,
        };
        if file.starts_with('/') {
            files.push(PathBuf::from(file));
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loaders_list_is_read() {
        let list = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007f)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let files = parse(list).unwrap();
        assert_eq!(
            files,
            ["/lib/x86_64-linux-gnu/libz.so.1", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from)
        );
        let missing = parse("\tlibfoo.so.2 => not found\n").unwrap_err();
        assert!(missing.contains("libfoo.so.2"), "{missing}");
    }

    #[test]
    fn libraries_of_a_real_program_exist() {
        let files =
            loaded_by(&[Path::new("/bin/ls"), Path::new("/lib/x86_64-linux-gnu/libc.so.6")])
                .unwrap();
        assert!(
            files.iter().any(|file| file.ends_with("libc.so.6"))
                && files.iter().all(|file| file.exists()),
            "{files:?}"
        );
        let error = loaded_by(&[Path::new("/no/such/program")]).unwrap_err().to_string();
        assert!(error.contains("/no/such/program"), "{error}");
    }

    #[test]
    fn only_unusual_folders_are_named() {
        let files = ["/lib64/ld-linux-x86-64.so.2", "/usr/lib/libx.so", "/opt/qemu/lib/liby.so"]
            .map(PathBuf::from);
        assert_eq!(search_path(&files).as_deref(), Some("/opt/qemu/lib"));
        assert_eq!(search_path(&files[..2]), None);
    }
}
