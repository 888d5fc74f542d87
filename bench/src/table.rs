//! Tables of figures, for a terminal.

/// A table: the first column is text, the others are figures.
#[derive(Debug, Clone, Default)]
pub struct Table {
    /// Names of the columns.
    pub head: Vec<String>,
    /// Rows, each with one entry for each column.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// Creates an empty table with these columns.
    pub fn new<const N: usize>(head: [&str; N]) -> Self {
        Self { head: head.map(str::to_owned).to_vec(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lines = || std::iter::once(&self.head).chain(&self.rows);
        let width = |at: usize| {
            lines().filter_map(|l| l.get(at)).map(|c| c.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        for line in lines() {
            for (at, (cell, width)) in line.iter().zip(&widths).enumerate() {
                match at {
                    0 => write!(f, "{cell:<width$}")?,
                    _ => write!(f, "  {cell:>width$}")?,
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// Formats a figure with as many decimals as it deserves.
pub fn figure(value: f64) -> String {
    match value.abs() {
        v if v >= 1000.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["name", "p50"]);
        table.row(["a longer name".to_owned(), figure(1234.5)]);
        table.row(["×".to_owned(), figure(0.5)]);
        assert_eq!(
            table.to_string(),
            "name            p50\na longer name  1234\n×              0.50\n"
        );
    }
}
