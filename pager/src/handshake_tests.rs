use proptest::prelude::*;

use super::*;

const IMAGE: u64 = 64 << 20;

fn json(regions: &str) -> Result<Vec<Region>, HandshakeError> {
    parse(regions.as_bytes(), IMAGE)
}

#[test]
fn firecracker_lists_pass() {
    let region = Region { base: 0x7f00_0000_0000, size: IMAGE, offset: 0 };
    let base = 0x7f00_0000_0000_u64;
    for sizes in [
        r#""page_size":4096"#,
        r#""page_size":4096,"page_size_kib":4096"#,
        r#""page_size_kib":4096"#,
        r#""page_size_kib":4"#,
    ] {
        let list =
            format!(r#"[{{"base_host_virt_addr":{base},"size":{IMAGE},"offset":0,{sizes}}}]"#);
        assert_eq!(json(&list).as_deref(), Ok(&[region][..]), "{list}");
    }
}

#[test]
fn each_lie_is_named() {
    let one = |base: u64, size: u64, offset: u64, page: u64| {
        format!(
            r#"{{"base_host_virt_addr":{base},"size":{size},"offset":{offset},"page_size":{page}}}"#
        )
    };
    let list = |regions: &[String]| json(&format!("[{}]", regions.join(",")));
    assert!(matches!(list(&[]), Err(HandshakeError::Count(0))));
    assert!(matches!(list(&vec![one(4096, 4096, 0, 4096); 257]), Err(HandshakeError::Count(257))));
    assert!(matches!(list(&[one(4096, 4096, 0, 2 << 20)]), Err(HandshakeError::PageSize { .. })));
    assert!(matches!(list(&[one(4097, 4096, 0, 4096)]), Err(HandshakeError::Alignment(0))));
    assert!(matches!(list(&[one(4096, 0, 0, 4096)]), Err(HandshakeError::Alignment(0))));
    assert!(matches!(list(&[one(0, 4096, 0, 4096)]), Err(HandshakeError::Alignment(0))));
    assert!(matches!(
        list(&[one(u64::MAX - 4095, 8192, 0, 4096)]),
        Err(HandshakeError::Alignment(0))
    ));
    assert!(matches!(list(&[one(4096, 4096, IMAGE, 4096)]), Err(HandshakeError::Bounds { .. })));
    assert!(matches!(
        list(&[one(4096, 4096, u64::MAX - 4095, 4096)]),
        Err(HandshakeError::Bounds { .. })
    ));
    let overlap = list(&[one(8192, 8192, 0, 4096), one(12288, 4096, 8192, 4096)]);
    assert_eq!(overlap, Err(HandshakeError::Overlap("the VMM's address space")));
    let overlap = list(&[one(4096, 8192, 0, 4096), one(65536, 4096, 4096, 4096)]);
    assert_eq!(overlap, Err(HandshakeError::Overlap("the RAM image")));
    assert!(matches!(json("[{}]"), Err(HandshakeError::Json(_))));
    assert!(matches!(json(&" ".repeat(MAX_JSON + 1)), Err(HandshakeError::TooLong)));
}

#[test]
fn a_message_in_pieces_and_its_descriptor_arrive() {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    let (a, b) =
        socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let list = r#"[{"base_host_virt_addr":4096,"size":4096,"offset":0,"page_size":4096}]"#;
    let mut receiver = Receiver::default();
    let file = std::fs::File::open("/dev/null").unwrap();
    wire::send(a.as_fd(), &list.as_bytes()[..20], &[file.as_fd()], MsgFlags::empty()).unwrap();
    assert!(matches!(receiver.receive(b.as_fd(), IMAGE), Ok(None)));
    assert!(matches!(receiver.receive(b.as_fd(), IMAGE), Ok(None)), "nothing new is no end");
    wire::send(a.as_fd(), &list.as_bytes()[20..], &[], MsgFlags::empty()).unwrap();
    let refused = receiver.receive(b.as_fd(), IMAGE).err();
    assert_eq!(refused, Some(HandshakeError::NotUffd("/dev/null".to_owned())));

    for count in [0, 2, 100] {
        let mut receiver = Receiver::default();
        wire::send(a.as_fd(), list.as_bytes(), &vec![file.as_fd(); count], MsgFlags::empty())
            .unwrap();
        assert_eq!(
            receiver.receive(b.as_fd(), IMAGE).err(),
            Some(HandshakeError::Descriptors(count))
        );
    }
    drop(a);
    assert_eq!(Receiver::default().receive(b.as_fd(), IMAGE).err(), Some(HandshakeError::Ended(0)));
}

fn wire_region() -> impl Strategy<Value = (u64, u64, u64)> {
    let pages = |n: u64| prop_oneof![3 => (0..n).prop_map(|p| p * PAGE), 1 => any::<u64>()];
    (pages(1 << 20), pages(1 << 10), pages(1 << 15))
}

proptest! {
    #[test]
    fn any_bytes_are_refused_or_sound(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(&bytes, IMAGE);
    }

    /// Whatever is accepted is inside the image and the address space, and disjoint in both.
    #[test]
    fn accepted_regions_are_sound(list in prop::collection::vec(wire_region(), 0..6)) {
        let regions: Vec<String> = list.iter().map(|(base, size, offset)| {
            format!(r#"{{"base_host_virt_addr":{base},"size":{size},"offset":{offset},"page_size":4096}}"#)
        }).collect();
        if let Ok(parsed) = json(&format!("[{}]", regions.join(","))) {
            prop_assert_eq!(parsed.len(), list.len());
            for (i, r) in parsed.iter().enumerate() {
                prop_assert!(r.size > 0 && r.offset + r.size <= IMAGE && r.end() <= ADDRESS_LIMIT);
                prop_assert!([r.base, r.size, r.offset].iter().all(|v| v % PAGE == 0));
                for s in &parsed[..i] {
                    prop_assert!(r.end() <= s.base || s.end() <= r.base);
                    prop_assert!(r.offset + r.size <= s.offset || s.offset + s.size <= r.offset);
                }
            }
        }
    }

    /// What `send` writes, `parse` reads back.
    #[test]
    fn sound_lists_round_trip(cuts in prop::collection::btree_set(1_u64..(IMAGE / PAGE), 1..8), gap in 1_u64..9) {
        let mut regions = Vec::new();
        let mut start = 0;
        for (i, cut) in cuts.iter().enumerate() {
            let offset = start * PAGE;
            regions.push(Region { base: (1 << 30) + offset + i as u64 * gap * PAGE, size: (cut - start) * PAGE, offset });
            start = *cut;
        }
        let (a, b) = nix::sys::socket::socketpair(
            nix::sys::socket::AddressFamily::Unix, nix::sys::socket::SockType::Stream, None,
            nix::sys::socket::SockFlag::SOCK_CLOEXEC).unwrap();
        send(&a, &regions, std::fs::File::open("/dev/null").unwrap()).unwrap();
        let mut buf = vec![0; MAX_JSON];
        let got = wire::recv(b.as_fd(), &mut buf, wire::RecvFlags::empty()).unwrap();
        prop_assert_eq!(parse(&buf[..got.len], IMAGE), Ok(regions));
    }
}
