//! The ends of things: of a VMM, a connection, a pager; and handshakes that are refused.

use std::{
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use mayfly_pager::{
    AttachRequest, FailureKind, ListenRequest, Mode, PagerClient, SessionEvent, Uffd,
    handshake::{self, Region},
};

use super::{
    child::Vmm,
    support::{
        CHUNK, PAGE, Pager, TestResolver, TestSource, config, next_event, request, this_binary,
        wait_until,
    },
};

const LEN: u64 = 4 << 20;
const C: u64 = CHUNK as u64;

fn failure(event: SessionEvent) -> (FailureKind, String) {
    match event {
        SessionEvent::Failed { kind, reason } => (kind, reason),
        SessionEvent::PagerGone => panic!("the pager is alive"),
    }
}

#[test]
fn a_vmm_killed_in_a_fault_is_noticed_and_leaves_nothing() {
    for mode in [Mode::Shared, Mode::Copy] {
        let source = TestSource::new(LEN, []);
        let pager = Pager::with(&source, &[]);
        source.hold(2);
        let mut attachment = pager.attach(mode);
        let mut vmm = Vmm::start(&mut attachment);
        vmm.tell(&format!("bg-read {}", 2 * C));
        wait_until("the fault", || source.waiting.load(Ordering::SeqCst) == 1);
        vmm.kill();
        assert_eq!(failure(next_event(&attachment)).0, FailureKind::VmmGone);
        drop(attachment);
        wait_until("detached", || pager.client.ping().unwrap().sessions == 0);
        source.release(2);
        let mut next = pager.attach(mode);
        assert_eq!(Vmm::start(&mut next).read(0, LEN), source.hash(0, LEN));
    }
}

#[test]
fn a_dropped_connection_detaches_and_the_vmm_blocks() {
    let source = TestSource::new(LEN, []);
    let pager = Pager::with(&source, &[]);
    let mut attachment = pager.attach(Mode::Shared);
    let mut vmm = Vmm::start(&mut attachment);
    assert_eq!(vmm.read(0, C), source.hash(0, C));
    drop(attachment);
    wait_until("detached", || pager.client.ping().unwrap().sessions == 0);
    vmm.tell(&format!("bg-read {}", 5 * C));
    assert!(vmm.is_silent(), "a fault without a pager must block, not read zeros");
    assert_eq!(vmm.read(0, C), source.hash(0, C), "what was resident is still there");
    pager.client.forget("g").unwrap();
    assert_eq!(pager.client.host_stats().unwrap().image_count, 0);
}

#[test]
fn a_killed_pager_blocks_its_vmms() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pager.sock");
    let mut command = Command::new(this_binary());
    command.args(["--exact", "life::pager_process", "--nocapture"]).env("MAYFLY_TEST_PAGER", &path);
    // SAFETY: prctl is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    let mut process = command.stdout(Stdio::null()).spawn().unwrap();
    let client = PagerClient::new(&path);
    client.wait_ready(Duration::from_secs(20)).unwrap();
    let source = TestSource::new(LEN, []);
    for mode in [Mode::Shared, Mode::Copy] {
        let mut attachment = client.attach(&request("g", mode)).unwrap();
        let mut vmm = Vmm::start(&mut attachment);
        assert_eq!(vmm.read(0, C), source.hash(0, C));
        if mode == Mode::Shared {
            continue;
        }
        // One fault that the pager holds when it dies, and one that comes after.
        let mut shared = client.attach(&request("g", Mode::Shared)).unwrap();
        let mut other = Vmm::start(&mut shared);
        vmm.tell(&format!("bg-read {}", 7 * C));
        other.tell(&format!("bg-read {}", 7 * C));
        wait_until("the faults", || client.host_stats().unwrap().counters.faults >= 4);
        process.kill().unwrap();
        process.wait().unwrap();
        for (attachment, vmm) in [(&attachment, &mut vmm), (&shared, &mut other)] {
            assert_eq!(next_event(attachment), SessionEvent::PagerGone);
            vmm.tell(&format!("bg-read {}", 9 * C));
            assert!(vmm.is_silent(), "{mode:?}: memory without a pager must block, not read zeros");
        }
    }
    // Its socket file is left; the next pager takes it over.
    let resolver = Arc::new(TestResolver::default());
    let next = std::thread::spawn(move || mayfly_pager::serve(&path, resolver, config()));
    client.wait_ready(Duration::from_secs(20)).unwrap();
    client.shutdown(false).unwrap();
    next.join().unwrap().unwrap();
}

/// The pager of other tests: does nothing unless started by one. Chunk 7 is never delivered.
#[test]
fn pager_process() {
    let Ok(path) = std::env::var("MAYFLY_TEST_PAGER") else {
        return;
    };
    let source = TestSource::new(LEN, []);
    source.hold(7);
    let mut config = config();
    match std::env::var("MAYFLY_TEST_PAGER_BREAKS").as_deref() {
        Ok("panic") => source.break_at(6, || panic!("made by the test")),
        Ok(_) => {
            config.stall_limit = Duration::from_millis(500);
            source.break_at(6, || std::thread::sleep(Duration::from_secs(3600)));
        }
        Err(_) => {}
    }
    let resolver = Arc::new(TestResolver::default());
    resolver.put("g", "key", &source, &[]);
    mayfly_pager::serve(Path::new(&path), resolver, config).unwrap();
}

#[test]
fn refused_handshakes_fail_the_session_clearly() {
    let source = TestSource::new(LEN, []);
    let pager = Pager::with(&source, &[]);
    let uffd = Uffd::new().unwrap();
    let whole = Region { base: 1 << 30, size: LEN, offset: 0 };

    let mut attachment = pager.attach(Mode::Copy);
    let socket = attachment.take_handshake().unwrap();
    handshake::send(&socket, &[Region { size: LEN * 2, ..whole }], &uffd).unwrap();
    let (kind, reason) = failure(next_event(&attachment));
    assert!(kind == FailureKind::Handshake && reason.contains("differ in memory size"), "{reason}");

    let mut attachment = pager.attach(Mode::Copy);
    let socket = attachment.take_handshake().unwrap();
    handshake::send(&socket, &[whole], std::fs::File::open("/dev/null").unwrap()).unwrap();
    let (kind, reason) = failure(next_event(&attachment));
    assert!(kind == FailureKind::Handshake && reason.contains("not a userfaultfd"), "{reason}");

    // SAFETY: a number is passed; the result is a new descriptor that nothing else owns.
    let not_set_up = unsafe {
        let fd = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC);
        OwnedFd::from_raw_fd(i32::try_from(fd).unwrap())
    };
    let mut attachment = pager.attach(Mode::Shared);
    let socket = attachment.take_handshake().unwrap();
    handshake::send(&socket, &[whole], &not_set_up).unwrap();
    let (kind, reason) = failure(next_event(&attachment));
    assert!(kind == FailureKind::Handshake && reason.contains("was not set up"), "{reason}");

    let mut attachment = pager.attach(Mode::Copy);
    let socket = attachment.take_handshake().unwrap();
    handshake::send(&socket, &[whole], &uffd).unwrap();
    wait_until("connected", || attachment.stats().unwrap().connected);
    handshake::send(&socket, &[whole], &uffd).unwrap();
    let (kind, reason) = failure(next_event(&attachment));
    assert!(kind == FailureKind::Protocol && reason.contains("more than one"), "{reason}");

    let mut attachment = pager.attach(Mode::Copy);
    drop(attachment.take_handshake().unwrap());
    let (kind, reason) = failure(next_event(&attachment));
    assert!(
        kind == FailureKind::VmmGone && reason.contains("before a whole region list"),
        "{reason}"
    );
}

#[test]
fn anonymous_memory_in_shared_mode_is_found_out() {
    let source = TestSource::new(LEN, []);
    let pager = Pager::with(&source, &[]);
    let mut attachment = pager.attach(Mode::Shared);
    drop(attachment.take_ram_file());
    // Without the RAM file the test VMM takes anonymous memory, and waking it is futile.
    let mut vmm = Vmm::start(&mut attachment);
    vmm.tell("bg-read 0");
    let (kind, reason) = failure(next_event(&attachment));
    assert!(kind == FailureKind::Protocol && reason.contains("copy mode"), "{reason}");
    assert!(vmm.is_silent());
}

#[test]
fn anonymous_memory_is_found_out_also_where_faults_take_turns() {
    let source = TestSource::new(LEN, []);
    let pager = Pager::with(&source, &[]);
    let mut attachment = pager.attach(Mode::Shared);
    drop(attachment.take_ram_file());
    let mut vmm = Vmm::start(&mut attachment);
    for chunk in 0..3 {
        vmm.tell(&format!("bg-read {}", chunk * C));
    }
    let (kind, reason) = failure(next_event(&attachment));
    assert!(kind == FailureKind::Protocol && reason.contains("copy mode"), "{reason}");
}

/// A pager process of which a thread that serves faults panics, or hangs, at chunk 6: not at a call
/// that waits for the VMM.
fn a_pager_that_breaks(how: &str) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pager.sock");
    let mut command = Command::new(this_binary());
    command.args(["--exact", "life::pager_process", "--nocapture"]);
    command.env("MAYFLY_TEST_PAGER", &path).env("MAYFLY_TEST_PAGER_BREAKS", how);
    // SAFETY: prctl is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    let mut process = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let client = PagerClient::new(&path);
    client.wait_ready(Duration::from_secs(20)).unwrap();
    let source = TestSource::new(LEN, []);
    let (mut a, mut b) = (
        client.attach(&request("g", Mode::Shared)).unwrap(),
        client.attach(&request("g", Mode::Shared)).unwrap(),
    );
    let (mut vmm, mut sibling) = (Vmm::start(&mut a), Vmm::start(&mut b));
    assert_eq!(vmm.read(0, C), source.hash(0, C));
    vmm.tell(&format!("bg-read {}", 6 * C));
    for attachment in [&a, &b] {
        assert_eq!(next_event(attachment), SessionEvent::PagerGone, "{how}");
    }
    assert_eq!(process.wait().unwrap().code(), Some(70), "{how}");
    let said = std::io::read_to_string(process.stderr.take().unwrap()).unwrap();
    assert!(said.contains("it ends, and with it all its sessions"), "{said}");
    sibling.tell(&format!("bg-read {}", 9 * C));
    assert!(sibling.is_silent() && vmm.is_silent(), "nothing is read without a pager");
}

#[test]
fn a_pager_that_panics_at_a_fault_ends() {
    a_pager_that_breaks("panic");
}

#[test]
fn a_pager_that_gets_stuck_at_a_fault_ends() {
    a_pager_that_breaks("hang");
}

#[test]
fn a_vmm_connects_by_path_and_its_exit_is_noticed() {
    let source = TestSource::new(LEN, [4]);
    let pager = Pager::with(&source, &[0]);
    let listen = ListenRequest {
        attach: request("g", Mode::Copy),
        path: pager.path("vmm.sock"),
        owner: None,
    };
    let attachment = pager.client.listen(&listen).unwrap();
    let refused = pager.client.listen(&listen).unwrap_err().to_string();
    assert!(refused.contains("must not exist"), "{refused}");
    let mut vmm = Vmm::start_at(&listen.path, LEN);
    assert_eq!(vmm.read(0, LEN), source.hash(0, LEN));
    assert!(!listen.path.exists(), "the socket file goes once the VMM has connected");
    assert_eq!(attachment.try_event(), None);
    vmm.kill();
    assert_eq!(failure(next_event(&attachment)).0, FailureKind::VmmGone);

    let unused = ListenRequest { path: pager.path("other.sock"), ..listen };
    let attachment = pager.client.listen(&unused).unwrap();
    assert!(unused.path.exists());
    drop(attachment);
    wait_until("its removal", || !unused.path.exists());
}

#[test]
fn a_recording_is_the_order_of_first_touch() {
    let source = TestSource::new(LEN, [10, 11, 12]);
    let pager = Pager::with(&source, &[0, 1, 2, 3]);
    let mut warm = pager.attach(Mode::Shared);
    assert_eq!(Vmm::start(&mut warm).read(0, LEN), source.hash(0, LEN));
    warm.recording().unwrap_err();
    for mode in [Mode::Shared, Mode::Copy] {
        let record = AttachRequest { record: true, ..request("g", mode) };
        let mut attachment = pager.client.attach(&record).unwrap();
        let mut vmm = Vmm::start(&mut attachment);
        for chunk in [30, 2, 11, 30, 10, 0, 2] {
            assert_eq!(vmm.read(chunk * C + PAGE, PAGE), source.hash(chunk * C + PAGE, PAGE));
        }
        assert_eq!(attachment.recording().unwrap(), [30, 2, 11, 10, 0], "{mode:?}");
    }
    wait_until("the private caches go", || pager.client.host_stats().unwrap().image_count == 1);
}

#[test]
fn no_descriptor_and_no_thread_is_left_behind() {
    let source = TestSource::new(LEN, []);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pager.sock");
    let mut process = Command::new(this_binary())
        .args(["--exact", "life::pager_process", "--nocapture"])
        .env("MAYFLY_TEST_PAGER", &path)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let client = PagerClient::new(&path);
    client.wait_ready(Duration::from_secs(20)).unwrap();
    let count = |what| std::fs::read_dir(format!("/proc/{}/{what}", process.id())).unwrap().count();
    let open = || (count("fd"), count("task"));
    let session = |mode| {
        let mut attachment = client.attach(&request("g", mode)).unwrap();
        assert_eq!(Vmm::start(&mut attachment).read(0, C), source.hash(0, C));
        drop(attachment);
        wait_until("detached", || client.ping().unwrap().sessions == 0);
    };
    session(Mode::Shared);
    let before = open();
    for _ in 0..5 {
        session(Mode::Shared);
        session(Mode::Copy);
    }
    wait_until("what the sessions had to go", || {
        let now = open();
        now.0 <= before.0 && now.1 <= before.1
    });
    client.shutdown(false).unwrap();
    assert!(process.wait().unwrap().success());
    let left: Vec<_> =
        std::fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["pager.sock.lock"]);
}
