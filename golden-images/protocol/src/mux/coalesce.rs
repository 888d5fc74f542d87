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
const SYN: u16 = 1;
const ACK: u16 = 2;
const FIN: u16 = 4;
const RST: u16 = 8;

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
    /// Whether to look at the streams once more when the body under way has come.
    look_again: bool,
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
    /// The other end has acknowledged it.
    acknowledged: bool,
    /// The other end has said that nothing follows.
    closed: bool,
    gone: bool,
}

/// What comes next from the transport.
enum Part {
    Header { bytes: [u8; HEADER], have: usize },
    Body { to: To, left: usize },
}

#[derive(Clone, Copy)]
enum To {
    /// To yamux, for this stream.
    Yamux(u32),
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

    fn is(self, kind: u8) -> bool {
        self.version == VERSION && self.kind == kind
    }

    /// Bytes that follow it.
    fn body(self) -> usize {
        if self.is(DATA) { usize::try_from(self.length).unwrap_or(usize::MAX) } else { 0 }
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
            look_again: false,
            ready: Vec::new(),
            taken: 0,
            frames: 0,
        }
    }

    /// Takes note of a stream that this end has opened.
    pub fn opened(&mut self, stream: u32, gauge: Arc<Gauge>) {
        self.streams.insert(stream, Inflow::new(gauge));
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
                    match to {
                        To::Tail(stream) => self.joined(stream),
                        To::Yamux(stream) => {
                            if let Some(inflow) = self.streams.get(&stream) {
                                inflow.gauge.set_under_way(false);
                            }
                        }
                        To::Nowhere => {}
                    }
                    if std::mem::take(&mut self.look_again) {
                        self.look();
                    }
                }
                Part::Body { to, left } => {
                    let mut count = input.len().min(*left);
                    if count == 0 {
                        return 0;
                    }
                    let to = *to;
                    if let To::Yamux(_) = to {
                        count = count.min(out.len());
                        out[..count].copy_from_slice(&input[..count]);
                    }
                    *left -= count;
                    let piece = &input[..count];
                    *input = &input[count..];
                    match to {
                        To::Yamux(_) => return count,
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

    /// Forgets streams that were dropped, and gives on what was kept for readers that have caught up.
    /// Returns whether there is something to give.
    ///
    /// Amid a body it only forgets, and does the rest after it: the other end, which may stay amid
    /// one for ever, has no say in what is kept for streams that nobody reads.
    pub fn look(&mut self) -> bool {
        self.forget();
        if self.is_between_frames() {
            for (stream, inflow) in &mut self.streams {
                if !inflow.gone && inflow.gauge.is_read() {
                    inflow.flush(*stream, &mut self.ready);
                }
            }
        } else {
            self.look_again = true;
        }
        self.taken < self.ready.len()
    }

    fn forget(&mut self) {
        let under_way = match self.part {
            Part::Body { to: To::Yamux(stream), .. } => Some(stream),
            _ => None,
        };
        for (stream, inflow) in &mut self.streams {
            // Whoever drops a stream amid its body waits to hear that it has come.
            if !inflow.gone && inflow.gauge.is_dropped() && under_way != Some(*stream) {
                inflow.gone = true;
                inflow.tail = Vec::new();
                self.gone.push_back(*stream);
            }
        }
        if let Part::Body { to: to @ To::Tail(_), .. } = &mut self.part
            && let To::Tail(stream) = to
            && self.streams.get(stream).is_none_or(|inflow| inflow.gone)
        {
            *to = To::Nowhere;
        }
        if self.gone.len() > self.remembered {
            let excess = self.gone.len() - self.remembered;
            for stream in self.gone.drain(..excess) {
                self.streams.remove(&stream);
            }
            self.gone.shrink_to(2 * self.gone.len());
            self.streams.shrink_to(2 * self.streams.len());
        }
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
    fn is_between_frames(&self) -> bool {
        matches!(self.part, Part::Header { .. } | Part::Body { to: To::Tail(_) | To::Nowhere, .. })
    }

    fn begin(&mut self, header: Header) {
        self.frames += 1;
        let of_a_stream = header.is(DATA) || header.is(WINDOW_UPDATE);
        let to = match self.streams.get_mut(&header.stream) {
            // yamux refuses a stream that begins twice.
            Some(inflow) if of_a_stream && header.flags & SYN == 0 => {
                inflow.begin(header, &mut self.ready)
            }
            _ => {
                header.append(&mut self.ready);
                To::Yamux(header.stream)
            }
        };
        self.part = Part::Body { to, left: header.body() };
    }

    /// A piece of data has been joined to the tail of its stream.
    fn joined(&mut self, stream: u32) {
        let Some(inflow) = self.streams.get_mut(&stream) else { return };
        if inflow.gauge.is_dropped() {
            inflow.tail = Vec::new();
        } else if inflow.tail.len() >= JOINED || inflow.gauge.keep() {
            inflow.flush(stream, &mut self.ready);
        }
    }
}

impl Inflow {
    fn new(gauge: Arc<Gauge>) -> Self {
        let (tail, short) = (Vec::new(), 0);
        Self { gauge, tail, short, acknowledged: false, closed: false, gone: false }
    }

    /// Returns the header with what its flags have to say for the first time. yamux takes any flags
    /// on any frame, and keeps the data of each such frame by itself.
    fn with_flags(&mut self, header: Header, to: &mut Vec<u8>) -> Header {
        if header.flags & ACK != 0 && !std::mem::replace(&mut self.acknowledged, true) {
            // By itself: it has no place among the data.
            Header { kind: WINDOW_UPDATE, flags: ACK, length: 0, ..header }.append(to);
        }
        let last = header.flags & (FIN | RST);
        let flags = if self.closed { 0 } else { last };
        Header { flags, ..header }
    }

    /// Begins a frame of the stream; returns where its body goes.
    fn begin(&mut self, header: Header, to: &mut Vec<u8>) -> To {
        let header = self.with_flags(header, to);
        let after_the_end = self.closed;
        self.closed |= header.flags != 0;
        if header.is(WINDOW_UPDATE) {
            // Credit alone says nothing of what the other end has sent.
            if header.flags != 0 {
                self.flush(header.stream, to);
            }
            header.append(to);
            return To::Yamux(header.stream);
        }
        // Before the look at whether it was dropped: a stream that is dropped from here on is kept
        // until the body has come.
        self.gauge.set_under_way(true);
        let place = self.place(header, after_the_end, to);
        self.gauge.set_under_way(matches!(place, To::Yamux(_)));
        place
    }

    /// Where data goes. Gives on the header where that is to yamux, and what its flags say anyway.
    fn place(&mut self, header: Header, after_the_end: bool, to: &mut Vec<u8>) -> To {
        if header.flags & RST != 0 || after_the_end || self.gauge.is_dropped() {
            // Nobody reads it, but yamux would keep it.
            if header.flags != 0 {
                if !self.gauge.is_dropped() {
                    self.flush(header.stream, to);
                }
                Header { length: 0, ..header }.append(to);
            }
            return To::Nowhere;
        }
        if header.flags == 0 && header.body() < JOINED && self.keeps_short() {
            return To::Tail(header.stream);
        }
        self.flush(header.stream, to);
        self.gauge.pass(header.body());
        header.append(to);
        To::Yamux(header.stream)
    }

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
impl Coalescer {
    /// Returns how many streams it knows, and the bytes that it keeps for them.
    pub fn kept(&self) -> (usize, usize) {
        (self.streams.len(), self.streams.values().map(|inflow| inflow.tail.capacity()).sum())
    }
}

#[cfg(test)]
mod tests;
