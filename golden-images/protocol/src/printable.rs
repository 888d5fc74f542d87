//! Text of the other end, made safe for a terminal and a log.

use std::fmt::{self, Write as _};

/// Characters of the other end's text that are shown at most.
pub const MAX_SHOWN: usize = 4096;

/// Shows `text` without what could steer the terminal it is shown on: control characters (ECMA-48),
/// other than tab and end of line, and those that change the direction of writing (Unicode annex 9)
/// are written as escapes. What is too long is cut.
#[derive(Clone, Copy, Debug)]
pub struct Printable<'a>(pub &'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut characters = self.0.chars();
        for character in characters.by_ref().take(MAX_SHOWN) {
            if is_printable(character) {
                f.write_char(character)?;
            } else {
                write!(f, "{}", character.escape_unicode())?;
            }
        }
        if characters.next().is_some() { f.write_str("...") } else { Ok(()) }
    }
}

/// Returns whether a character only shows itself, or moves to the next column or line.
pub fn is_printable(character: char) -> bool {
    let directs = matches!(character, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    matches!(character, '\n' | '\t') || !(character.is_control() || directs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_steers_a_terminal_is_escaped_and_nothing_else() {
        let shown = Printable("a\x1b[2J\u{9b}31m\r\u{7f}\u{202e}\n\tü").to_string();
        assert_eq!(shown, "a\\u{1b}[2J\\u{9b}31m\\u{d}\\u{7f}\\u{202e}\n\tü");
        assert_eq!(
            Printable(&"x".repeat(2 * MAX_SHOWN)).to_string(),
            format!("{}...", "x".repeat(MAX_SHOWN))
        );
    }

    proptest! {
        #[test]
        fn what_is_shown_is_printable_and_bounded(text: String) {
            let shown = Printable(&text).to_string();
            prop_assert!(shown.chars().all(is_printable));
            prop_assert!(shown.chars().count() <= 10 * MAX_SHOWN + 3);
        }
    }
}
