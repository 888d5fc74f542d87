use std::fs::OpenOptions;
use std::io::{PipeReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;

use mayfly_host::cgroup::{Limits, SessionCgroup, Subject};

use super::super::Rlimits;
use super::super::confine::Owner;
use super::*;

fn unconfined() -> Child {
    let rlimits = Rlimits { file_bytes: u64::MAX, threads: libc::RLIM_INFINITY, open_files: 512 };
    Child { jail: None, uid: None, rlimits, owner: Owner::own().unwrap(), own_cores: false }
}

/// A shell that runs `script`, whose output goes through descriptor 3 to the pipe.
fn shell(script: &str, cgroup: Entrance) -> (Program, PipeReader) {
    let (output, end) = io::pipe().unwrap();
    let arguments = ["-c".to_owned(), format!("exec 1>&3 3>&-; {script}")];
    let environment = [("PATH", "/usr/bin:/bin".to_owned())];
    let descriptors = (vec![(end.into(), 3)], File::create("/dev/null").unwrap().into());
    let program =
        Program::new("sh", &arguments, &environment, descriptors, (cgroup, unconfined())).unwrap();
    (program, output)
}

fn start(program: &Program) -> io::Result<Started> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { program.start()?.executed().await })
}

/// What the shell says.
fn said(script: &str, cgroup: Entrance) -> String {
    let (program, mut output) = shell(script, cgroup);
    let started = start(&program).unwrap();
    drop(program);
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    started.end();
    text
}

fn refusal(program: &Program) -> String {
    start(program).unwrap_err().to_string()
}

fn folder(path: &Path) -> OwnedFd {
    let options =
        OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(path);
    options.unwrap().into()
}

#[test]
#[ignore = "needs root"]
fn a_process_is_made_in_a_v2_group_where_the_kernel_can() {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let Some(point) = mounts
        .lines()
        .find(|line| line.contains(" - cgroup2 "))
        .and_then(|line| line.split(' ').nth(4))
    else {
        return mayfly_skip::skip("no cgroup v2 is mounted on this host");
    };
    let group = Path::new(point).join(format!("mayfly-test-clone-{}", std::process::id()));
    std::fs::create_dir(&group).unwrap();
    // Without a file to write to, there is no other way into it.
    let text =
        said("cat /proc/self/cgroup", Entrance { files: Vec::new(), folder: Some(folder(&group)) });
    let (program, _output) =
        shell("exec sleep 100", Entrance { files: Vec::new(), folder: Some(folder(&group)) });
    let started = start(&program).unwrap();
    let members = std::fs::read_to_string(group.join("cgroup.procs")).unwrap();
    let pid = started.pid;
    started.end();
    std::fs::remove_dir(&group).unwrap();
    let name = group.file_name().unwrap().to_string_lossy().into_owned();
    assert!(text.lines().any(|line| line.starts_with("0::") && line.ends_with(&name)), "{text}");
    assert_eq!(members.trim(), pid.to_string());
}

#[test]
#[ignore = "needs root"]
fn where_the_kernel_cannot_a_process_enters_its_group_before_the_program_runs() {
    let dir = tempfile::tempdir().unwrap();
    let own = mayfly_host::instance::name_of(std::process::id()).unwrap();
    let subject = Subject { guest_memory: 64 << 20, disk_dir: dir.path().to_owned() };
    let group =
        SessionCgroup::create(&format!("{own}-enter"), &Limits::default(), subject).unwrap();
    let entrance = group.entrance().unwrap();
    // Not the folder of a group, which the kernel refuses.
    let entrance = Entrance { folder: Some(folder(dir.path())), ..entrance };
    let text = said("cat /proc/self/cgroup", entrance);
    group.remove().unwrap();
    assert!(text.contains(&format!("/mayfly/{own}-enter")), "{text}");
}

#[test]
#[ignore = "needs root"]
fn it_has_the_descriptors_it_was_given_and_no_other() {
    let pipes: Vec<_> = (0..3).map(|_| io::pipe().unwrap()).collect();
    let (mut outputs, mut inherit) = (Vec::new(), Vec::new());
    for (output, end) in pipes {
        outputs.push(output);
        inherit.push(OwnedFd::from(end));
    }
    // Each gets the number that another has here.
    let mut numbers: Vec<RawFd> = inherit.iter().map(AsRawFd::as_raw_fd).collect();
    numbers.rotate_left(1);
    let script: Vec<String> =
        numbers.iter().enumerate().map(|(at, number)| format!("echo {at} >&{number}")).collect();
    let script = format!("{}; echo /proc/self/fd/* >&{}", script.join("; "), numbers[0]);
    let descriptors = (
        inherit.into_iter().zip(numbers.clone()).collect(),
        File::create("/dev/null").unwrap().into(),
    );
    let arguments = ["-c".to_owned(), script];
    // bash, for sh knows no descriptors above 9.
    let program =
        Program::new("bash", &arguments, &[], descriptors, (Entrance::default(), unconfined()))
            .unwrap();
    let started = start(&program).unwrap();
    drop(program);
    let texts: Vec<String> = outputs
        .into_iter()
        .map(|mut output| {
            let mut text = String::new();
            output.read_to_string(&mut text).unwrap();
            text
        })
        .collect();
    started.end();
    assert_eq!(texts[1..], ["1\n", "2\n"]);
    let (first, listed) = texts[0].split_once('\n').unwrap();
    assert_eq!(first, "0");
    let mut seen: Vec<RawFd> =
        listed.split_whitespace().filter_map(|p| p.rsplit('/').next()?.parse().ok()).collect();
    seen.sort_unstable();
    // And one with which the shell lists them.
    numbers.extend([0, 1, 2]);
    seen.retain(|number| !numbers.contains(number));
    assert!(seen.len() <= 1, "{listed}");
}

#[test]
#[ignore = "needs root"]
fn signals_are_as_in_any_program() {
    let signals = |text: &str, field: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let of_it = said("cat /proc/self/status", Entrance::default());
    let broken_pipe = 1 << (libc::SIGPIPE - 1);
    // A Rust program ignores it.
    assert_ne!(signals(&own, "SigIgn:") & broken_pipe, 0, "{own}");
    assert_eq!(signals(&of_it, "SigIgn:"), signals(&own, "SigIgn:") & !broken_pipe, "{of_it}");
    assert_eq!(signals(&of_it, "SigBlk:"), 0, "{of_it}");
}

#[test]
#[ignore = "needs root"]
fn a_vmm_is_killed_before_its_engine_when_the_host_is_out_of_memory() {
    let file = "/proc/self/oom_score_adj";
    let before = std::fs::read_to_string(file).unwrap();
    for (own, of_it) in [("-1", "500"), ("0", "500"), ("300", "500"), ("900", "900")] {
        if std::fs::write(file, own).is_err() {
            mayfly_skip::skip(format_args!(
                "this root may not have an OOM score of {own} (CAP_SYS_RESOURCE)"
            ));
            continue;
        }
        assert_eq!(said(&format!("cat {file}"), Entrance::default()).trim(), of_it);
    }
    let _ = std::fs::write(file, before);
}

#[test]
#[ignore = "needs root"]
fn no_core_dump_is_written_and_no_helper_of_one_started() {
    // A limit of 0 bounds files only, and every other starts the helper of a pipe (core(5)).
    let limits = said("cat /proc/self/limits", Entrance::default());
    let line = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
    assert_eq!(line.split_whitespace().collect::<Vec<_>>(), ["1", "1", "bytes"]);
}

#[test]
#[ignore = "needs root"]
fn its_memory_is_not_offered_for_merging_because_its_engines_is() {
    let merging = |on: i32| {
        // SAFETY: prctl takes numbers.
        unsafe { libc::prctl(libc::PR_SET_MEMORY_MERGE, on, 0, 0, 0) }
    };
    if merging(1) != 0 {
        return mayfly_skip::skip("this kernel cannot merge all memory of a process");
    }
    let asked = |text: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix("ksm_merge_any:"));
        line.map(|word| word.trim().to_owned())
    };
    let own = std::fs::read_to_string("/proc/self/ksm_stat").ok().and_then(|text| asked(&text));
    let of_it = asked(&said("cat /proc/self/ksm_stat", Entrance::default()));
    merging(0);
    let Some(own) = own else {
        return mayfly_skip::skip("this kernel does not say whose memory it merges");
    };
    assert_eq!((&*own, of_it.as_deref()), ("yes", Some("no")));
}

#[test]
#[ignore = "needs root"]
fn what_a_child_was_at_is_told() {
    let null = || OwnedFd::from(File::create("/dev/null").unwrap());
    let with = |program: &str, cgroup: Entrance, child: Child| {
        Program::new(program, &[], &[], (Vec::new(), null()), (cgroup, child))
    };
    let nothing = Entrance::default;
    assert_eq!(
        refusal(&with("/no/such/program", nothing(), unconfined()).unwrap()),
        "cannot execute the program: No such file or directory (os error 2)"
    );
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let cgroup = Entrance { files: vec![full.into()], folder: None };
    let text = refusal(&with("true", cgroup, unconfined()).unwrap());
    assert_eq!(text, "cannot enter its cgroup: No space left on device (os error 28)");
    let mut ended = std::process::Command::new("sleep").arg("100").spawn().unwrap();
    let owner = Owner::of(ended.id()).unwrap();
    ended.kill().unwrap();
    ended.wait().unwrap();
    let text = refusal(&with("true", nothing(), Child { owner, ..unconfined() }).unwrap());
    assert_eq!(text, "cannot follow its owner: No such process (os error 3)");
    let error = with("no-such-program-at-all", nothing(), unconfined()).unwrap_err();
    assert_eq!(
        (error.kind(), &*error.to_string()),
        (io::ErrorKind::NotFound, "no-such-program-at-all is not in the PATH")
    );
    with("a\0b", nothing(), unconfined()).unwrap_err();
}

/// The child enters its cgroup through a pipe that takes nothing more, as if it had no turn.
#[tokio::test]
#[ignore = "needs root"]
async fn a_child_that_waits_for_its_turn_holds_up_no_other() {
    let (_reader, mut writer) = io::pipe().unwrap();
    let flags = nix::fcntl::OFlag::O_NONBLOCK;
    nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETFL(flags)).unwrap();
    while writer.write(&[0; 4096]).is_ok() {}
    while writer.write(&[0]).is_ok() {}
    nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty())).unwrap();
    let entrance = Entrance { files: vec![writer.into()], folder: None };
    let (program, _output) = shell("true", entrance);
    let waiting = tokio::spawn(super::super::spawn(program, super::super::PidNamespace::Own));
    while stuck().is_empty() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }

    let (program, mut output) = shell("echo here", Entrance::default());
    let (started, _) = super::super::spawn(program, super::super::PidNamespace::Own).await.unwrap();
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    started.end();
    assert_eq!(text, "here\n");
    assert!(!waiting.is_finished());

    // Given up, it does not stay.
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    while !stuck().is_empty() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// Children of the spawner thread that have not executed a program: they still have its name.
fn stuck() -> Vec<PathBuf> {
    let parent = format!("PPid:\t{}", std::process::id());
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let is_stuck = |path: &PathBuf| {
        let status = std::fs::read_to_string(path.join("status")).unwrap_or_default();
        status.starts_with("Name:\tvmm-spawner\n") && status.lines().any(|line| line == parent)
    };
    processes.filter(is_stuck).collect()
}
