//! A Markdown table whose columns also line up in a terminal.

use std::fmt;

/// One cell.
#[derive(Debug)]
pub(super) struct Cell(String);

impl Cell {
    pub(super) fn text(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// A number with so many decimals, or `-` if there is none.
    pub(super) fn number(number: Option<f64>, decimals: usize) -> Self {
        Self(number.map_or_else(|| "-".to_owned(), |number| format!("{number:.decimals$}")))
    }
}

/// Rows of cells under a heading; the first column is a name, the others are numbers.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(super) fn new(heading: &[&str]) -> Self {
        Self { rows: vec![heading.iter().map(|text| Cell::text(text)).collect()] }
    }

    pub(super) fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    fn widths(&self) -> Vec<usize> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row: &Vec<Cell>| Some(row.get(column)?.0.len())).max().unwrap_or(0)
        };
        (0..columns).map(width).collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        for (index, row) in self.rows.iter().enumerate() {
            for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                match column {
                    0 => write!(f, "| {:<width$} |", cell.0)?,
                    _ => write!(f, " {:>width$} |", cell.0)?,
                }
            }
            writeln!(f)?;
            if index == 0 {
                for (column, &width) in widths.iter().enumerate() {
                    match column {
                        0 => write!(f, "|-{:-<width$}-|", "")?,
                        _ => write!(f, "-{:-<width$}:|", "")?,
                    }
                }
                writeln!(f)?;
            }
        }
        Ok(())
    }
}
