//! The HTML of a report.

use std::fmt::Write;

use crate::machine::Machine;
use crate::table::Table;

/// A part of a report.
#[derive(Debug, Clone)]
pub enum Block {
    /// A heading.
    Heading(String),
    /// A paragraph.
    Text(String),
    /// A table.
    Table(Table),
    /// A plot.
    Figure {
        /// An SVG element, as the functions of [`super::plot`] make it.
        svg: String,
        /// Caption that says what it shows.
        caption: String,
    },
}

/// Report as a page.
#[derive(Debug, Clone)]
pub struct Page {
    /// Title of the page.
    pub title: String,
    /// Description of what was measured, in a sentence or two.
    pub lead: String,
    /// Machine it was measured on.
    pub machine: Machine,
    /// Blocks of the result.
    pub blocks: Vec<Block>,
}

const STYLE: &str = "
:root { color-scheme: light; }
body { margin: 2.5rem auto; max-width: 68rem; padding: 0 1.25rem; color: #1c2430; background: #fff;
       font: 16px/1.55 system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .4rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
p { margin: .5rem 0; max-width: 46rem; }
.lead { color: #4a5566; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; margin: 1.2rem 0; padding: .9rem 1.1rem;
     background: #f5f7fa; border-radius: 8px; font-size: .92rem; }
dt { color: #5b6675; } dd { margin: 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { padding: .32rem .75rem; text-align: right; border-bottom: 1px solid #e4e8ee; white-space: nowrap; }
th { color: #5b6675; font-weight: 600; } th:first-child, td:first-child { text-align: left; padding-left: 0; }
figure { margin: 1rem 0 1.6rem; } figure svg { width: 100%; height: auto; display: block; }
figcaption { color: #5b6675; font-size: .9rem; margin-top: .2rem; }
";

/// Text as HTML.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

impl Page {
    /// Renders the whole file. It loads nothing from anywhere.
    pub fn html(&self) -> String {
        let mut html = String::new();
        // Writing to a string cannot fail.
        let _ = write!(
            html,
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n<meta name=\"viewport\" \
             content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n<style>{STYLE}</style></head>\n\
             <body>\n<h1>{title}</h1>\n<p class=\"lead\">{lead}</p>\n<dl>",
            title = escape(&self.title),
            lead = escape(&self.lead),
        );
        for (name, value) in self.machine.lines() {
            let _ = write!(html, "<dt>{}</dt><dd>{}</dd>", escape(name), escape(&value));
        }
        html.push_str("</dl>\n");
        for block in &self.blocks {
            let _ = match block {
                Block::Heading(text) => writeln!(html, "<h2>{}</h2>", escape(text)),
                Block::Text(text) => writeln!(html, "<p>{}</p>", escape(text)),
                Block::Table(table) => writeln!(html, "{}", rows(table)),
                Block::Figure { svg, caption } => {
                    writeln!(
                        html,
                        "<figure>{svg}<figcaption>{}</figcaption></figure>",
                        escape(caption)
                    )
                }
            };
        }
        html.push_str("</body></html>\n");
        html
    }
}

fn rows(table: &Table) -> String {
    let line = |cells: &[String], tag: &str| {
        let cells: String =
            cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let body: String = table.rows.iter().map(|row| line(row, "td")).collect();
    format!(
        "<div class=\"wide\"><table><thead>{}</thead><tbody>\n{body}</tbody></table></div>",
        line(&table.head, "th")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_and_nothing_is_loaded() {
        let mut table = Table::new(["a<b", "p50"]);
        table.row(["<script>".to_owned(), "1".to_owned()]);
        let page = Page {
            title: "A & B".to_owned(),
            lead: String::new(),
            machine: Machine::look(),
            blocks: vec![Block::Heading("x > y".to_owned()), Block::Table(table)],
        };
        let html = page.html();
        assert!(html.contains("<h1>A &amp; B</h1>") && html.contains("<h2>x &gt; y</h2>"));
        assert!(html.contains("<th>a&lt;b</th>") && html.contains("<td>&lt;script&gt;</td>"));
        assert!(!html.contains("<script") && !html.contains("http"));
    }
}
