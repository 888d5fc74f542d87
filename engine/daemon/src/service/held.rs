//! Bytes that are held for a tenant, each of them counted.

use std::io;

use bytes::Bytes;

use super::shares::{Account, Share};

/// Least growth of a buffer, in bytes.
const GRAIN: usize = 16 << 10;

/// Refusal to hold more bytes for a tenant, or for all of them together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("as many bytes are held for this tenant as may be: end commands or discard sessions")]
pub struct Full;

/// Buffer that takes what it allocates from its tenant's account.
#[derive(Debug)]
pub struct Held {
    bytes: Vec<u8>,
    share: Share,
}

impl Held {
    /// Creates an empty buffer.
    ///
    /// # Errors
    /// [`Full`].
    pub fn new(account: &Account) -> Result<Self, Full> {
        Ok(Self { bytes: Vec::new(), share: account.take(0).ok_or(Full)? })
    }

    /// Takes room for `more` bytes, and nothing beyond.
    ///
    /// # Errors
    /// [`Full`]; no room was taken.
    pub fn reserve(&mut self, more: usize) -> Result<(), Full> {
        let needed = self.bytes.len() + more;
        if !self.share.grow(needed.saturating_sub(self.share.amount())) {
            return Err(Full);
        }
        self.bytes.reserve_exact(more);
        Ok(())
    }

    /// Adds `more` bytes.
    ///
    /// # Errors
    /// [`Full`]; nothing was added.
    pub fn extend(&mut self, more: &[u8]) -> Result<(), Full> {
        let needed = self.bytes.len() + more.len();
        if needed > self.share.amount() {
            // Doubled, so that a byte is moved a few times at most; less where that is too much.
            let step = |to: usize| to.saturating_sub(self.share.amount());
            let (wide, narrow) =
                (step((2 * self.share.amount()).max(needed).max(GRAIN)), step(needed));
            if !self.share.grow(wide) && !self.share.grow(narrow) {
                return Err(Full);
            }
            self.bytes.reserve_exact(self.share.amount() - self.bytes.len());
        }
        self.bytes.extend_from_slice(more);
        Ok(())
    }

    /// Drops what is behind the first `most` bytes, and gives back what they took.
    pub fn truncate(&mut self, most: usize) {
        self.bytes.truncate(most);
        self.bytes.shrink_to_fit();
        self.share.shrink(self.bytes.capacity());
    }

    /// Returns how many bytes it has.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Returns whether it has none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Returns the bytes, and what counts them: to be kept as long as they are.
    pub fn into_parts(self) -> (Vec<u8>, Share) {
        (self.bytes, self.share)
    }

    /// Returns the bytes to send; they count until the last of them is dropped.
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

/// Returns `bytes` to send; `kept`, such as what counts them, is dropped with the last of them.
pub fn sent_with(bytes: Vec<u8>, kept: impl Send + 'static) -> Bytes {
    Bytes::from_owner(Sent { bytes, _kept: kept })
}

struct Sent<T> {
    bytes: Vec<u8>,
    _kept: T,
}

impl<T> AsRef<[u8]> for Sent<T> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl io::Write for Held {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.extend(bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use mayfly_api::TenantName;

    use super::*;
    use crate::service::shares::Shares;

    #[test]
    fn what_is_held_is_counted_until_the_last_of_it_is_gone() {
        let account = Shares::new(100 << 10, []).account(&TenantName::local(), None);
        let mut held = Held::new(&account).unwrap();
        assert_eq!(account.held(), 0);
        for _ in 0..9 {
            held.extend(&[7; 10 << 10]).unwrap();
        }
        assert!(account.held() >= held.bytes.capacity(), "{}", account.held());
        assert_eq!(held.extend(&[7; 20 << 10]), Err(Full));
        assert_eq!((held.len(), held.is_empty()), (90 << 10, false));
        // The last that fits, though doubling would not.
        held.extend(&[7; 10 << 10]).unwrap();
        assert_eq!(account.held(), 100 << 10);
        let bytes = held.into_bytes();
        let part = bytes.slice(5..6);
        drop(bytes);
        assert_eq!((&part[..], account.held()), (&[7][..], 100 << 10));
        drop(part);
        assert_eq!(account.held(), 0);
    }
}
