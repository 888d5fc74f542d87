//! A report as a page of HTML that needs nothing else.

use std::fmt::Write as _;

use super::{Report, Verdict};

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#222}\
table{border-collapse:collapse;margin:.8rem 0;width:100%}td,th{border:1px solid #ccc;padding:.25rem .5rem;text-align:left;\
vertical-align:top;overflow-wrap:anywhere}.held{color:#176b2c}.breach,.notproven{color:#b00020;font-weight:bold}.na{color:#666}\
.warning{border-left:4px solid #b00020;padding-left:.8rem}";

impl Report {
    /// Renders the report as one HTML page.
    pub fn to_html(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = self.write_html(&mut text);
        text
    }

    fn write_html(&self, out: &mut String) -> std::fmt::Result {
        let golden = escape(&self.golden);
        write!(
            out,
            "<!doctype html><html lang=en><meta charset=utf-8><title>Escape audit of {golden}</title>"
        )?;
        write!(out, "<style>{STYLE}</style><h1>Escape audit of golden image {golden}</h1>")?;
        let outcome = if self.passed() { ("held", "Passed.") } else { ("breach", "FAILED.") };
        write!(out, "<p><b class={}>{}</b> {}.", outcome.0, outcome.1, escape(&self.summary()))?;
        write!(out, "<p>Began {}, took {:.0} s.<table>", escape(&self.began), self.seconds)?;
        let host = &self.host;
        for (name, value) in [
            ("kernel", &host.kernel),
            ("VMM", &host.vmm),
            ("accelerator", &host.accel),
            ("cgroups", &host.cgroups),
        ] {
            write!(out, "<tr><th>{name}<td>{}", escape(value))?;
        }
        write!(out, "<tr><th>processors<td>{}</table>", host.processors)?;
        for warning in &host.warnings {
            write!(out, "<p class=warning>{}", escape(warning))?;
        }
        write!(out, "<table><tr><th>Check<th>Threat<th>From<th>Verdict<th>Attempts")?;
        for check in &self.checks {
            let id = escape(&check.id);
            write!(
                out,
                "<tr><td><a href=\"#{id}\">{id}</a><td>{}<td>{}",
                check.threat, check.vantage
            )?;
            write!(
                out,
                "<td class={}>{}<td>{}",
                class(check.verdict),
                check.verdict,
                check.attempts.len()
            )?;
        }
        write!(out, "</table>")?;
        for check in &self.checks {
            let id = escape(&check.id);
            write!(
                out,
                "<h2 id=\"{id}\">{id}: <span class={}>{}</span></h2>",
                class(check.verdict),
                check.verdict
            )?;
            write!(out, "<p>{}", escape(&check.tried))?;
            write!(
                out,
                "<p>From: {}. Threat: {}. {:.1} s.",
                check.vantage, check.threat, check.seconds
            )?;
            write!(out, "<p>Control: {}", escape(&check.control))?;
            for note in &check.notes {
                write!(out, "<p>{}", escape(note))?;
            }
            write!(out, "<table><tr><th>Tried<th>Control<th>Attack<th>Verdict")?;
            for attempt in &check.attempts {
                write!(out, "<tr><td>{}<td>{}", escape(&attempt.what), escape(&attempt.control))?;
                write!(out, "<td>{}", escape(&attempt.seen))?;
                write!(out, "<td class={}>{}", class(attempt.verdict), attempt.verdict)?;
            }
            write!(out, "</table>")?;
        }
        writeln!(out)
    }
}

fn class(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::NotApplicable => "na",
        Verdict::Held => "held",
        Verdict::NotProven => "notproven",
        Verdict::Breach => "breach",
    }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
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
        assert_eq!(escape("<b a=\"1\">&\n"), "&lt;b a=&quot;1&quot;&gt;&amp; ");
    }
}
