//! Progress on the terminal: a bar for each step with what, how much and how long left.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use mayfly_engine::progress::{Progress, Silent, Unit};
use mayfly_protocol::Printable;
use parking_lot::Mutex;

use super::args::Cli;
use super::lines::Lines;

const BYTES: &str = "{prefix:>20} {bar:30.cyan/blue} {bytes}/{total_bytes} {bytes_per_sec} {eta} left {wide_msg:.dim}";
const ITEMS: &str = "{prefix:>20} {bar:30.cyan/blue} {pos}/{len} {eta} left {wide_msg:.dim}";
const UNKNOWN: &str = "{prefix:>20} {spinner} {elapsed} {wide_msg:.dim}";

/// Progress that is shown to somebody.
pub trait Shown: Progress {
    /// Shows a line of its own at once, whatever step goes on.
    fn say(&self, line: &str);
}

impl Shown for Silent {
    fn say(&self, _: &str) {}
}

/// Returns the progress that a command shows: none with `--json` or `--quiet`, bars on a terminal,
/// else plain lines.
pub fn for_command(cli: &Cli) -> Arc<dyn Shown> {
    if cli.json || cli.quiet {
        Arc::new(Silent)
    } else if std::io::stderr().is_terminal() {
        Arc::new(Bars::default())
    } else {
        Arc::new(Lines::new())
    }
}

#[derive(Default)]
struct Bars {
    current: Mutex<Option<(String, Instant, ProgressBar)>>,
}

impl Bars {
    fn with(&self, f: impl FnOnce(&ProgressBar)) {
        if let Some((_, _, bar)) = &*self.current.lock() {
            f(bar);
        }
    }

    fn replace(&self, next: Option<(String, Instant, ProgressBar)>) {
        let previous = std::mem::replace(&mut *self.current.lock(), next);
        if let Some((step, begun, bar)) = previous {
            bar.finish_and_clear();
            eprintln!("{step:>20} done in {}", seconds(begun.elapsed()));
        }
    }
}

fn style(total: Option<u64>, unit: Unit) -> ProgressStyle {
    let template = match (total, unit) {
        (Some(_), Unit::Bytes) => BYTES,
        (Some(_), Unit::Items) => ITEMS,
        (None, _) => UNKNOWN,
    };
    // The templates are constants that the tests parse.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Progress for Bars {
    fn begin(&self, step: &str, total: Option<u64>, unit: Unit) {
        let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
        self.replace(Some((step.to_owned(), Instant::now(), bar.clone())));
        bar.set_style(style(total, unit));
        bar.set_prefix(step.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
    }

    fn total(&self, total: Option<u64>) {
        self.with(|bar| {
            if let Some(total) = total {
                if bar.length().is_none() {
                    bar.set_style(style(Some(total), Unit::Items));
                }
                bar.set_length(total);
            }
        });
    }

    fn advance(&self, done: u64) {
        self.with(|bar| bar.set_position(done));
    }

    fn detail(&self, line: &str) {
        // It may be a recipe's, and the bar passes escape sequences on.
        self.with(|bar| bar.set_message(Printable(line).to_string()));
    }

    fn end(&self) {
        self.replace(None);
    }
}

impl Shown for Bars {
    fn say(&self, line: &str) {
        match &*self.current.lock() {
            // Above the bar, which is drawn again.
            Some((_, _, bar)) => bar.println(line),
            None => eprintln!("{line}"),
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        // A step that was cut off is not done.
        self.with(ProgressBar::finish_and_clear);
    }
}

/// A time as people read it.
pub(super) fn seconds(elapsed: Duration) -> String {
    format!("{:.1} s", elapsed.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detail_steers_no_terminal() {
        let bars = Bars::default();
        bars.begin("packages", None, Unit::Items);
        bars.detail("\x1b]0;owned\x07libc6\x1b[2J");
        bars.with(|bar| assert_eq!(bar.message(), "\\u{1b}]0;owned\\u{7}libc6\\u{1b}[2J"));
        bars.end();
    }

    #[test]
    fn all_templates_parse() {
        for template in [BYTES, ITEMS, UNKNOWN] {
            ProgressStyle::with_template(template).unwrap();
        }
    }
}
