use super::*;
use crate::mux::stream::Signal;
use proptest::prelude::*;

/// What yamux was given of each stream: its pieces, and its flags at their place among them.
#[derive(Default, Debug)]
struct Yamux {
    bytes: Vec<u8>,
    pieces: Vec<(u32, Vec<u8>)>,
    /// Stream, flags, and how many bytes of the stream came before.
    flags: Vec<(u32, u16, usize)>,
    windows: usize,
}

impl Yamux {
    fn length(&self, stream: u32) -> usize {
        self.pieces.iter().filter(|piece| piece.0 == stream).map(|piece| piece.1.len()).sum()
    }

    /// The flags of a stream, each with how much came before.
    fn flags_of(&self, stream: u32) -> Vec<(u16, usize)> {
        let of_it = self.flags.iter().filter(|flags| flags.0 == stream);
        of_it.map(|flags| (flags.1, flags.2)).collect()
    }

    fn data(&self, stream: u32) -> Vec<u8> {
        let of_it = self.pieces.iter().filter(|piece| piece.0 == stream);
        of_it.flat_map(|piece| piece.1.clone()).collect()
    }

    /// Takes what `coalescer` gives of `input`, into buffers of `room` bytes.
    fn take(&mut self, coalescer: &mut Coalescer, mut input: &[u8], room: usize) {
        let mut out = vec![0; room];
        loop {
            let count = coalescer.give(&mut input, &mut out);
            if count == 0 {
                break;
            }
            self.bytes.extend_from_slice(&out[..count]);
        }
        assert!(input.is_empty());
        while let Some(bytes) = self.bytes.first_chunk::<HEADER>() {
            let header = Header::parse(bytes);
            let length = if header.kind == DATA { header.length as usize } else { 0 };
            if self.bytes.len() < HEADER + length {
                break;
            }
            let body: Vec<u8> = self.bytes.drain(..HEADER + length).skip(HEADER).collect();
            if header.kind == WINDOW_UPDATE {
                self.windows += 1;
            }
            if header.flags != 0 {
                self.flags.push((header.stream, header.flags, self.length(header.stream)));
            }
            if !body.is_empty() {
                self.pieces.push((header.stream, body));
            }
        }
    }
}

fn frame(kind: u8, flags: u16, stream: u32, body: &[u8]) -> Vec<u8> {
    let length = if kind == DATA { u32::try_from(body.len()).unwrap() } else { 7 };
    let mut bytes = Vec::new();
    Header { version: VERSION, kind, flags, stream, length }.append(&mut bytes);
    if kind == DATA {
        bytes.extend_from_slice(body);
    }
    bytes
}

fn connection(streams: &[u32]) -> (Coalescer, Vec<Arc<Gauge>>, Arc<Signal>) {
    let mut coalescer = Coalescer::new(2);
    let signal = Arc::<Signal>::default();
    let gauges: Vec<_> = streams.iter().map(|_| Arc::new(Gauge::new(signal.clone()))).collect();
    for (stream, gauge) in streams.iter().zip(&gauges) {
        coalescer.opened(*stream, gauge.clone());
    }
    (coalescer, gauges, signal)
}

#[test]
fn a_window_of_single_bytes_is_kept_in_large_pieces() {
    let (mut coalescer, gauges, signal) = connection(&[1, 3]);
    let mut yamux = Yamux::default();
    let bytes: Vec<u8> = (0..256_u32 << 10).map(|n| (n % 251) as u8).collect();
    for byte in &bytes {
        // Each in a read of its own, and in turn with another stream.
        yamux.take(&mut coalescer, &frame(DATA, 0, 1, &[*byte]), 64);
        yamux.take(&mut coalescer, &frame(DATA, 0, 3, &[!*byte]), 64);
    }
    assert!(yamux.pieces.len() <= 2 * most(bytes.len()), "{} pieces", yamux.pieces.len());
    // The rest comes when all of that was read.
    assert!(!signal.take() && !coalescer.look());
    gauges[0].read(yamux.length(1));
    gauges[1].read(yamux.length(3));
    assert!(signal.take() && coalescer.look());
    yamux.take(&mut coalescer, &[], 64);
    assert!(yamux.data(1) == bytes);
    assert_eq!(yamux.length(3), bytes.len());
}

/// Most pieces in which so many bytes that came in tiny frames may be kept.
fn most(bytes: usize) -> usize {
    AT_ONCE as usize + bytes / JOINED + 2
}

#[test]
fn no_flags_keep_a_byte_by_itself() {
    for flags in [ACK, FIN, RST, FIN | ACK, 16, 0xfff0, 0xfffe] {
        let (mut coalescer, gauges, _) = connection(&[1, 3]);
        let mut yamux = Yamux::default();
        for _ in 0..20_000 {
            yamux.take(&mut coalescer, &frame(DATA, flags, 1, b"x"), 64);
            // Credit with flags between bytes without.
            yamux.take(&mut coalescer, &frame(DATA, 0, 3, b"x"), 64);
            yamux.take(&mut coalescer, &frame(WINDOW_UPDATE, flags, 3, b""), 64);
        }
        let pieces = yamux.pieces.len();
        assert!(pieces <= 2 * most(20_000), "{flags:#x}: {pieces} pieces");
        for (stream, gauge) in [1, 3].into_iter().zip(&gauges) {
            let last = flags & (FIN | RST);
            let told: Vec<u16> = yamux.flags_of(stream).into_iter().map(|f| f.0).collect();
            let expected = [flags & ACK, last].into_iter().filter(|flags| *flags != 0);
            assert_eq!(told, expected.collect::<Vec<_>>(), "{flags:#x}");
            gauge.read(yamux.length(stream));
        }
        coalescer.look();
        yamux.take(&mut coalescer, &[], 64);
        // After the end nothing comes, and before it nothing is lost.
        let whole = if flags & (FIN | RST) == 0 { 20_000 } else { 1 };
        assert_eq!(yamux.length(3), whole, "{flags:#x}");
    }
}

#[test]
fn a_body_under_way_is_known_to_whoever_drops_its_stream() {
    let (mut coalescer, gauges, _) = connection(&[1]);
    let mut yamux = Yamux::default();
    let long = frame(DATA, 0, 1, &[7; 2 * JOINED]);
    yamux.take(&mut coalescer, &long[..5000], 64);
    assert!(gauges[0].is_under_way());
    gauges[0].drop_stream();
    yamux.take(&mut coalescer, &long[5000..], 64);
    assert!(!gauges[0].is_under_way());
    yamux.take(&mut coalescer, &long, 64);
    assert_eq!(yamux.length(1), 2 * JOINED);
    assert!(!gauges[0].is_under_way());
}

#[test]
fn a_reader_that_keeps_up_gets_all_at_once() {
    let (mut coalescer, gauges, _) = connection(&[1]);
    let mut yamux = Yamux::default();
    for n in 0..100 {
        yamux.take(&mut coalescer, &frame(DATA, 0, 1, &[n]), 64);
        gauges[0].read(1);
        assert_eq!(yamux.length(1), usize::from(n) + 1);
    }
}

#[test]
fn nothing_is_kept_for_a_stream_that_was_dropped() {
    let (mut coalescer, gauges, _) = connection(&[1, 3, 5, 7]);
    let mut yamux = Yamux::default();
    for _ in 0..AT_ONCE {
        yamux.take(&mut coalescer, &frame(DATA, 0, 1, b"first"), 64);
    }
    let first = yamux.length(1);
    assert_eq!(first, 5 * AT_ONCE as usize);
    yamux.take(&mut coalescer, &frame(DATA, 0, 1, b"kept"), 64);
    gauges[0].drop_stream();
    yamux.take(&mut coalescer, &frame(DATA, FIN, 1, &[7; 50_000]), 64);
    assert_eq!(yamux.length(1), first);
    assert_eq!(yamux.flags, [(1, FIN, first)]);
    assert!(!coalescer.look());
    assert!(coalescer.streams[&1].tail.is_empty());
    // Two are remembered.
    for gauge in &gauges[1..] {
        gauge.drop_stream();
        assert!(!coalescer.look());
    }
    assert_eq!(coalescer.streams.len(), 2);
}

#[test]
fn amid_a_body_streams_are_forgotten_but_for_its_own() {
    let (mut coalescer, gauges, _) = connection(&[1, 3, 5, 7, 9]);
    let mut yamux = Yamux::default();
    for _ in 0..=AT_ONCE {
        yamux.take(&mut coalescer, &frame(DATA, 0, 3, b"kept"), 64);
    }
    let long = frame(DATA, 0, 1, &[7; 2 * JOINED]);
    yamux.take(&mut coalescer, &long[..5000], 64);
    assert_eq!(coalescer.streams[&3].tail, b"kept");
    let known = |coalescer: &Coalescer| {
        let mut known: Vec<u32> = coalescer.streams.keys().copied().collect();
        known.sort_unstable();
        known
    };
    gauges[1].drop_stream();
    assert!(!coalescer.look() && coalescer.streams[&3].tail.is_empty());
    for at in [2, 0, 3] {
        gauges[at].drop_stream();
        assert!(!coalescer.look());
    }
    assert!(gauges[0].is_under_way());
    assert_eq!(known(&coalescer), [1, 5, 7, 9]);
    // When it has come, its stream is one of the two that are remembered.
    yamux.take(&mut coalescer, &long[5000..], 64);
    assert!(!gauges[0].is_under_way());
    assert_eq!(known(&coalescer), [1, 7, 9]);
}

#[test]
fn a_short_piece_amid_which_its_stream_is_dropped_is_not_kept() {
    for looks in [true, false] {
        let (mut coalescer, gauges, _) = connection(&[1]);
        let mut yamux = Yamux::default();
        for _ in 0..AT_ONCE {
            yamux.take(&mut coalescer, &frame(DATA, 0, 1, b"x"), 64);
        }
        let piece = frame(DATA, 0, 1, &[7; JOINED - 1]);
        yamux.take(&mut coalescer, &piece[..2000], 64);
        gauges[0].drop_stream();
        gauges[0].read(AT_ONCE as usize);
        assert!(!looks || !coalescer.look());
        yamux.take(&mut coalescer, &piece[2000..], 64);
        assert_eq!((yamux.length(1), coalescer.kept()), (AT_ONCE as usize, (1, 0)));
    }
}

#[test]
fn what_is_read_amid_a_body_lets_the_rest_follow_after_it() {
    let (mut coalescer, gauges, signal) = connection(&[1, 3]);
    let mut yamux = Yamux::default();
    for _ in 0..=AT_ONCE {
        yamux.take(&mut coalescer, &frame(DATA, 0, 3, b"x"), 64);
    }
    let long = frame(DATA, 0, 1, &[7; 2 * JOINED]);
    yamux.take(&mut coalescer, &long[..5000], 64);
    gauges[1].read(AT_ONCE as usize);
    assert!(signal.take() && !coalescer.look());
    // In the same read another body begins.
    let rest = [&long[5000..], &long[..5000]].concat();
    yamux.take(&mut coalescer, &rest, 64);
    assert_eq!((yamux.length(1), yamux.length(3)), (2 * JOINED, AT_ONCE as usize + 1));
}

#[derive(Debug, Clone)]
enum Step {
    Data {
        stream: u32,
        length: usize,
        flags: u16,
    },
    Window {
        stream: u32,
        flags: u16,
    },
    /// So many parts of 8 of what there is are read, at once or amid the next frame.
    Read {
        stream: u32,
        parts: usize,
        amid: bool,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let stream = || prop_oneof![Just(1_u32), Just(3), Just(9)];
    let length = prop_oneof![8 => 0..20_usize, 1 => 0..3 * JOINED];
    let flags = || prop_oneof![9 => Just(0_u16), 1 => Just(FIN)];
    let step = prop_oneof![
        6 => (stream(), length, flags())
            .prop_map(|(stream, length, flags)| Step::Data { stream, length, flags }),
        1 => (stream(), flags()).prop_map(|(stream, flags)| Step::Window { stream, flags }),
        2 => (stream(), 1..=8_usize, any::<bool>())
            .prop_map(|(stream, parts, amid)| Step::Read { stream, parts, amid }),
    ];
    prop::collection::vec(step, 1..300)
}

proptest! {
    /// Whatever comes and however it is cut: the bytes of each stream and the places of its
    /// flags are the same, and a reader that has read all gets the rest.
    #[test]
    fn bytes_and_flags_of_a_stream_stay_as_they_are(
        steps in steps(), cut in 1..3000_usize, room in 1..5000_usize,
    ) {
        // 9 is a stream that this end does not know.
        let (mut coalescer, gauges, signal) = connection(&[1, 3]);
        let (mut yamux, mut sent) = (Yamux::default(), Yamux::default());
        let mut read = [0; 2];
        let mut next = 0_u8;
        let mut reader = |yamux: &mut Yamux, coalescer: &mut Coalescer, stream, parts| {
            let at = usize::from(stream == 3);
            let more = (yamux.length(stream) - read[at]) * parts / 8;
            read[at] += more;
            gauges[at].read(more);
            if signal.take() && coalescer.look() {
                yamux.take(coalescer, &[], room);
            }
        };
        let mut amid_the_next = None;
        for step in steps {
            let (kind, flags, stream, length) = match step {
                Step::Data { stream, length, flags } => (DATA, flags, stream, length),
                Step::Window { stream, flags } => (WINDOW_UPDATE, flags, stream, 0),
                Step::Read { stream: 9, .. } => continue,
                Step::Read { stream, parts, amid: true } => {
                    amid_the_next = Some((stream, parts));
                    continue;
                }
                Step::Read { stream, parts, .. } => {
                    reader(&mut yamux, &mut coalescer, stream, parts);
                    continue;
                }
            };
            let body: Vec<u8> = (0..length).map(|_| { next = next.wrapping_add(1); next }).collect();
            for piece in frame(kind, flags, stream, &body).chunks(cut) {
                yamux.take(&mut coalescer, piece, room);
                if let Some((stream, parts)) = amid_the_next.take() {
                    reader(&mut yamux, &mut coalescer, stream, parts);
                }
            }
            sent.windows += usize::from(kind == WINDOW_UPDATE);
            // Nothing of a known stream comes after its end.
            let over = stream != 9 && !sent.flags_of(stream).is_empty();
            if flags != 0 && !over {
                sent.flags.push((stream, flags, sent.length(stream)));
            }
            if !over {
                sent.pieces.push((stream, body));
            }
        }
        for stream in [1, 3] {
            reader(&mut yamux, &mut coalescer, stream, 8);
        }
        // No word, and nothing is kept.
        if signal.take() {
            coalescer.look();
            yamux.take(&mut coalescer, &[], room);
        }
        for stream in [1, 3, 9] {
            prop_assert_eq!(yamux.data(stream), sent.data(stream));
            prop_assert_eq!(yamux.flags_of(stream), sent.flags_of(stream));
        }
        prop_assert_eq!(yamux.windows, sent.windows);
        prop_assert!(coalescer.streams.values().all(|inflow| inflow.tail.is_empty()));
    }

    /// A hostile other end may send anything at all.
    #[test]
    fn noise_is_given_on_or_joined(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
        let (mut coalescer, ..) = connection(&[0, 1]);
        let mut out = [0; 100];
        let mut input = &bytes[..];
        while coalescer.give(&mut input, &mut out) > 0 {}
        prop_assert!(input.is_empty());
        coalescer.end();
    }
}
