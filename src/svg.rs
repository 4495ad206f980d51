//! Words of SVG pictures that every plot writes.

use std::fmt::Write;

/// Colour of words.
pub const INK: &str = "#1d2630";

/// Colour of words that explain.
pub const GREY: &str = "#6b7580";

/// Colour of lines behind a plot.
pub const LINES: &str = "#e3e7eb";

/// The beginning of a picture on white; [`end`] is its end.
pub fn begin(width: f64, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"Inter, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif\" font-size=\"12.5\" fill=\"{INK}\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    )
}

/// Ends a picture.
pub fn end(svg: &mut String) {
    svg.push_str("</svg>\n");
}

/// A line of text; what comes from model files cannot become markup.
pub fn text(svg: &mut String, x: f64, y: f64, attributes: &str, text: &str) {
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => clean.push_str("&amp;"),
            '<' => clean.push_str("&lt;"),
            '>' => clean.push_str("&gt;"),
            c if c.is_control() => clean.push('?'),
            c => clean.push(c),
        }
    }
    // Writing to a `String` cannot fail.
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{clean}</text>"
    );
}

/// A title with a line that explains it.
pub fn title(svg: &mut String, title: &str, subtitle: &str) {
    text(
        svg,
        28.0,
        40.0,
        "font-size=\"21\" font-weight=\"600\"",
        title,
    );
    let place = format!("fill=\"{GREY}\" font-size=\"13.5\"");
    text(svg, 28.0, 62.0, &place, subtitle);
}
