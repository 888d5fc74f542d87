//! The beginning or the end of a stream of bytes, in bounded memory, and how many there were.

use mayfly_api::Keep;

use super::held::{Full, Held};
use super::ring::Ring;
use super::shares::Account;

/// Keeps the first or the last bytes of a stream: as many as it is to, or as its tenant may hold.
#[derive(Debug)]
pub struct Kept {
    part: Part,
    /// How many bytes there were.
    all: u64,
}

#[derive(Debug)]
enum Part {
    Head { bytes: Held, most: usize },
    Tail(Ring),
}

impl Kept {
    /// Keeps nothing yet, and at most `most` bytes.
    ///
    /// # Errors
    /// [`Full`].
    pub fn new(keep: Keep, most: usize, account: &Account) -> Result<Self, Full> {
        let part = match keep {
            Keep::Head => Part::Head { bytes: Held::new(account)?, most },
            Keep::Tail => Part::Tail(Ring::new(account, 0, most).ok_or(Full)?),
        };
        Ok(Self { part, all: 0 })
    }

    /// Takes note of what comes next.
    pub fn push(&mut self, more: &[u8]) {
        self.all += more.len() as u64;
        match &mut self.part {
            Part::Head { bytes, most } => {
                let fits = more.len().min(most.saturating_sub(bytes.len()));
                if fits > 0 && bytes.extend(&more[..fits]).is_err() {
                    // What comes later is no beginning.
                    *most = bytes.len();
                }
            }
            Part::Tail(ring) => ring.push(more),
        }
    }

    /// Returns how many bytes there were.
    pub fn all(&self) -> u64 {
        self.all
    }

    /// Returns how many bytes are kept.
    pub fn kept(&self) -> usize {
        match &self.part {
            Part::Head { bytes, .. } => bytes.len(),
            Part::Tail(ring) => ring.len(),
        }
    }

    /// Returns whether not all bytes are kept.
    pub fn is_cut(&self) -> bool {
        self.all > self.kept() as u64
    }

    /// Keeps at most `most` bytes from now on.
    pub fn shrink(&mut self, to: usize) {
        match &mut self.part {
            Part::Head { bytes, most } => {
                bytes.truncate(to);
                *most = to.min(*most);
            }
            Part::Tail(ring) => ring.shrink(to),
        }
    }

    /// Returns what is kept. Of text that was cut within a character, the rest of the character is
    /// left out, so that it is text still.
    pub fn bytes(&mut self) -> &[u8] {
        let cut = self.is_cut();
        match &mut self.part {
            Part::Head { bytes, .. } => {
                let bytes = Held::as_ref(bytes);
                match std::str::from_utf8(bytes) {
                    Err(error) if cut && error.error_len().is_none() => {
                        &bytes[..error.valid_up_to()]
                    }
                    _ => bytes,
                }
            }
            Part::Tail(ring) => {
                let bytes = ring.kept();
                let continues = |byte: &&u8| **byte & 0b1100_0000 == 0b1000_0000;
                // At most three bytes follow the first one of a character.
                let rest = bytes.iter().take(3).take_while(continues).count();
                if cut && std::str::from_utf8(&bytes[rest..]).is_ok() {
                    &bytes[rest..]
                } else {
                    bytes
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use mayfly_api::TenantName;

    use super::*;
    use crate::service::shares::Shares;

    fn account(bytes: usize) -> Account {
        Shares::new(bytes, []).account(&TenantName::local(), None)
    }

    fn kept(keep: Keep, most: usize, pieces: &[&[u8]]) -> (Vec<u8>, u64, bool) {
        let account = account(1 << 20);
        let mut kept = Kept::new(keep, most, &account).unwrap();
        pieces.iter().for_each(|piece| kept.push(piece));
        let all = (kept.bytes().to_vec(), kept.all(), kept.is_cut());
        drop(kept);
        assert_eq!(account.held(), 0);
        all
    }

    #[test]
    fn the_asked_end_of_what_is_too_long_is_kept_and_all_is_counted() {
        let pieces: [&[u8]; 3] = [b"abc", b"", b"defg"];
        assert_eq!(kept(Keep::Head, 7, &pieces), (b"abcdefg".into(), 7, false));
        assert_eq!(kept(Keep::Tail, 7, &pieces), (b"abcdefg".into(), 7, false));
        assert_eq!(kept(Keep::Head, 4, &pieces), (b"abcd".into(), 7, true));
        assert_eq!(kept(Keep::Tail, 4, &pieces), (b"defg".into(), 7, true));
        assert_eq!(kept(Keep::Head, 0, &pieces), (vec![], 7, true));
    }

    #[test]
    fn text_is_cut_between_characters_and_other_bytes_anywhere() {
        let smile = "\u{1f600}".as_bytes();
        let text = [b"a", smile, b"b"].concat();
        for (most, head, tail) in [
            (1, &b"a"[..], &b"b"[..]),
            (2, b"a", b"b"),
            (4, b"a", b"b"),
            (5, &text[..5], &text[1..]),
        ] {
            assert_eq!(kept(Keep::Head, most, &[&text]).0, head, "{most}");
            assert_eq!(kept(Keep::Tail, most, &[&text]).0, tail, "{most}");
        }
        // What is whole stays, whatever it is.
        for whole in [&b"\x80x"[..], b"x\xf0", b"\xff"] {
            assert_eq!(kept(Keep::Head, 9, &[whole]).0, whole);
            assert_eq!(kept(Keep::Tail, 9, &[whole]).0, whole);
        }
        assert_eq!(kept(Keep::Tail, 2, &[b"x\xff\xff"]).0, b"\xff\xff");
        assert_eq!(kept(Keep::Head, 2, &[b"\xff\xffx"]).0, b"\xff\xff");
    }

    #[test]
    fn less_is_kept_where_the_tenant_may_hold_less_and_nothing_fails() {
        for keep in [Keep::Head, Keep::Tail] {
            let account = account(100 << 10);
            let mut kept = Kept::new(keep, 1 << 20, &account).unwrap();
            for n in 0..200u8 {
                kept.push(&[n; 1 << 10]);
            }
            assert_eq!(kept.all(), 200 << 10);
            assert!((60 << 10..=100 << 10).contains(&kept.kept()), "{keep:?} {}", kept.kept());
            let (first, last) = (kept.bytes()[0], kept.bytes().last().copied());
            match keep {
                Keep::Head => assert_eq!(first, 0),
                Keep::Tail => assert_eq!(last, Some(199)),
            }
            kept.shrink(10 << 10);
            assert!(kept.kept() == 10 << 10 && kept.is_cut());
            assert!(account.held() <= 11 << 10, "{}", account.held());
            kept.push(&[7; 1 << 10]);
            assert_eq!(kept.kept(), 10 << 10);
        }
    }
}
