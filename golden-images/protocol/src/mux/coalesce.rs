//! Small pieces of data that wait for their reader, joined into larger ones.
//!
//! yamux keeps what comes on a stream as the sender has cut it, each piece in an allocation of its
//! own: of a window of 256 KiB that is filled byte by byte it makes 16 MiB. So pieces that come
//! while the reader is behind are joined here, before yamux sees them. The bytes of a stream, and
//! their order beside its flags, stay as they are.

use super::stream::Gauge;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Bytes of a yamux header: version, type, flags (16 bits), stream (32), length (32), big-endian
/// (<https://github.com/hashicorp/yamux/blob/master/spec.md>).
const HEADER: usize = 12;
const VERSION: u8 = 0;
const DATA: u8 = 0;
const WINDOW_UPDATE: u8 = 1;

/// Pieces shorter than this are joined until they have as many bytes together.
pub(super) const JOINED: usize = 4096;

/// Short pieces that are given on as they come, since the reader had caught up: an answer of a few
/// frames is read at once, and what these take beside their bytes is little.
const AT_ONCE: u32 = 32;

/// The frames of one connection, on their way from the transport to yamux.
pub(super) struct Coalescer {
    streams: HashMap<u32, Inflow>,
    /// Streams that were dropped at this end, the oldest first.
    gone: VecDeque<u32>,
    /// How many of these to remember: yamux may not have heard of so many.
    remembered: usize,
    part: Part,
    /// What yamux is given next.
    ready: Vec<u8>,
    taken: usize,
    /// Headers that were met so far.
    frames: u64,
}

/// One stream, as seen by this end's reader.
struct Inflow {
    gauge: Arc<Gauge>,
    /// Data that was not given to yamux yet.
    tail: Vec<u8>,
    /// Short pieces that were given on since the reader had caught up.
    short: u32,
    gone: bool,
}

/// What comes next from the transport.
enum Part {
    Header { bytes: [u8; HEADER], have: usize },
    Body { to: To, left: usize },
}

#[derive(Clone, Copy)]
enum To {
    Yamux,
    Tail(u32),
    Nowhere,
}

#[derive(Clone, Copy)]
struct Header {
    version: u8,
    kind: u8,
    flags: u16,
    stream: u32,
    length: u32,
}

impl Header {
    fn parse(bytes: &[u8; HEADER]) -> Self {
        let [version, kind, f0, f1, s0, s1, s2, s3, l0, l1, l2, l3] = *bytes;
        Self {
            version,
            kind,
            flags: u16::from_be_bytes([f0, f1]),
            stream: u32::from_be_bytes([s0, s1, s2, s3]),
            length: u32::from_be_bytes([l0, l1, l2, l3]),
        }
    }

    fn append(self, to: &mut Vec<u8>) {
        to.extend_from_slice(&[self.version, self.kind]);
        to.extend_from_slice(&self.flags.to_be_bytes());
        to.extend_from_slice(&self.stream.to_be_bytes());
        to.extend_from_slice(&self.length.to_be_bytes());
    }
}

impl Coalescer {
    /// A connection whose end of yamux has at most `remembered` streams.
    pub fn new(remembered: usize) -> Self {
        Self {
            streams: HashMap::new(),
            gone: VecDeque::new(),
            remembered,
            part: Part::header(),
            ready: Vec::new(),
            taken: 0,
            frames: 0,
        }
    }

    /// Takes note of a stream that this end has opened.
    pub fn opened(&mut self, stream: u32, gauge: Arc<Gauge>) {
        self.streams.insert(stream, Inflow { gauge, tail: Vec::new(), short: 0, gone: false });
    }

    /// Returns how many frames have begun.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// Moves bytes from the front of `input` towards yamux; returns how many are in `out`. With
    /// none, all of `input` was taken.
    pub fn give(&mut self, input: &mut &[u8], out: &mut [u8]) -> usize {
        loop {
            let ready = &self.ready[self.taken..];
            if !ready.is_empty() {
                let count = ready.len().min(out.len());
                out[..count].copy_from_slice(&ready[..count]);
                self.taken += count;
                return count;
            }
            self.ready.clear();
            self.taken = 0;
            match &mut self.part {
                Part::Header { bytes, have } => {
                    let wanted = &mut bytes[*have..];
                    let count = wanted.len().min(input.len());
                    wanted[..count].copy_from_slice(&input[..count]);
                    *input = &input[count..];
                    *have += count;
                    if *have < HEADER {
                        return 0;
                    }
                    let header = Header::parse(bytes);
                    self.begin(header);
                }
                Part::Body { left: 0, to } => {
                    let to = *to;
                    self.part = Part::header();
                    if let To::Tail(stream) = to {
                        self.joined(stream);
                    }
                }
                Part::Body { to, left } => {
                    let mut count = input.len().min(*left);
                    if count == 0 {
                        return 0;
                    }
                    let to = *to;
                    if let To::Yamux = to {
                        count = count.min(out.len());
                        out[..count].copy_from_slice(&input[..count]);
                    }
                    *left -= count;
                    let piece = &input[..count];
                    *input = &input[count..];
                    match to {
                        To::Yamux => return count,
                        To::Tail(stream) => {
                            if let Some(inflow) = self.streams.get_mut(&stream) {
                                inflow.tail.extend_from_slice(piece);
                            }
                        }
                        To::Nowhere => {}
                    }
                }
            }
        }
    }

    /// Gives on what was kept for readers that have caught up, and forgets streams that were
    /// dropped. Returns whether there is something to give. Only
    /// [between frames](Coalescer::is_between_frames).
    pub fn look(&mut self) -> bool {
        for (stream, inflow) in &mut self.streams {
            if inflow.gauge.is_dropped() {
                inflow.tail = Vec::new();
                if !inflow.gone {
                    inflow.gone = true;
                    self.gone.push_back(*stream);
                }
            } else if !inflow.tail.is_empty() && inflow.gauge.is_read() {
                inflow.flush(*stream, &mut self.ready);
            }
        }
        while self.gone.len() > self.remembered
            && let Some(stream) = self.gone.pop_front()
        {
            self.streams.remove(&stream);
        }
        self.taken < self.ready.len()
    }

    /// As [`Coalescer::look`], of all streams, at the end of the transport.
    pub fn end(&mut self) -> bool {
        if !self.is_between_frames() {
            return false;
        }
        for (stream, inflow) in &mut self.streams {
            inflow.flush(*stream, &mut self.ready);
        }
        self.taken < self.ready.len()
    }

    /// Returns whether a frame of our own can be put before what comes next.
    pub fn is_between_frames(&self) -> bool {
        matches!(self.part, Part::Header { .. } | Part::Body { to: To::Tail(_) | To::Nowhere, .. })
    }

    fn begin(&mut self, header: Header) {
        self.frames += 1;
        let length = usize::try_from(header.length).unwrap_or(usize::MAX);
        let is_data = header.version == VERSION && header.kind == DATA;
        let of_a_stream = is_data || (header.version == VERSION && header.kind == WINDOW_UPDATE);
        let body = if is_data { length } else { 0 };
        let inflow = self.streams.get_mut(&header.stream).filter(|_| of_a_stream);
        let to = if let Some(inflow) = inflow {
            if is_data && inflow.gauge.is_dropped() {
                // Nobody reads it any more, but yamux would keep it until it hears of that.
                if header.flags != 0 {
                    Header { length: 0, ..header }.append(&mut self.ready);
                }
                To::Nowhere
            } else if is_data && header.flags == 0 && length < JOINED && inflow.keeps_short() {
                To::Tail(header.stream)
            } else {
                // Credit alone says nothing of what the other end has sent.
                if is_data || header.flags != 0 {
                    inflow.flush(header.stream, &mut self.ready);
                }
                if is_data {
                    inflow.gauge.pass(body);
                }
                header.append(&mut self.ready);
                To::Yamux
            }
        } else {
            header.append(&mut self.ready);
            To::Yamux
        };
        self.part = Part::Body { to, left: body };
    }

    /// A piece of data has been joined to the tail of its stream.
    fn joined(&mut self, stream: u32) {
        let Some(inflow) = self.streams.get_mut(&stream) else { return };
        if inflow.tail.len() >= JOINED || inflow.gauge.keep() {
            inflow.flush(stream, &mut self.ready);
        }
    }
}

impl Inflow {
    /// Whether a short piece is kept. Counts it, if not.
    fn keeps_short(&mut self) -> bool {
        if !self.tail.is_empty() {
            return true;
        }
        if self.gauge.is_read() {
            self.short = 0;
        }
        self.short += 1;
        self.short > AT_ONCE
    }

    /// Appends the tail to `to` as one frame.
    fn flush(&mut self, stream: u32, to: &mut Vec<u8>) {
        let Ok(length) = u32::try_from(self.tail.len()) else { return };
        if length == 0 {
            return;
        }
        self.gauge.pass(self.tail.len());
        Header { version: VERSION, kind: DATA, flags: 0, stream, length }.append(to);
        to.append(&mut self.tail);
    }
}

impl Part {
    fn header() -> Self {
        Self::Header { bytes: [0; HEADER], have: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::super::stream::Signal;
    use super::*;
    use proptest::prelude::*;

    const FIN: u16 = 4;

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
        let most = 2 * (AT_ONCE as usize + bytes.len() / JOINED);
        assert!(yamux.pieces.len() <= most, "{} pieces", yamux.pieces.len());
        // The rest comes when all of that was read.
        assert!(!signal.take() && !coalescer.look());
        gauges[0].read(yamux.length(1));
        gauges[1].read(yamux.length(3));
        assert!(signal.take() && coalescer.look());
        yamux.take(&mut coalescer, &[], 64);
        assert!(yamux.data(1) == bytes);
        assert_eq!(yamux.length(3), bytes.len());
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
        /// So many parts of 8 of what there is are read.
        Read {
            stream: u32,
            parts: usize,
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
            2 => (stream(), 1..=8_usize).prop_map(|(stream, parts)| Step::Read { stream, parts }),
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
            for step in steps {
                let (kind, flags, stream, length) = match step {
                    Step::Data { stream, length, flags } => (DATA, flags, stream, length),
                    Step::Window { stream, flags } => (WINDOW_UPDATE, flags, stream, 0),
                    Step::Read { stream: 9, .. } => continue,
                    Step::Read { stream, parts } => {
                        let at = usize::from(stream == 3);
                        let more = (yamux.length(stream) - read[at]) * parts / 8;
                        read[at] += more;
                        gauges[at].read(more);
                        if signal.take() && coalescer.look() {
                            yamux.take(&mut coalescer, &[], room);
                        }
                        continue;
                    }
                };
                let body: Vec<u8> = (0..length).map(|_| { next = next.wrapping_add(1); next }).collect();
                for piece in frame(kind, flags, stream, &body).chunks(cut) {
                    yamux.take(&mut coalescer, piece, room);
                }
                if flags != 0 {
                    sent.flags.push((stream, flags, sent.length(stream)));
                }
                sent.pieces.push((stream, body));
                sent.windows += usize::from(kind == WINDOW_UPDATE);
            }
            for (at, stream) in [1, 3].into_iter().enumerate() {
                gauges[at].read(yamux.length(stream) - read[at]);
            }
            // No word, and nothing is kept.
            if signal.take() {
                coalescer.look();
                yamux.take(&mut coalescer, &[], room);
            }
            for stream in [1, 3, 9] {
                prop_assert_eq!(yamux.data(stream), sent.data(stream));
                let flags = |of: &Yamux| -> Vec<_> {
                    of.flags.iter().filter(|flag| flag.0 == stream).copied().collect()
                };
                prop_assert_eq!(flags(&yamux), flags(&sent));
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
}
