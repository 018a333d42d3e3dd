//! A loss curve in characters: people would rather look than read.

use std::fmt::Write as _;

use super::metrics::MetricsLine;

/// Draws training loss (`·`, the mean of each column's steps) and held-out loss
/// (`●`) over the steps, `width` by `height` characters and a frame. Empty if
/// there is nothing to draw.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "characters; the conversions saturate"
)]
pub fn plot(lines: &[MetricsLine], width: usize, height: usize) -> String {
    let (width, height) = (width.clamp(8, 400), height.clamp(2, 100));
    let values = || {
        lines
            .iter()
            .flat_map(|line| [Some(line.loss), line.held_out])
            .flatten()
            .filter(|value| value.is_finite())
    };
    let (Some(first), Some(last)) = (lines.first(), lines.last()) else {
        return String::new();
    };
    let low = values().fold(f64::INFINITY, f64::min);
    let high = values().fold(f64::NEG_INFINITY, f64::max);
    if !low.is_finite() {
        return String::new();
    }
    let span = (high - low).max(1e-9);
    let steps = f64::from(last.step.saturating_sub(first.step)).max(1.0);
    let column = |step: u32| {
        let done = f64::from(step.saturating_sub(first.step)) / steps;
        ((done * (width - 1) as f64).round() as usize).min(width - 1)
    };
    let row = |value: f64| {
        let down = (high - value) / span * (height - 1) as f64;
        (down.round() as usize).min(height - 1)
    };
    let mut cells = vec![vec![' '; width]; height];
    let mut means = vec![(0.0_f64, 0_u32); width];
    for line in lines.iter().filter(|line| line.loss.is_finite()) {
        let mean = &mut means[column(line.step)];
        mean.0 += line.loss;
        mean.1 += 1;
    }
    for (at, (sum, n)) in means.iter().enumerate().filter(|(_, mean)| mean.1 > 0) {
        cells[row(sum / f64::from(*n))][at] = '·';
    }
    for line in lines {
        if let Some(held_out) = line.held_out.filter(|value| value.is_finite()) {
            cells[row(held_out)][column(line.step)] = '●';
        }
    }
    let mut out = String::new();
    for (at, line) in cells.iter().enumerate() {
        let value = high - span * at as f64 / (height - 1) as f64;
        let label = if at == 0 || at == height - 1 || at == height / 2 {
            format!("{value:>8.3}")
        } else {
            " ".repeat(8)
        };
        let text: String = line.iter().collect();
        let _ = writeln!(out, "{label} ┤{}", text.trim_end());
    }
    let _ = writeln!(out, "{} └{}", " ".repeat(8), "─".repeat(width));
    let left = format!("step {}", first.step);
    let right = format!("{}", last.step);
    let gap = width.saturating_sub(left.len() + right.len()).max(1);
    let _ = writeln!(out, "{} {left}{}{right}", " ".repeat(9), " ".repeat(gap));
    let _ = writeln!(out, "{} · training loss   ● held-out loss", " ".repeat(9));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: u32, loss: f64, held_out: Option<f64>) -> MetricsLine {
        MetricsLine {
            step,
            loss,
            held_out,
            ..MetricsLine::default()
        }
    }

    #[test]
    fn a_falling_loss_falls() {
        let lines: Vec<MetricsLine> = (1..=100)
            .map(|step| line(step, 4.0 - f64::from(step) / 50.0, None))
            .chain([line(101, 2.0, Some(3.0))])
            .collect();
        let drawn = plot(&lines, 40, 10);
        let rows: Vec<&str> = drawn.lines().collect();
        assert_eq!(rows.len(), 13);
        assert!(rows[0].starts_with("   3.980 ┤·"), "{drawn}");
        assert!(
            rows[9].starts_with("   2.000 ┤") && rows[9].ends_with('·'),
            "{drawn}"
        );
        assert_eq!(drawn.matches('●').count(), 2, "{drawn}");
    }

    #[test]
    fn whatever_there_is_can_be_drawn() {
        assert_eq!(plot(&[], 40, 10), "");
        assert_eq!(plot(&[line(1, f64::NAN, None)], 40, 10), "");
        assert!(plot(&[line(1, 2.0, None)], 0, 0).contains('·'));
        let _ = plot(
            &[line(u32::MAX, 2.0, None), line(0, 3.0, Some(f64::INFINITY))],
            1000,
            1000,
        );
    }
}
