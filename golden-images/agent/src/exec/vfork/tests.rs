use super::*;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::ExitStatus;

/// Names the file that the inner run of a test reports to.
const INNER: &str = "MAYFLY_TEST_INNER";

fn program(arguments: &[&str], user: Option<&Credentials>) -> Program {
    let environment = [("PATH".into(), "/usr/bin:/bin".into()), ("NAME".into(), "value".into())];
    let (executable, directory) = (Path::new(arguments[0]), Path::new("/tmp"));
    let strings = arguments.iter().map(OsStr::new);
    Program::new(executable, strings, environment.into(), directory, false, user).unwrap()
}

fn null() -> File {
    File::open("/dev/null").unwrap()
}

/// Runs a program to its end; its stdout and stderr.
fn run(program: &Program) -> io::Result<(ExitStatus, String)> {
    let (null, mut output) = (null(), tempfile::tempfile().unwrap());
    let mut child = program.start([null.as_fd(), output.as_fd(), output.as_fd()])?;
    let status = child.wait().unwrap();
    output.rewind().unwrap();
    Ok((status, io::read_to_string(output).unwrap()))
}

fn shell(script: &str) -> (ExitStatus, String) {
    run(&program(&["/bin/sh", "-c", script], None)).unwrap()
}

fn errno(program: &Program) -> Option<i32> {
    run(program).unwrap_err().raw_os_error()
}

/// Runs a script that makes an executable file `$0`. A file that this process wrote itself might be
/// busy (ETXTBSY in execve(2)): a child of another test may still have a copy of the descriptor.
fn make_executable(path: &Path, script: &str) {
    let script = format!("{script} && chmod 755 \"$0\"");
    let maker = program(&["/bin/sh", "-c", &script, path.to_str().unwrap()], None);
    assert!(run(&maker).unwrap().0.success());
}

#[test]
fn exit_codes_and_signals_are_told_once_and_again() {
    assert_eq!(shell("exit 0").0.code(), Some(0));
    assert_eq!(shell("exit 77").0.code(), Some(77));
    let killed = shell("kill -9 $$").0;
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&killed), Some(9));
    let null = null();
    let program = program(&["/bin/sh", "-c", "exit 3"], None);
    let mut child = program.start([null.as_fd(); 3]).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(3));
    assert_eq!(child.wait().unwrap(), status);
    assert_eq!(child.try_wait().unwrap(), Some(status));
}

#[test]
fn one_that_runs_has_no_status_yet() {
    let (theirs, ours) = io::pipe().unwrap();
    let null = null();
    let program = program(&["/bin/cat"], None);
    let mut child = program.start([theirs.as_fd(), null.as_fd(), null.as_fd()]).unwrap();
    assert_eq!(child.try_wait().unwrap(), None);
    drop(ours);
    assert!(child.wait().unwrap().success());
}

#[test]
fn the_program_gets_its_arguments_environment_and_directory() {
    let (_, text) =
        shell("pwd; tr '\\0' '\\n' < /proc/$$/environ; tr '\\0' ' ' < /proc/$$/cmdline");
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("/tmp"));
    assert_eq!(lines.next(), Some("NAME=value"));
    assert_eq!(lines.next(), Some("PATH=/usr/bin:/bin"));
    assert!(lines.next().unwrap().starts_with("/bin/sh -c pwd;"));
}

#[test]
fn what_cannot_start_is_the_error_of_the_call_that_failed() {
    assert_eq!(errno(&program(&["/nowhere/program"], None)), Some(libc::ENOENT));
    assert_eq!(errno(&program(&["/etc/passwd"], None)), Some(libc::EACCES));
    assert_eq!(errno(&program(&["/tmp"], None)), Some(libc::EACCES));
    let in_directory = |directory: &str| {
        let arguments = [OsStr::new("true")];
        let (executable, directory) = (Path::new("/bin/true"), Path::new(directory));
        Program::new(executable, arguments, BTreeMap::new(), directory, false, None)
    };
    assert_eq!(errno(&in_directory("/nowhere").unwrap()), Some(libc::ENOENT));
    assert_eq!(errno(&in_directory("/etc/passwd").unwrap()), Some(libc::ENOTDIR));
    let error = in_directory("/tmp\0").err().unwrap();
    assert_eq!(error.to_string(), "nul byte found in provided data");
    let on_terminal = Program { terminal: true, ..program(&["/bin/true"], None) };
    assert_eq!(errno(&on_terminal), Some(libc::ENOTTY));
}

/// std::process::Command is what this took the place of.
#[test]
fn a_file_without_an_interpreter_is_a_script_of_the_shell_as_std_has_it() {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("script");
    make_executable(&script, "echo 'echo \"$0|$*\"; tr \"\\0\" \"|\" < /proc/$$/cmdline' > \"$0\"");
    let mut command = std::process::Command::new(&script);
    std::os::unix::process::CommandExt::arg0(&mut command, "another name");
    for arguments in [&["another name"][..], &["another name", "one", "two"]] {
        let strings = arguments.iter().map(OsStr::new);
        let ours =
            Program::new(&script, strings, BTreeMap::new(), Path::new("/"), false, None).unwrap();
        command.args(&arguments[1..]);
        // SAFETY: it does nothing. With it, std forks, as it did for commands with a session.
        unsafe { std::os::unix::process::CommandExt::pre_exec(&mut command, || Ok(())) };
        let theirs = command.output().unwrap();
        assert!(theirs.status.success());
        let (status, text) = run(&ours).unwrap();
        assert_eq!((status.code(), text.as_bytes()), (Some(0), &theirs.stdout[..]));
        assert!(text.starts_with(script.to_str().unwrap()), "{text}");
    }
}

#[test]
fn streams_are_the_given_ones_and_stay_open() {
    let (mut ours_in, mut ours_out, mut ours_err) = (Vec::new(), String::new(), String::new());
    let (stdin, mut input) = io::pipe().unwrap();
    let ((mut output, stdout), (mut errors, stderr)) = (io::pipe().unwrap(), io::pipe().unwrap());
    let program = program(&["/bin/sh", "-c", "cat; echo oops >&2"], None);
    let mut child = program.start([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]).unwrap();
    drop((stdin, stdout, stderr));
    ours_in.extend(b"over and back");
    io::Write::write_all(&mut input, &ours_in).unwrap();
    drop(input);
    output.read_to_string(&mut ours_out).unwrap();
    errors.read_to_string(&mut ours_err).unwrap();
    assert_eq!((ours_out.as_str(), ours_err.as_str()), ("over and back", "oops\n"));
    assert!(child.wait().unwrap().success());
}

/// Runs the test `name` of this program in a process of its own, which finds [`INNER`] set, with
/// `streams` as its descriptors; what it wrote to the file that INNER names.
fn run_inner(name: &str, streams: [&Path; 3]) -> String {
    let report = tempfile::NamedTempFile::new().unwrap();
    let open = |path: &Path| File::options().read(true).append(true).open(path).unwrap();
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "--include-ignored"]).arg(format!("exec::vfork::tests::{name}"));
    command.env(INNER, report.path());
    command.stdin(open(streams[0])).stdout(open(streams[1])).stderr(open(streams[2]));
    assert!(command.status().unwrap().success());
    std::fs::read_to_string(report.path()).unwrap()
}

#[test]
fn descriptors_0_to_2_can_change_places() {
    let own: [BorrowedFd; 3] = [0, 1, 2].map(|fd| {
        // SAFETY: Rust's runtime makes sure that the three are open, and nothing closes them.
        unsafe { BorrowedFd::borrow_raw(fd) }
    });
    if let Some(report) = std::env::var_os(INNER) {
        // The shell's own descriptors: a substitution has others, and its result is none.
        let script = format!(
            "for fd in 0 1 2; do names=\"$names $(readlink /proc/$$/fd/$fd)\"; done; \
             echo $names >> {}",
            report.display()
        );
        for [stdin, stdout, stderr] in [[1, 2, 0], [0, 1, 2], [2, 2, 1]] {
            let program = program(&["/bin/sh", "-c", &script], None);
            let mut child = program.start([own[stdin], own[stdout], own[stderr]]).unwrap();
            assert!(child.wait().unwrap().success());
        }
        return;
    }
    let files = [(); 3].map(|()| tempfile::NamedTempFile::new().unwrap().into_temp_path());
    let [a, b, c] = [&files[0], &files[1], &files[2]].map(|path| path.to_str().unwrap());
    let report =
        run_inner("descriptors_0_to_2_can_change_places", [&files[0], &files[1], &files[2]]);
    assert_eq!(report.split_whitespace().collect::<Vec<_>>(), [b, c, a, a, b, c, c, c, b]);
}

#[test]
fn it_leads_a_session_and_a_process_group() {
    // proc_pid_stat(5): pid, name, state, parent, group, session.
    let (_, text) = shell(
        "read -r pid name state parent group session rest < /proc/$$/stat; \
                           echo $$ $group $session $parent",
    );
    let numbers: Vec<u32> = text.split_whitespace().map(|word| word.parse().unwrap()).collect();
    assert_eq!(numbers, [numbers[0], numbers[0], numbers[0], std::process::id()]);
}

#[test]
fn a_terminal_is_the_controlling_one() {
    let pty = nix::pty::openpty(None, None).unwrap();
    // proc_pid_stat(5): the eighth field is the foreground group of the controlling terminal.
    let script = "tty; tty < /dev/tty > /dev/null && \
                  read -r _ _ _ _ _ _ _ foreground _ < /proc/$$/stat; echo $foreground; echo $$";
    let program = Program { terminal: true, ..program(&["/bin/sh", "-c", script], None) };
    let mut child = program.start([pty.slave.as_fd(); 3]).unwrap();
    let name = nix::unistd::ttyname(&pty.slave).unwrap();
    let mut lines = io::BufRead::lines(io::BufReader::new(File::from(pty.master)));
    let mut line = || lines.next().unwrap().unwrap().trim().to_owned();
    assert_eq!(line(), name.to_str().unwrap());
    assert_eq!(line(), child.id().to_string());
    assert_eq!(line(), child.id().to_string());
    assert!(child.wait().unwrap().success());
}

/// In a process of its own, because what it sets is the whole process's.
#[test]
fn signals_are_neither_ignored_nor_handled_nor_blocked_in_the_child() {
    extern "C" fn handle(_: libc::c_int) {}
    if let Some(report) = std::env::var_os(INNER) {
        use nix::sys::signal::{SigHandler, Signal, signal};
        let set = |signals: &[Signal], handler| {
            for number in signals {
                // SAFETY: the handler does nothing.
                unsafe { signal(*number, handler) }.unwrap();
            }
        };
        set(
            &[Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM],
            SigHandler::SigIgn,
        );
        set(&[Signal::SIGUSR1], SigHandler::Handler(handle));
        set(&[Signal::SIGUSR2], SigHandler::SigIgn);
        SigSet::from(Signal::SIGWINCH).thread_block().unwrap();
        let program = program(&["/bin/cat", "/proc/self/status"], None);
        std::fs::write(report, run(&program).unwrap().1).unwrap();
        assert_eq!(SigSet::thread_get_mask().unwrap(), SigSet::from(Signal::SIGWINCH));
        return;
    }
    let null = Path::new("/dev/null");
    let name = "signals_are_neither_ignored_nor_handled_nor_blocked_in_the_child";
    let report = run_inner(name, [null; 3]);
    let bits = |field: &str| {
        let line = report.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        // Without the real-time ones, of which posix_spawn(3) leaves one ignored.
        u64::from_str_radix(line.trim(), 16).unwrap() & 0x7fff_ffff
    };
    // What nobody asked to be changed is inherited: a blocked signal, an ignored one.
    assert_eq!(bits("SigBlk:"), 1 << (libc::SIGWINCH - 1));
    assert_eq!(bits("SigIgn:"), 1 << (libc::SIGUSR2 - 1));
    assert_eq!(bits("SigCgt:"), 0);
}

#[test]
#[ignore = "needs root"]
fn another_user_has_its_ids_and_groups_and_leaves_us_dumpable() {
    use nix::unistd::{Gid, Uid};
    let user = Credentials {
        uid: Uid::from_raw(4001),
        gid: Gid::from_raw(4002),
        groups: vec![Gid::from_raw(4003), Gid::from_raw(4004)],
        home: "/".into(),
        name: "somebody".into(),
    };
    let own = (nix::unistd::getresuid().unwrap(), nix::unistd::getgroups().unwrap());
    let status = ["/bin/grep", "-E", "^(Uid|Gid|Groups|CapEff)", "/proc/self/status"];
    let (_, text) = run(&program(&status, Some(&user))).unwrap();
    let words: Vec<_> = text.split_whitespace().collect();
    let expected = "Uid: 4001 4001 4001 4001 Gid: 4002 4002 4002 4002 Groups: 4003 4004 \
                    CapEff: 0000000000000000";
    assert_eq!(words.join(" "), expected);
    assert_eq!((nix::unistd::getresuid().unwrap(), nix::unistd::getgroups().unwrap()), own);
    assert!(nix::sys::prctl::get_dumpable().unwrap());
    // The directory is entered before, the program executed after the change.
    let private = tempfile::tempdir().unwrap();
    std::fs::set_permissions(private.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let inside = |executable: &str| {
        let (executable, strings) = (Path::new(executable), [OsStr::new("true")]);
        Program::new(executable, strings, BTreeMap::new(), private.path(), false, Some(&user))
    };
    assert!(run(&inside("/bin/true").unwrap()).unwrap().0.success());
    let copy = private.path().join("true");
    make_executable(&copy, "cp /bin/true \"$0\"");
    assert_eq!(errno(&inside(copy.to_str().unwrap()).unwrap()), Some(libc::EACCES));
    assert!(nix::sys::prctl::get_dumpable().unwrap());
}

/// Children of this process that nobody has waited for.
fn zombies() -> usize {
    let own = std::process::id().to_string();
    let stats = std::fs::read_dir("/proc").unwrap().flatten();
    let stats = stats.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
    let is_ours = |stat: &String| {
        let mut fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
        fields.next() == Some("Z") && fields.next() == Some(&own)
    };
    stats.filter(is_ours).count()
}

#[test]
fn many_starts_leave_neither_descriptors_nor_zombies() {
    let mut files = Vec::new();
    for number in 0..200 {
        let (mut output, stdout) = io::pipe().unwrap();
        files.push(nix::sys::stat::fstat(&output).unwrap().st_ino);
        let null = null();
        let streams = [null.as_fd(), stdout.as_fd(), stdout.as_fd()];
        if number % 4 == 0 {
            program(&["/nowhere/program"], None).start(streams).unwrap_err();
        } else {
            let mut child = program(&["/bin/echo", "x"], None).start(streams).unwrap();
            drop(stdout);
            // Its end is that of the last copy: no other child has one.
            let mut text = String::new();
            output.read_to_string(&mut text).unwrap();
            assert_eq!(text, "x\n");
            assert!(child.wait().unwrap().success());
        }
    }
    // Other tests of this process have descriptors and children, but not these and not for long.
    let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let open: Vec<_> = open.filter_map(|entry| Some(entry.path().metadata().ok()?.ino())).collect();
    assert!(!open.iter().any(|file| files.contains(file)));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while zombies() > 0 {
        assert!(std::time::Instant::now() < deadline, "{} zombies", zombies());
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn large_arguments_arrive_and_our_memory_is_what_it_was() {
    let sum = |bytes: &[u8]| {
        bytes.iter().fold(7u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)))
    };
    let memory: Vec<u8> = (0..4usize << 20).map(|index| index.to_le_bytes()[index % 3]).collect();
    let before = sum(&memory);
    // Below MAX_ARG_STRLEN (execve(2)) each.
    let words: Vec<String> = (0..8).map(|number| format!("{number}").repeat(120_000)).collect();
    let script = "cat /proc/$$/cmdline /proc/$$/environ | wc -c; echo ${#1} ${#8} ${LARGE_7}";
    let arguments = ["sh", "-c", script, "sh"].into_iter().chain(words.iter().map(String::as_str));
    let environment: BTreeMap<OsString, OsString> = (0..8)
        .map(|number| (format!("LARGE_{number}").into(), words[number].clone().into()))
        .collect();
    let strings: Vec<&OsStr> = arguments.map(OsStr::new).collect();
    let directory = Path::new("/");
    let large =
        Program::new(Path::new("/bin/sh"), strings, environment, directory, false, None).unwrap();
    for _ in 0..5 {
        let (status, text) = run(&large).unwrap();
        assert!(status.success(), "{text:.300}");
        let (numbers, last) = text.trim().rsplit_once(' ').unwrap();
        let total: usize = numbers.split_whitespace().next().unwrap().parse().unwrap();
        assert!(total > 16 * 120_000, "{total}");
        assert!(numbers.ends_with("\n120000 120000"), "{numbers}");
        assert_eq!(last, words[7]);
    }
    let too_long = "x".repeat(256 * 1024);
    let refused = program(&["/bin/true", &too_long], None);
    assert_eq!(errno(&refused), Some(libc::E2BIG));
    assert_eq!(sum(&memory), before);
    assert!(
        words.iter().enumerate().all(|(number, word)| *word == number.to_string().repeat(120_000))
    );
}
