//! The chunks that a session touches, in order of first touch.

pub(crate) struct Recorder {
    seen: Vec<bool>,
    order: Vec<u32>,
}

impl Recorder {
    pub fn new(chunks: u32) -> Self {
        Self { seen: vec![false; chunks as usize], order: Vec::new() }
    }

    pub fn touch(&mut self, chunk: u32) {
        if !std::mem::replace(&mut self.seen[chunk as usize], true) {
            self.order.push(chunk);
        }
    }

    /// Returns the chunks from the `from`th on, at most `limit`, and how many there are.
    pub fn page(&self, from: usize, limit: usize) -> (Vec<u32>, usize) {
        let end = from.saturating_add(limit).min(self.order.len());
        (self.order.get(from..end).unwrap_or_default().to_vec(), self.order.len())
    }
}
