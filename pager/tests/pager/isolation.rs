//! Tests of what one VMM can do to another.

use mayfly_pager::{FailureKind, Mode, SessionEvent};

use super::{
    child::Vmm,
    support::{CHUNK, PAGE, Pager, TestSource, next_event},
};

const LEN: u64 = 4 << 20;
const C: u64 = CHUNK as u64;

#[test]
fn a_vmm_cannot_change_what_its_sibling_reads() {
    let source = TestSource::new(LEN, [2]);
    let pager = Pager::with(&source, &[0, 1, 2]);
    let (mut a, mut b) = (pager.attach(Mode::Shared), pager.attach(Mode::Shared));
    let (mut hostile, mut sibling) = (Vmm::start(&mut a), Vmm::start(&mut b));
    assert_eq!(sibling.read(0, C), source.hash(0, C));
    assert_eq!(hostile.ask("escape"), "nothing worked");
    for offset in [0, C, 2 * C, 3 * C, 5 * C + PAGE] {
        assert_eq!(hostile.ask(&format!("write {offset} 254")), "written");
    }
    assert_ne!(hostile.read(0, C), source.hash(0, C), "its own write is there");
    assert_eq!(sibling.read(0, LEN), source.hash(0, LEN));
    let mut c = pager.attach(Mode::Shared);
    let mut later = Vmm::start(&mut c);
    assert_eq!(later.read(0, LEN), source.hash(0, LEN), "nor a later session");
    assert_eq!((a.try_event(), b.try_event(), c.stats().unwrap().failed), (None, None, None));
}

#[test]
fn zero_pages_planted_in_the_page_cache_fail_every_session_on_it() {
    let source = TestSource::new(LEN, []);
    let pager = Pager::with(&source, &[]);
    let (mut a, mut b) = (pager.attach(Mode::Shared), pager.attach(Mode::Shared));
    let (mut hostile, mut sibling) = (Vmm::start(&mut a), Vmm::start(&mut b));
    assert_eq!(sibling.read(0, 2 * C), source.hash(0, 2 * C));
    assert_eq!(hostile.ask(&format!("plant {}", 9 * C)), "planted 0");
    let failed =
        b.stats().unwrap().failed.expect("stats is the check before an outcome is trusted");
    assert!(failed.contains("did not place"), "{failed}");
    for attachment in [&a, &b] {
        assert!(matches!(
            next_event(attachment),
            SessionEvent::Failed { kind: FailureKind::Tampered, .. }
        ));
    }
    // The next session gets a file of its own, and the truth.
    let mut c = pager.attach(Mode::Shared);
    let mut fresh = Vmm::start(&mut c);
    assert_eq!(fresh.read(0, LEN), source.hash(0, LEN));
    assert_eq!(c.stats().unwrap().failed, None);
    drop((a, b));
    assert_eq!(fresh.read(0, LEN), source.hash(0, LEN));
}

#[test]
fn a_vmm_that_makes_its_userfaultfd_blocking_holds_up_nobody_else() {
    let source = TestSource::new(LEN, []);
    let pager = Pager::with(&source, &[]);
    let (mut a, mut b) = (pager.attach(Mode::Shared), pager.attach(Mode::Shared));
    let (mut hostile, mut sibling) = (Vmm::start(&mut a), Vmm::start(&mut b));
    assert_eq!(hostile.read(0, C), source.hash(0, C));
    assert_eq!(hostile.ask(&format!("wedge {}", 5 * C)), "wedged");
    assert_eq!(sibling.read(9 * C, C), source.hash(9 * C, C));
    let SessionEvent::Failed { kind, reason } = next_event(&a) else {
        panic!("the pager is alive")
    };
    assert!(kind == FailureKind::Protocol && reason.contains("blocking"), "{reason}");
    // Nor when it is dead.
    hostile.kill();
    drop(a);
    assert_eq!(sibling.read(0, LEN), source.hash(0, LEN));
    assert_eq!(b.try_event(), None);
}

#[test]
fn nobody_elses_connection_is_served() {
    use std::os::unix::{fs::PermissionsExt, process::CommandExt};
    let source = TestSource::new(LEN, []);
    let pager = Pager::with(&source, &[]);
    let path = pager.client.path().to_owned();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // Even with the mode and the directory opened up, the credentials decide.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    std::fs::set_permissions(pager.directory.path(), std::fs::Permissions::from_mode(0o755))
        .unwrap();
    let script = "import socket,sys; s=socket.socket(socket.AF_UNIX,socket.SOCK_SEQPACKET); s.connect(sys.argv[1])\n\
                  try:\n s.send(b'{\"request\":\"ping\"}'); print(s.recv(1000))\nexcept OSError as e: print(e)";
    let run = |uid| {
        let output = std::process::Command::new("python3")
            .args(["-c", script])
            .arg(&path)
            .uid(uid)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(run(0).contains("pong"));
    let other = run(65534);
    assert!(!other.contains("pong") && !other.is_empty(), "{other}");
}
