//! What a VMM that touches all of its memory at once does to its neighbours.

use std::{sync::Arc, time::Duration};

use mayfly_pager::{Attachment, Mode, PagerConfig};

use super::{
    child::Vmm,
    support::{CHUNK, Pager, TestSource, config, page_content, request, wait_until},
};

const LEN: u64 = 16 << 20;
const C: u64 = CHUNK as u64;
/// Chunks that the greedy VMM touches at once.
const GREEDY: u64 = 100;

/// A pager with one fill thread, which is held at chunk 0 of golden `g`, and a VMM that waits for
/// it and for the chunks after it.
struct Greedy {
    pager: Pager,
    source: Arc<TestSource>,
    attachment: Attachment,
    vmm: Vmm,
}

/// Makes sure that the faults of a session are queued.
fn await_faults(attachment: &mut Attachment, count: u64) {
    wait_until("faults", || attachment.stats().unwrap().counters.faults == count);
    // They are counted when they are read. A test that is early fails: it does not pass by it.
    std::thread::sleep(Duration::from_millis(100));
}

fn greedy(working_set: &[u32]) -> Greedy {
    let source = TestSource::new(LEN, []);
    let config = PagerConfig { fill_threads: 1, prefetch: false, ..config() };
    let pager = Pager::start(config);
    pager.resolver.put("g", "key", &source, working_set);
    source.hold(0);
    let mut attachment = pager.attach(Mode::Shared);
    let mut vmm = Vmm::start(&mut attachment);
    for chunk in 0..GREEDY {
        vmm.tell(&format!("bg-read {}", chunk * C));
        // The order of its faults is that of the chunks.
        wait_until("fault", || attachment.stats().unwrap().counters.faults == chunk + 1);
    }
    await_faults(&mut attachment, GREEDY);
    Greedy { pager, source, attachment, vmm }
}

fn answer_of(vmm: &Vmm, chunk: u64) {
    let byte = page_content(chunk * C / 4096)[0];
    assert_eq!(vmm.answer(), format!("byte {} {byte}", chunk * C));
}

#[test]
fn a_fault_waits_for_one_fill_of_each_other_session() {
    let greedy = greedy(&[]);
    let (source, other) = (&greedy.source, TestSource::new(LEN, []));
    greedy.pager.resolver.put("other", "other key", &other, &[]);
    other.hold(7);
    let neighbours = [("g", 200), ("g", GREEDY - 1), ("other", 7)].map(|(golden, chunk)| {
        let request = request(golden, Mode::Shared);
        let mut attachment = greedy.pager.client.attach(&request).unwrap();
        let mut vmm = Vmm::start(&mut attachment);
        vmm.tell(&format!("bg-read {}", chunk * C));
        await_faults(&mut attachment, 1);
        (attachment, vmm, chunk)
    });
    source.release(0);
    wait_until("the fill of another golden", || other.log() == [7]);
    let log = source.log();
    // A fill thread that is held would not let a failed test end.
    other.release(7);
    // One of the greedy session came first, then one of each neighbour: its own, and the last of
    // those that the greedy one has asked for.
    assert_eq!(log, [0, 1, 200, 99]);
    for (_, vmm, chunk) in &neighbours {
        answer_of(vmm, *chunk);
    }
    for _ in 0..GREEDY {
        greedy.vmm.answer();
    }
    let mut log = source.log();
    assert_eq!(log[4..6], [2, 3], "in the order of its faults");
    log.sort_unstable();
    let each_once: Vec<usize> = (0..100).chain([200]).collect();
    assert_eq!(log, each_once);
    assert_eq!(greedy.attachment.try_event(), None);
}

#[test]
fn what_a_session_that_has_ended_has_asked_for_is_not_read() {
    for fails in [false, true] {
        let mut greedy = greedy(&[40]);
        let source = &greedy.source;
        let mut attachment = greedy.pager.attach(Mode::Shared);
        let mut neighbour = Vmm::start(&mut attachment);
        neighbour.tell(&format!("bg-read {}", 60 * C));
        await_faults(&mut attachment, 1);
        if fails {
            // Gives memory back, which is not served.
            greedy.vmm.tell(&format!("remove {} {C}", 150 * C));
            wait_until("failure", || greedy.attachment.try_event().is_some());
        } else {
            greedy.vmm.kill();
            drop(greedy.attachment);
            wait_until("its end", || greedy.pager.client.host_stats().unwrap().sessions == 1);
        }
        source.release(0);
        answer_of(&neighbour, 60);
        // What the neighbour waits for, and what prefetch would have left to the one that has ended.
        wait_until("fills", || greedy.pager.client.host_stats().unwrap().counters.fills == 3);
        // What was asked for and not read is not taken for memory of the page cache.
        wait_until("the rest", || {
            greedy.pager.client.host_stats().unwrap().resident_bytes == 3 * C
        });
        let mut log = source.log();
        log.sort_unstable();
        assert_eq!(log, [0, 40, 60]);
        // And it is read for the next who wants it.
        assert_eq!(neighbour.read(0, LEN), source.hash(0, LEN));
        assert_eq!(attachment.try_event(), None);
    }
}
