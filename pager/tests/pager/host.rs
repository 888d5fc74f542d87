//! The pager as one process for a host: budget, prefetch, several goldens, requests that are
//! refused.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use mayfly_pager::{ClientError, MIN_BUDGET_CHUNKS, Mode, PagerConfig, ServeError};

use super::{
    child::Vmm,
    support::{CHUNK, Pager, TestResolver, TestSource, config, request, wait_until},
};

const C: u64 = CHUNK as u64;
const BUDGET: u64 = MIN_BUDGET_CHUNKS * C;
const LEN: u64 = 3 * BUDGET;

#[test]
fn the_budget_holds_and_every_byte_stays_right() {
    let source = TestSource::new(LEN, []);
    let pager = Pager::start(PagerConfig { budget_bytes: 1, ..config() });
    pager.resolver.put("g", "key", &source, &[0, 1, 2, 3]);
    let (mut a, mut b) = (pager.attach(Mode::Shared), pager.attach(Mode::Copy));
    let (mut shared, mut copy) = (Vmm::start(&mut a), Vmm::start(&mut b));
    for _ in 0..2 {
        shared.tell(&format!("read 0 {LEN}"));
        copy.tell(&format!("read 0 {LEN}"));
        assert_eq!(shared.answer(), source.hash(0, LEN));
        assert_eq!(copy.answer(), source.hash(0, LEN));
    }
    let host = pager.client.host_stats().unwrap();
    assert_eq!(host.budget_bytes, BUDGET, "never less than one instruction can touch");
    assert!(host.resident_bytes <= BUDGET + 3 * C, "{host:?}");
    assert!(host.counters.evictions >= 2 * (LEN - BUDGET) / C, "{host:?}");
    // The working set of an image in use goes last.
    assert_eq!(host.images[0].working_set_absent, 0);
    assert_eq!((a.try_event(), b.try_event()), (None, None));
}

#[test]
fn idle_images_give_way_first_and_are_prefetched_again() {
    let (old, new) = (TestSource::new(LEN, []), TestSource::new(LEN, []));
    let pager = Pager::start(PagerConfig { budget_bytes: BUDGET, ..config() });
    let set: Vec<u32> = (0..8).collect();
    pager.resolver.put("old", "1", &old, &set);
    pager.resolver.put("new", "2", &new, &[]);
    drop(pager.client.attach(&request("old", Mode::Shared)).unwrap());
    let hold = pager.client.attach(&request("old", Mode::Shared)).unwrap();
    pager.await_prefetch();
    drop(hold);
    let mut attachment = pager.client.attach(&request("new", Mode::Shared)).unwrap();
    let mut vmm = Vmm::start(&mut attachment);
    assert_eq!(vmm.read(0, BUDGET), new.hash(0, BUDGET));
    let absent = |golden: &str| {
        let host = pager.client.host_stats().unwrap();
        host.images.iter().find(|i| i.golden == golden).map(|i| i.working_set_absent)
    };
    // Chunks of an image in use, outside its working set, go before the working set of an idle one.
    assert_eq!(absent("old"), Some(0));
    assert_eq!(pager.client.evict(u64::MAX).unwrap(), BUDGET);
    assert_eq!(absent("old"), Some(8));
    let _again = pager.client.attach(&request("old", Mode::Shared)).unwrap();
    wait_until("the working set comes back", || absent("old") == Some(0));
}

#[test]
fn prefetch_follows_the_recorded_order() {
    let source = TestSource::new(LEN, [7]);
    let pager = Pager::start(PagerConfig { fill_threads: 1, ..config() });
    pager.resolver.put("g", "key", &source, &[9, 3, 7, 3, 100, 0]);
    let _attachment = pager.attach(Mode::Shared);
    pager.await_prefetch();
    assert_eq!(source.log(), [9, 3, 100, 0]);
    let host = pager.client.host_stats().unwrap();
    assert_eq!(
        (host.counters.prefetch_fills, host.images[0].working_set, host.resident_bytes),
        (5, 6, 5 * C)
    );
}

#[test]
fn the_source_is_told_of_a_bounded_part_of_the_working_set_before_it_is_read() {
    let source = TestSource::new(512 * C, []);
    let pager = Pager::start(PagerConfig { fill_threads: 1, ..config() });
    let set: Vec<u32> = (0..400).rev().collect();
    pager.resolver.put("g", "key", &source, &set);
    source.hold(399);
    let mut attachment = pager.attach(Mode::Shared);
    wait_until("the first read", || source.waiting.load(Ordering::SeqCst) == 1);
    assert_eq!(source.told(), [(0, set[..64].to_vec())]);
    // Read for a fault, before the source is told of it.
    let mut vmm = Vmm::start(&mut attachment);
    vmm.tell(&format!("bg-read {}", 100 * C));
    wait_until("the fault", || attachment.stats().unwrap().counters.faults == 1);
    source.release(399);
    vmm.answer();
    pager.await_prefetch();
    let mut told = Vec::new();
    for (read, part) in source.told() {
        assert!(told.len() <= read + 64, "told of {} when {read} were read", told.len());
        assert!(part.len() <= 64);
        told.extend(part);
    }
    let expected: Vec<u32> = set.into_iter().filter(|chunk| *chunk != 100).collect();
    assert_eq!(told, expected);
    assert_eq!(source.log().len(), 400);
}

#[test]
fn faults_go_before_prefetch() {
    let source = TestSource::new(LEN, []);
    let pager = Pager::start(PagerConfig { fill_threads: 1, ..config() });
    let set: Vec<u32> = (0..40).collect();
    pager.resolver.put("g", "key", &source, &set);
    source.hold(0);
    let mut attachment = pager.attach(Mode::Shared);
    let mut vmm = Vmm::start(&mut attachment);
    vmm.tell(&format!("bg-read {}", 50 * C));
    wait_until("the fault", || attachment.stats().unwrap().counters.faults == 1);
    source.release(0);
    vmm.answer();
    assert_eq!(source.log()[..2], [0, 50]);
}

#[test]
fn a_replaced_golden_is_another_image() {
    let (one, two) = (TestSource::new(LEN, []), TestSource::new(LEN, [0, 1]));
    let pager = Pager::with(&one, &[]);
    let mut first = pager.attach(Mode::Shared);
    let mut old = Vmm::start(&mut first);
    assert_eq!(old.read(0, C), one.hash(0, C));
    pager.resolver.put("g", "another key", &two, &[]);
    let mut second = pager.attach(Mode::Shared);
    let mut new = Vmm::start(&mut second);
    assert_eq!(new.read(0, 3 * C), two.hash(0, 3 * C));
    assert_eq!(old.read(0, 3 * C), one.hash(0, 3 * C), "a session keeps the image it began with");
    assert_eq!(pager.client.host_stats().unwrap().image_count, 2);
    old.kill();
    drop(first);
    wait_until("the old image to go", || pager.client.host_stats().unwrap().image_count == 1);
    // The image leaves the list first, its memory a moment later.
    wait_until("its pages to go", || pager.client.host_stats().unwrap().resident_bytes == C);
}

#[test]
fn refusals_say_why() {
    let source = TestSource::new(LEN, []);
    let pager = Pager::with(&source, &[]);
    let refused = |outcome: Result<u64, ClientError>| match outcome {
        Err(ClientError::Refused(message)) => message,
        other => panic!("{other:?}"),
    };
    let unknown = pager.client.attach(&request("x", Mode::Shared)).map(|a| a.id());
    assert_eq!(refused(unknown), "cannot open golden x: no such golden");
    pager.resolver.put("odd", "odd", &TestSource::new(LEN + 1, []), &[]);
    assert!(
        refused(pager.client.attach(&request("odd", Mode::Shared)).map(|a| a.id()))
            .contains("multiple of 4096")
    );
    let attachment = pager.attach(Mode::Shared);
    assert!(refused(pager.client.forget("g")).contains("in use by 1"));
    assert!(refused(pager.client.shutdown(false).map(|()| 0)).contains("1 sessions are attached"));
    let again =
        mayfly_pager::serve(pager.client.path(), Arc::new(TestResolver::default()), config());
    assert!(matches!(again, Err(ServeError::AlreadyRunning(_))));
    drop(attachment);
    assert_eq!(pager.client.ping().unwrap().pid, std::process::id());

    let nowhere = mayfly_pager::PagerClient::new(pager.path("nothing.sock"));
    assert!(matches!(nowhere.ping(), Err(ClientError::Connect { .. })));
    let bad = mayfly_pager::serve(
        &pager.path("missing/pager.sock"),
        Arc::new(TestResolver::default()),
        config(),
    );
    assert!(matches!(bad, Err(ServeError::Socket { .. })));
}

#[test]
fn an_idle_pager_leaves() {
    let directory = tempfile::tempdir().unwrap();
    let config = PagerConfig { idle_exit: Some(Duration::from_millis(50)), ..config() };
    let path = directory.path().join("pager.sock");
    mayfly_pager::serve(&path, Arc::new(TestResolver::default()), config).unwrap();
    assert!(!path.exists());
}
