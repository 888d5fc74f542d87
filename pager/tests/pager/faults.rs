//! Tests of what a guest sees, in both modes.

use std::sync::atomic::Ordering;

use mayfly_pager::{FailureKind, Mode, SessionEvent};

use super::{
    child::Vmm,
    support::{CHUNK, PAGE, Pager, TestSource, next_event, page_content, wait_until},
};

const LEN: u64 = 4 << 20;
const C: u64 = CHUNK as u64;

#[test]
fn both_modes_show_the_image() {
    let source = TestSource::new(LEN + 3 * PAGE, [5, 6, 20]);
    let pager = Pager::with(&source, &[]);
    for mode in [Mode::Shared, Mode::Copy] {
        let mut attachment = pager.attach(mode);
        assert_eq!(attachment.ram_bytes(), LEN + 3 * PAGE);
        let mut vmm = Vmm::start(&mut attachment);
        assert_eq!(vmm.read(7 * C, C), source.hash(7 * C, C), "{mode:?}");
        assert_eq!(vmm.read(0, LEN + 3 * PAGE), source.hash(0, LEN + 3 * PAGE), "{mode:?}");
        let stats = attachment.stats().unwrap();
        assert_eq!(stats.failed, None);
        assert!(stats.connected && stats.counters.zero_pages == 3 * C / PAGE, "{stats:?}");
        assert_eq!(stats.counters.wait.count, stats.counters.faults);
        assert_eq!(stats.counters.bytes_copied > 0, mode == Mode::Copy);
    }
    // 65 chunks, 3 of them zero, each read once for both.
    assert_eq!(source.log().len(), 62);
    let host = pager.client.host_stats().unwrap();
    assert_eq!((host.counters.fills, host.resident_bytes), (62, LEN + 3 * PAGE - 3 * C));
}

#[test]
fn the_working_set_costs_later_sessions_no_fault() {
    let source = TestSource::new(LEN, [3, 9]);
    let pager = Pager::with(&source, &[8, 2, 3, 40, 999]);
    let mut first = pager.attach(Mode::Shared);
    pager.await_prefetch();
    let _vmm = Vmm::start(&mut first);
    let mut second = pager.attach(Mode::Shared);
    let mut vmm = Vmm::start(&mut second);
    for chunk in [40, 3, 2, 8] {
        assert_eq!(vmm.read(chunk * C, C), source.hash(chunk * C, C));
    }
    assert_eq!(second.stats().unwrap().counters.faults, 0);
    assert_eq!(vmm.read(9 * C, C), source.hash(9 * C, C));
    let stats = second.stats().unwrap();
    assert!(
        stats.counters.faults > 0 && stats.counters.zero_pages == C / PAGE,
        "a zero chunk outside it: {stats:?}"
    );
    let mut order = source.log();
    order.sort_unstable();
    assert_eq!(order, [2, 8, 40], "each once, and the zero chunk not at all");
}

#[test]
fn concurrent_faults_on_a_chunk_read_it_once() {
    for mode in [Mode::Shared, Mode::Copy] {
        let source = TestSource::new(LEN, []);
        let pager = Pager::with(&source, &[]);
        source.hold(4);
        let mut attachments: Vec<_> = (0..3).map(|_| pager.attach(mode)).collect();
        let mut vmms: Vec<_> = attachments.iter_mut().map(Vmm::start).collect();
        for vmm in &mut vmms {
            for page in 0..4 {
                vmm.tell(&format!("bg-read {}", 4 * C + page * PAGE));
            }
        }
        wait_until("12 faults", || pager.client.host_stats().unwrap().counters.faults == 12);
        // A fault is counted before its fill begins.
        wait_until("the read", || source.waiting.load(Ordering::SeqCst) == 1);
        source.release(4);
        for vmm in &vmms {
            let mut answers: Vec<String> = (0..4).map(|_| vmm.answer()).collect();
            answers.sort();
            let mut expected: Vec<String> = (0..4)
                .map(|p| format!("byte {} {}", 4 * C + p * PAGE, page_content(4 * C / PAGE + p)[0]))
                .collect();
            expected.sort();
            assert_eq!(answers, expected);
        }
        assert_eq!(source.log(), [4]);
    }
}

#[test]
fn a_chunk_evicted_comes_back() {
    for mode in [Mode::Shared, Mode::Copy] {
        let source = TestSource::new(LEN, []);
        let pager = Pager::with(&source, &[1]);
        let mut attachment = pager.attach(mode);
        let mut vmm = Vmm::start(&mut attachment);
        assert_eq!(vmm.read(0, LEN), source.hash(0, LEN));
        vmm.ask(&format!("write {} 255", 2 * C));
        let reads = source.log().len();
        assert_eq!(pager.client.evict(u64::MAX).unwrap(), LEN);
        assert_eq!(pager.client.host_stats().unwrap().resident_bytes, 0);
        let mut expected = source.expected(0, LEN);
        expected[2 * CHUNK] = 255;
        assert_eq!(
            vmm.read(0, LEN),
            blake3::hash(&expected).to_hex().to_string(),
            "private writes stay"
        );
        let again = if mode == Mode::Shared { usize::try_from(LEN).unwrap() / CHUNK } else { 0 };
        assert_eq!(source.log().len() - reads, again, "{mode:?}: copies are the VMM's own");
        assert!(attachment.try_event().is_none());
    }
}

#[test]
fn a_corrupt_chunk_reaches_no_guest() {
    for mode in [Mode::Shared, Mode::Copy] {
        let source = TestSource::new(LEN, []);
        let pager = Pager::with(&source, &[]);
        source.corrupt(3, true);
        let mut attachment = pager.attach(mode);
        let mut vmm = Vmm::start(&mut attachment);
        assert_eq!(vmm.read(0, C), source.hash(0, C));
        vmm.tell(&format!("bg-read {}", 3 * C));
        let SessionEvent::Failed { kind, reason } = next_event(&attachment) else {
            panic!("the pager is alive")
        };
        assert_eq!(kind, FailureKind::Chunk);
        assert!(reason.contains("chunk 3") && reason.contains("hash mismatch"), "{reason}");
        assert!(vmm.is_silent(), "a byte of a corrupt chunk was delivered");
        let stats = attachment.stats().unwrap();
        assert_eq!(
            (stats.failed, stats.counters.failures, stats.resident_bytes),
            (Some(reason), 1, C)
        );
        // Repaired, it is served to the next session.
        source.corrupt(3, false);
        let mut next = pager.attach(mode);
        let mut other = Vmm::start(&mut next);
        assert_eq!(other.read(0, LEN), source.hash(0, LEN));
        assert!(vmm.is_silent(), "the failed session stays stopped");
    }
}

#[test]
fn removed_memory_reads_as_zeros() {
    let source = TestSource::new(LEN, []);
    let pager = Pager::with(&source, &[]);
    let zeros =
        |len: u64| blake3::hash(&vec![0; usize::try_from(len).unwrap()]).to_hex().to_string();

    let mut attachment = pager.attach(Mode::Copy);
    let mut vmm = Vmm::start(&mut attachment);
    assert_eq!(vmm.read(0, 4 * C), source.hash(0, 4 * C));
    // A part of a chunk that has been there, and one that has not.
    for chunk in [1, 8] {
        assert_eq!(vmm.ask(&format!("remove {} {}", chunk * C + PAGE, 2 * PAGE)), "removed");
        assert_eq!(vmm.read(chunk * C, PAGE), source.hash(chunk * C, PAGE));
        assert_eq!(vmm.read(chunk * C + PAGE, 2 * PAGE), zeros(2 * PAGE));
        assert_eq!(
            vmm.read(chunk * C + 3 * PAGE, C - 3 * PAGE),
            source.hash(chunk * C + 3 * PAGE, C - 3 * PAGE)
        );
    }
    assert_eq!(attachment.try_event(), None);
}

#[test]
fn memory_given_back_in_shared_mode_fails_the_session() {
    let source = TestSource::new(LEN, []);
    let pager = Pager::with(&source, &[]);
    let (mut a, mut b) = (pager.attach(Mode::Shared), pager.attach(Mode::Shared));
    let (mut vmm, mut sibling) = (Vmm::start(&mut a), Vmm::start(&mut b));
    assert_eq!(vmm.read(0, C), source.hash(0, C));
    vmm.tell(&format!("remove 0 {LEN}"));
    let SessionEvent::Failed { kind, reason } = next_event(&a) else {
        panic!("the pager is alive")
    };
    assert!(kind == FailureKind::Protocol && reason.contains("gave guest memory back"), "{reason}");
    assert_eq!(sibling.read(0, LEN), source.hash(0, LEN));
    assert_eq!(b.try_event(), None);
}

#[test]
fn removals_and_copies_in_a_race_never_show_stale_bytes() {
    let source = TestSource::new(LEN, []);
    let pager = Pager::with(&source, &[]);
    let mut attachment = pager.attach(Mode::Copy);
    let mut vmm = Vmm::start(&mut attachment);
    let zeros = blake3::hash(&vec![0; CHUNK]).to_hex().to_string();
    for chunk in 0..LEN / C {
        // The fault on the first page copies the chunk while its second page is being given back.
        vmm.tell(&format!("bg-read {}", chunk * C));
        vmm.tell(&format!("remove {} {}", chunk * C + PAGE, C - PAGE));
        let mut answers = [vmm.answer(), vmm.answer()];
        answers.sort();
        assert_eq!(answers[1], "removed");
        assert_eq!(vmm.ask(&format!("remove {} {C}", chunk * C)), "removed");
        assert_eq!(vmm.read(chunk * C, C), zeros, "chunk {chunk}");
    }
}
