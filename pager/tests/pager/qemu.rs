//! Stock QEMU with the preload library, as the engine runs it.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use mayfly_pager::{Attachment, Mode};

use super::support::{CHUNK, PAGE, Pager, TestSource, preload_library, wait_until};

const LEN: u64 = 64 << 20;
const C: u64 = CHUNK as u64;
const RAM_FD: i32 = 200;
const UFFD_FD: i32 = 201;
const SOCK_FD: i32 = 202;
const KEEP_FD: i32 = 203;

/// Descriptors for QEMU, and their numbers there.
type Descriptors<'a> = &'a [(&'a OwnedFd, i32)];

fn qemu(backend: &str, spec: &str, fds: Descriptors<'_>) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args([
        "-M",
        "microvm,x-option-roms=off",
        "-accel",
        "tcg",
        "-nodefaults",
        "-display",
        "none",
        "-S",
        "-m",
        "64M",
    ]);
    command.args(["-object", backend, "-machine", "memory-backend=ram"]);
    command.env("LD_PRELOAD", preload_library()).env("MAYFLY_PRELOAD", spec);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let pairs: Vec<(i32, i32)> = fds.iter().map(|(fd, to)| (fd.as_raw_fd(), *to)).collect();
    // SAFETY: dup2 and prctl are async-signal-safe; the descriptors stay open in the parent until
    // spawn returns.
    unsafe {
        command.pre_exec(move || {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            for &(from, to) in &pairs {
                if libc::dup2(from, to) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    command
}

fn device() -> OwnedFd {
    File::options().read(true).write(true).open("/dev/userfaultfd").unwrap().into()
}

const BACKEND: &str = "memory-backend-file,id=ram,size=64M,mem-path=/mayfly/ram,share=off";

struct Qemu {
    child: Child,
    qmp: BufReader<UnixStream>,
    /// Where its userfaultfd is kept.
    kept: Option<UnixStream>,
}

impl Qemu {
    fn start(pager: &Pager, attachment: &mut Attachment, name: &str) -> Self {
        let (ram, socket, device) =
            (attachment.take_ram_file(), attachment.take_handshake().unwrap(), device());
        let (kept, keep) = UnixStream::pair().unwrap();
        let keep = OwnedFd::from(keep);
        let mut fds = vec![(&socket, SOCK_FD), (&device, UFFD_FD), (&keep, KEEP_FD)];
        let spec = match &ram {
            Some(ram) => {
                fds.push((ram, RAM_FD));
                format!(
                    "ram=/mayfly/ram,ramfd={RAM_FD},uffd={UFFD_FD},sock={SOCK_FD},keep={KEEP_FD}"
                )
            }
            None => format!(
                "ram=/mayfly/ram,mode=copy,size={LEN},uffd={UFFD_FD},sock={SOCK_FD},keep={KEEP_FD}"
            ),
        };
        let path = pager.path(name);
        let mut command = qemu(BACKEND, &spec, &fds);
        command.args(["-qmp", &format!("unix:{},server=on,wait=off", path.display())]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap();
        let mut stream = None;
        wait_until("QMP", || {
            assert!(child.try_wait().unwrap().is_none(), "QEMU ended");
            stream = UnixStream::connect(&path).ok();
            stream.is_some()
        });
        let qmp = BufReader::new(stream.unwrap());
        let mut qemu = Self { child, qmp, kept: Some(kept) };
        qemu.line();
        qemu.execute(r#"{"execute":"qmp_capabilities"}"#);
        qemu
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.qmp.read_line(&mut line).unwrap();
        line
    }

    /// What its descriptors lead to.
    fn descriptors(&self) -> Vec<String> {
        let entries = std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap();
        let links = entries.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
        links.map(|link| link.display().to_string()).collect()
    }

    fn execute(&mut self, command: &str) -> String {
        self.qmp.get_mut().write_all(command.as_bytes()).unwrap();
        loop {
            let line = self.line();
            assert!(!line.is_empty() && !line.contains("\"error\""), "{command}: {line}");
            if line.contains("\"return\"") {
                return line;
            }
        }
    }

    /// Guest-physical memory.
    fn memory(&mut self, pager: &Pager, offset: u64, len: u64) -> Vec<u8> {
        let file = pager.path("memory");
        let arguments =
            format!(r#"{{"val":{offset},"size":{len},"filename":"{}"}}"#, file.display());
        self.execute(&format!(r#"{{"execute":"pmemsave","arguments":{arguments}}}"#));
        std::fs::read(file).unwrap()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The BIOS area: QEMU maps ROM over part of the first MiB.
const FIRST: u64 = 1 << 20;

#[test]
fn stock_qemu_reads_the_image_in_both_modes() {
    let source = TestSource::new(LEN, 900..1000);
    let pager = Pager::with(&source, &[]);
    for mode in [Mode::Shared, Mode::Copy] {
        let mut attachment = pager.attach(mode);
        let mut qemu = Qemu::start(&pager, &mut attachment, &format!("qmp-{mode:?}"));
        assert!(attachment.stats().unwrap().connected);
        let reaches = |what: &str| qemu.descriptors().iter().any(|link| link.contains(what));
        assert!(reaches("socket") && reaches("/dev/null"));
        assert!(!reaches("userfaultfd") && !reaches("/memfd:mayfly"), "{:?}", qemu.descriptors());
        assert!(
            qemu.memory(&pager, FIRST + 5 * C, 3 * PAGE)
                == source.expected(FIRST + 5 * C, 3 * PAGE)
        );
        assert!(
            qemu.memory(&pager, FIRST, LEN - FIRST) == source.expected(FIRST, LEN - FIRST),
            "{mode:?}"
        );
        let counters = attachment.stats().unwrap().counters;
        assert!(counters.faults > 0 && counters.zero_pages >= 100 * C / PAGE, "{counters:?}");
        assert_eq!(counters.bytes_copied > 0, mode == Mode::Copy);
        if mode == Mode::Shared {
            // A sibling, and a page evicted under QEMU.
            let mut second = pager.attach(mode);
            let mut other = Qemu::start(&pager, &mut second, "qmp-second");
            assert!(other.memory(&pager, FIRST, 60 * C) == source.expected(FIRST, 60 * C));
            assert_eq!(second.stats().unwrap().counters.fills, 0);
            assert!(pager.client.evict(u64::MAX).unwrap() > 0);
            assert!(qemu.memory(&pager, FIRST, 60 * C) == source.expected(FIRST, 60 * C));
        }
        assert_eq!(attachment.try_event(), None);
        drop(qemu);
        wait_until("the end of QEMU is noticed", || attachment.try_event().is_some());
    }
}

#[test]
fn qemu_waits_without_a_pager_as_long_as_its_owner_keeps_its_userfaultfd() {
    let source = TestSource::new(LEN, []);
    let pager = Pager::with(&source, &[]);
    let mut attachment = pager.attach(Mode::Shared);
    let mut qemu = Qemu::start(&pager, &mut attachment, "qmp");
    assert!(qemu.memory(&pager, FIRST, C) == source.expected(FIRST, C));
    pager.client.shutdown(true).unwrap();
    wait_until("the end of the pager", || !pager.client.path().exists());
    let file = pager.path("memory");
    let arguments =
        format!(r#"{{"val":{},"size":{C},"filename":"{}"}}"#, FIRST + 9 * C, file.display());
    let command = format!(r#"{{"execute":"pmemsave","arguments":{arguments}}}"#);
    qemu.qmp.get_mut().write_all(command.as_bytes()).unwrap();
    // The pause cannot make a sound library fail, it only gives a broken one the time to show.
    qemu.qmp.get_ref().set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(qemu.qmp.read_line(&mut String::new()).is_err(), "memory was read without a pager");
    // And it was this that held it.
    qemu.kept = None;
    qemu.qmp.get_ref().set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    assert!(qemu.line().contains("return"));
    assert!(std::fs::read(file).unwrap().iter().all(|byte| *byte == 0));
}

/// Runs QEMU to its end.
fn run(backend: &str, spec: &str, fds: Descriptors<'_>) -> (Option<i32>, String) {
    let mut child = qemu(backend, spec, fds).spawn().unwrap();
    let mut status = None;
    wait_until("the end of QEMU", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    (status.and_then(|s| s.code()), text)
}

#[test]
fn whatever_goes_wrong_in_qemu_is_loud() {
    let source = TestSource::new(LEN, []);
    let pager = Pager::with(&source, &[]);
    let mut attachment = pager.attach(Mode::Shared);
    let (ram, socket, device) =
        (attachment.take_ram_file().unwrap(), attachment.take_handshake().unwrap(), device());
    let null: OwnedFd = File::options().read(true).write(true).open("/dev/null").unwrap().into();
    let (_kept, keep) = UnixStream::pair().unwrap();
    let keep = OwnedFd::from(keep);
    let all = [(&ram, RAM_FD), (&device, UFFD_FD), (&socket, SOCK_FD), (&keep, KEEP_FD)];
    let spec =
        format!("ram=/mayfly/ram,ramfd={RAM_FD},uffd={UFFD_FD},sock={SOCK_FD},keep={KEEP_FD}");
    let anonymous = "memory-backend-ram,id=ram,size=64M";
    let shared = "memory-backend-file,id=ram,size=64M,mem-path=/mayfly/ram,share=on";
    let misspelt = "memory-backend-file,id=ram,size=64M,mem-path=/nowhere/ram,share=off";
    let cases: [(&str, &str, Descriptors<'_>, &str); 9] = [
        (anonymous, &spec, &all, "has not mapped the RAM file"),
        (shared, &spec, &all, "share=off"),
        (misspelt, &spec, &all, "never mapped the RAM file"),
        (BACKEND, &spec, &all[..2], "not open"),
        (BACKEND, &spec, &all[..3], "not open"),
        (BACKEND, "ramfd=200", &all, "names no ram path"),
        (BACKEND, "ram=/mayfly/ram,nonsense", &all, "has no `=`"),
        (
            BACKEND,
            &spec,
            &[(&ram, RAM_FD), (&null, UFFD_FD), (&socket, SOCK_FD), (&keep, KEEP_FD)],
            "cannot make a userfaultfd",
        ),
        (
            BACKEND,
            &spec,
            &[(&null, RAM_FD), (&device, UFFD_FD), (&socket, SOCK_FD), (&keep, KEEP_FD)],
            "must be opened read-only",
        ),
    ];
    for (backend, spec, fds, message) in cases {
        let (code, text) = run(backend, spec, fds);
        assert_eq!(code, Some(71), "{message}: {text}");
        assert!(
            text.lines().any(|l| l.starts_with("mayfly-preload: ") && l.contains(message)),
            "{message}: {text}"
        );
    }
    // The pager is gone before the handshake.
    drop(attachment);
    wait_until("detached", || pager.client.ping().unwrap().sessions == 0);
    let (code, text) = run(BACKEND, &spec, &all);
    assert_eq!(code, Some(71), "{text}");
    assert!(text.contains("cannot send the handshake"), "{text}");
}

#[test]
fn without_its_variable_the_library_does_nothing() {
    let run = |preload: bool| -> Output {
        let mut command = Command::new("python3");
        command.args(["-c", "import mmap,os,signal,tempfile\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n\
            f=tempfile.TemporaryFile(); f.write(b'x'*8192); f.flush(); m=mmap.mmap(f.fileno(), 8192); m[4096]=65; m.flush()\n\
            print(os.pread(f.fileno(), 2, 4096), oct(os.stat(os.open('/dev/null', os.O_RDWR)).st_mode))\n\
            try: open('/does/not/exist')\nexcept OSError as e: print(e.errno)"]);
        if preload {
            command.env("LD_PRELOAD", preload_library());
        }
        command.output().unwrap()
    };
    let (with, without) = (run(true), run(false));
    assert!(
        with.status.success() && with.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&with.stderr)
    );
    assert_eq!(with.stdout, without.stdout);
    assert!(!with.stdout.is_empty());
}
