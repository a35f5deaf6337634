//! What was measured, as a page of Markdown and as curves.

use std::fmt::Write;

/// The figures of one server over what is varied.
#[derive(Debug, Clone)]
pub struct Curve {
    pub name: String,
    /// The varied number, and the CPU time for each in microseconds.
    pub points: Vec<(f64, f64)>,
}

/// One figure.
#[derive(Debug, Clone)]
pub struct Chart {
    pub file: &'static str,
    pub title: &'static str,
    /// What is varied.
    pub axis: &'static str,
    /// What takes the CPU time.
    pub each: &'static str,
    pub curves: Vec<Curve>,
}

impl Chart {
    /// Of the CPU time of a query, without curves as yet.
    pub fn of_queries(file: &'static str, title: &'static str, axis: &'static str) -> Self {
        Self { file, title, axis, each: "query", curves: Vec::new() }
    }

    /// As a table: a row for each server, a column for each value of what is varied.
    pub fn table(&self) -> String {
        let places = self.places();
        let mut text =
            format!("\n### {}\n\nCPU time per {}, in microseconds.\n\n| {} |", self.title, self.each, self.axis);
        for place in &places {
            let _ = write!(text, " {} |", grouped(*place));
        }
        text += "\n|---|";
        text += &"---:|".repeat(places.len());
        for curve in &self.curves {
            let _ = write!(text, "\n| {} |", curve.name);
            for place in &places {
                let _ = match curve.points.iter().find(|point| point.0 == *place) {
                    Some((_, micros)) => write!(text, " {micros:.2} |"),
                    None => write!(text, " |"),
                };
            }
        }
        text + "\n"
    }

    /// As a drawing: both axes grow by factors, so that what grows in proportion is a slanted line.
    pub fn svg(&self) -> String {
        let places = self.places();
        let values = || self.curves.iter().flat_map(|curve| curve.points.iter().map(|point| point.1));
        let (least, most) = (values().fold(f64::MAX, f64::min), values().fold(f64::MIN, f64::max));
        let floor = [0.5, 1.0, 2.0, 5.0, 10.0].into_iter().rfind(|&floor| floor <= least).unwrap_or(0.1);
        let x = |place: f64| {
            let (first, last) = (places[0].ln(), places[places.len() - 1].ln());
            LEFT + (place.ln() - first) / (last - first).max(f64::EPSILON) * (WIDTH - LEFT - RIGHT)
        };
        let y = |micros: f64| {
            let share = (micros / floor).ln() / (most * 1.1 / floor).ln();
            HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
        };
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"13\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n<text x=\"{LEFT}\" y=\"22\" font-size=\"16\">{}</text>\n",
            self.title
        );
        let bottom = HEIGHT - BOTTOM;
        for tick in [0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0]
            .into_iter()
            .filter(|t| (floor..most * 1.1).contains(t))
        {
            let (at, right) = (y(tick), WIDTH - RIGHT);
            let _ = writeln!(
                svg,
                "<path d=\"M{LEFT} {at:.1}H{right}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{tick}</text>",
                LEFT - 8.0,
                at + 4.0
            );
        }
        for &place in &places {
            let at = x(place);
            let _ = writeln!(
                svg,
                "<path d=\"M{at:.1} {bottom}v5\" stroke=\"#555\"/><text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                bottom + 20.0,
                grouped(place)
            );
        }
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {TOP}V{bottom}H{}\" fill=\"none\" stroke=\"#555\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n\
             <text transform=\"translate(16 {:.1}) rotate(-90)\" text-anchor=\"middle\">CPU time per {}, us</text>",
            WIDTH - RIGHT,
            (LEFT + WIDTH - RIGHT) / 2.0,
            HEIGHT - 8.0,
            self.axis,
            (TOP + bottom) / 2.0,
            self.each
        );
        let mut labels: Vec<(f64, &Curve, &str)> = Vec::new();
        for (curve, color) in self.curves.iter().zip(COLORS.iter().cycle()) {
            let color = if curve.name == super::peers::LIMIT { LIMIT_COLOR } else { color };
            let Some(last) = curve.points.last() else { continue };
            let points: Vec<String> = curve.points.iter().map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1))).collect();
            let _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"{}\"/>",
                points.join(" "),
                if curve.name == super::peers::WATERSHED { 3 } else { 1 }
            );
            labels.push((y(last.1), curve, color));
        }
        // Names that would overlap move down.
        labels.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut free = f64::MIN;
        for (at, curve, color) in labels {
            let at = at.max(free);
            free = at + 15.0;
            let weight = if curve.name == super::peers::WATERSHED { "bold" } else { "normal" };
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{color}\" font-weight=\"{weight}\">{}</text>",
                WIDTH - RIGHT + 8.0,
                at + 4.0,
                curve.name
            );
        }
        svg + "</svg>\n"
    }

    fn places(&self) -> Vec<f64> {
        let mut places: Vec<f64> =
            self.curves.iter().flat_map(|curve| curve.points.iter().map(|point| point.0)).collect();
        places.sort_by(f64::total_cmp);
        places.dedup();
        places
    }
}

/// The one in the middle; of none there is none.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// A whole number with its thousands apart.
pub fn grouped(number: f64) -> String {
    let digits = format!("{:.0}", number.abs());
    let mut text = String::from(if number <= -0.5 { "-" } else { "" });
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 36.0;
const BOTTOM: f64 = 50.0;
/// Watershed's comes first.
const COLORS: [&str; 7] = ["#0b5cad", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#be123c", "#0f766e"];
const LIMIT_COLOR: &str = "#666666";
