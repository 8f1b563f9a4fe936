//! The distribution of latencies.

use super::super::history::{LATENCIES, Picture, latency_from};
use super::super::text::{self, counted};
use super::figure::{Bar, Mark, Piece, TALL, WIDTH, round};

/// Bars of the latency picture, at least.
pub(super) const LEAST_LATENCIES: usize = 16;

pub(super) fn latency(picture: &Picture) -> (Vec<Bar>, Vec<String>, Vec<Mark>) {
    let used = |count: &u64| *count > 0;
    let (Some(first), Some(last)) = (
        picture.latencies.iter().position(used),
        picture.latencies.iter().rposition(used),
    ) else {
        return (Vec::new(), Vec::new(), Vec::new());
    };
    // Some room on both sides.
    let from = first.saturating_sub(2);
    let to = (last + 3).max(from + LEAST_LATENCIES).min(LATENCIES);
    let peak = picture.latencies.iter().copied().max().unwrap_or(0);
    let step = WIDTH / (to - from) as f64;
    let bars = (from..to).filter(|place| picture.latencies[*place] > 0).map(|place| {
        let count = picture.latencies[place];
        let height = (TALL * count as f64 / peak.max(1) as f64).max(1.5);
        let low = text::span(latency_from(place));
        let range = if place + 1 == LATENCIES {
            format!("above {low}")
        } else {
            format!("{low} to {}", text::span(latency_from(place + 1)))
        };
        Bar {
            label: format!("{range}: {}", counted(count, "answer")),
            pieces: vec![Piece {
                class: "v2",
                x: round((place - from) as f64 * step),
                y: round(TALL - height),
                width: round(step * 0.92),
                height: round(height),
            }],
        }
    });
    let axis = (0..=4).map(|part| text::span(latency_from(from + (to - from) * part / 4)));
    let at = |ns: u64| {
        let place = if ns < 1000 {
            0.0
        } else {
            1.0 + (ns as f64 / 1000.0).log2() * 4.0
        };
        round(((place - from as f64) * step).clamp(0.0, WIDTH))
    };
    let marks = [("median", 0.5), ("p99", 0.99)].map(|(name, quantile)| {
        let ns = picture.latency.value_at_quantile(quantile).min(picture.latency.max());
        Mark {
            x: at(ns),
            label: format!("{name} {}", text::span(ns)),
        }
    });
    (bars.collect(), axis.collect(), marks.into())
}

pub(super) fn latency_caption(picture: &Picture) -> String {
    let latency = &picture.latency;
    if latency.is_empty() {
        return "no responses".to_owned();
    }
    let at = |quantile| text::span(latency.value_at_quantile(quantile).min(latency.max()));
    format!(
        "{}, median {}, 90 % within {}, 99 % within {}",
        counted(latency.len(), "answer"),
        at(0.5),
        at(0.9),
        at(0.99)
    )
}
