//! Tests of a VMM that keeps the lock of its own address space, for which the calls that map pages
//! wait: whatever it does meanwhile, its neighbours go on.
//!
//! None of them measures time. A neighbour reads all of its memory, and *then* the hostile VMM
//! still has its lock.

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use mayfly_pager::{Attachment, FailureKind, Mode, PagerConfig, SessionEvent};

use super::{
    child::Vmm,
    fuse::HeldLock,
    support::{CHUNK, Pager, TestSource, config, next_event, wait_until},
};

const LEN: u64 = 4 << 20;
const C: u64 = CHUNK as u64;
/// A chunk of zeros.
const ZERO: usize = 20;

fn fuse() -> bool {
    let there = std::path::Path::new("/dev/fuse").exists();
    if !there {
        mayfly_skip::skip("this host has no /dev/fuse, with which a VMM is made to keep its lock");
    }
    there
}

/// A pager that no hanging test ends, with a neighbour that was there before.
struct Host {
    source: Arc<TestSource>,
    pager: Pager,
    neighbour: (Attachment, Vmm),
}

impl Host {
    fn new(stall_limit: Duration) -> Self {
        let source = TestSource::new(LEN, [ZERO, ZERO + 1, 40]);
        let pager = Pager::start(PagerConfig { stall_limit, ..config() });
        pager.resolver.put("g", "key", &source, &[]);
        let mut attachment = pager.attach(Mode::Shared);
        let vmm = Vmm::start(&mut attachment);
        Self { source, pager, neighbour: (attachment, vmm) }
    }

    /// A VMM with a fault on each of these chunks, which the pager has read and not answered.
    fn hostile(&self, mode: Mode, chunks: &[usize]) -> (Attachment, Vmm) {
        let mut attachment = self.pager.attach(mode);
        let mut vmm = Vmm::start(&mut attachment);
        for chunk in chunks {
            self.source.hold(*chunk);
            vmm.tell(&format!("bg-read {}", chunk * CHUNK));
        }
        wait_until("the faults", || self.source.waiting.load(Ordering::SeqCst) == chunks.len());
        (attachment, vmm)
    }

    /// Lets the pager answer the faults.
    fn answer(&self, chunks: &[usize]) {
        chunks.iter().for_each(|chunk| self.source.release(*chunk));
    }

    /// All faults of sessions old and new are served, zeros, copies and shared chunks, and requests
    /// are answered, while the lock is held.
    fn goes_on(&mut self, lock: &HeldLock) {
        let source = &self.source;
        assert_eq!(self.neighbour.1.read(0, LEN), source.hash(0, LEN));
        for mode in [Mode::Shared, Mode::Copy] {
            let mut attachment = self.pager.attach(mode);
            let mut vmm = Vmm::start(&mut attachment);
            assert_eq!(vmm.read(0, LEN), source.hash(0, LEN), "{mode:?}");
            assert_eq!(attachment.stats().unwrap().failed, None);
        }
        // Chunks that nobody has waited for are filled, too.
        self.pager.client.evict(u64::MAX).unwrap();
        assert_eq!(self.neighbour.1.read(0, LEN), source.hash(0, LEN));
        assert_eq!(self.neighbour.0.try_event(), None);
        assert!(lock.is_held());
    }
}

const NEVER: Duration = Duration::from_secs(3600);

#[test]
fn zero_pages_that_a_vmm_does_not_let_in_delay_nobody_else() {
    if !fuse() {
        return;
    }
    let mut host = Host::new(NEVER);
    let (attachment, mut vmm) = host.hostile(Mode::Shared, &[ZERO]);
    let lock = HeldLock::take(&mut vmm);
    host.answer(&[ZERO]);
    host.goes_on(&lock);
    assert_eq!(attachment.try_event(), None, "nothing has failed, it only waits");
    drop(lock);
    let mut answers = [vmm.answer(), vmm.answer()];
    answers.sort();
    assert_eq!(answers, [format!("byte {} 0", ZERO * CHUNK), "mapped".to_owned()]);
}

#[test]
fn chunks_that_a_vmm_does_not_let_in_keep_no_fill_thread() {
    if !fuse() {
        return;
    }
    let mut host = Host::new(NEVER);
    let chunks: Vec<usize> = (1..=config().fill_threads).collect();
    let (attachment, mut vmm) = host.hostile(Mode::Copy, &chunks);
    // One that waits for the same chunk, and is answered after it.
    let (waits, neighbour) = &mut host.neighbour;
    neighbour.tell(&format!("bg-read {}", chunks[0] * CHUNK));
    wait_until("the neighbour's fault", || waits.stats().unwrap().counters.faults == 1);
    let lock = HeldLock::take(&mut vmm);
    host.answer(&chunks);
    assert!(host.neighbour.1.answer().starts_with("byte "));
    host.goes_on(&lock);
    assert_eq!(attachment.try_event(), None);
    drop(lock);
    let mut answers: Vec<String> = (0..=chunks.len()).map(|_| vmm.answer()).collect();
    answers.sort();
    assert_eq!(answers.pop(), Some("mapped".to_owned()));
    assert!(answers.iter().all(|answer| answer.starts_with("byte ")), "{answers:?}");
    // The lock is free, and the chunks are no longer pinned.
    assert_eq!(vmm.read(0, LEN), host.source.hash(0, LEN));
    host.pager.client.evict(u64::MAX).unwrap();
    wait_until("all is evicted", || {
        host.pager.client.evict(u64::MAX).unwrap();
        host.pager.client.host_stats().unwrap().resident_bytes == 0
    });
}

#[test]
fn a_vmm_that_keeps_its_lock_is_let_go_of() {
    if !fuse() {
        return;
    }
    for mode in [Mode::Shared, Mode::Copy] {
        let mut host = Host::new(NEVER);
        let (attachment, mut vmm) = host.hostile(mode, &[ZERO]);
        // What the pager has is the last descriptor then: its end waits for the lock, too.
        assert_eq!(vmm.ask("close-uffd"), "closed");
        let lock = HeldLock::take(&mut vmm);
        host.answer(&[ZERO]);
        drop(attachment);
        wait_until("detached", || host.pager.client.ping().unwrap().sessions == 1);
        host.goes_on(&lock);
        // Nor does the pager's own end wait for it.
        host.pager.client.shutdown(true).unwrap();
        wait_until("the end of the pager", || host.pager.has_ended());
        assert!(lock.is_held());
    }
}

#[test]
fn a_vmm_that_says_it_has_ended_and_keeps_its_lock_delays_nobody() {
    if !fuse() {
        return;
    }
    let mut host = Host::new(NEVER);
    let (attachment, mut vmm) = host.hostile(Mode::Shared, &[]);
    let thread = vmm.ask(&format!("later-read {C}"));
    let lock = HeldLock::take(&mut vmm);
    assert_eq!(vmm.ask("hang-up"), "closed");
    assert!(matches!(
        next_event(&attachment),
        SessionEvent::Failed { kind: FailureKind::VmmGone, .. }
    ));
    // A fault that comes only now gets a page of zeros.
    vmm.tell("now");
    let call = format!("/proc/{}/task/{thread}/syscall", vmm.id());
    // It waits, and in no system call.
    wait_until("the fault", || std::fs::read_to_string(&call).unwrap().starts_with("-1 "));
    host.goes_on(&lock);
    drop(attachment);
    wait_until("detached", || host.pager.client.ping().unwrap().sessions == 1);
    host.goes_on(&lock);
}

#[test]
fn a_vmm_that_does_not_let_a_page_in_is_failed_and_nobody_else_is() {
    if !fuse() {
        return;
    }
    let mut host = Host::new(Duration::from_millis(500));
    let (attachment, mut vmm) = host.hostile(Mode::Copy, &[1]);
    let lock = HeldLock::take(&mut vmm);
    host.answer(&[1]);
    let SessionEvent::Failed { kind, reason } = next_event(&attachment) else {
        panic!("the pager is alive")
    };
    assert!(kind == FailureKind::Protocol && reason.contains("holds up the pager"), "{reason}");
    // As long again as it takes to fail one, three times, and the pager is still there.
    for chunk in 2..5 {
        let (next, mut other) = host.hostile(Mode::Copy, &[chunk]);
        let _second = HeldLock::take(&mut other);
        host.answer(&[chunk]);
        assert!(matches!(next_event(&next), SessionEvent::Failed { .. }));
    }
    host.goes_on(&lock);
}
