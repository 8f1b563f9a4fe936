//! Requests over time, a strip for each workload.

use super::super::history::{Bucket, Line, Picture};
use super::super::text::counted;
use super::callers::MAX_ROWS;
use super::figure::{Bar, Piece, WIDTH, clean, grouped, moment, round};
use crate::record::SECOND;

pub(super) const HEIGHT: f64 = 40.0;

/// Marks on a time axis.
pub(super) const TICKS: u64 = 4;

/// Colors that distinguish requests, from the axis up: class and index in the order of `ImdsVersion`, then unknown.
pub(super) const COLOURS: [(&str, usize); 5] = [("v2", 1), ("token", 0), ("v1", 2), ("other", 3), ("other", 4)];

pub(super) struct Strip {
    pub(super) name: String,
    pub(super) caption: String,
    pub(super) label: String,
    pub(super) bars: Vec<Bar>,
}

pub(super) fn timeline(picture: &Picture) -> Vec<Strip> {
    let mut lines: Vec<_> = picture.lines.iter().collect();
    lines.sort_by(|a, b| b.1.requests.cmp(&a.1.requests).then_with(|| a.0.cmp(b.0)));
    lines
        .into_iter()
        .take(MAX_ROWS)
        .map(|(name, line)| strip(picture, name, line))
        .collect()
}

pub(super) fn strip(picture: &Picture, name: &str, line: &Line) -> Strip {
    let step = WIDTH / picture.shown() as f64;
    let peak = line.buckets.iter().map(Bucket::requests).max().unwrap_or(0);
    let of = |count: u64| HEIGHT * count as f64 / peak.max(1) as f64;
    let bars = line
        .buckets
        .iter()
        .enumerate()
        .filter(|(_, bucket)| bucket.requests() > 0);
    let bars = bars.map(|(at, bucket)| {
        let (x, width) = (round(at as f64 * step), round(step * 0.88));
        let mut pieces = Vec::new();
        let mut y = HEIGHT;
        let answered = COLOURS
            .iter()
            .map(|(class, version)| (*class, bucket.answered[*version]));
        for (class, count) in answered.chain([("failed", bucket.failed)]) {
            if count > 0 {
                let height = of(count).max(1.5);
                y = (y - height).max(0.0);
                pieces.push(Piece {
                    class,
                    x,
                    y: round(y),
                    width,
                    height: round(height),
                });
            }
        }
        let time = moment(picture.from.plus_ns(picture.width_ns.saturating_mul(at as u64)));
        Bar {
            label: format!(
                "{time}: {}, {} unanswered",
                counted(bucket.requests(), "request"),
                bucket.failed
            ),
            pieces,
        }
    });
    let names = ["token", "v2", "v1", "other", "unknown"];
    let versions = names.iter().zip(line.versions).filter(|(_, count)| *count > 0);
    let mut caption: Vec<String> = versions
        .map(|(name, count)| format!("{name} {}", grouped(count)))
        .collect();
    if line.failed > 0 {
        caption.push(format!("{} unanswered", grouped(line.failed)));
    }
    let caption = format!(
        "{}: {}; at most {} a bar",
        counted(line.requests, "request"),
        caption.join(", "),
        grouped(peak)
    );
    Strip {
        name: clean(name),
        label: format!("{}: {caption}", clean(name)),
        caption,
        bars: bars.collect(),
    }
}

/// Times below the pictures that have one for their axis.
pub(super) fn ticks(picture: &Picture) -> Vec<String> {
    let whole = picture.width_ns.saturating_mul(picture.shown() as u64);
    let ticks = (0..=TICKS).map(|tick| {
        let text = moment(
            picture
                .from
                .plus_ns((u128::from(whole) * u128::from(tick) / u128::from(TICKS)) as u64),
        );
        // The date is in the head; days are shown if there are several, seconds where they matter.
        match whole / SECOND {
            0..86_400 => text.get(11..19),
            _ => text.get(5..16),
        }
        .unwrap_or_default()
        .to_owned()
    });
    ticks.collect()
}
