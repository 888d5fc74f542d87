//! A report as Markdown.

use std::fmt::Write as _;

use super::{CheckReport, Report};

impl Report {
    /// Renders the report as Markdown: the host, a table of all checks, then each check with its
    /// evidence.
    pub fn to_markdown(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = self.write_markdown(&mut text);
        text
    }

    fn write_markdown(&self, text: &mut String) -> std::fmt::Result {
        writeln!(text, "# Escape audit of golden image `{}`\n", cell(&self.golden))?;
        writeln!(
            text,
            "**{}** {}.\n",
            if self.passed() { "Passed." } else { "FAILED." },
            self.summary()
        )?;
        writeln!(text, "Began {}, took {:.0} s.\n", self.began, self.seconds)?;
        writeln!(text, "| Host | |\n|---|---|")?;
        for (name, value) in [
            ("kernel", self.host.kernel.as_str()),
            ("VMM", &self.host.vmm),
            ("accelerator", &self.host.accel),
            ("cgroups", &self.host.cgroups),
        ] {
            writeln!(text, "| {name} | {} |", cell(value))?;
        }
        writeln!(text, "| processors | {} |\n", self.host.processors)?;
        for warning in &self.host.warnings {
            writeln!(text, "> **Warning:** {warning}\n")?;
        }
        writeln!(
            text,
            "*Held*: every attempt failed, and the control of each shows that it could have succeeded. *NOT PROVEN*: a control \
             did not behave as expected, so the outcome means nothing. *BREACH*: an attempt succeeded.\n"
        )?;
        writeln!(text, "| Check | Threat | From | Verdict | Attempts |\n|---|---|---|---|---:|")?;
        for check in &self.checks {
            let CheckReport { id, threat, vantage, verdict, attempts, .. } = check;
            writeln!(text, "| `{id}` | {threat} | {vantage} | {verdict} | {} |", attempts.len())?;
        }
        for check in &self.checks {
            write_check(text, check)?;
        }
        Ok(())
    }
}

fn write_check(text: &mut String, check: &CheckReport) -> std::fmt::Result {
    writeln!(text, "\n## {}: {}\n", check.id, check.verdict)?;
    writeln!(text, "{}\n", check.tried)?;
    writeln!(text, "- From: {}. Threat: {}. {:.1} s.", check.vantage, check.threat, check.seconds)?;
    writeln!(text, "- Control: {}\n", check.control)?;
    for note in &check.notes {
        writeln!(text, "- {}", cell(note))?;
    }
    if !check.notes.is_empty() {
        writeln!(text)?;
    }
    writeln!(text, "| Tried | Control | Attack | Verdict |\n|---|---|---|---|")?;
    for attempt in &check.attempts {
        writeln!(
            text,
            "| {} | {} | {} | {} |",
            cell(&attempt.what),
            cell(&attempt.control),
            cell(&attempt.seen),
            attempt.verdict
        )?;
    }
    Ok(())
}

/// Text for a table's cell: nothing in it is markup, for parts of it come from a guest.
fn cell(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '|' | '\\' | '`' | '*' | '_' | '[' | ']' | '#' | '!' => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_says_is_no_markup() {
        assert_eq!(cell("a|b\n<script>`"), "a\\|b &lt;script&gt;\\`");
    }
}
