//! The streams of PackTar and UnpackTar, and the two roles behind them.

use nix::sys::resource::{Resource, setrlimit};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;

use mayfly_protocol::{FileChunk, FilePath, FrameError, GuestError, MAX_CHUNK, Reply};

use super::pack::write_archive;
use super::unpack::{enter, read_archive};
use super::who::Who;
use crate::context::Context;
use crate::exec::{Helper, report};
use crate::files;
use crate::threads::Work;
use crate::wire::{Wire, invalid, reply};

/// Memory of a helper in bytes: what an archive claims of the length of its names must not cost the
/// guest its services.
const HELPER_MEMORY: u64 = 256 << 20;

/// The forms of an archive.
const SPARSE: &str = "sparse";
const DENSE: &str = "dense";

/// Serves a PackTar stream.
pub async fn pack(
    mut wire: Wire,
    path: FilePath,
    sparse: bool,
    context: &Rc<Context>,
) -> Result<(), FrameError> {
    let found = files::at(context, Work::Read, path, |place| {
        let what = format_args!("pack {}", place.path);
        reply(what, std::fs::symlink_metadata(place.as_path()))?;
        Ok((place.path.clone(), Who::of(place)))
    });
    let helper = async {
        let (path, who) = found.await?;
        let form = if sparse { SPARSE } else { DENSE };
        let arguments = [form.into(), who.to_argument(), path.clone()];
        Ok::<_, GuestError>((Helper::start("pack", arguments, false, context).await?, path))
    };
    let (helper, path) = match helper.await {
        Ok(started) => started,
        Err(error) => {
            wire.send(&Reply::<()>::Err(error))?;
            return wire.close().await;
        }
    };
    wire.send(&Reply::<()>::Ok(()))?;
    let mut buffer = vec![0; MAX_CHUNK];
    let last = loop {
        match helper.stdout.read(&mut buffer).await {
            Ok(0) => match helper.finish().await {
                Ok(_) => break FileChunk::End,
                Err(error) => break FileChunk::Failed(error),
            },
            Ok(count) => wire.send_now(&FileChunk::Data(buffer[..count].to_vec())).await?,
            Err(error) => {
                break FileChunk::Failed(GuestError::io(format_args!("pack {path}"), &error));
            }
        }
    };
    wire.send(&last)?;
    wire.close().await
}

/// Serves an UnpackTar stream.
pub async fn unpack(
    mut wire: Wire,
    path: FilePath,
    context: &Rc<Context>,
) -> Result<(), FrameError> {
    let found = files::at(context, Work::Read, path, |place| {
        let what = format_args!("unpack into {}", place.path);
        if !reply(what, std::fs::metadata(place.as_path()))?.is_dir() {
            let message = format!("{} is not a directory", place.path);
            return Err(GuestError { errno: libc::ENOTDIR, message });
        }
        Ok((place.path.clone(), Who::of(place)))
    });
    let helper = async {
        let (path, who) = found.await?;
        Helper::start("unpack", [who.to_argument(), path], true, context).await
    };
    let mut helper = match helper.await {
        Ok(helper) => helper,
        Err(error) => {
            wire.send(&Reply::<()>::Err(error))?;
            return wire.close().await;
        }
    };
    wire.send(&Reply::<()>::Ok(()))?;
    loop {
        wire.drain().await?;
        match wire.next::<FileChunk>().await? {
            Some(FileChunk::Data(bytes)) => {
                // A helper that has failed takes no more; the rest is dropped, so that the engine
                // comes to read why.
                if let Some(stdin) = &helper.stdin
                    && stdin.write_all(&bytes).await.is_err()
                {
                    helper.stdin = None;
                }
            }
            Some(FileChunk::End) => break,
            // The engine gave up, and the helper is killed.
            Some(FileChunk::Failed(_)) | None => return Ok(()),
        }
    }
    wire.send(&helper.finish().await)?;
    wire.close().await
}

/// Runs the `pack` role: the archive of `path` to stdout.
pub fn pack_main(form: &str, who: &str, path: &Path) -> ExitCode {
    let packed = limit_memory().and_then(|()| {
        Who::parse(who)?.become_for_good()?;
        let mut out = BufWriter::with_capacity(
            MAX_CHUNK,
            File::from(io::stdout().as_fd().try_clone_to_owned()?),
        );
        let bytes = write_archive(path, form == SPARSE, &mut out)?;
        out.flush()?;
        Ok(bytes)
    });
    report(&packed.map_err(|error| describe(&format!("pack {}", path.display()), &error)))
}

/// Runs the `unpack` role: an archive from stdin into `directory`.
pub fn unpack_main(who: &str, directory: &Path) -> ExitCode {
    let unpacked = limit_memory().and_then(|()| {
        let who = Who::parse(who)?;
        let scope = enter(directory)?;
        who.become_for_good()?;
        let mut input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        // Only root may give files away.
        let bytes = read_archive(&mut input, Path::new("/"), scope, who.is_root())?;
        // Archives are padded; who sends them wants to send all of it.
        io::copy(&mut input, &mut io::sink())?;
        Ok(bytes)
    });
    report(
        &unpacked
            .map_err(|error| describe(&format!("unpack into {}", directory.display()), &error)),
    )
}

/// Also without a core file, which would be written into the directory that is unpacked.
fn limit_memory() -> io::Result<()> {
    for (resource, bytes) in [(Resource::RLIMIT_AS, HELPER_MEMORY), (Resource::RLIMIT_CORE, 0)] {
        setrlimit(resource, bytes, bytes)?;
    }
    Ok(())
}

/// An error with all its causes. Where no system call failed, the archive is what is wrong: EINVAL.
fn describe(what: &str, error: &io::Error) -> GuestError {
    let mut message = format!("{what}: {error}");
    let mut errno = error.raw_os_error();
    let mut cause = error.get_ref().and_then(|inner| inner.source());
    while let Some(error) = cause {
        message = format!("{message}: {error}");
        let io = error.downcast_ref::<io::Error>();
        errno = errno.or(io.and_then(io::Error::raw_os_error));
        cause = error.source();
    }
    match errno.or_else(|| errno_of(error.kind())) {
        Some(errno) => GuestError { errno, message },
        None => invalid(message),
    }
}

/// The errno behind a kind: the `tar` crate hands some failures on as text.
fn errno_of(kind: io::ErrorKind) -> Option<i32> {
    Some(match kind {
        io::ErrorKind::NotFound => libc::ENOENT,
        io::ErrorKind::PermissionDenied => libc::EACCES,
        io::ErrorKind::AlreadyExists => libc::EEXIST,
        io::ErrorKind::NotADirectory => libc::ENOTDIR,
        io::ErrorKind::IsADirectory => libc::EISDIR,
        io::ErrorKind::StorageFull => libc::ENOSPC,
        io::ErrorKind::QuotaExceeded => libc::EDQUOT,
        io::ErrorKind::ReadOnlyFilesystem => libc::EROFS,
        io::ErrorKind::FileTooLarge => libc::EFBIG,
        io::ErrorKind::InvalidFilename => libc::ENAMETOOLONG,
        _ => return None,
    })
}
