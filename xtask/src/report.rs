//! Tables for people.

/// Prints rows under a header, columns as wide as they need to be. The first `left` columns are flush left.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>], left: usize) {
    let columns = header.len();
    let width = |i: usize| {
        let cells = rows.iter().filter_map(|row| row.get(i)).map(|cell| cell.chars().count());
        cells.chain([header[i].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |cells: &[String]| {
        let mut text = String::new();
        for (i, cell) in cells.iter().enumerate() {
            let pad = " ".repeat(widths[i].saturating_sub(cell.chars().count()));
            text += &if i < left { format!("{cell}{pad}  ") } else { format!("{pad}{cell}  ") };
        }
        println!("{}", text.trim_end());
    };
    line(&header.iter().map(|h| (*h).to_owned()).collect::<Vec<_>>());
    println!("{}", "-".repeat(widths.iter().sum::<usize>() + 2 * (columns - 1)));
    rows.iter().for_each(|row| line(row));
}
