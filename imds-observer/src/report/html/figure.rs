//! Parts that the figures share: sizes, bars, and numbers as text.

use super::super::escape::Escaped;
use super::super::text;
use crate::record::{SECOND, Time};

/// Width of the figures, in their own units.
pub(super) const WIDTH: f64 = 720.0;

pub(super) const TALL: f64 = 140.0;

pub(super) const SMALL: f64 = 160.0;

/// A bar of a picture.
pub(super) struct Bar {
    pub(super) label: String,
    pub(super) pieces: Vec<Piece>,
}

pub(super) struct Piece {
    pub(super) class: &'static str,
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) width: f64,
    pub(super) height: f64,
}

/// A line across a picture.
pub(super) struct Mark {
    pub(super) x: f64,
    pub(super) label: String,
}

/// Hours and days, where seconds are too many to read.
pub(super) fn long_span(ns: u64) -> String {
    let hours = ns as f64 / (3600.0 * SECOND as f64);
    match hours {
        0.0..2.0 => text::span(ns),
        2.0..72.0 => format!("{hours:.1} h"),
        _ => format!("{:.1} days", hours / 24.0),
    }
}

/// To the millisecond, which suffices in a page.
pub(super) fn moment(time: Time) -> String {
    let text = time.to_string();
    match (text.get(..10), text.get(11..23)) {
        (Some(date), Some(clock)) => format!("{date} {} UTC", clock.strip_suffix(".000").unwrap_or(clock)),
        _ => text,
    }
}

/// Digits by threes.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

pub(super) fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

pub(super) fn clean(text: &str) -> String {
    Escaped(text).to_string()
}
