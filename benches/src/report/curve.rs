//! The curve as a picture: CPU time per request by the size of the body, a line for each proxy, a panel for each kind of body.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Record, first_seen, median, traffic};
use crate::point::{Over, Point};

/// Size of a panel, and what of it is for axes and heading (pixels).
const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 36.0;
/// Panels in a row.
const COLUMNS: usize = 2;
/// Colours that are told apart in print and by those who see few of them; the first is that of the subject.
const COLOURS: [&str; 7] = ["#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];

/// What has a panel of its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    over: Over,
    upload: bool,
    chunked: bool,
    connections: usize,
}

impl Kind {
    fn of(point: Point) -> Kind {
        let Point { over, upload, chunked, connections, .. } = point;
        Kind { over, upload, chunked, connections }
    }

    fn title(self) -> String {
        let what = if self.upload { "uploads" } else { "responses" };
        let framing = if self.chunked { "in chunks" } else { "with a length" };
        let how = match self.over {
            Over::Clear => "clear text",
            Over::Tls => "TLS",
            Over::Tcp => "through TCP listeners",
        };
        format!("{what} {framing}, {how}, {} connections", self.connections)
    }
}

/// Of each proxy, sizes with what they cost.
type Lines<'a> = BTreeMap<&'a str, Vec<(usize, f64)>>;

/// The picture of all points that were measured at two sizes at least; `None` where there are none.
pub(super) fn svg(records: &[Record]) -> Option<String> {
    let peers = first_seen(records.iter().map(|record| record.peer.as_str()));
    let cpu = traffic(|found| found.cpu_us);
    let mut costs: BTreeMap<(Kind, &str, usize), Vec<f64>> = BTreeMap::new();
    for record in records {
        if let (Ok(point), Some(cost)) = (record.case.parse::<Point>(), cpu(&record.finding)) {
            costs.entry((Kind::of(point), &record.peer, point.size)).or_default().push(cost);
        }
    }
    let mut panels: BTreeMap<Kind, Lines<'_>> = BTreeMap::new();
    for ((kind, peer, size), costs) in costs {
        let line = panels.entry(kind).or_default().entry(peer).or_default();
        line.extend(median(costs).map(|cost| (size, cost)));
    }
    panels.retain(|_, lines| lines.values().any(|line| line.len() > 1));
    if panels.is_empty() {
        return None;
    }
    let rows = panels.len().div_ceil(COLUMNS);
    let columns = panels.len().min(COLUMNS);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{:.0}\" height=\"{:.0}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        WIDTH * columns as f64,
        HEIGHT * rows as f64
    );
    for (place, (kind, lines)) in panels.iter().enumerate() {
        let (x, y) = ((place % COLUMNS) as f64 * WIDTH, (place / COLUMNS) as f64 * HEIGHT);
        let _ = writeln!(text, "<g transform=\"translate({x:.0} {y:.0})\">");
        panel(&mut text, &kind.title(), lines, &peers);
        text.push_str("</g>\n");
    }
    text.push_str("</svg>\n");
    Some(text)
}

/// Both axes are logarithmic.
fn panel(text: &mut String, title: &str, lines: &Lines<'_>, peers: &[&str]) {
    let all = || lines.values().flatten();
    let sizes = all().map(|(size, _)| (*size).max(1) as f64);
    let range = |(low, high): (f64, f64), value: f64| (low.min(value), high.max(value));
    let (least, most) = sizes.fold((f64::INFINITY, 1.0), range);
    let costs = all().map(|(_, cost)| cost.max(0.1));
    let (low, high) = costs.fold((f64::INFINITY, 0.1), range);
    let place = |value: f64, from: f64, to: f64| (value.ln() - from.ln()) / (to.ln() - from.ln()).max(1e-9);
    let x = |size: usize| LEFT + place(size.max(1) as f64, least, most) * (WIDTH - LEFT - RIGHT);
    let y = |cost: f64| HEIGHT - BOTTOM - place(cost.max(0.1), low, high) * (HEIGHT - TOP - BOTTOM);
    let _ = writeln!(text, "<text x=\"{LEFT}\" y=\"16\" font-size=\"13\">{title}</text>");
    let _ = writeln!(text, "<text x=\"4\" y=\"{:.0}\">CPU us</text>", TOP - 8.0);
    for tick in [1.0, 2.0, 5.0].iter().flat_map(|unit| (0..5).map(move |power| unit * 10_f64.powi(power))) {
        if (low..=high).contains(&tick) {
            let at = y(tick);
            let _ = writeln!(
                text,
                "<line x1=\"{LEFT}\" x2=\"{:.0}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/><text x=\"{:.0}\" \
                 y=\"{:.1}\" text-anchor=\"end\">{tick}</text>",
                WIDTH - RIGHT,
                LEFT - 4.0,
                at + 4.0
            );
        }
    }
    let mut named: Vec<usize> = all().map(|(size, _)| *size).collect();
    named.sort_unstable();
    named.dedup();
    for size in named {
        let name =
            Point { over: Over::Clear, upload: false, size, chunked: false, connections: 64 }.to_string();
        let name = name.trim_start_matches("down_");
        let _ = writeln!(
            text,
            "<text x=\"{:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{name}</text>",
            x(size),
            HEIGHT - BOTTOM + 16.0
        );
    }
    let drawn: Vec<&&str> = peers.iter().filter(|peer| lines.contains_key(**peer)).collect();
    for (number, peer) in drawn.iter().enumerate() {
        let colour = COLOURS[peers.iter().position(|it| it == *peer).unwrap_or(0) % COLOURS.len()];
        let line = &lines[**peer];
        let points: Vec<String> =
            line.iter().map(|(size, cost)| format!("{:.1},{:.1}", x(*size), y(*cost))).collect();
        let width = if number == 0 { 2.5 } else { 1.5 };
        let _ = writeln!(
            text,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" points=\"{}\"/>",
            points.join(" ")
        );
        let _ = writeln!(
            text,
            "<text x=\"{:.0}\" y=\"32\" fill=\"{colour}\">{peer}</text>",
            LEFT + number as f64 * 64.0
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generator::Handshakes;
    use crate::measure::{Finding, Traffic};

    fn record(case: &str, peer: &str, cpu_us: f64) -> Record {
        let found = Traffic {
            requests: 1,
            seconds: 1.0,
            rate: 1.0,
            cpu_us: Some(cpu_us),
            user_share: None,
            busy: None,
            ends_us: 1.0,
            sleeps: None,
            ring: None,
            p50_us: 1.0,
            p99_us: 1.0,
            p999_us: 1.0,
            p9999_us: 1.0,
            most_us: 1.0,
            renewed: 0,
            handshakes: Handshakes::default(),
            resumed_share: None,
        };
        let (case, peer, fault_kinds) = (case.to_owned(), peer.to_owned(), String::new());
        Record { case, peer, round: 0, finding: Finding::Traffic(found), faults: 0, fault_kinds }
    }

    #[test]
    fn each_kind_of_body_has_a_panel_and_each_proxy_a_line() {
        let mut records = Vec::new();
        for peer in ["kakehi", "nginx"] {
            for (case, cost) in
                [("down_16", 5.0), ("down_64k", 25.0), ("tls_up_1k", 9.0), ("tls_up_1m", 400.0)]
            {
                records.push(record(case, peer, cost));
            }
        }
        let picture = svg(&records).unwrap();
        assert_eq!(picture.matches("<polyline").count(), 4, "{picture}");
        assert!(picture.contains("responses with a length, clear text, 64 connections"), "{picture}");
        assert!(picture.contains("uploads with a length, TLS, 64 connections"), "{picture}");
        assert!(picture.contains(">64k</text>") && !picture.contains("NaN"), "{picture}");
    }

    #[test]
    fn other_cases_and_single_points_are_no_curve() {
        assert!(svg(&[record("ka64", "kakehi", 5.0), record("down_16", "kakehi", 5.0)]).is_none());
    }
}
