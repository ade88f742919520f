//! The plot: small bar charts beside each other, as one SVG.

use std::fmt::Write;

use super::{cells::FIGURES, peers::Kind, results::Results, table::number};

const PLOTTED: [&str; 9] = [
    "h1-cpu",
    "latency-p50",
    "latency-p99",
    "tls-new-cpu",
    "down-cpu",
    "websocket-cpu",
    "idle-h1",
    "idle-tls",
    "idle-websocket",
];
const COLUMNS: usize = 3;
const PANEL_WIDTH: f64 = 300.0;
const BAR_HEIGHT: f64 = 16.0;
const BAR_STEP: f64 = 21.0;
const TITLE_HEIGHT: f64 = 34.0;
const LABEL_WIDTH: f64 = 92.0;
/// For the number behind the longest bar.
const NUMBER_WIDTH: f64 = 52.0;
const MARGIN: f64 = 14.0;
const OURS: &str = "#c2410c";
const THEIRS: &str = "#94a3b8";

struct Panel {
    title: String,
    bars: Vec<(Kind, f64, usize)>,
}

fn panels(results: &Results) -> Vec<Panel> {
    let figures = PLOTTED.into_iter().filter_map(|id| FIGURES.into_iter().find(|figure| figure.id == id));
    let panels = figures.map(|figure| {
        let added = figure.id.starts_with("latency");
        let value = |kind| match added {
            true => results.added(kind, Kind::Direct, figure.id).filter(|_| kind != Kind::Direct),
            false => results.median(kind, figure.id),
        };
        let bars =
            Kind::ALL.into_iter().filter_map(|kind| Some((kind, value(kind)?.max(0.0), figure.digits)));
        // A title that goes on from the row before it does not stand alone.
        let title = match figure.id {
            "h1-cpu" => "CPU per h1 request (µs)",
            "latency-p50" => "added latency, 400 req/s, p50 (µs)",
            "latency-p99" => "added latency, 400 req/s, p99 (µs)",
            "tls-new-cpu" => "CPU per new TLS connection (µs)",
            "down-cpu" => "CPU per 1 MiB body down (µs)",
            "websocket-cpu" => "CPU per WebSocket echo (µs)",
            "idle-h1" => "memory per idle h1 connection (KiB)",
            "idle-tls" => "memory per idle TLS connection (KiB)",
            "idle-websocket" => "memory per idle WebSocket (KiB)",
            other => other,
        };
        Panel { title: title.to_owned(), bars: bars.collect() }
    });
    panels.filter(|panel| !panel.bars.is_empty()).collect()
}

fn draw(svg: &mut String, panel: &Panel, left: f64, top: f64) -> std::fmt::Result {
    let longest = panel.bars.iter().map(|(_, value, _)| *value).fold(f64::MIN_POSITIVE, f64::max);
    let title = &panel.title;
    writeln!(svg, r#"<text x="{left}" y="{}" font-weight="600">{title}</text>"#, top + 18.0)?;
    for (row, (kind, value, digits)) in panel.bars.iter().enumerate() {
        let y = top + TITLE_HEIGHT + BAR_STEP * row as f64;
        let text_y = y + BAR_HEIGHT - 4.0;
        let bar_left = left + LABEL_WIDTH;
        let width = (PANEL_WIDTH - LABEL_WIDTH - NUMBER_WIDTH) * value / longest;
        let color = if *kind == Kind::Gateway { OURS } else { THEIRS };
        let label = kind.name();
        writeln!(svg, r#"<text x="{}" y="{text_y}" text-anchor="end">{label}</text>"#, bar_left - 6.0)?;
        writeln!(
            svg,
            r#"<rect x="{bar_left}" y="{y}" width="{width:.1}" height="{BAR_HEIGHT}" fill="{color}"/>"#
        )?;
        let number = number(*value, *digits);
        writeln!(svg, r#"<text x="{:.1}" y="{text_y}">{number}</text>"#, bar_left + width + 5.0)?;
    }
    Ok(())
}

/// Less is better in all of them.
pub(crate) fn render(results: &Results) -> String {
    let panels = panels(results);
    let bars = panels.iter().map(|panel| panel.bars.len()).max().unwrap_or(0);
    let panel_height = TITLE_HEIGHT + BAR_STEP * bars as f64 + MARGIN;
    let rows = panels.len().div_ceil(COLUMNS);
    let width = MARGIN + (PANEL_WIDTH + MARGIN) * COLUMNS as f64;
    let height = MARGIN + panel_height * rows as f64;
    let mut svg = String::new();
    // Writing to a String can't fail.
    let _ = writeln!(
        svg,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" font-family="system-ui, sans-serif" font-size="12" fill="#1e293b">
<rect width="{width}" height="{height}" fill="#ffffff"/>"##
    );
    for (index, panel) in panels.iter().enumerate() {
        let left = MARGIN + (PANEL_WIDTH + MARGIN) * (index % COLUMNS) as f64;
        let top = MARGIN / 2.0 + panel_height * (index / COLUMNS) as f64;
        let _ = draw(&mut svg, panel, left, top);
    }
    svg.push_str("</svg>\n");
    svg
}
