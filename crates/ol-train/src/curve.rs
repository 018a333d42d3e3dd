//! Loss curves as CSV and as a picture.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::trainer::Rewards;

/// One measured point of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Steps done.
    pub step: u32,
    /// Tokens seen so far.
    pub tokens: u64,
    /// Learning rate of the last step.
    pub learning_rate: f32,
    /// Mean training loss since the point before, nats a token.
    pub loss: f64,
    /// Held-out loss, nats a token.
    pub held_out: f64,
    /// Held-out rewards, where examples are preferences.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewards: Option<Rewards>,
}

/// The points as CSV with a header line.
#[must_use]
pub fn curve_csv(points: &[CurvePoint]) -> String {
    let mut out = "step,tokens,learning_rate,train_loss,held_out_loss\n".to_owned();
    for p in points {
        let _ = writeln!(
            out,
            "{},{},{:.6},{:.5},{:.5}",
            p.step, p.tokens, p.learning_rate, p.loss, p.held_out
        );
    }
    out
}

/// Both losses over the tokens seen, as an SVG picture.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "pixels")]
pub fn curve_svg(title: &str, points: &[CurvePoint]) -> String {
    const LEFT: f64 = 60.0;
    const TOP: f64 = 40.0;
    const WIDTH: f64 = 600.0;
    const HEIGHT: f64 = 300.0;
    let most_tokens = points.iter().map(|p| p.tokens).max().unwrap_or(1).max(1) as f64;
    let values = || {
        points
            .iter()
            .flat_map(|p| [p.loss, p.held_out])
            .filter(|v| v.is_finite())
    };
    let low = values().fold(f64::INFINITY, f64::min).min(1e9).floor();
    let high = values().fold(low + 1.0, f64::max).ceil();
    let x = |tokens: f64| LEFT + WIDTH * tokens / most_tokens;
    let y = |loss: f64| TOP + HEIGHT * (high - loss) / (high - low);
    let escaped = title.replace('&', "&amp;").replace('<', "&lt;");
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 700 400\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"700\" height=\"400\" fill=\"#fff\"/>\n<text x=\"{LEFT}\" y=\"24\" font-size=\"14\">{escaped}</text>\n"
    );
    for i in 0..=4 {
        let (loss, tokens) = (
            low + (high - low) * f64::from(i) / 4.0,
            most_tokens * f64::from(i) / 4.0,
        );
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
             <text x=\"52\" y=\"{:.1}\" text-anchor=\"end\">{loss:.2}</text>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{:.2}M</text>",
            LEFT + WIDTH,
            y(loss) + 4.0,
            x(tokens),
            TOP + HEIGHT + 18.0,
            tokens / 1e6,
            y = y(loss),
        );
    }
    for (name, color, at, of) in [
        (
            "training",
            "#9aa5b1",
            0.0,
            (|p: &CurvePoint| p.loss) as fn(&CurvePoint) -> f64,
        ),
        ("held out", "#b4530a", 90.0, |p: &CurvePoint| p.held_out),
    ] {
        let line: Vec<String> = points
            .iter()
            .filter(|p| of(p).is_finite())
            .map(|p| format!("{:.1},{:.1}", x(p.tokens as f64), y(of(p))))
            .collect();
        let _ = writeln!(
            out,
            "<polyline fill=\"none\" stroke=\"{color}\" stroke-width=\"2\" points=\"{}\"/>\
             <text x=\"{:.1}\" y=\"56\" fill=\"{color}\">{name}</text>",
            line.join(" "),
            LEFT + WIDTH - 170.0 + at,
        );
    }
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">tokens seen (loss in nats a token)</text>\n</svg>",
        LEFT + WIDTH / 2.0,
        TOP + HEIGHT + 40.0
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_and_svg_hold_every_point() {
        let point = |step: u32| CurvePoint {
            step,
            tokens: u64::from(step) * 100,
            learning_rate: 0.001,
            loss: 3.0 - f64::from(step) / 10.0,
            held_out: 3.1 - f64::from(step) / 10.0,
            rewards: None,
        };
        let points = [point(1), point(2), point(3)];
        assert_eq!(
            curve_csv(&points).lines().nth(2),
            Some("2,200,0.001000,2.80000,2.90000")
        );
        let svg = curve_svg("a < b", &points);
        assert!(
            svg.contains("a &lt; b")
                && svg.matches("polyline").count() == 2
                && !svg.contains("NaN")
        );
        assert!(!curve_svg("empty", &[]).contains("NaN"));
    }
}
